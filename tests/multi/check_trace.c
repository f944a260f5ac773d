/* ranks: 1 2 4, at most 4 */
/* The promise: a trace has what the device did when it did it, not when it was told to. */
#include "tests/support/hdt_clock.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_files.h"

#include "core/memory.h"
#include "jobs/train/trainer.h"

#include <heddle/model.h>

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A host that comes back so late from most of its waits for the device. */
static const double late_seconds = 2e-3;
static bool comes_late;
static hd_status (*synchronize)(
    hd_stream *stream); /* of the backend that the late one is made from */

static hd_status synchronize_late(hd_stream *stream)
{
    static int calls;
    const hd_status status = synchronize(stream);
    if (comes_late && ++calls % 3) usleep((useconds_t)(1e6 * late_seconds));
    return status;
}

enum { STEPS = 3, BATCHES = 4, VOCAB = 97, LAYERS = 4, EVENTS = 4096 };

/* On a GPU a step must be long beside what it takes to queue it. */
static hd_model *make_model(bool large, int64_t tokens)
{
    char text[256];
    hd_model *model = NULL;
    snprintf(text, sizeof text,
             "{\"model_type\":\"gpt2\",\"vocab_size\":%d,\"n_positions\":%d,\"n_embd\":%d,"
             "\"n_layer\":%d,\"n_head\":4}",
             VOCAB, (int)tokens, large ? 1024 : 64, LAYERS);
    hdt_assert_ok(hd_model_create_json(text, &model));
    return model;
}

static hd_status feed(void *user, const char *name, int64_t global_batch, void *out, size_t bytes)
{
    const int shift = strcmp(name, "targets") == 0;
    int32_t *ids = out;
    (void)user;
    for (int64_t i = 0; i < (int64_t)(bytes / sizeof *ids); i++)
        ids[i] = (int32_t)((3 * global_batch + i + shift) % VOCAB);
    return HD_OK;
}

/* A training's events, and what the host saw of it. */
typedef struct traced {
    hdi_trace_file file;
    uint64_t allocations; /* after the first step */
    double step_us[STEPS];
    double device_seconds[STEPS]; /* of the clocked device, in what comes before the update */
    double error_us;              /* of the device's clock */
} traced;

static hd_status take_steps(hd_trainer *trainer, traced *out)
{
    hd_step_result result;
    uint64_t allocations = 0;
    for (int step = 0; step < STEPS; step++) {
        const double begin = hdi_trace_now(), device = hdt_clock_seconds();
        const hd_status status = hd_trainer_step(trainer, 1e-3, feed, NULL, &result);
        if (status != HD_OK) return status;
        out->step_us[step] = hdi_trace_now() - begin;
        out->device_seconds[step] = hdt_clock_seconds() - device;
        if (step == 0) allocations = hdi_alloc_count();
    }
    out->allocations = hdi_alloc_count() - allocations;
    const hd_status status = hdi_spans_settle(trainer->spans);
    out->error_us = hdi_spans_error_us(trainer->spans);
    return status;
}

static hd_status train(const hd_mesh_options *layout, bool by_clock, traced *out)
{
    const bool large = strcmp(hdt_device(), "cpu") != 0;
    const int64_t tokens = large ? 512 : 16;
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hdi_trace *trace = NULL;
    hd_model *model = make_model(large, tokens);
    const char *path = hdt_file("trace.json");
    hd_status status = hdt_open_place(hdt_world, layout, &mesh, &context);
    if (status == HD_OK && by_clock) {
        hd_backend *backend = hdt_clock_backend();
        synchronize = backend->synchronize;
        backend->synchronize = synchronize_late;
        context->backend = backend;
        context->attached = mesh;
    }
    if (status == HD_OK)
        status = hd_trainer_create(
            &(hd_trainer_options){.build = hd_model_build,
                                  .user = model,
                                  .layers = LAYERS,
                                  .mesh = mesh,
                                  .backend = hd_context_backend(context),
                                  .sequences = large ? 8 : 2,
                                  .tokens = tokens,
                                  .accumulate = BATCHES / hd_mesh_size(mesh, HD_AXIS_DATA)},
            &trainer);
    if (status == HD_OK) status = hd_trainer_start(trainer, context, 42);
    if (status == HD_OK) status = hdi_trace_create(hd_comm_rank(hdt_world), EVENTS, &trace);
    if (status == HD_OK) status = hdi_trainer_start_trace(trainer, trace);
    if (status == HD_OK) status = take_steps(trainer, out);
    if (status == HD_OK) status = hdi_trace_flush(trace, 0, path);
    if (status == HD_OK) status = hdi_trace_read(path, &out->file);
    hd_trainer_destroy(trainer);
    hdi_trace_destroy(trace);
    hdt_close_place(mesh, context);
    hd_model_destroy(model);
    return status;
}

/* What a step's spans of a category, or of all of them (OTHER) that are no waits, take together. */
static double covered(const traced *it, int64_t step, hdi_trace_category category)
{
    double sum = 0;
    for (int64_t i = 0; i < it->file.count; i++) {
        const hdi_trace_event *event = &it->file.events[i];
        if (event->step == step &&
            (category == HDI_TRACE_OTHER ? !hdi_trace_is_wait(event->category)
                                         : event->category == category))
            sum += event->end_us - event->begin_us;
    }
    return sum;
}

static int count(const traced *it, int64_t step, const char *name)
{
    int found = 0;
    for (int64_t i = 0; i < it->file.count; i++)
        found += it->file.events[i].step == step && strcmp(it->file.events[i].name, name) == 0;
    return found;
}

static hd_mesh_options layout_of(int variant)
{
    const int ranks = hd_comm_size(hdt_world);
    return variant ? (hd_mesh_options){.pipeline = ranks} : (hd_mesh_options){.data = ranks};
}

START_TEST(a_step_is_the_spans_of_what_the_device_did)
{
    const hd_mesh_options layout = layout_of(_i);
    const int batches = layout.pipeline ? BATCHES : BATCHES / layout.data;
    traced it = {0};
    hdt_assert_ok(hd_comm_agree(hdt_world, train(&layout, false, &it)));
    /* us: what a file rounds and a GPU's clock resolves. The spans of a settlement have one reading of that
     * clock. Those after the norm have the next one, at the end of the next step: each reading is off by what
     * it says, and two crystals drift apart by up to 100 millionths of the time between. */
    const double slack = 1, longest = fmax(it.step_us[1], it.step_us[2]);
    const double again = slack + 2 * it.error_us + 1e-4 * 2 * longest;
    double last = 0;
    const char *before = "";
    for (int64_t i = 0; i < it.file.count; i++) {
        const hdi_trace_event *event = &it.file.events[i];
        /* Waits inside of others come before them. */
        if (hdi_trace_is_wait(event->category) && event->micro_batch < 0) continue;
        const double allowed = strcmp(before, "norm") == 0 ? again : slack;
        ck_assert_msg(event->begin_us >= last - allowed,
                      "%s begins %.1f us before %s ends, allowed are %.1f us", event->name,
                      last - event->begin_us, before, allowed);
        last = event->end_us;
        before = event->name;
    }
    ck_assert_double_le(last, hdi_trace_now() + again);
    for (int64_t step = 0; step < STEPS; step++) {
        ck_assert_int_eq(count(&it, step, "forward"), batches);
        ck_assert_int_eq(count(&it, step, "backward"), batches);
        ck_assert_int_eq(count(&it, step, "reduce"), 1);
        ck_assert_int_eq(count(&it, step, "norm"), 1);
        ck_assert_int_eq(count(&it, step, "update"), 1);
    }
    if (strcmp(hdt_device(), "cpu") == 0) {
        ck_assert_uint_eq(it.allocations, 0);
    } else if (hd_comm_size(hdt_world) == 1) {
        /* One rank's step is nearly all computation: what queues it is over long before. */
        const double whole = covered(&it, STEPS - 1, HDI_TRACE_OTHER);
        const double passes = covered(&it, STEPS - 1, HDI_TRACE_FORWARD) +
                              covered(&it, STEPS - 1, HDI_TRACE_BACKWARD);
        ck_assert_msg(whole > 0.8 * it.step_us[STEPS - 1] && passes > 0.8 * whole,
                      "spans %.0f us, forward and backward %.0f us, of a step of %.0f us", whole,
                      passes, it.step_us[STEPS - 1]);
    }
    hdi_trace_file_free(&it.file);
}
END_TEST

START_TEST(the_device_s_clock_is_read_when_nothing_delays_the_host)
{
    if (strcmp(hdt_device(), "cpu") != 0) return;
    const hd_mesh_options layout = layout_of(0);
    traced it = {0};
    comes_late = true;
    const hd_status status = hd_comm_agree(hdt_world, train(&layout, true, &it));
    comes_late = false;
    hdt_assert_ok(status);
    ck_assert_double_gt(it.error_us, 0);
    ck_assert_double_lt(it.error_us, 1e6 * late_seconds / 2);
    hdi_trace_file_free(&it.file);
}
END_TEST

START_TEST(spans_last_as_long_as_the_device_says)
{
    if (strcmp(hdt_device(), "cpu") != 0) return;
    const hd_mesh_options layout = layout_of(_i);
    traced it = {0};
    hdt_assert_ok(hd_comm_agree(hdt_world, train(&layout, true, &it)));
    ck_assert_uint_eq(it.allocations, 0);
    for (int64_t step = 0; step < STEPS; step++) {
        const double forward = covered(&it, step, HDI_TRACE_FORWARD);
        const double backward = covered(&it, step, HDI_TRACE_BACKWARD);
        const double products = 1e6 * it.device_seconds[step];
        ck_assert_double_gt(forward, 0);
        ck_assert_double_gt(backward, forward);
        ck_assert_double_le(fabs(forward + backward - products), 1);
        ck_assert_double_le(fabs(covered(&it, step, HDI_TRACE_OTHER) - products), 1);
    }
    hdi_trace_file_free(&it.file);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("trace");
    tcase_add_loop_test(tests, a_step_is_the_spans_of_what_the_device_did, 0, 2);
    tcase_add_loop_test(tests, spans_last_as_long_as_the_device_says, 0, 2);
    tcase_add_test(tests, the_device_s_clock_is_read_when_nothing_delays_the_host);
    tcase_add_checked_fixture(tests, hdt_files_reset, NULL);
    return hdt_main_ranks(argc, argv, "trace", tests);
}
