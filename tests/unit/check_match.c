/* Collectives of all ranks match, on fake ranks of real trainers; planted mismatches are named. */
#include "parallel/match.h"

#include <stdlib.h>

#include "jobs/train/trainer.h"
#include "ops/collective.h"
#include "tests/support/hdt_program.h"
#include "tests/support/hdt_train.h"

enum { LAYERS = 8, MOST = 64 };

typedef struct team {
    int ranks;
    hd_model *model;
    hd_mesh *meshes[MOST];
    hd_trainer *trainers[MOST];
    hdi_calls calls[MOST];
} team;

static void collect(const hd_trainer *trainer, hdi_calls *calls)
{
    for (int i = 0; i < trainer->shapes[0].schedule->action_count; i++) {
        const hdi_schedule_action *action = &trainer->shapes[0].schedule->actions[i];
        const hd_program *program = trainer->shapes[0].train[action->chunk].program;
        hdt_assert_ok(hdi_calls_add_gathers(calls, trainer->plan, program,
                                            action->op == HDI_BACKWARD ? HDI_PHASE_BACKWARD
                                                                       : HDI_PHASE_FORWARD));
        if (action->op == HDI_BACKWARD && action->micro_batch == trainer->options.accumulate - 1)
            hdt_assert_ok(hdi_calls_add(calls, program, HDI_PHASE_BACKWARD));
    }
    hdt_assert_ok(hdi_calls_add(calls, trainer->norm, HDI_PHASE_FORWARD));
    hdt_assert_ok(hdi_calls_add(calls, trainer->update, HDI_PHASE_FORWARD));
}

static void assemble(team *t, const hd_mesh_options *mesh, const hd_trainer_options *wanted)
{
    *t = (team){.ranks = mesh->data * mesh->pipeline, .model = hdt_tiny_model("gpt2", LAYERS)};
    for (int r = 0; r < t->ranks; r++) {
        hdt_assert_ok(hd_mesh_create_fake(r, t->ranks, mesh, &t->meshes[r]));
        hd_trainer_options options = *wanted;
        options.build = hd_model_build;
        options.user = t->model;
        options.layers = LAYERS;
        options.mesh = t->meshes[r];
        options.sequences = 1;
        options.tokens = 8;
        options.accumulate = 8;
        options.bucket_elements = 9000;
        hdt_assert_ok(hd_trainer_create(&options, &t->trainers[r]));
        collect(t->trainers[r], &t->calls[r]);
    }
}

static void dismiss(team *t)
{
    for (int r = 0; r < t->ranks; r++) {
        hdi_calls_free(&t->calls[r]);
        hd_trainer_destroy(t->trainers[r]);
        hd_mesh_destroy(t->meshes[r]);
    }
    hd_model_destroy(t->model);
}

static const struct {
    int data, pipeline, chunks;
} layouts[] = {{1, 1, 1}, {2, 1, 1}, {3, 1, 1},  {7, 1, 1}, {64, 1, 1}, {1, 8, 1}, {2, 2, 1},
               {2, 2, 4}, {4, 4, 2}, {16, 4, 1}, {8, 8, 1}, {32, 2, 2}, {5, 3, 1}, {1, 4, 2}};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

START_TEST(collectives_of_all_ranks_match)
{
    hd_mesh_options mesh = {.data = layouts[_i].data, .pipeline = layouts[_i].pipeline};
    for (int variant = 0; variant < 8; variant++) {
        team t;
        mesh.shard_group = variant >= 4 && mesh.data % 4 == 0 ? 2 : 0;
        assemble(&t, &mesh,
                 &(hd_trainer_options){.chunks = layouts[_i].chunks,
                                       .exact = variant & 1,
                                       .shard_state = variant / 2});
        hdt_assert_ok(hdi_calls_match(t.calls, t.meshes, t.ranks));
        if (t.ranks > 1) ck_assert_int_gt(t.calls[0].count, 0);
        dismiss(&t);
    }
}
END_TEST

START_TEST(all_stages_schedules_pass_the_check)
{
    team t;
    const hd_mesh_options mesh = {.data = 1, .pipeline = layouts[_i].pipeline};
    assemble(&t, &mesh, &(hd_trainer_options){.chunks = layouts[_i].chunks});
    hdi_schedule *tables[MOST];
    for (int s = 0; s < t.ranks; s++)
        tables[s] = t.trainers[s]->shapes[0].schedule;
    hdt_assert_ok(hdi_schedule_check(tables, t.ranks));
    dismiss(&t);
}
END_TEST

/* Planted on rank 5 of data 4 x pipeline 2: its data axis starts at rank 4. */
static team planted;

static void plant(void)
{
    assemble(&planted, &(hd_mesh_options){.data = 4, .pipeline = 2}, &(hd_trainer_options){0});
}

static void clear(void)
{
    dismiss(&planted);
}

static void caught(const char *const *texts)
{
    hdt_assert_status(hdi_calls_match(planted.calls, planted.meshes, planted.ranks),
                      HD_ERROR_INTERNAL, texts[0]);
    for (int i = 1; texts[i]; i++)
        hdt_assert_status(HD_ERROR_INTERNAL, HD_ERROR_INTERNAL, texts[i]);
}

START_TEST(another_order_is_named)
{
    hdi_call *calls = planted.calls[5].calls, kept = calls[0];
    int other = 1;
    while (calls[other].kind == kept.kind)
        other++;
    calls[0] = calls[other];
    calls[other] = kept;
    caught((const char *const[]){
        "collective 0 on the data axis: rank 4 has all_to_all of ",
        " F32 of gradients in program 'train.1', rank 5 has all_gather of ", NULL});
}
END_TEST

START_TEST(another_size_or_dtype_is_named)
{
    if (_i == 0)
        planted.calls[5].calls[1].elements++;
    else
        planted.calls[5].calls[1].dtype = HD_DTYPE_BF16;
    caught((const char *const[]){"collective 1 on the data axis: rank 4 has all_to_all of ",
                                 "rank 5 has all_to_all of ", _i ? "BF16" : "F32", NULL});
}
END_TEST

START_TEST(a_missing_call_is_named)
{
    /* The last one is the world's: the sums of squares. */
    hdi_calls *calls = &planted.calls[5];
    int world = 0;
    while (calls->calls[world].axis != HD_AXIS_NONE)
        world++;
    memmove(calls->calls + world, calls->calls + world + 1,
            (size_t)(--calls->count - world) * sizeof *calls->calls);
    caught((const char *const[]){
        "collective 0 on the world axis: rank 0 has all_reduce of ",
        " F64 of sums of squares in program 'norm', rank 5 has nothing more", NULL});
}
END_TEST

START_TEST(what_is_sent_must_be_expected)
{
    /* Rank 5 is second on its data axis; the first (rank 4) expects other numbers from it. */
    hdi_call *call = &planted.calls[5].calls[0];
    int64_t counts[4];
    memcpy(counts, _i ? call->recv : call->send, sizeof counts);
    counts[0] += 7;
    if (_i)
        call->recv = counts;
    else
        call->send = counts;
    caught((const char *const[]){
        "collective 0 on the data axis (all_to_all of gradients in program 'train.1')",
        _i ? "rank 4 gives" : "rank 5 gives", NULL});
}
END_TEST

START_TEST(gathers_must_know_the_same_counts)
{
    int gather = 0;
    while (planted.calls[6].calls[gather].kind != &hdi_op_all_gather)
        gather++;
    hdi_call *call = &planted.calls[6].calls[gather];
    int64_t counts[4];
    memcpy(counts, call->send, sizeof counts);
    counts[2]++;
    call->send = call->recv = counts;
    caught((const char *const[]){"all_gather of gradients", "rank 6 ", NULL});
}
END_TEST

static hd_status run_none(const hd_run *run)
{
    (void)run;
    return HD_OK;
}

static hd_status shape_none(hd_program *program, const hd_op *op)
{
    (void)program;
    (void)op;
    return HD_OK;
}

START_TEST(communication_of_a_users_own_is_left_to_the_user)
{
    static const hd_op_kind own = {.name = "own",
                                   .options_bytes = 4,
                                   .flags = HD_OP_COMMUNICATES,
                                   .shape = shape_none,
                                   .run = run_none};
    hd_program *p = hdt_program();
    hd_custom_op(p, &own, &(int){3}, 0, NULL);
    hdt_assert_ok(hd_program_finish(p));
    hdi_calls calls = {0};
    hdt_assert_ok(hdi_calls_add(&calls, p, HDI_PHASE_FORWARD));
    ck_assert_int_eq(calls.count, 0);
    hd_program_destroy(p);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("match");
    TCase *real = tcase_create("trainers");
    tcase_add_loop_test(real, collectives_of_all_ranks_match, 0, LAYOUTS);
    tcase_add_loop_test(real, all_stages_schedules_pass_the_check, 0, LAYOUTS);
    tcase_add_test(real, communication_of_a_users_own_is_left_to_the_user);
    suite_add_tcase(suite, real);
    TCase *mismatches = tcase_create("mismatches");
    tcase_add_checked_fixture(mismatches, plant, clear);
    tcase_add_test(mismatches, another_order_is_named);
    tcase_add_loop_test(mismatches, another_size_or_dtype_is_named, 0, 2);
    tcase_add_test(mismatches, a_missing_call_is_named);
    tcase_add_loop_test(mismatches, what_is_sent_must_be_expected, 0, 2);
    tcase_add_test(mismatches, gathers_must_know_the_same_counts);
    suite_add_tcase(suite, mismatches);
    return hdt_main(suite);
}
