/* Plans: who shares bytes with whom, slots, groups, states, budgets, refusals. */
#include "core/memory.h"
#include "program/place.h"
#include "program/plan.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/support/hdt_program.h"

typedef struct range {
    size_t begin, end;
} range;

static range range_of(const hd_plan *plan, int unit, hd_tensor tensor, int micro_batch)
{
    size_t begin = hdi_plan_address(plan, unit, tensor, micro_batch, 0);
    return (range){begin, begin + plan->units[unit].places[tensor.id].bytes};
}

static bool apart(range a, range b)
{
    return a.end <= b.begin || b.end <= a.begin;
}

static hd_plan *plan_of(hd_program *program, const hd_plan_program_options *options)
{
    hd_plan *plan;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, program, options));
    hdt_assert_ok(hd_plan_finish(plan));
    return plan;
}

/* First and last op that touches each tensor of scratch; the last of kept ones is the end. */
static void find_lives(const hd_program *program, int (*lives)[2])
{
    for (int t = 0; t < program->tensor_count; t++)
        lives[t][0] = program->op_count, lives[t][1] = -1;
    for (int i = 0; i < program->op_count; i++) {
        const hd_op *op = &program->ops[i]->op;
        for (int k = 0; k < op->inputs + op->outputs; k++) {
            int id = k < op->inputs ? op->in[k].id : op->out[k - op->inputs].id;
            if (lives[id][0] > i) lives[id][0] = i;
            lives[id][1] = i;
        }
    }
    for (int t = 1; t < program->tensor_count; t++)
        if (program->tensors[t]->keep) lives[t][1] = program->op_count;
}

START_TEST(live_tensors_of_random_programs_are_apart)
{
    int shared = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        hd_program *program = hdt_random_program(seed);
        hd_plan *plan = plan_of(program, NULL);
        const hdi_unit *unit = &plan->units[0];
        int(*lives)[2] = malloc(sizeof *lives * (size_t)program->tensor_count);
        find_lives(program, lives);
        for (int a = 1; a < program->tensor_count; a++)
            for (int b = 1; b < a; b++) {
                if (!unit->places[a].placed || !unit->places[b].placed || lives[a][1] < 0 ||
                    lives[b][1] < 0 || program->tensors[a]->use >= 0 ||
                    program->tensors[b]->use >= 0)
                    continue;
                if (apart(range_of(plan, 0, (hd_tensor){a}, 0),
                          range_of(plan, 0, (hd_tensor){b}, 0)))
                    continue;
                bool disjoint = lives[a][1] < lives[b][0] || lives[b][1] < lives[a][0];
                bool in_place = lives[a][1] == lives[b][0] || lives[b][1] == lives[a][0];
                ck_assert_msg(disjoint || in_place, "seed %d: tensors %d and %d", (int)seed, b, a);
                shared += in_place && !disjoint;
            }
        for (int i = 0; i < program->op_count; i++) {
            if (!unit->workspace_bytes[i]) continue;
            size_t begin = unit->base[HD_REGION_TRANSIENT] + unit->workspaces[i];
            ck_assert_uint_eq(begin % HDI_PLACE_ALIGNMENT, 0);
            range scratch = {begin, begin + unit->workspace_bytes[i]};
            for (int t = 1; t < program->tensor_count; t++)
                if (lives[t][0] <= i && i <= lives[t][1])
                    ck_assert(apart(scratch, range_of(plan, 0, (hd_tensor){t}, 0)));
        }
        free(lives);
        hd_plan_destroy(plan);
        hd_program_destroy(program);
    }
    ck_assert_int_gt(shared, 0);
}
END_TEST

START_TEST(a_plan_is_deterministic_and_aligned)
{
    static hdt_text texts[2];
    for (int i = 0; i < 2; i++) {
        hd_program *program = hdt_random_program(11);
        hd_plan *plan = plan_of(program, NULL);
        for (int t = 1; t < program->tensor_count; t++)
            if (plan->units[0].places[t].placed)
                ck_assert_uint_eq(range_of(plan, 0, (hd_tensor){t}, 0).begin % 256, 0);
        hd_plan_print(plan, hdt_collect, &texts[i]);
        hd_plan_destroy(plan);
        hd_program_destroy(program);
    }
    ck_assert_str_eq(texts[0].text, texts[1].text);
    ck_assert_ptr_nonnull(strstr(texts[0].text, "transients"));
}
END_TEST

START_TEST(an_op_works_in_place_where_nobody_reads_its_input_later)
{
    hd_program *p = hdt_program();
    hd_tensor x = hdt_vector(p, "x", 1000);
    hd_tensor a = hdt_double(p, x), b = hdt_double(p, a), c = hdt_double(p, b);
    hd_tensor d = hdt_double(p, b); /* b is read twice: c has to go elsewhere */
    hd_output(p, hdt_mul(p, c, d), "y");
    hdt_assert_ok(hd_program_finish(p));
    hd_plan *plan = plan_of(p, NULL);
    ck_assert_uint_eq(range_of(plan, 0, a, 0).begin, range_of(plan, 0, b, 0).begin);
    ck_assert_uint_ne(range_of(plan, 0, b, 0).begin, range_of(plan, 0, c, 0).begin);
    ck_assert_uint_eq(range_of(plan, 0, b, 0).begin, range_of(plan, 0, d, 0).begin);
    ck_assert_uint_ne(range_of(plan, 0, x, 0).begin, range_of(plan, 0, a, 0).begin);
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_TRANSIENT), 2 * 4096);
    hd_plan_destroy(plan);
    hd_program_destroy(p);
}
END_TEST

START_TEST(each_micro_batch_in_flight_has_bytes_of_its_own)
{
    hd_program *p = hdt_program();
    hd_tensor x = hdt_vector(p, "x", 1000), w = hdt_weight(p, "w", 1000);
    hd_tensor saved = hdt_double(p, x);
    hd_program_backward(p, hdt_mul(p, saved, w), hdt_vector(p, "seed", 1000));
    hdt_assert_ok(hd_program_finish(p));
    hd_plan *plan = plan_of(p, &(hd_plan_program_options){.saved_slots = 2, .io_slots = 3});
    ck_assert_int_eq((int)plan->units[0].places[saved.id].region, HD_REGION_SAVED);
    ck_assert(apart(range_of(plan, 0, saved, 0), range_of(plan, 0, saved, 1)));
    ck_assert_uint_eq(range_of(plan, 0, saved, 0).begin, range_of(plan, 0, saved, 2).begin);
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < a; b++)
            ck_assert(apart(range_of(plan, 0, x, a), range_of(plan, 0, x, b)));
    ck_assert_uint_eq(range_of(plan, 0, x, 0).begin, range_of(plan, 0, x, 3).begin);
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_SAVED), 2 * 4096);
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_IO), 3 * 2 * 4096);
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_WEIGHTS), 4096);
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_GRADIENTS), 4096);
    hd_plan_destroy(plan);
    hd_program_destroy(p);
}
END_TEST

START_TEST(gradient_levels_are_bytes_of_their_own)
{
    hd_program *p = hdt_program();
    hd_tensor x = hdt_vector(p, "x", 1000), w = hdt_weight(p, "w", 1000);
    hd_program_backward(p, hdt_mul(p, x, w), hdt_vector(p, "seed", 1000));
    hdt_assert_ok(hd_program_finish(p));
    hd_plan *plan;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){.gradient_levels = 3}, &plan));
    hdt_assert_ok(hd_plan_add(plan, p, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_GRADIENTS), 3 * 4096);
    hd_tensor g = hd_gradient(p, w);
    ck_assert_uint_eq(hdi_plan_address(plan, 0, g, 0, 2) - hdi_plan_address(plan, 0, g, 0, 0),
                      2 * 4096);
    hd_plan_destroy(plan);
    hd_program_destroy(p);
}
END_TEST

static hd_program *chain(const char *name, int64_t count, size_t workspace)
{
    hd_program *program;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = name}, &program));
    hd_state(program, "table", HD_DTYPE_F32, 1, &(int64_t){500});
    hd_tensor w = hdt_weight(program, "w", count);
    hd_tensor h = hdt_mul(program, hdt_vector(program, "x", count), w);
    hd_output(program, hdt_through(program, h, workspace), "y");
    hdt_assert_ok(hd_program_finish(program));
    return program;
}

START_TEST(groups_share_bytes_and_programs_of_a_group_share_transients)
{
    const int groups[] = {0, 1, 1};
    hd_program *programs[3];
    hd_plan *plan;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){.foreign = 77, .mailboxes = 33}, &plan));
    for (int i = 0; i < 3; i++) {
        programs[i] = chain((char[]){(char)('a' + i), 0}, 1000, i == 1 ? 100000 : 3000);
        hdt_assert_ok(
            hd_plan_add(plan, programs[i], &(hd_plan_program_options){.group = groups[i]}));
    }
    hdt_assert_ok(hd_plan_finish(plan));
    const hdi_unit *u = plan->units;
    ck_assert_uint_eq(u[1].base[HD_REGION_TRANSIENT], u[2].base[HD_REGION_TRANSIENT]);
    ck_assert_uint_eq(u[0].base[HD_REGION_IO], u[1].base[HD_REGION_IO]);
    ck_assert_uint_eq(u[2].base[HD_REGION_IO], u[1].base[HD_REGION_IO] + 2 * 4096);
    /* Weights, the table, then group 1: x and y of both programs, h, the larger workspace. */
    size_t scratch = 2 * 2 * 4096 + 4096 + hdi_place_round(100000);
    ck_assert_uint_eq(hd_plan_arena_bytes(plan), 4096 + 2048 + scratch);
    ck_assert_uint_eq(hd_plan_total_bytes(plan), hd_plan_arena_bytes(plan) + 77);
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_HOST_MAILBOXES), 33);
    ck_assert_uint_eq(hd_plan_host_bytes(plan), 33);
    hd_tensor tables[3], weights[3];
    for (int i = 0; i < 3; i++) {
        tables[i] = hd_tensor_find(programs[i], "table");
        weights[i] = programs[i]->uses[0].tensor;
        ck_assert_uint_eq(range_of(plan, i, tables[i], 0).begin,
                          range_of(plan, 0, tables[0], 0).begin);
        ck_assert_uint_eq(range_of(plan, i, weights[i], 0).begin,
                          range_of(plan, 0, weights[0], 0).begin);
    }
    size_t sum = 0;
    for (int r = 0; r < HD_REGIONS; r++)
        sum += hd_plan_region_bytes(plan, (hd_region)r);
    ck_assert_uint_eq(sum, hd_plan_total_bytes(plan));
    hd_plan_destroy(plan);
    for (int i = 0; i < 3; i++)
        hd_program_destroy(programs[i]);
}
END_TEST

/* Reads nothing that other programs have. */
static hd_program *alone(const char *name, int64_t count, size_t workspace)
{
    hd_program *program;
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = name}, &program));
    hd_output(program, hdt_through(program, hdt_vector(program, "x", count), workspace), "y");
    hdt_assert_ok(hd_program_finish(program));
    return program;
}

/* Bytes of its own, beside those of the largest group, whatever its group and whichever comes first. */
START_TEST(a_program_that_runs_beside_others_may_be_the_first)
{
    const int first = _i / 2, group = _i % 2;
    hd_program *programs[3];
    hd_plan *plan;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    for (int i = 0; i < 3; i++) {
        const bool beside = i == first;
        const char name[] = {(char)('a' + i), 0};
        programs[i] = beside ? alone(name, 1000, 50000) : chain(name, 1000, 3000);
        hdt_assert_ok(
            hd_plan_add(plan, programs[i],
                        &(hd_plan_program_options){.group = beside ? group : 0, .beside = beside}));
    }
    hdt_assert_ok(hd_plan_finish(plan));
    /* Of the others x and y each, h and a workspace for both; of this one x, y and a workspace. */
    const size_t others = 2 * 2 * 4096 + 4096 + hdi_place_round(3000);
    const size_t own = 2 * 4096 + hdi_place_round(50000);
    ck_assert_uint_eq(hd_plan_arena_bytes(plan), 4096 + 2048 + others + own);
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_IO), 3 * 2 * 4096);
    hd_plan_destroy(plan);
    for (int i = 0; i < 3; i++)
        hd_program_destroy(programs[i]);
}
END_TEST

START_TEST(a_cache_has_one_copy_for_each_sequence_in_flight)
{
    hd_program *p = hdt_program();
    hd_tensor cache = hdi_cache(p, "keys", HD_DTYPE_F32, 1, &(int64_t){1000});
    hd_output(p, hdt_mul(p, hdt_vector(p, "x", 1000), cache), "y");
    hdt_assert_ok(hd_program_finish(p));
    hd_plan *plan = plan_of(p, &(hd_plan_program_options){.cache_slots = 3});
    ck_assert_uint_eq(hd_plan_region_bytes(plan, HD_REGION_STATE), 3 * 4096);
    ck_assert(apart(range_of(plan, 0, cache, 1), range_of(plan, 0, cache, 2)));
    ck_assert_uint_eq(range_of(plan, 0, cache, 3).begin, range_of(plan, 0, cache, 0).begin);
    hd_plan_destroy(plan);
    hd_program_destroy(p);
}
END_TEST

START_TEST(states_of_one_name_must_agree)
{
    hd_program *both[2];
    hd_plan *plan;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    for (int i = 0; i < 2; i++) {
        both[i] = hdt_program();
        hd_state(both[i], "m", HD_DTYPE_F32, 1, &(int64_t){10 + i});
        hd_output(both[i], hdt_double(both[i], hdt_vector(both[i], "x", 4)), "y");
        hdt_assert_ok(hd_program_finish(both[i]));
        hdt_assert_ok(hd_plan_add(plan, both[i], NULL));
    }
    hdt_assert_status(hd_plan_finish(plan), HD_ERROR_ARGUMENT, "state 'm' has 40 bytes");
    hd_plan_destroy(plan);
    hd_program_destroy(both[0]);
    hd_program_destroy(both[1]);
}
END_TEST

START_TEST(a_budget_is_refused_by_need_region_and_table)
{
    hd_program *p = chain("a", 1000, 100000);
    for (int i = 0; i < 2; i++) {
        hd_plan *plan;
        size_t need = 4096 + 2048 + 3 * 4096 + hdi_place_round(100000) + 1000 + 300;
        hdt_assert_ok(hd_plan_create(
            &(hd_plan_options){.budget = need - (size_t)i, .foreign = 1000, .transport = 300},
            &plan));
        hdt_assert_ok(hd_plan_add(plan, p, NULL));
        if (i == 0) {
            hdt_assert_ok(hd_plan_finish(plan));
        } else {
            char text[160];
            snprintf(text, sizeof text,
                     "needs %zu bytes (117.02 KiB), the budget is %zu bytes (117.02 KiB), 1 bytes "
                     "too little",
                     need, need - 1);
            for (int again = 0; again < 2; again++) /* a second try adds nothing up */
                hdt_assert_status(hd_plan_finish(plan), HD_ERROR_BUDGET, text);
            ck_assert_ptr_nonnull(strstr(hd_last_error(), "largest region is transients"));
            ck_assert_ptr_nonnull(strstr(
                hd_last_error(), "\n  weights                        4096 bytes       4 KiB\n"));
            ck_assert_ptr_nonnull(
                strstr(hd_last_error(), "\n  foreign                        1000 bytes\n"));
            ck_assert_ptr_nonnull(
                strstr(hd_last_error(), "\n  transport, about                300 bytes"));
        }
        hd_plan_destroy(plan);
    }
    hd_program_destroy(p);
}
END_TEST

/* Each request in turn; the sanitizers watch what is made of memory that is not there. */
START_TEST(memory_that_cannot_be_had_is_said_and_the_plan_can_be_finished_later)
{
    hd_program *program = hdt_random_program(3);
    hd_plan *whole = plan_of(program, NULL);
    int refused = 0;
    for (hd_status status = HD_ERROR_MEMORY; status == HD_ERROR_MEMORY; refused++) {
        hd_plan *plan;
        hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
        hdt_assert_ok(hd_plan_add(plan, program, NULL));
        hdi_alloc_refuse(refused);
        status = hd_plan_finish(plan);
        hdi_alloc_refuse(-1);
        if (status != HD_OK) hdt_assert_status(status, HD_ERROR_MEMORY, "out of host memory");
        hdt_assert_ok(hd_plan_finish(plan));
        ck_assert_mem_eq(plan->bytes, whole->bytes, sizeof whole->bytes);
        hd_plan_destroy(plan);
    }
    ck_assert_int_gt(refused, 5);
    hd_plan_destroy(whole);
    hd_program_destroy(program);
}
END_TEST

START_TEST(what_cannot_be_planned_is_refused)
{
    hd_plan *plan;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_status(hd_plan_finish(plan), HD_ERROR_ARGUMENT, "has no programs");
    hd_program *open = hdt_program(), *p = chain("a", 10, 10), *late = chain("late", 10, 10);
    hdt_assert_status(hd_plan_add(plan, open, NULL), HD_ERROR_ARGUMENT,
                      "program 'p' is not finished");
    hdt_assert_ok(hd_plan_add(plan, p, NULL));
    hdt_assert_status(hd_plan_add(plan, p, NULL), HD_ERROR_ARGUMENT, "program 'a' is added twice");
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_status(hd_plan_add(plan, late, NULL), HD_ERROR_ARGUMENT, "finished plan");
    hd_plan_destroy(plan);
    hd_plan_destroy(NULL);
    hd_program_destroy(open);
    hd_program_destroy(p);
    hd_program_destroy(late);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("plan");
    TCase *tests = tcase_create("plan");
    tcase_add_test(tests, live_tensors_of_random_programs_are_apart);
    tcase_add_test(tests, a_plan_is_deterministic_and_aligned);
    tcase_add_test(tests, an_op_works_in_place_where_nobody_reads_its_input_later);
    tcase_add_test(tests, each_micro_batch_in_flight_has_bytes_of_its_own);
    tcase_add_test(tests, gradient_levels_are_bytes_of_their_own);
    tcase_add_test(tests, groups_share_bytes_and_programs_of_a_group_share_transients);
    tcase_add_loop_test(tests, a_program_that_runs_beside_others_may_be_the_first, 0, 6);
    tcase_add_test(tests, a_cache_has_one_copy_for_each_sequence_in_flight);
    tcase_add_test(tests, states_of_one_name_must_agree);
    tcase_add_test(tests, a_budget_is_refused_by_need_region_and_table);
    tcase_add_test(tests, memory_that_cannot_be_had_is_said_and_the_plan_can_be_finished_later);
    tcase_add_test(tests, what_cannot_be_planned_is_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
