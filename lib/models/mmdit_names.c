/* Where the layouts of published files have the parameters. */
#include "models/mmdit.h"

#include "core/error.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Scopes, and the files' prefixes of blocks. */
static const char *const prefixes[HDI_MMDIT_SECTIONS][HDI_MMDIT_LAYOUTS] = {
    [HDI_MMDIT_DOUBLE] = {"double_blocks", "transformer_blocks", "double_blocks", "double_blocks"},
    [HDI_MMDIT_SINGLE] = {"single_blocks", "single_transformer_blocks", "single_blocks",
                          "single_blocks"},
    [HDI_MMDIT_REFINER] = {"txt_in.individual_token_refiner.blocks",
                           "context_embedder.token_refiner.refiner_blocks",
                           "txt_in.individual_token_refiner.blocks",
                           "txt_in.individual_token_refiner.blocks"},
};

/* A parameter or layer, and the tensors that hold it: several, one below another, between bars. */
typedef struct entry {
    hdi_mmdit_section section;
    const char *name, *file[HDI_MMDIT_LAYOUTS];
} entry;

#define SORA(name) name, name

static const entry entries[] = {
    {HDI_MMDIT_ENDS, "img_in.proj", {"img_in.proj", "x_embedder.proj", SORA("img_in")}},
    {HDI_MMDIT_ENDS,
     "time_in.mlp.0",
     {"time_in.mlp.0", "time_text_embed.timestep_embedder.linear_1", SORA("time_in.in_layer")}},
    {HDI_MMDIT_ENDS,
     "time_in.mlp.2",
     {"time_in.mlp.2", "time_text_embed.timestep_embedder.linear_2", SORA("time_in.out_layer")}},
    {HDI_MMDIT_ENDS,
     "vector_in.in_layer",
     {"vector_in.in_layer", "time_text_embed.text_embedder.linear_1", SORA("vector_in.in_layer")}},
    {HDI_MMDIT_ENDS,
     "vector_in.out_layer",
     {"vector_in.out_layer", "time_text_embed.text_embedder.linear_2",
      SORA("vector_in.out_layer")}},
    {HDI_MMDIT_ENDS,
     "guidance_in.mlp.0",
     {"guidance_in.mlp.0", "time_text_embed.guidance_embedder.linear_1",
      SORA("guidance_in.in_layer")}},
    {HDI_MMDIT_ENDS,
     "guidance_in.mlp.2",
     {"guidance_in.mlp.2", "time_text_embed.guidance_embedder.linear_2",
      SORA("guidance_in.out_layer")}},
    {HDI_MMDIT_ENDS,
     "txt_in.input_embedder",
     {"txt_in.input_embedder", "context_embedder.proj_in", SORA("txt_in")}},
    {HDI_MMDIT_ENDS,
     "txt_in.t_embedder.mlp.0",
     {"txt_in.t_embedder.mlp.0", "context_embedder.time_text_embed.timestep_embedder.linear_1"}},
    {HDI_MMDIT_ENDS,
     "txt_in.t_embedder.mlp.2",
     {"txt_in.t_embedder.mlp.2", "context_embedder.time_text_embed.timestep_embedder.linear_2"}},
    {HDI_MMDIT_ENDS,
     "txt_in.c_embedder.linear_1",
     {"txt_in.c_embedder.linear_1", "context_embedder.time_text_embed.text_embedder.linear_1"}},
    {HDI_MMDIT_ENDS,
     "txt_in.c_embedder.linear_2",
     {"txt_in.c_embedder.linear_2", "context_embedder.time_text_embed.text_embedder.linear_2"}},
    {HDI_MMDIT_ENDS, "cond_in", {"cond_in", NULL, SORA("cond_in")}},
    {HDI_MMDIT_ENDS, "cond_in.bias", {"cond_in.bias", NULL, SORA("cond_in.bias")}},
    /* In diffusers' files the scale stands above the shift. */
    {HDI_MMDIT_ENDS,
     "final_layer.adaLN_modulation.1",
     {"final_layer.adaLN_modulation.1", "norm_out.linear|norm_out.linear",
      SORA("final_layer.adaLN_modulation.1")}},
    {HDI_MMDIT_ENDS,
     "final_layer.linear",
     {"final_layer.linear", "proj_out", SORA("final_layer.linear")}},

    {HDI_MMDIT_DOUBLE, "img_mod.linear", {"img_mod.linear", "norm1.linear", SORA("img_mod.lin")}},
    {HDI_MMDIT_DOUBLE,
     "txt_mod.linear",
     {"txt_mod.linear", "norm1_context.linear", SORA("txt_mod.lin")}},
    {HDI_MMDIT_DOUBLE,
     "img_attn_qkv",
     {"img_attn_qkv", "attn.to_q|attn.to_k|attn.to_v", "img_attn.qkv",
      "img_attn.q_proj|img_attn.k_proj|img_attn.v_proj"}},
    {HDI_MMDIT_DOUBLE,
     "txt_attn_qkv",
     {"txt_attn_qkv", "attn.add_q_proj|attn.add_k_proj|attn.add_v_proj", "txt_attn.qkv",
      "txt_attn.q_proj|txt_attn.k_proj|txt_attn.v_proj"}},
    {HDI_MMDIT_DOUBLE,
     "img_attn_q_norm.weight",
     {"img_attn_q_norm.weight", "attn.norm_q.weight", SORA("img_attn.norm.query_norm.scale")}},
    {HDI_MMDIT_DOUBLE,
     "img_attn_k_norm.weight",
     {"img_attn_k_norm.weight", "attn.norm_k.weight", SORA("img_attn.norm.key_norm.scale")}},
    {HDI_MMDIT_DOUBLE,
     "txt_attn_q_norm.weight",
     {"txt_attn_q_norm.weight", "attn.norm_added_q.weight",
      SORA("txt_attn.norm.query_norm.scale")}},
    {HDI_MMDIT_DOUBLE,
     "txt_attn_k_norm.weight",
     {"txt_attn_k_norm.weight", "attn.norm_added_k.weight", SORA("txt_attn.norm.key_norm.scale")}},
    {HDI_MMDIT_DOUBLE, "img_attn_proj", {"img_attn_proj", "attn.to_out.0", SORA("img_attn.proj")}},
    {HDI_MMDIT_DOUBLE,
     "txt_attn_proj",
     {"txt_attn_proj", "attn.to_add_out", SORA("txt_attn.proj")}},
    {HDI_MMDIT_DOUBLE, "img_mlp.fc1", {"img_mlp.fc1", "ff.net.0.proj", SORA("img_mlp.0")}},
    {HDI_MMDIT_DOUBLE, "img_mlp.fc2", {"img_mlp.fc2", "ff.net.2", SORA("img_mlp.2")}},
    {HDI_MMDIT_DOUBLE, "txt_mlp.fc1", {"txt_mlp.fc1", "ff_context.net.0.proj", SORA("txt_mlp.0")}},
    {HDI_MMDIT_DOUBLE, "txt_mlp.fc2", {"txt_mlp.fc2", "ff_context.net.2", SORA("txt_mlp.2")}},

    {HDI_MMDIT_SINGLE,
     "modulation.linear",
     {"modulation.linear", "norm.linear", SORA("modulation.lin")}},
    {HDI_MMDIT_SINGLE,
     "linear1_qkv",
     {"linear1", "attn.to_q|attn.to_k|attn.to_v", "linear1", "q_proj|k_proj|v_mlp"}},
    {HDI_MMDIT_SINGLE, "linear1_mlp", {"linear1", "proj_mlp", "linear1", "v_mlp"}},
    {HDI_MMDIT_SINGLE, "linear2_attn", {"linear2", "proj_out", SORA("linear2")}},
    {HDI_MMDIT_SINGLE, "linear2_mlp", {"linear2", "proj_out", SORA("linear2")}},
    {HDI_MMDIT_SINGLE,
     "q_norm.weight",
     {"q_norm.weight", "attn.norm_q.weight", SORA("norm.query_norm.scale")}},
    {HDI_MMDIT_SINGLE,
     "k_norm.weight",
     {"k_norm.weight", "attn.norm_k.weight", SORA("norm.key_norm.scale")}},

    {HDI_MMDIT_REFINER, "norm1.weight", {"norm1.weight", "norm1.weight"}},
    {HDI_MMDIT_REFINER, "norm1.bias", {"norm1.bias", "norm1.bias"}},
    {HDI_MMDIT_REFINER, "norm2.weight", {"norm2.weight", "norm2.weight"}},
    {HDI_MMDIT_REFINER, "norm2.bias", {"norm2.bias", "norm2.bias"}},
    {HDI_MMDIT_REFINER, "self_attn_qkv", {"self_attn_qkv", "attn.to_q|attn.to_k|attn.to_v"}},
    {HDI_MMDIT_REFINER, "self_attn_proj", {"self_attn_proj", "attn.to_out.0"}},
    {HDI_MMDIT_REFINER, "mlp.fc1", {"mlp.fc1", "ff.net.0.proj"}},
    {HDI_MMDIT_REFINER, "mlp.fc2", {"mlp.fc2", "ff.net.2"}},
    {HDI_MMDIT_REFINER, "adaLN_modulation.1", {"adaLN_modulation.1", "norm_out.linear"}},
};

/* The layer that a block is; the text's refiner goes with the first. */
static int layer_of(const hdi_mmdit_build *b)
{
    if (b->section == HDI_MMDIT_REFINER) return b->stage->first_layer;
    return b->block + (b->section == HDI_MMDIT_SINGLE ? (int)b->config->double_blocks : 0);
}

void hdi_mmdit_begin(hdi_mmdit_build *b, hdi_mmdit_section section, int block)
{
    b->section = section;
    b->block = block;
    hd_scope_begin(b->p, "%s.%d", prefixes[section][HDI_MMDIT_ORIGINAL], block);
    if (b->p->training && hd_stage_recomputes(b->stage, layer_of(b))) hd_scope_recompute(b->p);
}

void hdi_mmdit_end(hdi_mmdit_build *b)
{
    hd_scope_end(b->p);
    b->section = HDI_MMDIT_ENDS;
}

/* What files call it, with bars; the name itself where a layout has none of its own. */
static const char *file_names(const hdi_mmdit_build *b, const char *name)
{
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        const char *file = entries[i].file[b->config->layout];
        if (entries[i].section == b->section && strcmp(entries[i].name, name) == 0 && file)
            return file;
    }
    return name;
}

/* Cut "a|b|c" into names of files' tensors, absolute; returns how many. */
static int cut_names(const hdi_mmdit_build *b, const char *list, char out[HD_MAX_PARTS][128])
{
    int count = 0;
    for (const char *at = list; at && count < HD_MAX_PARTS; count++) {
        const char *bar = strchr(at, '|');
        const int length = bar ? (int)(bar - at) : (int)strlen(at);
        if (b->section == HDI_MMDIT_ENDS)
            snprintf(out[count], 128, "/%.*s", length, at);
        else
            snprintf(out[count], 128, "/%s.%d.%.*s", prefixes[b->section][b->config->layout],
                     b->block, length, at);
        at = bar ? bar + 1 : NULL;
    }
    return count;
}

static void block_of(hd_linear_part *part, int64_t rows, int64_t columns, int64_t first_output,
                     int64_t first_input)
{
    part->file_rank = 2;
    part->file_dims[0] = rows;
    part->file_dims[1] = columns;
    part->first_output = first_output;
    part->first_input = first_input;
}

/* Parts that are blocks of larger tensors, or have other dims in files. */
static void place(const hdi_mmdit_build *b, const char *name, hd_linear_options *layer)
{
    const hdi_mmdit_config *c = b->config;
    const int64_t hidden = c->hidden, inner = c->inner;
    const bool one = layer->parts == 1;
    hd_linear_part *first = &layer->part[0];
    if (strcmp(name, "linear1_qkv") == 0 && one) block_of(first, 3 * hidden + inner, hidden, 0, 0);
    if (strcmp(name, "linear1_mlp") == 0 && c->layout == HDI_MMDIT_SEPARATE)
        block_of(first, hidden + inner, hidden, hidden, 0);
    else if (strcmp(name, "linear1_mlp") == 0 && c->layout != HDI_MMDIT_DIFFUSERS)
        block_of(first, 3 * hidden + inner, hidden, 3 * hidden, 0);
    if (strcmp(name, "linear1_qkv") == 0 && c->layout == HDI_MMDIT_SEPARATE)
        block_of(&layer->part[2], hidden + inner, hidden, 0, 0);
    if (strcmp(name, "linear2_attn") == 0) block_of(first, hidden, hidden + inner, 0, 0);
    if (strcmp(name, "linear2_mlp") == 0) block_of(first, hidden, hidden + inner, 0, hidden);
    if (strcmp(name, "final_layer.adaLN_modulation.1") == 0 && !one) {
        block_of(&layer->part[0], 2 * hidden, hidden, hidden, 0);
        block_of(&layer->part[1], 2 * hidden, hidden, 0, 0);
    }
    if (strcmp(name, "img_in.proj") == 0 && c->layout <= HDI_MMDIT_DIFFUSERS) {
        const int64_t dims[] = {hidden, c->channels, c->patch[0], c->patch[1], c->patch[2]};
        first->file_rank = 5; /* a Conv3d */
        memcpy(first->file_dims, dims, sizeof dims);
    }
}

void hdi_mmdit_layer_of(const hdi_mmdit_build *b, const char *name, int64_t inputs, int64_t outputs,
                        hdi_mmdit_layer *out)
{
    *out = (hdi_mmdit_layer){.options = {.name = name, .outputs = outputs, .bias = true}};
    hd_linear_options *layer = &out->options;
    layer->parts = cut_names(b, file_names(b, name), out->names);
    for (int i = 0; i < layer->parts; i++)
        layer->part[i] = (hd_linear_part){.name = out->names[i], .outputs = outputs / layer->parts};
    place(b, name, layer);
    layer->std = 1 / sqrt((double)inputs);
}

hd_tensor hdi_mmdit_vector(hdi_mmdit_build *b, const char *name, hd_init init, int rank,
                           int64_t columns)
{
    char names[HD_MAX_PARTS][128];
    cut_names(b, file_names(b, name), names);
    hd_parameter_options options = {.name = name,
                                    .rank = rank,
                                    .dims = {columns},
                                    .init = init,
                                    .parts = 1,
                                    .part = {{.name = names[0], .rows = columns}}};
    if (rank == 2) {
        options.dims[0] = options.part[0].rows = 1;
        options.dims[1] = columns;
        options.part[0].file_rank = 1;
        options.part[0].file_dims[0] = columns;
    }
    return hd_parameter(b->p, &options);
}

const char *hdi_mmdit_layout_name(hdi_mmdit_layout layout)
{
    static const char *const names[] = {"original", "diffusers", "fused", "separate"};
    return names[layout];
}

/* A tensor that only files of that layout have. */
static const char *const marks[] = {
    "double_blocks.0.img_attn_qkv.weight", "transformer_blocks.0.attn.add_q_proj.weight",
    "double_blocks.0.img_attn.qkv.weight", "double_blocks.0.img_attn.q_proj.weight"};

static const char *first_match(const hdi_weights *weights, int first)
{
    for (int layout = first; layout < first + 2; layout++)
        if (hdi_weights_find(weights, marks[layout], NULL))
            return hdi_mmdit_layout_name((hdi_mmdit_layout)layout);
    return NULL;
}

const char *hdi_mmdit_hunyuan_layout(const hdi_weights *weights)
{
    return first_match(weights, HDI_MMDIT_ORIGINAL);
}

const char *hdi_mmdit_open_sora_layout(const hdi_weights *weights)
{
    return first_match(weights, HDI_MMDIT_FUSED);
}

hd_status hdi_mmdit_match(void *user, const hdi_weights *weights)
{
    hdi_mmdit_config *config = user;
    const int first = config->layout <= HDI_MMDIT_DIFFUSERS ? HDI_MMDIT_ORIGINAL : HDI_MMDIT_FUSED;
    for (int layout = first; layout < first + 2; layout++) {
        if (!hdi_weights_find(weights, marks[layout], NULL)) continue;
        config->layout = (hdi_mmdit_layout)layout;
        return HD_OK;
    }
    return hdi_error(
        HD_ERROR_FORMAT, "%s: holds neither \"%s\" (layout %s) nor \"%s\" (layout %s), want one",
        hdi_weights_path(weights), marks[first], hdi_mmdit_layout_name((hdi_mmdit_layout)first),
        marks[first + 1], hdi_mmdit_layout_name((hdi_mmdit_layout)(first + 1)));
}
