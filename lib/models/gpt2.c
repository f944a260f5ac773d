/* GPT-2 (Radford et al., 2019): learned positions, layer norm before each half of a block, GELU. */
#include "models/model.h"

#include "core/error.h"
#include "nn/nn.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static hd_status read_activation(const json_t *object, hdi_model_config *out)
{
    const char *name = "gelu_new";
    HD_RETURN_IF_ERROR(hdi_model_read_string(object, "activation_function", &name));
    out->gelu_tanh = strcmp(name, "gelu_new") == 0 || strcmp(name, "gelu_pytorch_tanh") == 0;
    if (out->gelu_tanh || strcmp(name, "gelu") == 0) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "model config: \"activation_function\" is \"%s\", want \"gelu_new\", "
                     "\"gelu_pytorch_tanh\" or \"gelu\"",
                     name);
}

static hd_status read_gpt2(const json_t *object, void *config)
{
    hdi_model_config *out = config;
    *out = (hdi_model_config){.epsilon = 1e-5, .tied = true, .init_std = 0.02};
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "vocab_size", true, &out->vocab));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "n_positions", true, &out->max_tokens));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "n_embd", true, &out->hidden));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "n_layer", true, &out->layers));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "n_head", true, &out->heads));
    out->inner = 4 * out->hidden;
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "n_inner", false, &out->inner));
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "layer_norm_epsilon", &out->epsilon));
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "initializer_range", &out->init_std));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "tie_word_embeddings", &out->tied));
    HD_RETURN_IF_ERROR(hdi_model_require_bool(object, "scale_attn_weights", true));
    HD_RETURN_IF_ERROR(hdi_model_require_bool(object, "scale_attn_by_inverse_layer_idx", false));
    HD_RETURN_IF_ERROR(hdi_model_require_bool(object, "add_cross_attention", false));
    HD_RETURN_IF_ERROR(read_activation(object, out));
    if (out->hidden % out->heads)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"n_embd\" is %" PRId64 ", want a multiple of \"n_head\", "
                         "%" PRId64,
                         out->hidden, out->heads);
    out->kv_heads = out->heads;
    out->head_dim = out->hidden / out->heads;
    return HD_OK;
}

static void write_gpt2(const void *user, hdi_text *out)
{
    const hdi_model_config *config = user;
    hdi_text_printf(out,
                    "{\n  \"model_type\": \"gpt2\",\n  \"architectures\": [\"GPT2LMHeadModel\"],\n"
                    "  \"vocab_size\": %" PRId64 ",\n  \"n_positions\": %" PRId64
                    ",\n  \"n_embd\": %" PRId64 ",\n  \"n_layer\": %" PRId64
                    ",\n  \"n_head\": %" PRId64 ",\n  \"n_inner\": %" PRId64
                    ",\n  \"activation_function\": \"%s\",\n  \"layer_norm_epsilon\": ",
                    config->vocab, config->max_tokens, config->hidden, config->layers,
                    config->heads, config->inner, config->gelu_tanh ? "gelu_new" : "gelu");
    hdi_text_append_float(out, config->epsilon);
    hdi_text_append(out, ",\n  \"initializer_range\": ");
    hdi_text_append_float(out, config->init_std);
    hdi_text_printf(out, ",\n  \"tie_word_embeddings\": %s\n}\n", config->tied ? "true" : "false");
}

/* Projections that end in the residual start smaller: their sum over all layers keeps its size. */
static double residual_std(const hdi_model_config *config)
{
    return config->init_std / sqrt(2.0 * (double)config->layers);
}

static hdi_model_stream block(hd_program *p, const hdi_model_stage *at, int layer,
                              hdi_model_stream from)
{
    const hdi_model_config *config = at->config;
    hd_scope_begin(p, "h.%d", layer);
    if (hd_stage_recomputes(at->stage, layer)) hd_scope_recompute(p);
    hd_tensor x;
    hd_tensor h =
        hdi_model_norm(p, from, &(hd_norm_options){"ln_1", .epsilon = config->epsilon}, &x);
    const hd_split_run heads = {config->hidden, config->heads};
    h = hd_linear(p, hdi_model_enter(p, at, h),
                  &(hd_linear_options){.name = "attn.c_attn",
                                       .outputs = 3 * config->hidden,
                                       .bias = true,
                                       .std = config->init_std,
                                       .transposed = true,
                                       .split = HD_SPLIT_COLUMNS,
                                       .split_runs = 3,
                                       .split_run = {heads, heads, heads}});
    h = hdi_model_attention(p, at, h, NULL);
    h = hd_linear(p, h,
                  &(hd_linear_options){.name = "attn.c_proj",
                                       .outputs = config->hidden,
                                       .bias = true,
                                       .std = residual_std(config),
                                       .transposed = true,
                                       .split = HD_SPLIT_ROWS,
                                       .split_runs = 1,
                                       .split_run = {heads}});
    h = hdi_model_leave(p, at, h);
    h = hd_residual_norm(p, x, h, &(hd_norm_options){"ln_2", .epsilon = config->epsilon}, &x);
    const hd_linear_options up = {.name = "mlp.c_fc",
                                  .outputs = config->inner,
                                  .bias = true,
                                  .std = config->init_std,
                                  .transposed = true,
                                  .split = HD_SPLIT_COLUMNS};
    const hd_linear_options down = {.name = "mlp.c_proj",
                                    .outputs = config->hidden,
                                    .bias = true,
                                    .std = residual_std(config),
                                    .transposed = true,
                                    .split = HD_SPLIT_ROWS,
                                    .split_runs = 1,
                                    .split_run = {{.columns = config->inner}}};
    h = hdi_model_enter(p, at, h);
    h = hdi_mlp(p, config->gelu_tanh ? HDI_MLP_GELU_TANH : HDI_MLP_GELU_ERF, h, &up, &down);
    from = hdi_model_hand_on(p, at, x, hdi_model_leave(p, at, h), layer);
    hd_scope_end(p);
    return from;
}

static hd_tensor build_gpt2(void *user, hd_program *p, const hd_stage *stage, hd_tensor x)
{
    const hdi_model_config *config = user;
    hdi_model_stage at;
    if (!hdi_model_stage_begin(p, config, stage, x, &at)) return (hd_tensor){0};
    hd_scope_begin(p, "transformer");
    if (stage->first) {
        x = hdi_model_embedding(p, &at, "wte");
        x = hd_position_embedding(
            p, x,
            &(hd_position_embedding_options){.name = "wpe",
                                             .entries = config->max_tokens,
                                             .tokens = stage->tokens,
                                             .first = at.position,
                                             .positions = hdi_model_positions(p, &at),
                                             .std = config->init_std});
    }
    hdi_model_stream stream = {.x = x};
    for (int i = 0; i < stage->layers; i++)
        stream = block(p, &at, stage->first_layer + i, stream);
    const hd_norm_options final = {"ln_f", .epsilon = config->epsilon};
    x = stage->last ? hdi_model_final_norm(p, &at, stream, &final) : hdi_model_sum(p, stream);
    hd_scope_end(p);
    if (!stage->last) return x;
    return hdi_model_finish(p, &at, x,
                            config->tied ? "/transformer.wte.weight" : "/lm_head.weight");
}

static const hdi_model_preset presets[] = {
    {"gpt2-tiny", "{\"model_type\": \"gpt2\", \"vocab_size\": 256, \"n_positions\": 256, "
                  "\"n_embd\": 128, \"n_layer\": 4, \"n_head\": 4}"},
    {"gpt2", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
             "\"n_embd\": 768, \"n_layer\": 12, \"n_head\": 12}"},
    {"gpt2-medium", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
                    "\"n_embd\": 1024, \"n_layer\": 24, \"n_head\": 16}"},
    {"gpt2-large", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
                   "\"n_embd\": 1280, \"n_layer\": 36, \"n_head\": 20}"},
    {"gpt2-xl", "{\"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, "
                "\"n_embd\": 1600, \"n_layer\": 48, \"n_head\": 25}"},
    {0},
};

const hdi_model_family hdi_gpt2 = {
    .type = "gpt2",
    .config_bytes = sizeof(hdi_model_config),
    .presets = presets,
    .read = read_gpt2,
    .write = write_gpt2,
    .describe = hdi_model_describe_tokens,
    .build = build_gpt2,
};
