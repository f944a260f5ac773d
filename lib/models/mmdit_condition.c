/* What depends on noise level, text and guidance only: the conditioning vector, the refined text, and
 * the tables that blocks are modulated by. */
#include "models/mmdit.h"

#include "ops/ops.h"
#include "ops/tensor_axis.h"

#include <stdio.h>

hd_tensor hdi_mmdit_linear(hdi_mmdit_build *b, hd_tensor x, const char *name, int64_t outputs)
{
    const hd_tensor_info *info = hd_tensor_get(b->p, x);
    if (!info) return (hd_tensor){0};
    hdi_mmdit_layer layer;
    hdi_mmdit_layer_of(b, name, info->dims[info->rank - 1], outputs, &layer);
    return hd_linear(b->p, x, &layer.options);
}

/* Two layers with silu between them. */
static hd_tensor embed(hdi_mmdit_build *b, hd_tensor x, const char *first, const char *second)
{
    const int64_t hidden = b->config->hidden;
    return hdi_mmdit_linear(b, hd_silu(b->p, hdi_mmdit_linear(b, x, first, hidden)), second,
                            hidden);
}

static hd_tensor input(hdi_mmdit_build *b, const char *name, int rank, int64_t rows,
                       int64_t columns)
{
    const hd_tensor seen = hd_tensor_find(b->p, name);
    const int64_t dims[] = {rows, columns};
    return seen.id ? seen : hd_input(b->p, name, HD_DTYPE_F32, rank, dims);
}

/* The noise level, 1 to 0, counts as a time of 1000 to 0. */
static hd_tensor embed_time(hdi_mmdit_build *b, const char *first, const char *second)
{
    const hd_sinusoid_options options = {.columns = HDI_MMDIT_SINUSOID, .scale = 1000};
    const hd_tensor time = input(b, "time", 1, b->entries, 0);
    return embed(b, hd_sinusoid(b->p, time, &options), first, second);
}

/* To the entries' rows what each sequence has, or what all steps share. */
static hd_tensor add_shared(hdi_mmdit_build *b, hd_tensor x, hd_tensor shared)
{
    return b->entries == b->stage->sequences ? hd_add(b->p, x, shared)
                                             : hd_add_rows(b->p, x, shared);
}

hd_tensor hdi_mmdit_conditioning(hdi_mmdit_build *b)
{
    const hdi_mmdit_config *config = b->config;
    const int64_t sequences = b->stage->sequences;
    hd_tensor x = embed_time(b, "time_in.mlp.0", "time_in.mlp.2");
    if (config->pooled_columns) {
        const hd_tensor pooled = input(b, "pooled", 2, sequences, config->pooled_columns);
        x = add_shared(
            b, x, embed(b, hd_cast(b->p, pooled), "vector_in.in_layer", "vector_in.out_layer"));
    }
    if (config->guidance) {
        const hd_sinusoid_options options = {.columns = HDI_MMDIT_SINUSOID};
        const hd_tensor guidance = input(b, "guidance", 1, sequences, 0);
        x = add_shared(b, x,
                       embed(b, hd_sinusoid(b->p, guidance, &options), "guidance_in.mlp.0",
                             "guidance_in.mlp.2"));
    }
    return hd_silu(b->p, x);
}

hd_tensor hdi_mmdit_modulation(hdi_mmdit_build *b, const char *name, int64_t vectors)
{
    static const char *const scopes[] = {"", "double_blocks", "single_blocks", ""};
    const int64_t hidden = b->config->hidden, dims[] = {1, vectors * hidden};
    char whole[128];
    if (b->section == HDI_MMDIT_ENDS)
        snprintf(whole, sizeof whole, "modulation.%s", name);
    else
        snprintf(whole, sizeof whole, "modulation.%s.%d.%s", scopes[b->section], b->block, name);
    if (b->stage->purpose == HD_PURPOSE_DENOISE) return hd_input(b->p, whole, b->p->dtype, 2, dims);
    hdi_mmdit_layer layer;
    hdi_mmdit_layer_of(b, name, hidden, vectors * hidden, &layer);
    layer.options.std = -1; /* blocks start as the identity (adaLN-zero, arXiv 2212.09748) */
    layer.options.split = HD_SPLIT_COLUMNS;
    const hd_tensor table = hdi_tensor_all_columns(b->p, hd_linear(b->p, b->vector, &layer.options),
                                                   vectors * hidden, 1);
    return b->stage->purpose == HD_PURPOSE_CONDITION ? hd_output(b->p, table, whole) : table;
}

/* Layer norm with weights, of the text's refiner. */
static hd_tensor norm(hdi_mmdit_build *b, hd_tensor x, const char *weight, const char *bias)
{
    const int64_t hidden = b->config->hidden;
    const hd_tensor scale = hdi_mmdit_vector(b, weight, HD_INIT_ONES, 1, hidden);
    const hd_tensor shift = hdi_mmdit_vector(b, bias, HD_INIT_ZEROS, 1, hidden);
    return hdi_norm(b->p, HDI_LAYER_NORM, 1e-6F, x, (hd_tensor){0}, scale, shift, NULL);
}

static hd_tensor refine(hdi_mmdit_build *b, int block, hd_tensor x, hd_tensor vector)
{
    const hdi_mmdit_config *config = b->config;
    const int64_t hidden = config->hidden;
    hdi_mmdit_begin(b, HDI_MMDIT_REFINER, block);
    hd_modulation gate = {.table = hdi_mmdit_linear(b, vector, "adaLN_modulation.1", 2 * hidden),
                          .rows_per_group = b->text,
                          .shift = -1,
                          .scale = -1};
    hd_tensor h = norm(b, x, "norm1.weight", "norm1.bias");
    h = hd_attention(b->p, hdi_mmdit_linear(b, h, "self_attn_qkv", 3 * hidden),
                     &(hd_attention_options){.heads = config->heads,
                                             .head_dim = config->head_dim,
                                             .tokens = b->text,
                                             .counts = b->text_counts});
    x = hd_gated_add(b->p, x, hdi_mmdit_linear(b, h, "self_attn_proj", hidden), &gate);
    gate.gate = hidden;
    h = norm(b, x, "norm2.weight", "norm2.bias");
    h = hd_silu(b->p, hdi_mmdit_linear(b, h, "mlp.fc1", config->inner));
    x = hd_gated_add(b->p, x, hdi_mmdit_linear(b, h, "mlp.fc2", hidden), &gate);
    hdi_mmdit_end(b);
    return x;
}

/* The same text once for each step. */
static hd_tensor repeat(hdi_mmdit_build *b, hd_tensor x)
{
    if (b->entries == b->stage->sequences) return x;
    const hd_tensor rows =
        hd_positions(b->p, (hd_tensor){0}, b->entries * b->text, b->text, b->text);
    return hd_embedding_op(b->p, rows, x);
}

hd_tensor hdi_mmdit_text(hdi_mmdit_build *b)
{
    const hdi_mmdit_config *config = b->config;
    const int64_t sequences = b->stage->sequences;
    const hd_tensor text = input(b, "text", 2, sequences * b->text, config->text_columns);
    hd_tensor x = hdi_mmdit_linear(b, hd_cast(b->p, text), "txt_in.input_embedder", config->hidden);
    if (!config->refiner_blocks) return x;
    const hd_tensor mean = hd_cast(b->p, hd_mean_rows(b->p, text, b->text_counts, sequences));
    hd_tensor vector = embed_time(b, "txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2");
    vector = add_shared(b, vector,
                        embed(b, mean, "txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2"));
    vector = hd_silu(b->p, vector);
    x = repeat(b, x);
    for (int i = 0; i < config->refiner_blocks; i++)
        x = refine(b, i, x, vector);
    return x;
}
