/* Llama (Touvron et al., arXiv 2302.13971): rotary positions, RMS norm before each half of a block,
 * SwiGLU, grouped-query attention. */
#include "models/model.h"

#include "core/error.h"
#include "nn/nn.h"

#include <inttypes.h>

/* "rope_theta" stands in the object itself or, in newer files, in "rope_parameters". */
static hd_status read_rope(const json_t *object, hdi_model_config *out)
{
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "rope_theta", &out->theta));
    const char *const keys[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2; i++) {
        const json_t *rope = json_object_get(object, keys[i]);
        if (!rope || json_is_null(rope)) continue;
        char seen[HDI_JSON_TEXT];
        if (!json_is_object(rope))
            return hdi_error(HD_ERROR_CONFIG, "model config: \"%s\" is %s, want an object", keys[i],
                             hdi_model_json_text(rope, seen));
        HD_RETURN_IF_ERROR(hdi_model_require_string(rope, "rope_type", "default"));
        HD_RETURN_IF_ERROR(hdi_model_require_string(rope, "type", "default"));
        HD_RETURN_IF_ERROR(hdi_model_read_positive(rope, "rope_theta", &out->theta));
    }
    if (out->theta > 1) return HD_OK;
    return hdi_error(HD_ERROR_CONFIG, "model config: \"rope_theta\" is %g, want a number > 1",
                     out->theta);
}

static hd_status read_llama(const json_t *object, void *config)
{
    hdi_model_config *out = config;
    *out = (hdi_model_config){.epsilon = 1e-6, .theta = 10000, .init_std = 0.02};
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "vocab_size", true, &out->vocab));
    HD_RETURN_IF_ERROR(
        hdi_model_read_int(object, "max_position_embeddings", true, &out->max_tokens));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "hidden_size", true, &out->hidden));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "intermediate_size", true, &out->inner));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_hidden_layers", true, &out->layers));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_attention_heads", true, &out->heads));
    out->kv_heads = out->heads;
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "num_key_value_heads", false, &out->kv_heads));
    HD_RETURN_IF_ERROR(hdi_model_read_int(object, "head_dim", false, &out->head_dim));
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "rms_norm_eps", &out->epsilon));
    HD_RETURN_IF_ERROR(hdi_model_read_positive(object, "initializer_range", &out->init_std));
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, "tie_word_embeddings", &out->tied));
    HD_RETURN_IF_ERROR(hdi_model_require_bool(object, "attention_bias", false));
    HD_RETURN_IF_ERROR(hdi_model_require_bool(object, "mlp_bias", false));
    HD_RETURN_IF_ERROR(hdi_model_require_string(object, "hidden_act", "silu"));
    HD_RETURN_IF_ERROR(read_rope(object, out));
    if (out->head_dim == 0 && out->hidden % out->heads)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"hidden_size\" is %" PRId64
                         ", want a multiple of \"num_attention_heads\", %" PRId64,
                         out->hidden, out->heads);
    if (out->head_dim == 0) out->head_dim = out->hidden / out->heads;
    if (out->head_dim % 2)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"head_dim\" is %" PRId64 ", want an even number",
                         out->head_dim);
    if (out->heads % out->kv_heads)
        return hdi_error(HD_ERROR_CONFIG,
                         "model config: \"num_key_value_heads\" is %" PRId64
                         ", want a divisor of \"num_attention_heads\", %" PRId64,
                         out->kv_heads, out->heads);
    return HD_OK;
}

static void write_llama(const void *user, hdi_text *out)
{
    const hdi_model_config *config = user;
    hdi_text_printf(
        out,
        "{\n  \"model_type\": \"llama\",\n  \"architectures\": [\"LlamaForCausalLM\"],\n"
        "  \"vocab_size\": %" PRId64 ",\n  \"max_position_embeddings\": %" PRId64
        ",\n  \"hidden_size\": %" PRId64 ",\n  \"intermediate_size\": %" PRId64
        ",\n  \"num_hidden_layers\": %" PRId64 ",\n  \"num_attention_heads\": %" PRId64
        ",\n  \"num_key_value_heads\": %" PRId64 ",\n  \"head_dim\": %" PRId64
        ",\n  \"hidden_act\": \"silu\",\n  \"rms_norm_eps\": ",
        config->vocab, config->max_tokens, config->hidden, config->inner, config->layers,
        config->heads, config->kv_heads, config->head_dim);
    hdi_text_append_float(out, config->epsilon);
    hdi_text_append(out, ",\n  \"rope_theta\": ");
    hdi_text_append_float(out, config->theta);
    hdi_text_append(out, ",\n  \"initializer_range\": ");
    hdi_text_append_float(out, config->init_std);
    hdi_text_printf(out, ",\n  \"tie_word_embeddings\": %s\n}\n", config->tied ? "true" : "false");
}

static hd_tensor attention(hd_program *p, const hdi_model_stage *at, hd_tensor h)
{
    const hdi_model_config *config = at->config;
    const int64_t query = config->heads * config->head_dim,
                  key = config->kv_heads * config->head_dim;
    const hd_split_run queries = {query, config->kv_heads}, keys = {key, config->kv_heads};
    h = hd_linear(p, hdi_model_enter(p, at, h),
                  &(hd_linear_options){.name = "self_attn.qkv_proj",
                                       .outputs = query + 2 * key,
                                       .std = config->init_std,
                                       .split = HD_SPLIT_COLUMNS,
                                       .split_runs = 3,
                                       .split_run = {queries, keys, keys},
                                       .parts = 3,
                                       .part = {{.name = "self_attn.q_proj", .outputs = query},
                                                {.name = "self_attn.k_proj", .outputs = key},
                                                {.name = "self_attn.v_proj", .outputs = key}}});
    const hd_rope_options rope = {.pairing = HD_ROPE_HALVES,
                                  .head_dim = config->head_dim,
                                  .tokens = at->stage->tokens,
                                  .positions = config->max_tokens,
                                  .theta = config->theta,
                                  .first = at->position,
                                  .places = at->places};
    h = hdi_model_attention(p, at, h, &rope);
    h = hd_linear(p, h,
                  &(hd_linear_options){.name = "self_attn.o_proj",
                                       .outputs = config->hidden,
                                       .std = config->init_std,
                                       .split = HD_SPLIT_ROWS,
                                       .split_runs = 1,
                                       .split_run = {queries}});
    return hdi_model_leave(p, at, h);
}

static hdi_model_stream block(hd_program *p, const hdi_model_stage *at, int layer,
                              hdi_model_stream from)
{
    const hdi_model_config *config = at->config;
    const hd_norm_options before = {"input_layernorm", config->epsilon, HD_NORM_RMS};
    const hd_norm_options after = {"post_attention_layernorm", config->epsilon, HD_NORM_RMS};
    hd_scope_begin(p, "layers.%d", layer);
    if (hd_stage_recomputes(at->stage, layer)) hd_scope_recompute(p);
    hd_tensor x;
    hd_tensor h = hdi_model_norm(p, from, &before, &x);
    h = attention(p, at, h);
    h = hd_residual_norm(p, x, h, &after, &x);
    const hd_split_run inner = {.columns = config->inner};
    h = hdi_mlp(p, HDI_MLP_SWIGLU, hdi_model_enter(p, at, h),
                &(hd_linear_options){.name = "mlp.gate_up_proj",
                                     .outputs = 2 * config->inner,
                                     .std = config->init_std,
                                     .split = HD_SPLIT_COLUMNS,
                                     .split_runs = 2,
                                     .split_run = {inner, inner},
                                     .parts = 2,
                                     .part = {{.name = "mlp.gate_proj", .outputs = config->inner},
                                              {.name = "mlp.up_proj", .outputs = config->inner}}},
                &(hd_linear_options){.name = "mlp.down_proj",
                                     .outputs = config->hidden,
                                     .std = config->init_std,
                                     .split = HD_SPLIT_ROWS,
                                     .split_runs = 1,
                                     .split_run = {inner}});
    from = hdi_model_hand_on(p, at, x, hdi_model_leave(p, at, h), layer);
    hd_scope_end(p);
    return from;
}

static hd_tensor build_llama(void *user, hd_program *p, const hd_stage *stage, hd_tensor x)
{
    const hdi_model_config *config = user;
    hdi_model_stage at;
    if (!hdi_model_stage_begin(p, config, stage, x, &at)) return (hd_tensor){0};
    at.places = hdi_model_places(p, &at);
    hd_scope_begin(p, "model");
    if (stage->first) x = hdi_model_embedding(p, &at, "embed_tokens");
    hdi_model_stream stream = {.x = x};
    for (int i = 0; i < stage->layers; i++)
        stream = block(p, &at, stage->first_layer + i, stream);
    const hd_norm_options final = {"norm", config->epsilon, HD_NORM_RMS};
    x = stage->last ? hdi_model_final_norm(p, &at, stream, &final) : hdi_model_sum(p, stream);
    hd_scope_end(p);
    if (!stage->last) return x;
    return hdi_model_finish(p, &at, x,
                            config->tied ? "/model.embed_tokens.weight" : "/lm_head.weight");
}

static const hdi_model_preset presets[] = {
    {"llama-tiny", "{\"model_type\": \"llama\", \"vocab_size\": 256, \"hidden_size\": 128, "
                   "\"intermediate_size\": 352, \"num_hidden_layers\": 4, "
                   "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
                   "\"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-5}"},
    {"llama-160m", "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 768, "
                   "\"intermediate_size\": 3072, \"num_hidden_layers\": 12, "
                   "\"num_attention_heads\": 12, \"max_position_embeddings\": 2048, "
                   "\"rms_norm_eps\": 1e-6}"},
    {"llama-7b", "{\"model_type\": \"llama\", \"vocab_size\": 32000, \"hidden_size\": 4096, "
                 "\"intermediate_size\": 11008, \"num_hidden_layers\": 32, "
                 "\"num_attention_heads\": 32, \"max_position_embeddings\": 4096, "
                 "\"rms_norm_eps\": 1e-5}"},
    {0},
};

const hdi_model_family hdi_llama = {
    .type = "llama",
    .config_bytes = sizeof(hdi_model_config),
    .presets = presets,
    .read = read_llama,
    .write = write_llama,
    .describe = hdi_model_describe_tokens,
    .build = build_llama,
};
