/* ranks: 2 3 4 5 8 */
/* Layers split over the ranks of the tensor axis, by unequal counts, give what one rank gives: the same
 * first values, and the same losses, gradients and steps up to the order of sums. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "core/memory.h"
#include "program/plan.h"
#include "tests/support/hdt_split.h"

#include <heddle/model.h>
#include <heddle/session.h>
#include <math.h>
#include <stdio.h>

enum { STEPS = 2 };

static const hdt_split settings[] = {
    {"gpt2", hdt_split_gpt2, 11, 0, 0, 5, 0, 0, false, 16},
    {"llama",
     "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":16,"
     "\"hidden_size\":24,\"intermediate_size\":41,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":6,\"num_key_value_heads\":3,\"rms_norm_eps\":1e-5}",
     7, 0, 0, 3, 0, 0, false, 16},
    {"hunyuan", hdt_split_hunyuan, 0, 7, 4, 6, 0, 0, false, 16},
    {"open sora", hdt_split_open_sora, 0, 13, 3, 5, 0, 0, true, 16},
    {"open sora 1.2, given frames",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 40, \"depth\": 1, "
     "\"num_heads\": 5, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"qk_norm\": true}",
     0, 3, 4, 5, 6, 10, true, 16},
    {"open sora 1.3, given frames",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 60, \"depth\": 1, "
     "\"num_heads\": 5, \"mlp_ratio\": 2.1, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"qk_norm\": true, \"kernel_size\": [2, 3, -1], \"use_spatial_rope\": true}",
     0, 3, 4, 5, 6, 10, true, 16},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

/* Bits that must be the same on all ranks of the axis: of the parameters that all have. */
static uint64_t hash_alike(const hd_trainer *trainer)
{
    const hdi_layout *layout = trainer->plan->layout;
    const size_t width = hd_dtype_bytes(trainer->options.dtype);
    uint64_t hash = 1;
    for (int i = 0; i < layout->entry_count; i++) {
        const hdi_entry *entry = &layout->entries[i];
        if (hdi_entry_is_part(entry)) continue;
        static unsigned char copy[4 * HDT_SPLIT_VALUES];
        const hd_context *context = trainer->session->context;
        const size_t bytes = (size_t)entry->elements * width;
        ck_assert_uint_le(bytes, sizeof copy);
        hdt_assert_ok(context->backend->copy_out(
            context->stream, copy, hdi_trainer_weights(trainer, entry->first), bytes));
        hdt_assert_ok(context->backend->synchronize(context->stream));
        for (size_t b = 0; b < bytes; b++)
            hash = hash * 31 + copy[b];
    }
    return hash;
}

/* What a run is worth. */
typedef struct outcome {
    double losses[STEPS], norms[STEPS], validation;
    hdt_split_gradients gradients;          /* after the first step */
    uint64_t first_weights, weights, alike; /* hashes before and after the steps */
    int64_t own_elements;                   /* of the parameters on this rank */
    size_t planned, used;
} outcome;

static hd_status run(const hdt_split *one, hd_trainer *trainer, hd_context *context, void *result)
{
    outcome *out = result;
    void *user = (void *)(uintptr_t)one;
    hd_step_result step = {0};
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    HD_RETURN_IF_ERROR(hd_trainer_weights_hash(trainer, &out->first_weights));
    HD_RETURN_IF_ERROR(hdt_split_set_weights(trainer));
    HD_RETURN_IF_ERROR(hd_trainer_validate(trainer, hdt_split_feed, user, &step));
    out->validation = step.loss;
    for (int i = 0; i < STEPS; i++) {
        HD_RETURN_IF_ERROR(hd_trainer_step(trainer, 1e-3, hdt_split_feed, user, &step));
        out->losses[i] = step.loss;
        out->norms[i] = step.grad_norm;
        if (i == 0 && !trainer->options.shard_state && trainer->options.dtype == HD_DTYPE_F32)
            HD_RETURN_IF_ERROR(hdt_split_read_gradients(trainer, &out->gradients));
    }
    const hdi_layout *layout = trainer->plan->layout;
    for (int i = 0; i < layout->entry_count; i++)
        out->own_elements += layout->entries[i].elements;
    HD_RETURN_IF_ERROR(hd_trainer_weights_hash(trainer, &out->weights)); /* all have come then */
    if (trainer->options.shard_state < 3) out->alike = hash_alike(trainer);
    out->planned = hd_plan_arena_bytes(trainer->plan);
    out->used = hd_session_high_water(trainer->session);
    return HD_OK;
}

static hd_status train(hd_comm *comm, const hdt_split *one, const hd_mesh_options *layout,
                       hd_trainer_options options, outcome *out)
{
    memset(out, 0, sizeof *out);
    options.bucket_elements = 3000;
    return hdt_split_with_trainer(comm, one, layout, options, run, out);
}

/* A value of 8 bits passes through some twenty roundings between tokens and loss, and as many back. */
#define BF16_BOUND (40 * 0x1p-9)

/* Everything is a sum of rows and columns in another order, which rounds once more for each layer that it
 * has come through; a gradient is held against the largest of its parameter. AdamW divides by roots of
 * sums of squares: where a gradient is all rounding, steps of 1e-3 may go either way. */
static void compare(const hdt_split *one, const char *what, hd_dtype dtype, const outcome *seen,
                    const outcome *alone)
{
    const int64_t places = one->height ? one->height * one->width / 4 : 1;
    const int64_t rows = HDT_SPLIT_SEQUENCES * (one->tokens + one->frames * places + one->text);
    const bool wide = dtype != HD_DTYPE_BF16;
    const double bound = wide ? hdt_tolerance(HD_DTYPE_F32, rows * one->roundings) : BF16_BOUND;
    ck_assert_msg(seen->first_weights == alone->first_weights, "%s, %s: other first values",
                  one->name, what);
    ck_assert_msg(fabs(seen->validation - alone->validation) <= bound * alone->validation,
                  "%s, %s: validation %.17g, one rank has %.17g", one->name, what, seen->validation,
                  alone->validation);
    for (int i = 0; i < STEPS; i++) {
        const double loss = alone->losses[i], norm = alone->norms[i],
                     drift = i ? 10 * bound : bound;
        ck_assert_msg(fabs(seen->losses[i] - loss) <= drift * loss,
                      "%s, %s: loss of step %d is %.17g, one rank has %.17g", one->name, what, i,
                      seen->losses[i], loss);
        ck_assert_msg(fabs(seen->norms[i] - norm) <= drift * norm,
                      "%s, %s: norm of step %d is %.17g, one rank has %.17g", one->name, what, i,
                      seen->norms[i], norm);
    }
    hdt_split_compare_gradients(one, what, bound, &seen->gradients, &alone->gradients);
}

static void check_layout(const hdt_split *one, const hd_mesh_options *layout,
                         const hd_trainer_options *options, const outcome *alone)
{
    static outcome seen;
    char what[128];
    const int ring = layout->ring ? layout->ring : 1, sequence = layout->sequence;
    snprintf(what, sizeof what, "data %d x pipeline %d x sequence %d in rings of %d x tensor %d",
             layout->data, layout->pipeline, sequence, ring, layout->tensor);
    const hd_status status = train(hdt_world, one, layout, *options, &seen);
    if (layout->tensor * (sequence ? sequence / ring : 1) > one->heads) {
        hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "key and value heads");
        return;
    }
    hdt_assert_ok(status);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, seen.losses, sizeof seen.losses, "losses"));
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen.weights, sizeof seen.weights, "weights"));
    compare(one, what, options->dtype, &seen, alone);
    ck_assert_uint_le(seen.used, seen.planned);
    if (layout->pipeline > 1 || layout->data > 1) return;
    hdt_assert_ok(
        hd_comm_check_equal(hdt_world, &seen.alike, sizeof seen.alike, "weights that all have"));
    /* What is not split is less than what a rank of several gives away. */
    ck_assert_int_lt(seen.own_elements, alone->own_elements * 9 / 10);
    ck_assert_uint_lt(seen.planned, alone->planned);
}

static void train_alone(const hdt_split *one, const hd_trainer_options *options, outcome *out)
{
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    const hd_status status = train(self, one, &(hd_mesh_options){0}, *options, out);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    ck_assert_double_gt(out->norms[0], 1e-3);
}

START_TEST(losses_and_gradients_are_those_of_one_rank)
{
    const hdt_split *one = &settings[_i];
    static outcome alone;
    const hd_mesh_options all = {.data = 1, .pipeline = 1, .tensor = hd_comm_size(hdt_world)};
    hd_trainer_options options = {.clip_norm = 0.1F};
    train_alone(one, &options, &alone);
    check_layout(one, &all, &options, &alone);
    options.recompute = true;
    options.shard_state = 1;
    check_layout(one, &all, &options, &alone);
}
END_TEST

START_TEST(weights_of_16_bits_follow_one_rank)
{
    const hdt_split *one = &settings[_i];
    static outcome alone;
    const hd_mesh_options all = {.data = 1, .pipeline = 1, .tensor = hd_comm_size(hdt_world)};
    if (all.tensor > 3) return; /* sums of two terms, and of more */
    const hd_trainer_options options = {.dtype = HD_DTYPE_BF16, .gradients = HD_DTYPE_BF16};
    train_alone(one, &options, &alone);
    check_layout(one, &all, &options, &alone);
}
END_TEST

START_TEST(tensor_goes_with_data_and_pipeline)
{
    const hdt_split *one = &settings[_i];
    static outcome alone;
    const int ranks = hd_comm_size(hdt_world);
    if (ranks != 4 && ranks != 8) return;
    hd_trainer_options options = {.accumulate = 2};
    if (ranks == 8) {
        train_alone(one, &options, &alone);
        options.accumulate = 1;
        options.recompute = true;
        options.shard_state = 2;
        check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 2, .tensor = 2}, &options,
                     &alone);
        return;
    }
    train_alone(one, &options, &alone);
    check_layout(one, &(hd_mesh_options){.data = 1, .pipeline = 2, .tensor = 2}, &options, &alone);
    options.accumulate = 1;
    check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .tensor = 2}, &options, &alone);
    for (options.shard_state = 1; options.shard_state <= 2; options.shard_state++)
        check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .tensor = 2}, &options,
                     &alone);
}
END_TEST

/* A sequence rank's heads and rows are dealt out once more, unequal where they do not divide. */
START_TEST(tensor_goes_with_sequence)
{
    const hdt_split *one = &settings[_i];
    static outcome alone;
    const int ranks = hd_comm_size(hdt_world);
    if (ranks != 4 && ranks != 8) return;
    hd_trainer_options options = {.clip_norm = 0.1F, .accumulate = ranks / 4};
    train_alone(one, &options, &alone);
    hd_mesh_options layout = {.data = 1, .pipeline = ranks / 4, .sequence = 2, .tensor = 2};
    for (layout.ring = 1; layout.ring <= 2; layout.ring++) {
        options.sequence_groups = 3 - layout.ring;
        options.recompute = layout.ring == 2;
        check_layout(one, &layout, &options, &alone);
        options.shard_state = 2;
    }
    if (ranks == 4) return;
    options = (hd_trainer_options){.clip_norm = 0.1F, .shard_state = 3};
    check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .sequence = 2, .tensor = 2},
                 &options, &alone);
}
END_TEST

START_TEST(weights_of_16_bits_follow_one_rank_on_both_axes)
{
    const hdt_split *one = &settings[_i];
    static outcome alone;
    if (hd_comm_size(hdt_world) != 4) return;
    const hd_trainer_options options = {.dtype = HD_DTYPE_BF16, .gradients = HD_DTYPE_BF16};
    train_alone(one, &options, &alone);
    check_layout(
        one, &(hd_mesh_options){.data = 1, .pipeline = 1, .sequence = 2, .ring = 2, .tensor = 2},
        &options, &alone);
}
END_TEST

START_TEST(what_cannot_be_split_is_refused_with_the_reason)
{
    static outcome out;
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options all = {.tensor = ranks};
    const hd_mesh_options both = {.tensor = ranks / 2, .sequence = 2, .ring = 2};
    const hd_trainer_options none = {0}, exact = {.exact = true};
    hdt_split one = settings[0];
    hdt_assert_status(train(hdt_world, &one, &all, exact, &out), HD_ERROR_UNSUPPORTED,
                      "reduction exact with layout.tensor");
    one.tokens = ranks - 1;
    if (ranks == 8) /* the first of two places has three tokens, the other four */
        hdt_assert_status(train(hdt_world, &one, &both, none, &out), HD_ERROR_UNSUPPORTED,
                          "tokens of a sequence");
    hdt_assert_status(train(hdt_world, &one, &all, none, &out), HD_ERROR_UNSUPPORTED,
                      "tokens of a sequence");
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("tensor");
    tcase_add_loop_test(tests, losses_and_gradients_are_those_of_one_rank, 0, SETTINGS);
    tcase_add_loop_test(tests, weights_of_16_bits_follow_one_rank, 0, SETTINGS);
    tcase_add_loop_test(tests, tensor_goes_with_data_and_pipeline, 0, SETTINGS);
    tcase_add_loop_test(tests, tensor_goes_with_sequence, 0, SETTINGS);
    tcase_add_loop_test(tests, weights_of_16_bits_follow_one_rank_on_both_axes, 0, SETTINGS);
    tcase_add_test(tests, what_cannot_be_split_is_refused_with_the_reason);
    return hdt_main_ranks(argc, argv, "tensor", tests);
}
