/* An update that passes state of the host through the device goes on while the next step begins: the same bits
 * whatever comes behind it, planned and proved, and less of it is waited for. */
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "runtime/session.h"
#include "runtime/spans.h"
#include "tests/support/hdt_late.h"
#include "tests/support/hdt_train.h"

#include <string.h>

enum { LAYERS = 3, STEPS = 5, CHUNK = 1024, ACCUMULATE = 2 };

static hd_model *model;
static hd_mesh *mesh;

static void setup(void)
{
    model = hdt_tiny_model("llama", LAYERS);
    hdt_assert_ok(hd_mesh_create_fake(0, 1, &(hd_mesh_options){0}, &mesh));
}

static void teardown(void)
{
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
}

static hd_trainer_options options_of(const hd_trainer_options *kind, bool in_turn)
{
    hd_trainer_options o = *kind;
    o.build = hd_model_build;
    o.user = model;
    o.layers = LAYERS;
    o.mesh = mesh;
    o.sequences = HDT_SEQUENCES;
    o.tokens = HDT_TOKENS;
    o.accumulate = ACCUMULATE;
    o.bucket_elements = 2000;
    o.chunk_elements = CHUNK;
    o.clip_norm = 1;
    o.validate_batches = 1;
    o.in_turn = in_turn;
    return o;
}

static const hd_trainer_options kinds[] = {
    {.optimizer_residency = HD_RESIDENCY_HOST},
    {.optimizer_residency = HD_RESIDENCY_HOST, .exact = true, .ema_decay = 0.9F},
    {.optimizer_residency = HD_RESIDENCY_HOST,
     .gradient_residency = HD_RESIDENCY_HOST,
     .dtype = HD_DTYPE_BF16},
    {.gradient_residency = HD_RESIDENCY_HOST, .dtype = HD_DTYPE_BF16, .gradients = HD_DTYPE_BF16},
    {.optimizer_residency = HD_RESIDENCY_HOST,
     .activations = HD_ACTIVATIONS_HOST,
     .dtype = HD_DTYPE_BF16,
     .master = HD_MASTER_F32},
    {.optimizer_residency = HD_RESIDENCY_HOST,
     .dtype = HD_DTYPE_F16,
     .loss_scale = 0x1p11F,
     .loss_scale_steps = 1},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

typedef struct seen {
    double losses[STEPS], norms[STEPS], validation;
    float weight;
    uint64_t hashes[2];
    int under_way, skipped; /* steps that ended before their update; steps without one */
} seen;

static float a_weight(hd_trainer *trainer)
{
    static float values[1 << 16];
    const hd_program *program = trainer->shapes[0].train[0].program;
    const hd_tensor last = program->uses[program->use_count - 1].tensor;
    ck_assert_uint_le(hd_tensor_get(program, last)->bytes, sizeof values);
    hdt_assert_ok(hd_session_read(trainer->session, program, last, 0, values));
    return values[0];
}

/* Two shapes take turns; after some steps others look at what the update changes. */
static seen train(const hd_trainer_options *kind, bool in_turn, bool drains)
{
    const hd_trainer_shape shapes[] = {
        {.sequences = HDT_SEQUENCES, .tokens = HDT_TOKENS, .accumulate = ACCUMULATE},
        {.sequences = HDT_SEQUENCES, .tokens = HDT_TOKENS / 2, .accumulate = 1}};
    hd_trainer_options options = options_of(kind, in_turn);
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    seen out = {0};
    options.shapes = shapes;
    options.shape_count = 2;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    options.backend = context->backend = hdt_late_backend();
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 7));
    hdi_beside *beside = &trainer->session->beside;
    beside->ahead = 0;
    uint64_t allocations = 0;
    for (int64_t step = 0; step < STEPS; step++) {
        hd_step_result result;
        hdt_assert_ok(hd_trainer_step_shape(trainer, step == 3, 3e-3, hdt_feed, &step, &result));
        out.losses[step] = result.loss;
        out.norms[step] = result.grad_norm;
        out.skipped += result.skipped;
        out.under_way += beside->flags > 0 && beside->raised < beside->flags;
        if (drains) hdt_assert_ok(hd_session_drain(trainer->session));
        if (step == 0) allocations = hdi_alloc_count();
        if (step == 1) {
            hdt_assert_ok(hd_trainer_validate(trainer, hdt_feed, &step, &result));
            out.validation = result.loss;
        }
        if (step == 2) out.weight = a_weight(trainer);
    }
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    ck_assert_uint_eq(hd_session_high_water(trainer->session), hd_plan_arena_bytes(trainer->plan));
    hdt_assert_ok(hd_trainer_weights_hash(trainer, &out.hashes[0]));
    ck_assert_int_eq(beside->flags, 0);
    ck_assert_int_eq(hdt_late_pending(), 0);
    hdt_assert_ok(hdi_session_order(trainer->session));
    hdt_assert_ok(hd_trainer_weights_hash(trainer, &out.hashes[1]));
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    return out;
}

static void assert_same(const seen *a, const seen *b)
{
    for (int step = 0; step < STEPS; step++) {
        ck_assert_double_eq(a->losses[step], b->losses[step]);
        ck_assert(memcmp(&a->norms[step], &b->norms[step], sizeof a->norms[step]) == 0);
    }
    ck_assert_double_eq(a->validation, b->validation);
    ck_assert_float_eq(a->weight, b->weight);
    ck_assert_int_eq(a->skipped, b->skipped);
    ck_assert_uint_eq(a->hashes[0], b->hashes[0]);
    ck_assert_uint_eq(b->hashes[0], b->hashes[1]);
}

START_TEST(what_comes_behind_an_update_finds_the_same_bits)
{
    const seen beside = train(&kinds[_i], false, false);
    const seen drained = train(&kinds[_i], false, true);
    const seen in_turn = train(&kinds[_i], true, false);
    assert_same(&beside, &drained);
    assert_same(&beside, &in_turn);
    ck_assert_int_eq(beside.under_way, STEPS - beside.skipped);
    ck_assert_int_eq(in_turn.under_way, 0);
    ck_assert_int_eq(beside.skipped > 0, kinds[_i].dtype == HD_DTYPE_F16);
    ck_assert_int_gt(beside.under_way, 1);
}
END_TEST

START_TEST(a_session_may_end_with_an_update_under_way)
{
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hd_trainer_options options = options_of(&kinds[0], false);
    hd_step_result result;
    int64_t step = 0;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    options.backend = context->backend = hdt_late_backend();
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 7));
    trainer->session->beside.ahead = _i ? 0 : 3;
    hdt_assert_ok(hd_trainer_step(trainer, 1e-3, hdt_feed, &step, &result));
    const hd_program *program = trainer->shapes[0].train[0].program;
    if (_i) /* that finds all but its end */
        hdt_assert_ok(hd_session_run(trainer->session, program, &(hd_session_run_options){0}));
    ck_assert_int_eq(trainer->session->unfinished_count == 0, _i);
    ck_assert_int_gt(hdt_late_pending(), 0);
    hd_trainer_destroy(trainer);
    ck_assert_int_eq(hdt_late_pending(), 0);
    hd_context_destroy(context);
}
END_TEST

static hd_trainer *planned(const hd_trainer_options *kind, bool in_turn, size_t budget)
{
    hd_trainer *trainer = NULL;
    hd_trainer_options options = options_of(kind, in_turn);
    options.budget = budget;
    /* So that of a block there is more than one copy, and a forward takes some of the update's time. */
    options.rates = (hd_rates){.compute = 1e9, .link = 1e8};
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    return trainer;
}

static hdi_unit *update_of(const hd_trainer *trainer)
{
    for (int u = 0; u < trainer->plan->unit_count; u++)
        if (trainer->plan->units[u].program == trainer->update) return &trainer->plan->units[u];
    return NULL;
}

START_TEST(a_budget_without_room_lets_the_update_end_first)
{
    hd_trainer *in_turn = planned(&kinds[_i], true, 0), *beside = planned(&kinds[_i], false, 0);
    const size_t least = hd_plan_total_bytes(in_turn->plan);
    const size_t most = hd_plan_total_bytes(beside->plan);
    const hdi_unit *unit = update_of(beside);
    ck_assert(unit->options.beside && !update_of(in_turn)->options.beside);
    ck_assert_uint_gt(most, least);
    ck_assert_uint_le(most - least, unit->bytes[HD_REGION_TRANSIENT] + unit->bytes[HD_REGION_IO]);
    hd_trainer *enough = planned(&kinds[_i], false, most);
    hd_trainer *less = planned(&kinds[_i], false, most - 1);
    hd_trainer *little = planned(&kinds[_i], false, least);
    ck_assert(update_of(enough)->options.beside);
    ck_assert(!update_of(less)->options.beside);
    ck_assert(!update_of(little)->options.beside);
    ck_assert_uint_eq(hd_plan_total_bytes(little->plan), least);
    hd_trainer *all[] = {in_turn, beside, enough, less, little};
    for (int i = 0; i < 5; i++)
        hd_trainer_destroy(all[i]);
}
END_TEST

/* Chunks as large as a block's activations, about. */
START_TEST(activations_do_not_get_the_updates_room)
{
    hd_trainer_options options = options_of(&kinds[0], false);
    hd_trainer *again = NULL, *chosen = NULL;
    options.chunk_elements = 16 * CHUNK;
    options.bucket_elements = 16 * CHUNK;
    options.activations = HD_ACTIVATIONS_RECOMPUTE;
    hdt_assert_ok(hd_trainer_create(&options, &again));
    options.budget = hd_plan_total_bytes(again->plan);
    options.activations = HD_ACTIVATIONS_AUTO;
    hdt_assert_ok(hd_trainer_create(&options, &chosen));
    ck_assert_int_eq(chosen->options.activations, HD_ACTIVATIONS_RECOMPUTE);
    ck_assert(!chosen->options.in_turn);
    hd_trainer_destroy(again);
    hd_trainer_destroy(chosen);
}
END_TEST

static void caught(const hd_trainer *trainer, const char *text)
{
    hdt_assert_status(hdi_plan_verify(trainer->plan), HD_ERROR_INTERNAL, text);
}

static int release_before(const hd_program *program, int op)
{
    while (!(program->ops[--op]->op.kind->flags & HD_OP_RELEASES))
        ;
    return op;
}

/* Gradients on the host are shared, state is not. */
START_TEST(what_is_not_released_or_too_early_is_caught)
{
    hd_trainer *trainer = planned(&kinds[2], false, 0);
    hd_program *update = trainer->update;
    hdi_unit *unit = update_of(trainer);
    const int last = release_before(update, update->op_count);
    hdi_op *release = update->ops[last];
    hdt_assert_ok(hdi_plan_verify(trainer->plan));
    release->op.inputs = 1;
    caught(trainer, "does not release, tensor");
    release->op.inputs = 2;
    unit->places[release->op.in[0].id].bytes -= 64;
    caught(trainer, "(adamw): shares, and does not release, tensor");
    unit->places[release->op.in[0].id].bytes += 64;
    int load = last;
    while (!(update->ops[--load]->op.kind->flags & HD_OP_LOADS))
        ;
    for (int w = 0; w < unit->wait_count; w++)
        if (unit->waits[w] == load) unit->waits[w] = 0;
    hdt_assert_status(hdi_plan_verify_beside(trainer->plan), HD_ERROR_INTERNAL,
                      "(load): releases, before it is done with, tensor");
    hd_trainer_destroy(trainer);
}
END_TEST

START_TEST(scratch_that_others_have_is_caught)
{
    hd_trainer *trainer = planned(&kinds[0], false, 0);
    hdi_unit *unit = update_of(trainer);
    const size_t before = unit->base[HD_REGION_TRANSIENT];
    const hdi_unit *validates = &trainer->plan->units[trainer->plan->unit_count - 1];
    ck_assert_int_ne(validates->options.group, unit->options.group);
    unit->base[HD_REGION_TRANSIENT] = trainer->plan->units[0].base[HD_REGION_TRANSIENT];
    caught(trainer, "does not release");
    unit->base[HD_REGION_TRANSIENT] = validates->base[HD_REGION_IO];
    hdt_assert_status(hdi_plan_verify_regions(trainer->plan), HD_ERROR_INTERNAL, "share bytes");
    unit->base[HD_REGION_TRANSIENT] = before;
    hdt_assert_ok(hdi_plan_verify(trainer->plan));
    hd_trainer_destroy(trainer);
}
END_TEST

START_TEST(more_releases_than_flags_are_caught)
{
    hd_trainer *trainer = planned(&kinds[0], false, 0);
    hd_program *update = trainer->update;
    const int last = release_before(update, update->op_count);
    int releases = 0;
    for (int i = 0; i < update->op_count; i++)
        releases += (update->ops[i]->op.kind->flags & HD_OP_RELEASES) != 0;
    ck_assert_int_gt(releases, LAYERS);
    ck_assert_int_le(releases, HDI_RELEASES);
    for (int i = 0; i < update->op_count; i++)
        if (update->ops[i]->op.kind->flags & HD_OP_STORES)
            update->ops[i]->op.kind = update->ops[last]->op.kind;
    hdt_assert_status(hdi_plan_verify_beside(trainer->plan), HD_ERROR_INTERNAL, "want at most 60");
    hd_trainer_destroy(trainer);
}
END_TEST

/* The forward is hidden under the update, or the update under the forward. */
START_TEST(the_forward_takes_its_time_off_what_is_exposed)
{
    hd_trainer *in_turn = planned(&kinds[_i], true, 0), *beside = planned(&kinds[_i], false, 0);
    hd_program *forward = beside->shapes[0].train[0].program;
    hdi_copies before, behind;
    double seconds;
    hdt_assert_ok(hdi_plan_copies(in_turn->plan, in_turn->update, &before));
    hdt_assert_ok(hd_plan_seconds(in_turn->plan, in_turn->update, &seconds));
    hdt_assert_ok(hdi_plan_copies_beside(beside->plan, beside->update, &forward, 1, &behind));
    ck_assert_uint_eq(before.in_bytes, behind.in_bytes);
    ck_assert_uint_eq(before.out_bytes, behind.out_bytes);
    const hd_rates rates = hdi_rates_filled(&beside->options.rates);
    const double hides = hdi_program_seconds(forward, HDI_PHASE_FORWARD, &rates);
    ck_assert_double_gt(behind.exposed_seconds, 0);
    ck_assert_double_lt(behind.exposed_seconds, seconds - hides / 2);
    ck_assert_double_gt(behind.exposed_seconds, seconds - hides - 1e-6);
    hd_trainer_destroy(in_turn);
    hd_trainer_destroy(beside);
}
END_TEST

START_TEST(messages_to_other_ranks_take_nothing_from_the_link_to_the_host)
{
    hd_mesh *two = NULL;
    hd_trainer *trainer = NULL;
    hd_trainer_options options = options_of(&kinds[0], false);
    hdt_assert_ok(hd_mesh_create_fake(0, 2, &(hd_mesh_options){.sequence = 2}, &two));
    options.mesh = two;
    options.rates = (hd_rates){.compute = 1e9, .link = 1e8, .peer = 1e5};
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hd_program *forward = trainer->shapes[0].train[0].program;
    hdi_copies behind;
    double update;
    hdt_assert_ok(hd_plan_seconds(trainer->plan, trainer->update, &update));
    hdt_assert_ok(hdi_plan_copies_beside(trainer->plan, trainer->update, &forward, 1, &behind));
    /* What comes behind the first block's messages has been updated by then. */
    ck_assert_double_gt(behind.exposed_seconds, 0);
    ck_assert_double_lt(behind.exposed_seconds, update / 4);
    hd_trainer_destroy(trainer);
    hd_mesh_destroy(two);
}
END_TEST

START_TEST(a_session_forgets_the_trace_that_ends_before_it)
{
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hd_trainer_options options = options_of(&kinds[0], false);
    hdi_trace *trace = NULL;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 7));
    hdt_assert_ok(hdi_trace_create(0, 16, &trace));
    hdt_assert_ok(hdi_trainer_start_trace(trainer, trace));
    hdt_assert_ok(hdi_spans_begin_step(trainer->spans, 0)); /* and then its batch cannot be read */
    ck_assert_ptr_nonnull(trainer->session->spans);
    hdi_spans_destroy(trainer->spans);
    trainer->spans = NULL;
    ck_assert_ptr_null(trainer->session->spans);
    hd_trainer_destroy(trainer);
    hdi_trace_destroy(trace);
    hd_context_destroy(context);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("beside");
    TCase *tests = tcase_create("beside");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, what_comes_behind_an_update_finds_the_same_bits, 0, KINDS);
    tcase_add_loop_test(tests, a_session_may_end_with_an_update_under_way, 0, 2);
    tcase_add_loop_test(tests, a_budget_without_room_lets_the_update_end_first, 0, KINDS);
    tcase_add_test(tests, activations_do_not_get_the_updates_room);
    tcase_add_test(tests, what_is_not_released_or_too_early_is_caught);
    tcase_add_test(tests, scratch_that_others_have_is_caught);
    tcase_add_test(tests, more_releases_than_flags_are_caught);
    tcase_add_loop_test(tests, the_forward_takes_its_time_off_what_is_exposed, 0, 3);
    tcase_add_test(tests, messages_to_other_ranks_take_nothing_from_the_link_to_the_host);
    tcase_add_test(tests, a_session_forgets_the_trace_that_ends_before_it);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
