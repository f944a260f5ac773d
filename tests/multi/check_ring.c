/* ranks: 2 3 4 5 6 7 8 */
/* Rings of ranks, alone and among ranks that exchange heads, give what one rank gives: more ranks than
 * heads, tokens that ranks do not divide, causal and not, with text that all ranks have. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "core/half.h"
#include "ops/ring_parts.h"
#include "program/plan.h"
#include "tests/support/hdt_planned.h"
#include "tests/support/hdt_split.h"

#include <heddle/diffusion.h>
#include <heddle/ops.h>
#include <math.h>
#include <stdio.h>

static const hdt_split settings[] = {
    {"gpt2",
     "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":20,\"n_embd\":24,"
     "\"n_layer\":2,\"n_head\":4}",
     17, 0, 0, 4, 0, 0, false, 0},
    {"llama",
     "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":20,"
     "\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-5}",
     19, 0, 0, 2, 0, 0, false, 0},
    {"hunyuan",
     "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
     "\"num_attention_heads\": 3, \"attention_head_dim\": 8, \"num_layers\": 1, "
     "\"num_single_layers\": 1, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
     "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}",
     0, 9, 9, 3, 0, 0, false, 0},
    {"open sora",
     "{\"model_type\": \"open_sora_2\", \"in_channels\": 8, \"vec_in_dim\": 5, "
     "\"context_in_dim\": 6, \"hidden_size\": 16, \"mlp_ratio\": 2.0, "
     "\"num_heads\": 2, \"depth\": 1, \"depth_single_blocks\": 1, "
     "\"axes_dim\": [4, 2, 2], \"cond_embed\": true, \"fused_qkv\": false}",
     0, 13, 10, 2, 0, 0, true, 0},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

static void check_layout(const hdt_split *one, const hd_mesh_options *layout,
                         const hd_trainer_options *options, const hdt_split_outcome *alone)
{
    static hdt_split_outcome seen;
    char what[96];
    snprintf(what, sizeof what, "data %d x pipeline %d x sequence %d in rings of %d", layout->data,
             layout->pipeline, layout->sequence, layout->ring);
    const hd_status status = hdt_split_train(hdt_world, one, layout, *options, &seen);
    if (layout->sequence / layout->ring > one->heads) {
        hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "key and value heads");
        return;
    }
    hdt_assert_ok(status);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen.loss, sizeof seen.loss, "losses"));
    hdt_split_compare(one, what, &seen, alone);
}

START_TEST(loss_and_gradients_are_those_of_one_rank)
{
    const hdt_split *one = &settings[_i];
    static hdt_split_outcome alone;
    const int ranks = hd_comm_size(hdt_world);
    hd_trainer_options options = {.bucket_elements = 3000};
    if (ranks > 6 && _i % 2) return; /* one causal model and one with text are enough of these */
    hdt_split_train_alone(one, &options, &alone);
    for (int ring = 2; ring <= ranks; ring++) {
        if (ranks % ring) continue;
        const hd_mesh_options layout = {.data = 1, .pipeline = 1, .sequence = ranks, .ring = ring};
        options.recompute = ring < ranks;
        options.shard_state = ring < ranks;
        check_layout(one, &layout, &options, &alone);
    }
}
END_TEST

START_TEST(rings_go_with_data_and_pipeline)
{
    const hdt_split *one = &settings[_i];
    static hdt_split_outcome alone;
    if (hd_comm_size(hdt_world) != 4) return;
    hd_trainer_options options = {.bucket_elements = 3000, .accumulate = 2};
    hdt_split_train_alone(one, &options, &alone);
    check_layout(one, &(hd_mesh_options){.data = 1, .pipeline = 2, .sequence = 2, .ring = 2},
                 &options, &alone);
    options.accumulate = 1;
    check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .sequence = 2, .ring = 2},
                 &options, &alone);
}
END_TEST

/* Attention of one layer's rows, apart from models: in which dtype, and how large its scores are. */
typedef struct sample {
    bool causal, counted;
    float size; /* of queries and keys */
} sample;

static const sample samples[] = {
    {true, false, 1}, {false, true, 1}, {true, false, 30}, {false, false, 30}};
static const hd_dtype dtypes[] = {HD_DTYPE_F32, HD_DTYPE_BF16, HD_DTYPE_F16};

enum {
    SEQUENCES = 2,
    TOKENS = 37,
    TEXT = 11,
    HEADS = 2,
    DIM = 8,
    WIDTH = HEADS * DIM,
    MOST = SEQUENCES * (TOKENS + TEXT) * 3 * WIDTH
};

/* All rows on one rank, or a place's on each of a ring. */
typedef struct attended {
    float qkv[MOST], seed[MOST], out[MOST], gradient[MOST];
    int64_t rows, global[SEQUENCES * (TOKENS + TEXT)]; /* which row of all each one is */
} attended;

static int64_t text_of(const sample *s)
{
    return s->causal ? 0 : TEXT;
}

static void find_rows(const hd_program *p, const sample *s, attended *it)
{
    const hdi_sequence_cut places = hdi_sequence_places(p);
    const int place = hdi_sequence_place(p);
    const int64_t text = hdi_sequence_first(text_of(s), places.ring, place);
    hdi_token_run runs[HDI_SEQUENCE_RUNS + 1];
    hdi_sequence_runs(&places, TOKENS, place, runs);
    runs[HDI_SEQUENCE_RUNS] = (hdi_token_run){
        TOKENS + text, hdi_sequence_first(text_of(s), places.ring, place + 1) - text};
    it->rows = 0;
    for (int64_t q = 0; q < SEQUENCES; q++)
        for (int i = 0; i <= HDI_SEQUENCE_RUNS; i++)
            for (int64_t t = 0; t < runs[i].count; t++)
                it->global[it->rows++] = q * (TOKENS + text_of(s)) + runs[i].first + t;
}

/* The rows of all that are this rank's, as the dtype has them. */
static void take_rows(const attended *it, hd_dtype dtype, const float *all, int64_t columns,
                      float *out)
{
    for (int64_t r = 0; r < it->rows; r++)
        memcpy(out + r * columns, all + it->global[r] * columns, (size_t)columns * sizeof *out);
    hdt_narrow(dtype, out, it->rows * columns);
}

static void widen(hd_dtype dtype, float *values, int64_t count)
{
    const uint16_t *halves = (const uint16_t *)(const void *)values; /* back to front */
    for (int64_t i = count - 1; i >= 0 && hdi_is_half(dtype); i--) {
        const uint16_t half = halves[i];
        values[i] = hdi_half_to_float(dtype, half);
    }
}

static hd_tensor append(hd_program *p, hd_tensor qkv, hd_tensor counts, const sample *s)
{
    if (hd_mesh_ring(p->mesh) == 1) {
        const hd_tensor valid = counts.id ? hd_raise_counts(p, counts, TOKENS) : counts;
        return hd_attention(p, qkv,
                            &(hd_attention_options){.heads = HEADS,
                                                    .head_dim = DIM,
                                                    .tokens = TOKENS + text_of(s),
                                                    .causal = s->causal,
                                                    .counts = valid});
    }
    return hdi_ring_attention(p, qkv,
                              &(hdi_ring_shape){.sequences = SEQUENCES,
                                                .heads = HEADS,
                                                .kv_heads = HEADS,
                                                .head_dim = DIM,
                                                .tokens = TOKENS,
                                                .alike = text_of(s),
                                                .causal = s->causal,
                                                .counts = counts});
}

typedef struct machine {
    hd_mesh *mesh;
    hd_context *context;
    hd_program *program;
    hd_plan *plan;
    hd_session *session;
} machine;

static hd_status run(machine *on, hd_comm *comm, const sample *s, hd_dtype dtype, attended *it,
                     const float *qkv_of_all, const float *seed_of_all)
{
    static const int32_t counted[SEQUENCES] = {TEXT - 1, 3};
    const int64_t sequences = SEQUENCES;
    const hd_mesh_options layout = {.sequence = hd_comm_size(comm), .ring = hd_comm_size(comm)};
    HD_RETURN_IF_ERROR(hdt_open_place(comm, &layout, &on->mesh, &on->context));
    HD_RETURN_IF_ERROR(
        hd_program_create(&(hd_program_options){.name = "ring",
                                                .mesh = on->mesh,
                                                .dtype = dtype,
                                                .training = true,
                                                .backend = hd_context_backend(on->context)},
                          &on->program));
    hd_program *p = on->program;
    if (s->causal) hdi_sequence_is_causal(p);
    find_rows(p, s, it);
    take_rows(it, dtype, qkv_of_all, 3 * WIDTH, it->qkv);
    take_rows(it, dtype, seed_of_all, WIDTH, it->seed);
    const int64_t dims[] = {it->rows, 3 * WIDTH}, out_dims[] = {it->rows, WIDTH};
    const hd_tensor qkv = hd_input(p, "qkv", dtype, 2, dims);
    const hd_tensor seed = hd_input(p, "seed", dtype, 2, out_dims);
    const hd_tensor counts =
        s->counted ? hd_input(p, "counts", HD_DTYPE_I32, 1, &sequences) : (hd_tensor){0};
    hd_input_needs_gradient(p, qkv);
    const hd_tensor out = hd_output(p, append(p, qkv, counts, s), "out");
    hd_program_backward(p, out, seed);
    HD_RETURN_IF_ERROR(hd_program_finish(p));
    HD_RETURN_IF_ERROR(hd_plan_create(&(hd_plan_options){0}, &on->plan));
    HD_RETURN_IF_ERROR(
        hd_plan_add(on->plan, p, &(hd_plan_program_options){.saved_slots = 1, .io_slots = 1}));
    HD_RETURN_IF_ERROR(hd_plan_finish(on->plan));
    HD_RETURN_IF_ERROR(hd_session_create(on->context, on->plan, on->mesh, &on->session));
    HD_RETURN_IF_ERROR(hd_session_write(on->session, p, qkv, 0, it->qkv));
    HD_RETURN_IF_ERROR(hd_session_write(on->session, p, seed, 0, it->seed));
    if (s->counted) HD_RETURN_IF_ERROR(hd_session_write(on->session, p, counts, 0, counted));
    hd_session_run_options options = {.phase = HD_PHASE_FORWARD, .last = true};
    HD_RETURN_IF_ERROR(hd_session_run(on->session, p, &options));
    options.phase = HD_PHASE_BACKWARD;
    HD_RETURN_IF_ERROR(hd_session_run(on->session, p, &options));
    HD_RETURN_IF_ERROR(hd_session_drain(on->session));
    HD_RETURN_IF_ERROR(hd_session_read(on->session, p, out, 0, it->out));
    HD_RETURN_IF_ERROR(hd_session_read(on->session, p, hd_gradient(p, qkv), 0, it->gradient));
    widen(dtype, it->out, it->rows * WIDTH);
    widen(dtype, it->gradient, it->rows * 3 * WIDTH);
    return HD_OK;
}

static hd_status attend(hd_comm *comm, const sample *s, hd_dtype dtype, attended *it,
                        const float *qkv, const float *seed)
{
    machine on = {0};
    const hd_status status = run(&on, comm, s, dtype, it, qkv, seed);
    hd_session_destroy(on.session);
    hd_plan_destroy(on.plan);
    hd_program_destroy(on.program);
    hdt_close_place(on.mesh, on.context);
    return status;
}

/* This rank's rows against those of one rank. What is rounded to the dtype on either side may be one
 * unit off each time; a score errs by the rounding of its products, its exponential by as much. */
static void check_rows(const char *what, const attended *it, hd_dtype dtype, const float *got,
                       const float *want, int64_t columns, int roundings, float size)
{
    const double score = (double)(size * size) * DIM;
    double largest = 0;
    for (int64_t i = 0; i < SEQUENCES * (TOKENS + TEXT) * columns; i++)
        largest = fmax(largest, fabs((double)want[i]));
    const double bound =
        largest * (roundings * hdt_tolerance(dtype, 1) +
                   2 * (1 + score) * hdt_tolerance(HD_DTYPE_F32, TOKENS + TEXT + DIM));
    for (int64_t i = 0; i < it->rows * columns; i++) {
        const double wanted = (double)want[it->global[i / columns] * columns + i % columns];
        ck_assert_msg(fabs((double)got[i] - wanted) <= bound,
                      "%s, %s, scores up to %g: [%lld] is %g, want %g within %g", what,
                      hd_dtype_name(dtype), score, (long long)i, (double)got[i], wanted, bound);
    }
}

START_TEST(attention_is_that_of_one_rank_in_all_dtypes_whatever_the_scores)
{
    const sample *s = &samples[_i / 3];
    const hd_dtype dtype = dtypes[_i % 3];
    static float qkv[MOST], seed[MOST];
    static attended alone, here;
    hdt_fill(qkv, MOST, 1);
    hdt_fill(seed, MOST, 2);
    for (int64_t i = 0; i < MOST; i++)
        if (i % (3 * WIDTH) < 2 * WIDTH) qkv[i] *= s->size;
    memset(&alone, 0, sizeof alone);
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    hd_status status = attend(self, s, dtype, &alone, qkv, seed);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    hdt_assert_ok(attend(hdt_world, s, dtype, &here, qkv, seed));
    check_rows("result", &here, dtype, here.out, alone.out, WIDTH, 3, s->size);
    check_rows("gradient", &here, dtype, here.gradient, alone.gradient, 3 * WIDTH, 8, s->size);
}
END_TEST

START_TEST(what_a_ring_cannot_cut_is_refused_with_the_reason)
{
    static hdt_split_outcome out;
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options all = {.sequence = ranks, .ring = ranks};
    const hd_trainer_options none = {0}, exact = {.exact = true};
    hdt_split one = settings[0];
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, exact, &out), HD_ERROR_UNSUPPORTED,
                      "reduction exact with layout.sequence");
    one.tokens = 2 * ranks - 1; /* a zigzag has two pieces for each place */
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, none, &out), HD_ERROR_UNSUPPORTED,
                      "two for each rank");
    one = settings[2];
    one.text = ranks - 1;
    hdt_assert_status(hdt_split_train(hdt_world, &one, &all, none, &out), HD_ERROR_UNSUPPORTED,
                      "the text's tokens");
    one.text = 9;
    const hd_mesh_options odd = {.sequence = ranks, .ring = ranks + 1};
    hdt_assert_status(hdt_split_train(hdt_world, &one, &odd, none, &out), HD_ERROR_CONFIG,
                      "want a divisor of layout.sequence");
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("ring");
    tcase_add_loop_test(tests, loss_and_gradients_are_those_of_one_rank, 0, SETTINGS);
    tcase_add_loop_test(tests, rings_go_with_data_and_pipeline, 0, SETTINGS);
    tcase_add_loop_test(tests, attention_is_that_of_one_rank_in_all_dtypes_whatever_the_scores, 0,
                        3 * (int)(sizeof samples / sizeof *samples));
    tcase_add_test(tests, what_a_ring_cannot_cut_is_refused_with_the_reason);
    return hdt_main_ranks(argc, argv, "ring", tests);
}
