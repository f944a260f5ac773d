/* ranks: 1 2 4 */
/* The promise: a traced training says for how much of its steps the device stood, and what for. */
#include "tests/support/hdt_clock.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_files.h"
#include "tests/support/hdt_job.h"
#include "tests/support/hdt_train.h"

#include "comm/comm.h"
#include "comm/mesh.h"
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "report/metrics.h"
#include "runtime/session.h"

#include <math.h>
#include <stdio.h>

enum { LAYERS = 4, STEPS = 3, BATCHES = 4, EVENTS = 1 << 14 };

/* What comes late, and by how many seconds in a step. */
typedef struct lateness {
    bool copies, communication, host;
    bool returns; /* of the host, from a wait for the device */
    hdi_exposed sum;
} lateness;
static lateness late;

static hd_stream *computing;      /* waits of other streams hold nobody */
static const hd_session *waiting; /* of what is communicated there, too */

static hd_status late_copy(hd_stream *stream, int slot)
{
    const double seconds = late.copies && stream == computing ? 3e-3 : 0;
    hdt_clock_pass(seconds);
    late.sum.copies += seconds;
    return hdi_backend_cpu.await(stream, slot);
}

/* In place of the transport's: it holds the device's queue and not the host. */
static hd_status late_order(hd_comm *comm, hd_request *request)
{
    const double seconds = late.communication && !waiting->beside.walks ? 5e-3 : 0;
    hdt_clock_pass(seconds);
    late.sum.communication += seconds;
    return hd_comm_wait(comm, request);
}

static hd_status late_feed(void *user, const char *name, int64_t global_batch, void *out,
                           size_t bytes)
{
    const double seconds = late.host ? 7e-3 : 0;
    hdt_clock_pass(seconds);
    late.sum.host += seconds;
    return hdt_feed(user, name, global_batch, out, bytes);
}

static hd_status (*synchronize)(hd_stream *stream); /* of the backend that this one is made from */

/* Once after something was computed. */
static hd_status late_synchronize(hd_stream *stream)
{
    static double last;
    HD_RETURN_IF_ERROR(synchronize(stream));
    const double seconds = late.returns && hdt_clock_seconds() > last ? 2e-3 : 0;
    hdt_clock_pass(seconds);
    late.sum.host += seconds;
    last = hdt_clock_seconds();
    return HD_OK;
}

/* The axes' transports with late_order, or as they were. */
static const hdi_transport *before[HD_AXES];
static hdi_transport delayed[HD_AXES];

static void delay(hd_mesh *mesh)
{
    for (int a = 0; a < HD_AXES; a++) {
        hd_comm *comm = hd_mesh_device_comm(mesh, (hd_axis)a);
        before[a] = comm ? comm->transport : NULL;
        if (!comm || comm->transport->order == late_order) continue;
        delayed[a] = *comm->transport;
        delayed[a].order = late_order;
        comm->transport = &delayed[a];
    }
}

static void undelay(hd_mesh *mesh)
{
    for (int a = HD_AXES - 1; a >= 0; a--)
        if (before[a]) hd_mesh_device_comm(mesh, (hd_axis)a)->transport = before[a];
}

typedef struct layout {
    hd_mesh_options mesh;
    int shard_state;
    bool exact, optimizer, gradients, activations, weights; /* these wait on the host */
} layout;

static const layout layouts[] = {
    {.optimizer = true},
    {.optimizer = true, .activations = true, .gradients = true},
    {.optimizer = true, .weights = true},
    {.mesh = {.data = 2}},
    {.mesh = {.data = 2}, .shard_state = 1, .exact = true},
    {.mesh = {.data = 2}, .shard_state = 3},
    {.mesh = {.data = 2}, .shard_state = 3, .weights = true},
    {.mesh = {.data = 2}, .shard_state = 1, .optimizer = true, .activations = true},
    {.mesh = {.pipeline = 2}},
    {.mesh = {.pipeline = 2}, .optimizer = true, .gradients = true},
    {.mesh = {.tensor = 2}, .optimizer = true},
    {.mesh = {.sequence = 2}, .shard_state = 3},
    {.mesh = {.sequence = 2, .ring = 2}, .activations = true},
    {.mesh = {.data = 2, .pipeline = 2}, .shard_state = 1, .exact = true, .optimizer = true},
    {.mesh = {.tensor = 2, .data = 2}, .shard_state = 3},
    {.mesh = {.sequence = 2, .pipeline = 2}, .activations = true},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static int ranks_of(const hd_mesh_options *mesh)
{
    const int sizes[] = {mesh->tensor, mesh->sequence, mesh->data, mesh->pipeline};
    int ranks = 1;
    for (int i = 0; i < 4; i++)
        ranks *= sizes[i] ? sizes[i] : 1;
    return ranks;
}

static bool has_copies(const layout *is)
{
    return is->optimizer || is->gradients || is->activations || is->weights;
}

/* Does a step wait for copies? For those of an update only if there was one, and no validation in between. */
static bool waits_for_copies(const layout *is, int64_t step)
{
    const bool others = is->gradients || is->activations || is->weights;
    return has_copies(is) && (others || step > 1);
}

/* Seconds of the steps as they were made and as they were measured. */
typedef struct measured {
    hdi_exposed made[STEPS], seen[STEPS];
    hdi_trace_file file;
    int64_t stamps;
    uint64_t allocations; /* after the first step */
} measured;

static hd_status take_steps(hd_trainer *trainer, measured *out)
{
    uint64_t allocations = 0;
    for (int64_t step = 0; step < STEPS; step++) {
        hd_step_result result;
        const double begin = hdt_clock_seconds();
        late.sum = (hdi_exposed){0};
        HD_RETURN_IF_ERROR(hd_trainer_step(trainer, 1e-3, late_feed, &step, &result));
        HD_RETURN_IF_ERROR(hdi_spans_settle(trainer->spans));
        out->made[step] = late.sum;
        out->made[step].seconds = hdt_clock_seconds() - begin;
        out->seen[step] = hdi_spans_take(trainer->spans);
        hdt_clock_pass(1); /* between steps: of none of them */
        if (step == 0) HD_RETURN_IF_ERROR(hd_trainer_validate(trainer, late_feed, &step, &result));
        if (step == 0) allocations = hdi_alloc_count();
    }
    out->allocations = hdi_alloc_count() - allocations;
    return HD_OK;
}

static hd_status train(const layout *is, bool traced, measured *out)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hdi_trace *trace = NULL;
    hd_model *model = hdt_tiny_model("llama", LAYERS);
    const char *path = hdt_file("trace.json");
    hd_status status = hdt_open_place(hdt_world, &is->mesh, &mesh, &context);
    if (status == HD_OK) {
        hd_backend *backend = hdt_clock_backend();
        backend->await = backend->await_store = backend->await_flag = late_copy;
        computing = context->stream;
        synchronize = backend->synchronize;
        backend->synchronize = late_synchronize;
        context->backend = backend;
        context->attached = mesh;
        const int batches = BATCHES / hd_mesh_size(mesh, HD_AXIS_DATA);
        status = hd_trainer_create(
            &(hd_trainer_options){
                .build = hd_model_build,
                .user = model,
                .layers = LAYERS,
                .mesh = mesh,
                .backend = hd_context_backend(context),
                .sequences = HDT_SEQUENCES,
                .tokens = HDT_TOKENS,
                .accumulate = batches,
                .validate_batches = batches,
                .shard_state = is->shard_state,
                .exact = is->exact,
                .optimizer_residency = is->optimizer ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT,
                .gradient_residency = is->gradients ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT,
                .residency = is->weights ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT,
                .activations = is->activations ? HD_ACTIVATIONS_HOST : HD_ACTIVATIONS_KEEP,
                .chunk_elements = 1000,
                .bucket_elements = 20000},
            &trainer);
    }
    if (status == HD_OK) status = hd_trainer_start(trainer, context, 42);
    if (status == HD_OK && traced) status = hdi_trace_create(0, EVENTS, &trace);
    if (status == HD_OK && traced) status = hdi_trainer_start_trace(trainer, trace);
    status = hd_comm_agree(hdt_world, status);
    if (status == HD_OK) {
        waiting = trainer->session;
        delay(mesh);
        status = take_steps(trainer, out);
        undelay(mesh);
    }
    out->stamps = hdt_clock_stamps();
    if (status == HD_OK && traced) status = hdi_trace_flush(trace, 0, path);
    if (status == HD_OK && traced) status = hdi_trace_read(path, &out->file);
    hd_trainer_destroy(trainer);
    hdi_trace_destroy(trace);
    hdt_close_place(mesh, context);
    hd_model_destroy(model);
    return status;
}

/* Of the spans of a category and a step in the file. */
static double in_file(const measured *it, int64_t step, hdi_trace_category category)
{
    double us = 0;
    for (int64_t i = 0; i < it->file.count; i++)
        if (it->file.events[i].category == category && it->file.events[i].step == step)
            us += it->file.events[i].end_us - it->file.events[i].begin_us;
    return 1e-6 * us;
}

static void assert_seen(const layout *is, const measured *it)
{
    /* s: what a file rounds to, for each span; made-up seconds are sums of whole milliseconds. */
    const double slack = 1e-9 * EVENTS;
    for (int64_t step = 0; step < STEPS; step++) {
        const hdi_exposed *made = &it->made[step], *seen = &it->seen[step];
        ck_assert_msg(fabs(seen->copies - made->copies) < slack &&
                          fabs(seen->communication - made->communication) < slack &&
                          fabs(seen->host - made->host) < slack &&
                          fabs(seen->seconds - made->seconds) < slack,
                      "layout %d, step %d: copies %.6f s, communication %.6f s, host %.6f s of "
                      "%.6f s, wanted are %.6f, %.6f, %.6f, %.6f",
                      (int)(is - layouts), (int)step, seen->copies, seen->communication, seen->host,
                      seen->seconds, made->copies, made->communication, made->host, made->seconds);
        ck_assert_double_eq_tol(in_file(it, step, HDI_TRACE_WAIT_COPIES), made->copies, slack);
        ck_assert_double_eq_tol(in_file(it, step, HDI_TRACE_WAIT_COMM), made->communication, slack);
        ck_assert_double_eq_tol(in_file(it, step, HDI_TRACE_WAIT_HOST), made->host, slack);
        ck_assert_int_eq(made->copies > 0, late.copies && waits_for_copies(is, step));
        ck_assert_int_eq(made->communication > 0,
                         late.communication && hd_comm_size(hdt_world) > 1);
        ck_assert_int_eq(made->host > 0, late.host || late.returns);
    }
    ck_assert_uint_eq(it->allocations, 0);
}

static const lateness kinds[] = {
    {0},
    {.copies = true},
    {.communication = true},
    {.host = true},
    {.returns = true},
    {.copies = true, .communication = true, .host = true},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static bool is_for_here(const layout *is)
{
    return strcmp(hdt_device(), "cpu") == 0 && ranks_of(&is->mesh) == hd_comm_size(hdt_world);
}

START_TEST(each_wait_is_seen_for_what_it_is)
{
    const layout *is = &layouts[_i / KINDS];
    measured it = {0};
    late = kinds[_i % KINDS];
    if (!is_for_here(is)) return;
    hdt_assert_ok(hd_comm_agree(hdt_world, train(is, true, &it)));
    assert_seen(is, &it);
    hdi_trace_file_free(&it.file);
}
END_TEST

START_TEST(without_a_trace_nothing_is_stamped)
{
    const layout *is = &layouts[_i];
    measured it = {0};
    late = kinds[KINDS - 1];
    if (!is_for_here(is)) return;
    hdt_assert_ok(hd_comm_agree(hdt_world, train(is, false, &it)));
    ck_assert_int_eq(it.stamps, 0);
    ck_assert_double_eq(it.seen[STEPS - 1].seconds, 0);
}
END_TEST

static int records(const char *directory, const char *field)
{
    char path[1100];
    hdi_point *points = NULL;
    int64_t count = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", directory);
    hdt_assert_ok(hdi_metrics_series(path, "step", field, &points, &count));
    for (int64_t i = 0; i < count; i++)
        ck_assert_double_ge(points[i].y, 0);
    hdi_free(points);
    return (int)count;
}

START_TEST(a_traced_run_writes_its_shares_down)
{
    static const char *const settings[][2] = {
        {"model.layers", "2"},        {"model.hidden", "24"},     {"model.heads", "2"},
        {"train.tokens", "16"},       {"train.micro_batch", "1"}, {"train.batch", "8"},
        {"train.steps", "4"},         {"layout.bucket", "20000"}, {"optimizer.residency", "host"},
        {"train.validate_every", "2"}};
    const bool traced = _i;
    const char *directory = hdt_job_directory();
    hd_config *config = hdt_job_config(hdt_job_text(), directory, false);
    hdt_set_all(config, settings);
    hdt_set(config, "run.trace", traced ? "true" : "false");
    hd_train_result result;
    hdt_assert_ok(hdt_job_train(config, &result));
    ck_assert_int_eq(!isnan(result.exposed_copies), traced);
    ck_assert_int_eq(!isnan(result.exposed_communication), traced);
    ck_assert_int_eq(!isnan(result.exposed_host), traced);
    if (traced) {
        const double all =
            result.exposed_copies + result.exposed_communication + result.exposed_host;
        ck_assert_double_gt(all, 0);
        if (strcmp(hdt_device(), "cpu") != 0) ck_assert_double_gt(result.exposed_copies, 0);
        ck_assert_double_lt(all, 1);
    }
    if (hd_comm_rank(hdt_world) != 0) return;
    static const char *const fields[] = {"exposed_copies_seconds", "exposed_communication_seconds",
                                         "exposed_host_seconds", "exposed_of_seconds"};
    for (int f = 0; f < 4; f++)
        ck_assert_int_eq(records(directory, fields[f]), traced ? 4 : 0);
    char path[1100];
    snprintf(path, sizeof path, "%s/log.txt", directory);
    char *log = hdt_read_text(path);
    ck_assert_int_eq(strstr(log, "exposed: copies ") != NULL, traced);
    hdi_free(log);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("exposed");
    tcase_add_loop_test(tests, each_wait_is_seen_for_what_it_is, 0, LAYOUTS * KINDS);
    tcase_add_loop_test(tests, without_a_trace_nothing_is_stamped, 0, LAYOUTS);
    tcase_add_loop_test(tests, a_traced_run_writes_its_shares_down, 0, 2);
    tcase_add_checked_fixture(tests, hdt_files_reset, NULL);
    return hdt_main_ranks(argc, argv, "trace", tests);
}
