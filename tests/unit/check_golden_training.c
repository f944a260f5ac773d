/* Parity of training with the reference: ten steps of two models, and the optimizer by itself. */
#include "tests/support/hdt_backend.h"
#include "tests/support/hdt_golden.h"

#include "io/safetensors.h"

#include <stdio.h>

static const char *const families[] = {"gpt2", "llama"};

static void train_and_compare(const char *family, const hdt_golden_layout *layout, const char *what)
{
    hd_comm *self;
    hdt_golden_run run;
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &self));
    hd_status status = hdt_golden_train(self, family, layout, &run);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    hdt_golden_compare(&run, what);
}

START_TEST(ten_steps_have_the_losses_and_norms_of_the_reference)
{
    train_and_compare(families[_i], &(hdt_golden_layout){0}, families[_i]);
}
END_TEST

START_TEST(two_micro_batches_add_up_to_the_batch)
{
    train_and_compare(families[_i], &(hdt_golden_layout){.accumulate = 2}, "accumulate 2");
    train_and_compare(families[_i], &(hdt_golden_layout){.accumulate = 2, .exact = true},
                      "accumulate 2, exact");
}
END_TEST

START_TEST(chunks_and_recompute_leave_the_numbers_alone)
{
    train_and_compare(families[_i], &(hdt_golden_layout){.recompute = true}, "recompute");
    train_and_compare(families[_i], &(hdt_golden_layout){.chunks = 3}, "chunks 3");
}
END_TEST

/* adamw_reference: two parameters, their gradients given, twenty steps. */
enum { STEPS = 20, PARAMETERS = 2 };

static void *read_tensor(const hdi_safetensors *file, const char *kind, int index, int64_t *count)
{
    char name[64];
    snprintf(name, sizeof name, index < 0 ? "%s" : "%s.%d", kind, index);
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(file, name);
    ck_assert_ptr_nonnull(tensor);
    void *data = hdt_take((size_t)tensor->bytes);
    hdt_assert_ok(hdi_safetensors_pread(file, tensor, 0, tensor->bytes, data));
    *count = tensor->elements;
    return data;
}

static void compare(const char *what, int step, const float *seen, const double *wanted,
                    int64_t count, double tolerance)
{
    for (int64_t i = 0; i < count; i++)
        ck_assert_msg(fabs((double)seen[i] - wanted[i]) <= tolerance,
                      "%s[%lld] after step %d is %.9g, want %.9g", what, (long long)i, step,
                      (double)seen[i], wanted[i]);
}

/* What a training step does with a norm and a rate, on each parameter. */
START_TEST(adamw_and_clipping_equal_the_reference)
{
    const hd_backend *backend = &hdi_backend_cpu;
    hdi_device *device;
    hdi_safetensors *file;
    hdt_assert_ok(backend->open(0, &device));
    hd_stream *stream = backend->stream(device);
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path("adamw_reference.safetensors"), &file));
    float *weights[PARAMETERS], *gradients[PARAMETERS], *m[PARAMETERS], *v[PARAMETERS];
    double *wanted[PARAMETERS], *wanted_m[PARAMETERS], *wanted_v[PARAMETERS];
    int64_t counts[PARAMETERS], all;
    for (int p = 0; p < PARAMETERS; p++) {
        gradients[p] = read_tensor(file, "in.grad", p, &all);
        wanted[p] = read_tensor(file, "out64.param", p, &all);
        wanted_m[p] = read_tensor(file, "out64.exp_avg", p, &all);
        wanted_v[p] = read_tensor(file, "out64.exp_avg_sq", p, &all);
        weights[p] = read_tensor(file, "in.param", p, &counts[p]);
        m[p] = hdt_take((size_t)counts[p] * sizeof *m[p]);
        v[p] = hdt_take((size_t)counts[p] * sizeof *v[p]);
    }
    const double *norms = read_tensor(file, "out64.grad_norm", -1, &all);
    int clipped = 0;
    for (int step = 0; step < STEPS; step++) {
        double sum = 0, squares;
        for (int p = 0; p < PARAMETERS; p++) {
            hdt_assert_ok(backend->sum_of_squares(
                stream, HD_DTYPE_F32, gradients[p] + step * counts[p], counts[p], &squares));
            sum += squares;
        }
        ck_assert(fabs(sqrt(sum) - norms[step]) <=
                  hdt_tolerance(HD_DTYPE_F32, counts[0] + counts[1]) * norms[step]);
        const double scale = 1 / (sqrt(sum) + 1e-6);
        clipped += scale < 1;
        const float scalars[] = {1e-3F, scale < 1 ? (float)scale : 1,
                                 (float)(1 - pow((double)0.9F, step + 1)),
                                 (float)(1 - pow((double)0.95F, step + 1)), 1};
        for (int p = 0; p < PARAMETERS; p++) {
            hdt_assert_ok(backend->adamw(
                stream, &(hdi_adamw_args){.dtype = HD_DTYPE_F32,
                                          .elements = counts[p],
                                          .weights = weights[p],
                                          .m = m[p],
                                          .v = v[p],
                                          .gradient = gradients[p] + step * counts[p],
                                          .scalars = scalars,
                                          .beta1 = 0.9F,
                                          .beta2 = 0.95F,
                                          .epsilon = 1e-8F,
                                          .weight_decay = 0.1F}));
            hdt_assert_ok(backend->synchronize(stream));
            compare("parameter", step, weights[p], wanted[p] + step * counts[p], counts[p], 8e-6);
            compare("m", step, m[p], wanted_m[p] + step * counts[p], counts[p], 8e-6);
            compare("v", step, v[p], wanted_v[p] + step * counts[p], counts[p], 8e-6);
        }
    }
    ck_assert_int_gt(clipped, 0);
    ck_assert_int_lt(clipped, STEPS); /* both sides of the clip were seen */
    hdi_safetensors_close(file);
    backend->close(device);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden_training");
    TCase *tests = tcase_create("golden_training");
    tcase_add_checked_fixture(tests, NULL, hdt_free_held);
    tcase_add_loop_test(tests, ten_steps_have_the_losses_and_norms_of_the_reference, 0, 2);
    tcase_add_loop_test(tests, two_micro_batches_add_up_to_the_batch, 0, 2);
    tcase_add_loop_test(tests, chunks_and_recompute_leave_the_numbers_alone, 0, 2);
    tcase_add_test(tests, adamw_and_clipping_equal_the_reference);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
