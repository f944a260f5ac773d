/* Replay: what is kept as a graph is what a walk would have queued, and nothing that waits or goes on
 * lies inside it. */
#include <limits.h>

#include "backend/backend.h"
#include "core/error.h"
#include "program/plan.h"
#include "runtime/session.h"
#include "tests/support/hdt_program.h"
#include "tests/support/hdt_recorder.h"
#include "tests/support/hdt_train.h"

static hd_status like_first(hd_program *program, const hd_op *op)
{
    hd_op_output(program, HD_DTYPE_F32, 1, op->in_info[0]->dims);
    return HD_OK;
}

/* All that a run may depend on is in the numbers: 2 x for each micro-batch before, and again in the last. */
static hd_status compute(const hd_run *run)
{
    const int64_t elements = run->op->in_info[0]->elements;
    const int times = run->micro_batch + run->last;
    HD_RETURN_IF_ERROR(
        run->backend->copy(run->stream, run->out[0], run->in[0], (size_t)elements * sizeof(float)));
    for (int i = 0; i < times; i++)
        HD_RETURN_IF_ERROR(run->backend->add(run->stream, HD_DTYPE_F32, elements, run->out[0],
                                             run->out[0], run->out[0]));
    return HD_OK;
}

static int worked;           /* ops that were called, not replayed */
static bool fails_to_record; /* the op cannot be kept */

static hd_status run_work(const hd_run *run)
{
    if (fails_to_record && hdt_recorder.records) return HD_ERROR_DEVICE;
    worked += !hdt_recorder.records;
    return compute(run);
}

static hd_comm *self;

static hd_status run_exchange(const hd_run *run)
{
    const hd_tensor_info *info = run->op->in_info[0];
    ck_assert(!hdt_recorder.records);
    memcpy(run->out[0], run->in[0], info->bytes);
    *run->posted_on = self;
    return hd_comm_all_reduce(self, run->out[0], info->elements, HD_DTYPE_F32, HD_REDUCE_SUM,
                              run->request);
}

static hd_status run_varying(const hd_run *run)
{
    ck_assert(!hdt_recorder.records);
    return compute(run);
}

static const hd_op_kind work = {.name = "work", .shape = like_first, .run = run_work};
static const hd_op_kind exchange = {
    .name = "exchange", .flags = HD_OP_COMMUNICATES, .shape = like_first, .run = run_exchange};
static const hd_op_kind varying = {
    .name = "varying", .flags = HD_OP_VARIES, .shape = like_first, .run = run_varying};

static hd_tensor apply(hd_program *p, const hd_op_kind *kind, hd_tensor x)
{
    return hd_custom_op(p, kind, NULL, 1, &x);
}

static hd_tensor repeat(hd_program *p, hd_tensor x, int times)
{
    for (int i = 0; i < times; i++)
        x = apply(p, &work, x);
    return x;
}

enum { LENGTH = 5, BEFORE = 4, UNDER = 5, BEHIND = 6, BATCHES = 2 };

/* Runs of a round have one of so many sets of options, whose turn it is again KINDS / BATCHES rounds later. */
enum { KINDS = 2 * BATCHES, TURNS = 4, ROUNDS = TURNS * KINDS / BATCHES };

enum { EXCHANGE_AT = BEFORE, WAIT_AT = BEFORE + 1 + UNDER };

/* Work, an exchange, work under it, work on what came, an op that varies, work. */
static hd_program *make_program(void)
{
    hd_program *p;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p"}, &p));
    const hd_tensor here = repeat(p, hdt_vector(p, "x", LENGTH), BEFORE);
    const hd_tensor come = apply(p, &exchange, here);
    hd_output(p, repeat(p, here, UNDER), "own");
    const hd_tensor all = apply(p, &varying, repeat(p, come, BEHIND));
    hd_output(p, repeat(p, all, HDI_REPLAY_LEAST_OPS - 1), "all");
    hdt_assert_ok(hd_program_finish(p));
    return p;
}

typedef struct place {
    hd_context *context;
    hd_program *program;
    hd_plan *plan;
    hd_session *session;
} place;

static void open_place(place *it, bool keeps)
{
    const hd_comm_options alone = {.transport = HD_TRANSPORT_SELF};
    const hd_backend *recorder = hdt_recorder_backend(&hdi_backend_cpu);
    hdt_assert_ok(hd_comm_create_world(&alone, &self));
    hdt_assert_ok(
        hd_context_create(&(hd_context_options){.device = "cpu", .graphs = true}, &it->context));
    if (keeps) it->context->backend = recorder;
    it->program = make_program();
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &it->plan));
    hdt_assert_ok(
        hd_plan_add(it->plan, it->program, &(hd_plan_program_options){.io_slots = BATCHES}));
    hdt_assert_ok(hd_plan_finish(it->plan));
    hdt_assert_ok(hd_session_create(it->context, it->plan, NULL, &it->session));
}

static void close_place(place *it)
{
    hd_session_destroy(it->session);
    ck_assert_uint_eq(it->context->graph_bytes, 0);
    ck_assert_int_eq(hdt_recorder.graphs, 0);
    hd_plan_destroy(it->plan);
    hd_program_destroy(it->program);
    hd_context_destroy(it->context);
    hd_comm_destroy(self);
}

/* All micro-batches; what comes out is appended to `out`. */
static void step(place *it, int round, float (*out)[LENGTH])
{
    for (int b = 0; b < BATCHES; b++) {
        float x[LENGTH];
        hdt_fill(x, LENGTH, (uint64_t)(BATCHES * round + b));
        hdt_assert_ok(
            hd_session_write(it->session, it->program, hd_tensor_find(it->program, "x"), b, x));
        hdt_assert_ok(
            hd_session_run(it->session, it->program,
                           &(hd_session_run_options){.micro_batch = b, .last = round % 2}));
    }
    for (int b = 0; b < BATCHES; b++) {
        hdt_assert_ok(hd_session_read(it->session, it->program, hd_tensor_find(it->program, "own"),
                                      b, *out++));
        hdt_assert_ok(hd_session_read(it->session, it->program, hd_tensor_find(it->program, "all"),
                                      b, *out++));
    }
}

enum { SEGMENTS = 3 * KINDS }; /* that are long enough */

typedef float results[ROUNDS][2 * BATCHES][LENGTH];

static void run_rounds(place *it, results out)
{
    for (int r = 0; r < ROUNDS; r++)
        step(it, r, out[r]);
}

START_TEST(a_replayed_step_has_the_bits_of_a_walk)
{
    results walked, replayed;
    place it;
    open_place(&it, false);
    ck_assert_ptr_null(it.session->replay.seen);
    run_rounds(&it, walked);
    close_place(&it);
    open_place(&it, true);
    worked = 0;
    run_rounds(&it, replayed);
    ck_assert_mem_eq(walked, replayed, sizeof walked);
    /* Seen, then recorded and walked, then replayed, all but the last ops, which are too few. */
    const int few = HDI_REPLAY_LEAST_OPS - 1, ops = BEFORE + UNDER + BEHIND + few;
    ck_assert_int_eq(it.session->replay.count, SEGMENTS);
    ck_assert_int_eq(it.session->replay.launches, SEGMENTS * (TURNS - 2));
    ck_assert_int_eq(worked, KINDS * (2 * ops + (TURNS - 2) * few));
    ck_assert_uint_eq(it.context->graph_bytes, SEGMENTS * hdt_recorder.graph_bytes);
    close_place(&it);
}
END_TEST

START_TEST(what_cannot_be_kept_is_walked)
{
    results walked, seen;
    place it;
    open_place(&it, false);
    run_rounds(&it, walked);
    close_place(&it);
    open_place(&it, true);
    if (_i == 0) hdt_recorder.end_status = HD_ERROR_DEVICE;
    if (_i == 1) hdt_recorder.graph_bytes = HDI_REPLAY_BYTES + 1;
    fails_to_record = _i == 2;
    run_rounds(&it, seen);
    fails_to_record = false;
    ck_assert_mem_eq(walked, seen, sizeof walked);
    ck_assert_int_eq(it.session->replay.launches, 0);
    ck_assert_int_eq(hdt_recorder.recordings, SEGMENTS); /* nothing is tried twice */
    close_place(&it);
}
END_TEST

START_TEST(graphs_of_a_context_take_no_more_than_their_share)
{
    results seen;
    place it;
    open_place(&it, true);
    const size_t bytes = HDI_REPLAY_BYTES * 2 / 5;
    hdt_recorder.graph_bytes = bytes;
    run_rounds(&it, seen);
    ck_assert_uint_eq(it.context->graph_bytes, 2 * bytes);
    ck_assert_int_eq(it.session->replay.launches, 2 * (TURNS - 2));
    close_place(&it);
}
END_TEST

/* As a program before left it: communication on bytes that an op in the middle reads. */
START_TEST(what_is_under_way_ends_a_segment_before_the_op_that_needs_it)
{
    place it;
    open_place(&it, true);
    const int busy = BEFORE - 1;
    const hd_tensor tensor = it.program->ops[busy]->op.in[0];
    const hd_session_run_options options = {0};
    size_t bytes;
    const size_t at = hdi_session_place(it.session, 0, tensor, 0, &options, &bytes);
    hdi_segment segment = {.end = 1};
    ck_assert_ptr_null(hdi_replay_find(it.session, &segment, INT_MAX, &options));
    ck_assert_int_eq(segment.end, BEFORE);
    it.session->posted[0][EXCHANGE_AT].comm = self;
    it.session->unfinished[it.session->unfinished_count++] =
        (hdi_unfinished){.op = EXCHANGE_AT, .begin = at + bytes - 1, .end = at + bytes};
    segment.end = 1;
    ck_assert_ptr_null(hdi_replay_find(it.session, &segment, INT_MAX, &options));
    const int writer = busy - 1; /* too few are left before it */
    ck_assert_int_lt(writer, HDI_REPLAY_LEAST_OPS);
    ck_assert_int_eq(segment.end, 1);
    segment = (hdi_segment){.begin = BEFORE + 1, .end = BEFORE + 2}; /* these do not read it */
    ck_assert_ptr_null(hdi_replay_find(it.session, &segment, INT_MAX, &options));
    ck_assert_int_eq(segment.end, BEFORE + 1 + UNDER);
    it.session->posted[0][EXCHANGE_AT].comm = NULL;
    it.session->unfinished_count = 0;
    close_place(&it);
}
END_TEST

/* Every segment of a run: nothing goes on or varies in it, nothing is waited for inside it, and it is
 * as long as that allows. */
static int check_run(const hdi_unit *unit, const hd_session_run_options *options, int until)
{
    const hd_program *p = unit->program;
    int segments = 0;
    for (int i = 0, end; i<p->op_count; i = end> i ? end : i + 1) {
        end = i;
        if (!hdi_op_runs(p->ops[i], options)) continue;
        end = hdi_segment_end(unit, i, until, options);
        ck_assert_int_ge(end, i);
        segments += end > i;
        for (int k = i; k < end; k++) {
            const uint32_t flags = p->ops[k]->op.kind->flags;
            if (p->ops[k]->phase != p->ops[i]->phase) continue;
            if (hdi_op_runs(p->ops[k], options))
                ck_assert(
                    !(flags & (HD_OP_COMMUNICATES | HD_OP_LOADS | HD_OP_STORES | HD_OP_VARIES)));
            if (k == i) continue;
            ck_assert_int_eq(unit->wait_begin[k], unit->wait_begin[k + 1]);
            ck_assert_int_lt(k, until);
        }
        bool stops = false;
        for (int k = end; k < p->op_count && !stops; k++) {
            if (p->ops[k]->phase != p->ops[i]->phase) continue;
            stops = hdi_op_is_posted(&p->ops[k]->op) || p->ops[k]->op.kind->flags & HD_OP_VARIES ||
                    k >= until || unit->wait_begin[k] < unit->wait_begin[k + 1];
            if (hdi_op_runs(p->ops[k], options)) ck_assert(stops);
        }
    }
    return segments;
}

START_TEST(a_segment_ends_where_something_goes_on_or_is_waited_for)
{
    place it;
    open_place(&it, true);
    const hdi_unit *unit = &it.plan->units[0];
    const hd_session_run_options options = {0};
    ck_assert_int_eq(hdi_segment_end(unit, 0, INT_MAX, &options), EXCHANGE_AT);
    ck_assert_int_eq(hdi_segment_end(unit, EXCHANGE_AT, INT_MAX, &options), EXCHANGE_AT);
    ck_assert_int_eq(hdi_segment_end(unit, EXCHANGE_AT + 1, INT_MAX, &options), WAIT_AT);
    ck_assert_int_eq(hdi_segment_end(unit, WAIT_AT, INT_MAX, &options), WAIT_AT + BEHIND);
    ck_assert_int_eq(hdi_segment_end(unit, 0, 2, &options), 2);
    ck_assert_int_eq(hdi_segment_end(unit, 0, 0, &options), 1); /* what is fetched before it is */
    ck_assert_int_eq(check_run(unit, &options, INT_MAX), 4);
    close_place(&it);
}
END_TEST

/* Trainings in which much is copied beside the computation, and some ops are left out. */
START_TEST(no_segment_of_a_training_waits_inside)
{
    hd_comm *alone;
    hd_mesh *mesh;
    hd_trainer *trainer;
    hd_model *model = hdt_tiny_model("gpt2", 3);
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &alone));
    hdt_assert_ok(hd_mesh_create(alone, &(hd_mesh_options){0}, &mesh));
    const hd_trainer_options options = {
        .build = hd_model_build,
        .user = model,
        .layers = hd_model_layers(model),
        .mesh = mesh,
        .sequences = HDT_SEQUENCES,
        .tokens = HDT_TOKENS,
        .accumulate = 2,
        .activations = _i ? HD_ACTIVATIONS_HOST : HD_ACTIVATIONS_KEEP,
        .residency = _i ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT,
        .gradient_residency = _i ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT};
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    const hd_plan *plan = hd_trainer_plan(trainer);
    int segments = 0, runs = 0;
    for (int u = 0; u < plan->unit_count; u++)
        for (int kind = 0; kind < 8; kind++)
            for (int until = 0; until < 40; until += 13) {
                const hd_session_run_options run = {.phase = kind & 1 ? HD_PHASE_BACKWARD
                                                                      : HD_PHASE_FORWARD,
                                                    .accumulate = kind & 2,
                                                    .last = kind & 4};
                segments += check_run(&plan->units[u], &run, until ? until : INT_MAX);
                runs++;
            }
    ck_assert_int_gt(segments, _i ? runs : runs / 2);
    hd_trainer_destroy(trainer);
    hd_mesh_destroy(mesh);
    hd_comm_destroy(alone);
    hd_model_destroy(model);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("replay");
    tcase_add_test(tests, a_replayed_step_has_the_bits_of_a_walk);
    tcase_add_loop_test(tests, what_cannot_be_kept_is_walked, 0, 3);
    tcase_add_test(tests, graphs_of_a_context_take_no_more_than_their_share);
    tcase_add_test(tests, what_is_under_way_ends_a_segment_before_the_op_that_needs_it);
    tcase_add_test(tests, a_segment_ends_where_something_goes_on_or_is_waited_for);
    tcase_add_loop_test(tests, no_segment_of_a_training_waits_inside, 0, 2);
    Suite *suite = suite_create("replay");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
