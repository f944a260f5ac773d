/* ranks: 2 3 4, at most 4 */
/* Checkpoints of layers that are split over ranks: they hold what one rank would have written, and open
 * on any layout. */
#include "tests/support/hdt_job.h"
#include "tests/support/hdt_program.h"

#include "core/memory.h"
#include "io/checkpoint.h"

#include <math.h>
#include <stdio.h>

enum { STEPS = 4, STOP = 2 };

static const char *const families[] = {"gpt2", "llama"};
static const char *const dtypes[] = {"f32", "bf16"};
static const char *dtype; /* of the weights of the test that runs */

/* Steps up to `steps` of STEPS; on one rank without MPI if `split` is NULL. */
static hd_status train(const char *directory, const char *family, const hdt_job_layout *split,
                       int steps, const char *weights, hd_train_result *result)
{
    static const char *const settings[][2] = {
        {"model.layers", "2"},
        {"model.hidden", "24"},
        {"model.heads", "4"},
        {"train.tokens", "16"},
        {"train.micro_batch", "2"},
        {"train.batch", "8"},
        {"optimizer.warmup", "2"},
        {"train.validate_batches", "1"},
        {"train.ema", "0.9"},
        {"layout.bucket", "20000"},
        {"optimizer.learning_rate", "3e-3"},
    };
    hd_config *config = hdt_job_config(hdt_job_text(), directory, !split);
    hdt_set_all(config, settings);
    hdt_set(config, "model.family", family);
    hdt_set(config, "train.dtype", dtype);
    hdt_set(config, "model.weights", weights);
    hdt_set_number(config, "train.steps", steps);
    hdt_set_number(config, "optimizer.decay_steps", STEPS);
    if (split) hdt_set_layout(config, split);
    return hdt_job_train(config, result);
}

/* The same on the first rank alone; the others wait. */
static hd_status train_alone(const char *directory, const char *family, int steps,
                             const char *weights, hd_train_result *result)
{
    hd_status status = HD_OK;
    if (hd_comm_rank(hdt_world) == 0)
        status = train(directory, family, NULL, steps, weights, result);
    hd_request request;
    status = hd_comm_agree(hdt_world, status);
    hdt_assert_ok(hd_comm_broadcast(hdt_world, result, sizeof *result, 0, &request));
    hdt_assert_ok(hd_comm_wait(hdt_world, &request));
    return status;
}

/* Largest distance of two tensors of checkpoints, and the largest value. */
static double distance(hdi_checkpoint *left, hdi_checkpoint *right,
                       const hdi_checkpoint_tensor *tensor, double *largest)
{
    float *a = hdi_alloc_array((size_t)tensor->elements, sizeof *a),
          *b = hdi_alloc_array((size_t)tensor->elements, sizeof *b);
    double error = 0;
    *largest = 0;
    ck_assert(a && b);
    hdt_assert_ok(hdi_checkpoint_read(left, tensor->name, 0, tensor->elements, HD_DTYPE_F32, a));
    hdt_assert_ok(hdi_checkpoint_read(right, tensor->name, 0, tensor->elements, HD_DTYPE_F32, b));
    for (int64_t i = 0; i < tensor->elements; i++) {
        error = fmax(error, fabs((double)a[i] - (double)b[i]));
        *largest = fmax(*largest, fabs((double)b[i]));
    }
    hdi_free(a);
    hdi_free(b);
    return error;
}

/* Gradients differ in rounding; where one is all rounding, AdamW may step the other way, by 2 * 3e-3 a
 * step. m is held against the largest of its tensor. */
static void compare_checkpoints(const char *seen_path, const char *alone_path)
{
    hdi_checkpoint *seen, *alone;
    char *warning = NULL;
    const double bound = hdt_tolerance(HD_DTYPE_F32, 8 * 16 * 24);
    hdt_assert_ok(hdi_checkpoint_open(seen_path, NULL, &warning, &seen));
    ck_assert_ptr_null(warning);
    hdt_assert_ok(hdi_checkpoint_open(alone_path, NULL, &warning, &alone));
    ck_assert_int_eq(hdi_checkpoint_count(seen), hdi_checkpoint_count(alone));
    for (int i = 0; i < hdi_checkpoint_count(alone); i++) {
        const hdi_checkpoint_tensor *one = hdi_checkpoint_get(alone, i);
        const hdi_checkpoint_tensor *other = hdi_checkpoint_find(seen, one->name);
        ck_assert_msg(other && other->elements == one->elements, "%s: missing or of another size",
                      one->name);
        double largest, error = distance(seen, alone, one, &largest);
        if (strncmp(one->name, "adam_m", 6) == 0)
            ck_assert_msg(error <= bound * largest, "%s: off by %g of %g", one->name, error,
                          largest);
        else
            ck_assert_msg(error <= STOP * 6e-3, "%s: off by %g", one->name, error);
    }
    hdi_checkpoint_close(seen);
    hdi_checkpoint_close(alone);
}

/* Tensors that were told of, as long as that came one by one. */
static bool count_told(void *user, const hd_progress *progress)
{
    int64_t *told = user;
    if (progress->step == *told + 1 && progress->step <= progress->steps) ++*told;
    return true;
}

/* "transposed" files, and parts of several tensors. */
START_TEST(weights_of_files_are_read_by_parts)
{
    const char *family = families[_i];
    const hdt_job_layout tensor = {.data = 1, .tensor = hd_comm_size(hdt_world)};
    if (tensor.tensor > 4) return;
    const char *alone = hdt_job_directory();
    char weights[4300];
    hd_train_result wanted = {0}, seen = {0};
    dtype = "f32";
    hdt_job_text();
    snprintf(weights, sizeof weights, "%s-weights", alone);
    hdt_assert_ok(train_alone(alone, family, STOP, "", &wanted));
    int64_t told = 0;
    if (hd_comm_rank(hdt_world) == 0)
        hdt_assert_ok(hd_convert_run(alone, weights, &(hd_convert_options){.progress = count_told},
                                     hdt_drop, &told));
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    ck_assert_int_eq(told > 1, hd_comm_rank(hdt_world) == 0);
    alone = hdt_job_directory();
    const char *split = hdt_job_directory();
    hdt_assert_ok(train_alone(alone, family, 1, weights, &wanted));
    hdt_assert_ok(train(split, family, &tensor, 1, weights, &seen));
    const double bound = hdt_tolerance(HD_DTYPE_F32, 8 * 16 * 24) * wanted.loss;
    ck_assert_msg(fabs(seen.loss - wanted.loss) <= bound, "%s: loss %.17g, one rank has %.17g",
                  family, seen.loss, wanted.loss);
}
END_TEST

START_TEST(a_checkpoint_is_that_of_one_rank_and_opens_everywhere)
{
    const char *family = families[_i % 2];
    dtype = dtypes[_i / 2];
    const int ranks = hd_comm_size(hdt_world);
    if (ranks > 4) return; /* the models' heads */
    const hdt_job_layout tensor = {.data = 1, .tensor = ranks},
                         sharded = {.data = ranks / 2, .tensor = 2, .shard_state = 1},
                         both = {.data = 1,
                                 .sequence = ranks / 2,
                                 .ring = ranks / 2,
                                 .tensor = 2,
                                 .shard_state = 1},
                         piped = {.data = 1, .pipeline = ranks / 2, .tensor = 2},
                         data = {.data = ranks, .shard_state = 1};
    const hdt_job_layout *others[] = {&tensor, ranks == 4 ? &sharded : NULL,
                                      ranks == 4 ? &both : NULL, ranks == 4 ? &piped : NULL,
                                      ranks == 3 ? NULL : &data};
    const char *alone = hdt_job_directory(), *whole = hdt_job_directory();
    hd_train_result seen = {0}, result = {0};
    hdt_job_text();
    hdt_assert_ok(train_alone(alone, family, STOP, "", &result));
    for (int from = 0; from < 4; from++) {
        if (!others[from]) continue;
        const char *split = hdt_job_directory();
        hdt_assert_ok(train(split, family, others[from], STOP, "", &seen));
        if (_i < 2) compare_checkpoints(split, alone);
        hdt_assert_ok(train_alone(split, family, STOP, "", &result));
        ck_assert_uint_eq(result.weights_hash, seen.weights_hash);
        for (int to = 0; to < 5; to++) {
            if (!others[to]) continue;
            hdt_assert_ok(train(split, family, others[to], STOP, "", &result));
            ck_assert_uint_eq(result.weights_hash, seen.weights_hash);
        }
    }
    /* Moments come back where they were. */
    const char *split = hdt_job_directory();
    hdt_assert_ok(train(split, family, &tensor, STOP, "", &seen));
    hdt_assert_ok(train(split, family, &tensor, STEPS, "", &seen));
    hdt_assert_ok(train(whole, family, &tensor, STEPS, "", &result));
    ck_assert_uint_eq(result.weights_hash, seen.weights_hash);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("tensor resume");
    tcase_add_loop_test(tests, a_checkpoint_is_that_of_one_rank_and_opens_everywhere, 0, 4);
    tcase_add_loop_test(tests, weights_of_files_are_read_by_parts, 0, 2);
    return hdt_main_ranks(argc, argv, "tensor resume", tests);
}
