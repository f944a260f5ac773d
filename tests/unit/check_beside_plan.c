/* Plans of updates that go on beside the next step where ranks gather what they change, or where it passes through
 * slots: what is proved of them, and what they predict. */
#include "jobs/job_model.h"
#include "jobs/train/train.h"
#include "jobs/train/trainer.h"
#include "tests/support/hdt_program.h"
#include "tests/support/hdt_train.h"

#include <stdio.h>
#include <string.h>

enum { LAYERS = 8, RANKS = 2 };

static hd_model *model;
static hd_mesh *meshes[RANKS];

static void setup(void)
{
    model = hdt_tiny_model("llama", LAYERS);
    for (int r = 0; r < RANKS; r++)
        hdt_assert_ok(hd_mesh_create_fake(r, RANKS, &(hd_mesh_options){.data = RANKS}, &meshes[r]));
}

static void teardown(void)
{
    for (int r = 0; r < RANKS; r++)
        hd_mesh_destroy(meshes[r]);
    hd_model_destroy(model);
}

static const hd_trainer_options kinds[] = {
    {.shard_state = 1, .optimizer_residency = HD_RESIDENCY_HOST},
    {.shard_state = 2,
     .optimizer_residency = HD_RESIDENCY_HOST,
     .gradient_residency = HD_RESIDENCY_HOST},
    {.shard_state = 3, .optimizer_residency = HD_RESIDENCY_HOST},
    {.shard_state = 1, .residency = HD_RESIDENCY_HOST},
    {.shard_state = 3, .residency = HD_RESIDENCY_HOST},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static hd_trainer *planned_on(int rank, const hd_trainer_options *kind, bool in_turn, double peer)
{
    hd_trainer *trainer = NULL;
    hd_trainer_options options = *kind;
    options.build = hd_model_build;
    options.user = model;
    options.layers = LAYERS;
    options.mesh = meshes[rank];
    options.sequences = HDT_SEQUENCES;
    options.tokens = HDT_TOKENS;
    options.bucket_elements = 2000;
    options.chunk_elements = 1024;
    options.in_turn = in_turn;
    options.rates = (hd_rates){.compute = 1e8, .link = 1e8, .peer = peer};
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    return trainer;
}

static hdi_unit *update_of(const hd_trainer *trainer)
{
    for (int u = 0; u < trainer->plan->unit_count; u++)
        if (trainer->plan->units[u].program == trainer->update) return &trainer->plan->units[u];
    return NULL;
}

/* The first op behind `op` with a flag. */
static int next(const hd_program *program, int op, uint32_t flag)
{
    while (++op < program->op_count && !(program->ops[op]->op.kind->flags & flag))
        ;
    return op;
}

/* Order among ranks: which buckets each release is of, and how much is gathered before it. */
START_TEST(ranks_gather_and_release_alike)
{
    hd_trainer *trainers[RANKS];
    for (int r = 0; r < RANKS; r++)
        trainers[r] = planned_on(r, &kinds[_i], false, 0);
    const hd_program *a = trainers[0]->update, *b = trainers[1]->update;
    const uint32_t common = HD_OP_RELEASES | HD_OP_COMMUNICATES;
    int i = next(a, -1, common), k = next(b, -1, common), releases = 0;
    for (; i < a->op_count; i = next(a, i, common), k = next(b, k, common)) {
        ck_assert_int_lt(k, b->op_count);
        const hd_op *mine = &a->ops[i]->op, *theirs = &b->ops[k]->op;
        ck_assert_ptr_eq(mine->kind, theirs->kind);
        if (mine->kind->flags & HD_OP_COMMUNICATES) {
            ck_assert_uint_eq(mine->out_info[0]->bytes, theirs->out_info[0]->bytes);
            continue;
        }
        const hdi_release_options *one = mine->options, *other = theirs->options;
        ck_assert_int_eq(one->low, other->low);
        ck_assert_int_eq(one->high, other->high);
        releases++;
    }
    ck_assert_int_eq(k, b->op_count);
    ck_assert_int_gt(releases, LAYERS);
    for (int r = 0; r < RANKS; r++)
        hd_trainer_destroy(trainers[r]);
}
END_TEST

static void caught(const hd_trainer *trainer, const char *text)
{
    hdt_assert_status(hdi_plan_verify_beside(trainer->plan), HD_ERROR_INTERNAL, text);
}

START_TEST(what_is_still_gathered_when_it_is_released_is_caught)
{
    hd_trainer *trainer = planned_on(0, &kinds[0], false, 0);
    const int gather = next(trainer->update, -1, HD_OP_COMMUNICATES);
    hdi_unit *unit = update_of(trainer);
    hdt_assert_ok(hdi_plan_verify(trainer->plan));
    for (int w = 0; w < unit->wait_count; w++)
        if (unit->waits[w] == gather) unit->waits[w] = gather ? 0 : 1;
    caught(trainer, "(all_gather): releases, before it is done with, tensor");
    hd_trainer_destroy(trainer);
}
END_TEST

/* Whoever fetches or gathers a block waits for the releases that name its buckets. */
START_TEST(blocks_that_no_release_names_are_caught)
{
    hd_trainer *trainer = planned_on(1, &kinds[_i], false, 0);
    const hd_program *update = trainer->update;
    const hdi_layout *layout = trainer->plan->layout;
    hdt_assert_ok(hdi_plan_verify(trainer->plan));
    int changed = 0;
    for (int i = next(update, -1, HD_OP_RELEASES); i < update->op_count;
         i = next(update, i, HD_OP_RELEASES)) {
        hdi_release_options *o = (void *)(uintptr_t)update->ops[i]->op.options;
        if (layout->buckets[o->low].block < 0 || layout->buckets[o->low].counts[1] == 0) continue;
        const int low = o->low;
        o->low = o->high + 1;
        caught(trainer, "shares, and does not release, tensor");
        o->low = low;
        changed++;
    }
    ck_assert_int_gt(changed, 0);
    hdt_assert_ok(hdi_plan_verify(trainer->plan));
    hd_trainer_destroy(trainer);
}
END_TEST

/* The forward hides the update but for what comes before its first block, or before as many as have slots; slow peers
 * hide less. */
START_TEST(a_step_waits_for_less_of_an_update_beside_it)
{
    hd_trainer *in_turn = planned_on(0, &kinds[_i], true, 0);
    hd_trainer *beside = planned_on(0, &kinds[_i], false, 0);
    hd_trainer *slow = planned_on(0, &kinds[_i], false, 2e7);
    hdi_copies before, behind, gathered;
    hdt_assert_ok(hdi_trainer_copies_of_update(in_turn, &before));
    hdt_assert_ok(hdi_trainer_copies_of_update(beside, &behind));
    hdt_assert_ok(hdi_trainer_copies_of_update(slow, &gathered));
    ck_assert_uint_eq(before.in_bytes, behind.in_bytes);
    ck_assert_uint_eq(before.out_bytes, behind.out_bytes);
    ck_assert_double_gt(behind.exposed_seconds, 0);
    ck_assert_double_lt(behind.exposed_seconds,
                        (before.compute_seconds + before.exposed_seconds) / 2);
    ck_assert_double_gt(gathered.exposed_seconds, behind.exposed_seconds);
    hd_trainer_destroy(in_turn);
    hd_trainer_destroy(beside);
    hd_trainer_destroy(slow);
}
END_TEST

static size_t needed_on(const hd_config *config, hd_model *of, int rank, int ranks)
{
    hd_mesh *mesh;
    hd_trainer *trainer = NULL;
    hdi_train_target on = {.config = config, .model = of};
    hdt_assert_ok(hd_mesh_create_fake(rank, ranks, &(hd_mesh_options){.data = ranks}, &mesh));
    hdt_assert_ok(hd_backend_find("cpu", &on.backend));
    on.mesh = mesh;
    hdt_assert_ok(hdi_train_create(&on, NULL, &trainer));
    const size_t bytes = hd_plan_total_bytes(hd_trainer_plan(trainer));
    hd_trainer_destroy(trainer);
    hd_mesh_destroy(mesh);
    return bytes;
}

/* Of three ranks the first has room where the second has none. */
START_TEST(a_plan_says_what_all_ranks_have_room_for)
{
    static const char *const settings[][2] = {
        {"run.device", "cpu"}, {"model.layers", "2"},           {"model.hidden", "20"},
        {"model.heads", "5"},  {"model.vocab", "292"},          {"train.tokens", "31"},
        {"train.batch", "24"}, {"optimizer.residency", "host"}, {"layout.shard_state", "2"},
    };
    enum { THREE = 3 };
    const char *beside = "the update goes on beside the next step";
    hd_config *config;
    hd_model *of;
    hdt_assert_ok(hd_config_create(&config));
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        hdt_assert_ok(hd_config_set(config, settings[i][0], settings[i][1]));
    hdt_assert_ok(hdi_job_model(config, &of));
    const size_t least = needed_on(config, of, 0, THREE), most = needed_on(config, of, 1, THREE);
    ck_assert_uint_lt(least, most);
    for (int all = 0; all < 2; all++) {
        char budget[32];
        hdt_text out = {.used = 0};
        snprintf(budget, sizeof budget, "%zuB", all ? most : least);
        hdt_assert_ok(hd_config_set(config, "memory.budget", budget));
        hdt_assert_ok(hd_plan_run(config, THREE, NULL, false, hdt_collect, &out));
        ck_assert_msg(!strstr(out.text, beside) == !all, "%s of %zu: %s", budget, most, out.text);
    }
    hd_model_destroy(of);
    hd_config_destroy(config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("beside_plan");
    TCase *tests = tcase_create("beside_plan");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, ranks_gather_and_release_alike, 0, KINDS);
    tcase_add_test(tests, what_is_still_gathered_when_it_is_released_is_caught);
    tcase_add_loop_test(tests, blocks_that_no_release_names_are_caught, 2, KINDS);
    tcase_add_loop_test(tests, a_step_waits_for_less_of_an_update_beside_it, 0, KINDS);
    tcase_add_test(tests, a_plan_says_what_all_ranks_have_room_for);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
