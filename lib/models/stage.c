/* What stands at the ends of a stage, whatever the family. */
#include "models/model.h"
#include "nn/nn.h"
#include "ops/ops.h"
#include "ops/ring.h"
#include "ops/tensor_axis.h"

#include <inttypes.h>

bool hd_stage_recomputes(const hd_stage *stage, int layer)
{
    return stage->recompute && layer < stage->first_layer + stage->layers - stage->kept_layers;
}

bool hdi_model_stage_begin(hd_program *program, const hdi_model_config *config,
                           const hd_stage *stage, hd_tensor x, hdi_model_stage *out)
{
    *out = (hdi_model_stage){.config = config, .stage = stage};
    const bool generates = stage->purpose == HD_PURPOSE_GENERATE;
    const int64_t one = 1;
    hdi_sequence_is_causal(program);
    out->shared = hdi_sequence_own_tokens(program, stage->tokens);
    out->alike = generates && hdi_tensor_ranks(program) > 1;
    out->tokens = out->alike ? out->shared : hdi_tensor_own_tokens(program, out->shared);
    const int64_t rows = stage->sequences * out->tokens;
    const int64_t longest = generates ? stage->capacity : stage->tokens;
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (stage->first_layer < 0 || stage->layers < 0 ||
        stage->first_layer > config->layers - stage->layers) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "model stage: layers %d to %d, the model has %" PRId64, stage->first_layer,
                        stage->first_layer + stage->layers - 1, config->layers);
    } else if (stage->sequences < 1 || stage->tokens < 1 || longest > config->max_tokens ||
               stage->tokens > longest || (generates && stage->sequences != 1)) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "model stage: %" PRId64 " sequences of %" PRId64
                        " tokens, capacity %" PRId64 "; want at least one of each, at most %" PRId64
                        " tokens, and to generate one sequence within the capacity",
                        stage->sequences, stage->tokens, stage->capacity, config->max_tokens);
    } else if (!stage->first && (!info || info->rank != 2 || info->dims[0] != rows ||
                                 info->dims[1] != config->hidden)) {
        hd_program_fail(program, HD_ERROR_ARGUMENT,
                        "model stage: x is not what comes from the stage before, want [%" PRId64
                        ", %" PRId64 "]",
                        rows, config->hidden);
    } else if (generates && hd_mesh_size(program->mesh, HD_AXIS_SEQUENCE) > 1) {
        hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                        "model stage: sequences split over %d ranks, but generation works on one "
                        "token at a time",
                        hd_mesh_size(program->mesh, HD_AXIS_SEQUENCE));
    } else if ((generates || hdi_sequence_begin(program, stage->tokens, config->kv_heads, false)) &&
               hdi_tensor_begin(program, generates ? 0 : stage->tokens, config->kv_heads)) {
        if (generates) {
            out->position = hd_input(program, "position", HD_DTYPE_I32, 1, &one);
            out->count = hd_input(program, "count", HD_DTYPE_I32, 1, &one);
        }
        return true;
    }
    return false;
}

/* Ids of whole sequences are fed; this rank reads its tokens'. */
static hd_tensor own_ids(hd_program *program, const hdi_model_stage *at, const char *name)
{
    const int64_t sequences = at->stage->sequences, tokens = at->stage->tokens;
    const int64_t rows = sequences * tokens;
    return hdi_sequence_own_rows(program, hd_input(program, name, HD_DTYPE_I32, 1, &rows),
                                 sequences, tokens);
}

hd_tensor hdi_model_tokens(hd_program *program, const hdi_model_stage *at)
{
    return own_ids(program, at, "tokens");
}

static hd_tensor all_positions(hd_program *program, const hdi_model_stage *at)
{
    const hd_stage *stage = at->stage;
    return hd_positions(program, (hd_tensor){0}, stage->sequences * stage->tokens, stage->tokens,
                        at->config->max_tokens);
}

hd_tensor hdi_model_positions(hd_program *program, const hdi_model_stage *at)
{
    const hd_stage *stage = at->stage;
    if (at->tokens == stage->tokens) return (hd_tensor){0};
    const hd_tensor shared =
        hdi_sequence_own_rows(program, all_positions(program, at), stage->sequences, stage->tokens);
    return hdi_tensor_own_rows(program, shared, stage->sequences, at->shared);
}

hd_tensor hdi_model_places(hd_program *program, const hdi_model_stage *at)
{
    const hd_stage *stage = at->stage;
    if (hd_mesh_ring(program->mesh) == 1) return (hd_tensor){0};
    return hdi_ring_cut_rows(program, all_positions(program, at), stage->sequences, stage->tokens);
}

hd_tensor hdi_model_enter(hd_program *program, const hdi_model_stage *at, hd_tensor x)
{
    return at->alike ? x : hdi_tensor_gather_rows(program, x, at->stage->sequences, at->shared);
}

hd_tensor hdi_model_leave(hd_program *program, const hdi_model_stage *at, hd_tensor x)
{
    return at->alike ? hdi_tensor_sum_alike(program, x)
                     : hdi_tensor_exchange_rows(program, x, at->stage->sequences, at->shared);
}

/* Rows of whole sequences from those of a layer, or back. */
static hd_tensor by_sequence(hd_program *program, const hdi_model_stage *at, hd_tensor x, bool back)
{
    return at->alike ? x
                     : hdi_tensor_by_sequence(program, x, at->stage->sequences, at->shared, back);
}

hd_tensor hdi_model_embedding(hd_program *program, const hdi_model_stage *at, const char *name)
{
    const hd_embedding_options options = {.name = name,
                                          .entries = at->config->vocab,
                                          .columns = at->config->hidden,
                                          .std = at->config->init_std,
                                          .split = true};
    const hd_tensor x = hd_embedding(program, hdi_model_tokens(program, at), &options);
    return hdi_model_leave(program, at, by_sequence(program, at, x, true));
}

static hd_tensor attend(hd_program *program, const hdi_model_stage *at, hd_tensor qkv,
                        const hd_rope_options *rope, int64_t heads, int64_t kv_heads)
{
    const hdi_model_config *config = at->config;
    const hd_attention_options options = {
        .heads = heads,
        .kv_heads = kv_heads,
        .head_dim = config->head_dim,
        .tokens = at->stage->tokens,
        .causal = true,
        .capacity = at->stage->capacity,
        .position = at->position,
        .count = at->count,
    };
    if (rope) {
        hd_rope_options turned = *rope;
        turned.heads = heads + kv_heads;
        qkv = hd_rope(program, qkv, &turned);
    }
    if (hd_mesh_ring(program->mesh) > 1)
        return hdi_ring_attention(program, qkv,
                                  &(hdi_ring_shape){.sequences = at->stage->sequences,
                                                    .heads = heads,
                                                    .kv_heads = kv_heads,
                                                    .head_dim = config->head_dim,
                                                    .tokens = at->stage->tokens,
                                                    .causal = true});
    return at->stage->purpose == HD_PURPOSE_GENERATE ? hd_attention_cached(program, qkv, &options)
                                                     : hd_attention(program, qkv, &options);
}

hd_tensor hdi_model_attention(hd_program *program, const hdi_model_stage *at, hd_tensor qkv,
                              const hd_rope_options *rope)
{
    const hdi_model_config *config = at->config;
    const hdi_sequence_shape all = {.sequences = at->stage->sequences,
                                    .tokens = at->stage->tokens,
                                    .heads = config->heads,
                                    .kv_heads = config->kv_heads,
                                    .head_dim = config->head_dim};
    const hdi_sequence_heads travel = {.shape = hdi_tensor_own_heads(program, all),
                                       .turns = hdi_sequence_turns(program, &all)};
    qkv = by_sequence(program, at, qkv, false);
    hd_tensor turn[HDI_SEQUENCE_TURNS];
    hdi_sequence_to_heads(program, qkv, &travel, turn, NULL);
    for (int t = 0; t < travel.turns; t++) {
        const int64_t heads = hdi_sequence_turn_heads(program, travel.shape.heads,
                                                      travel.shape.kv_heads, travel.turns, t);
        const int64_t kv_heads = heads / (config->heads / config->kv_heads);
        turn[t] = hdi_sequence_arrive(program, turn[t], &travel, t);
        turn[t] = attend(program, at, turn[t], rope, heads, kv_heads);
        turn[t] = hdi_sequence_return(program, turn[t], &travel, t, false);
    }
    qkv = hdi_sequence_to_tokens(program, &travel, turn, NULL);
    return by_sequence(program, at, qkv, true);
}

hd_tensor hdi_model_norm(hd_program *program, hdi_model_stream from, const hd_norm_options *options,
                         hd_tensor *sum)
{
    if (from.delta.id) return hd_residual_norm(program, from.x, from.delta, options, sum);
    *sum = from.x;
    return options->kind == HD_NORM_RMS ? hd_rms_norm(program, from.x, options)
                                        : hd_layer_norm(program, from.x, options);
}

hd_tensor hdi_model_sum(hd_program *program, hdi_model_stream from)
{
    return from.delta.id ? hd_add(program, from.x, from.delta) : from.x;
}

hdi_model_stream hdi_model_hand_on(hd_program *program, const hdi_model_stage *at, hd_tensor x,
                                   hd_tensor delta, int layer)
{
    const hdi_model_stream stream = {x, delta};
    if (!hd_stage_recomputes(at->stage, layer)) return stream;
    return (hdi_model_stream){.x = hdi_model_sum(program, stream)};
}

hd_tensor hdi_model_final_norm(hd_program *program, const hdi_model_stage *at,
                               hdi_model_stream from, const hd_norm_options *options)
{
    if (at->stage->purpose == HD_PURPOSE_GENERATE) {
        from.x = hd_select_last(program, from.x, at->count);
        if (from.delta.id) from.delta = hd_select_last(program, from.delta, at->count);
    }
    hd_tensor sum;
    return hdi_model_norm(program, from, options, &sum);
}

hd_tensor hdi_model_finish(hd_program *program, const hdi_model_stage *at, hd_tensor x,
                           const char *head_weight)
{
    const int64_t vocab = at->config->vocab;
    const bool generates = at->stage->purpose == HD_PURPOSE_GENERATE;
    const bool is_part = hdi_tensor_ranks(program) > 1;
    const int64_t first = is_part ? hdi_tensor_deal(program, vocab, vocab).first : 0;
    const hd_linear_options head = {.weight = head_weight,
                                    .outputs = vocab,
                                    .std = at->config->init_std,
                                    .split = HD_SPLIT_COLUMNS};
    x = by_sequence(program, at, hdi_model_enter(program, at, x), false);
    if (program->loss_slices > 1 && !generates) {
        const hdi_linear_map map = hdi_linear_declare(program, at->config->hidden, &head);
        return hdi_loss_slices(program, x, map.weight, own_ids(program, at, "targets"), first,
                               is_part ? vocab : 0, program->loss_slices);
    }
    const hd_tensor logits = hd_linear(program, x, &head);
    if (generates)
        return hd_output(program, hdi_tensor_all_columns(program, logits, vocab, 1), "logits");
    const hd_tensor targets = own_ids(program, at, "targets");
    return is_part ? hdi_cross_entropy_part(program, logits, targets, first, vocab)
                   : hd_cross_entropy(program, logits, targets);
}
