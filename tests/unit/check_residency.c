/* Weights on the host: the same bits as on the device, in the memory that was planned. */
#include <heddle/session.h>

#include <stdio.h>

#include "core/memory.h"
#include "program/place.h"
#include "program/plan.h"
#include "runtime/session.h"
#include "tests/support/hdt_blocks.h"
#include "tests/support/hdt_late.h"
#include "tests/support/hdt_plans.h"

enum { COUNT = HDT_BLOCK_COUNT, BLOCKS = 7 };

static hdt_plans planned;
static hd_context *context;
static hd_session *session;

static const int in_order[BLOCKS] = {0, 1, 2, 3, 4, 5, 6};

static void use_one(void)
{
    planned.programs[0] = hdt_blocks_program("p", in_order, BLOCKS);
    planned.program_count = 1;
}

static void use_two(void)
{
    const int other[] = {3, 0, 1};
    use_one();
    planned.programs[1] = hdt_blocks_program("q", other, 3);
    planned.program_count = 2;
}

static void drop(void)
{
    hdt_drop_plans(&planned);
}

static void open_session(void)
{
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    context->backend = hdt_late_backend();
    hdt_assert_ok(hd_session_create(context, planned.plan, NULL, &session));
}

static void close_session(void)
{
    hd_session_destroy(session);
    hd_context_destroy(context);
}

static void run(const hd_program *p, const hd_program *next, uint64_t input, float out[COUNT])
{
    float x[COUNT];
    hdt_fill(x, COUNT, input);
    hdt_assert_ok(hd_session_write(session, p, hd_tensor_find(p, "x"), 0, x));
    hdt_assert_ok(hd_session_run(session, p, &(hd_session_run_options){.next = next}));
    hdt_assert_ok(hd_session_read(session, p, hd_tensor_find(p, "y"), 0, out));
}

enum { RUNS = 9 };

/* Several runs of both programs, in turn and one after another. */
static void run_all(float out[RUNS][COUNT], bool foretold)
{
    static const int which[RUNS + 1] = {0, 0, 0, 1, 0, 1, 1, 1, 0, 0};
    for (int r = 0; r < RUNS; r++)
        run(planned.programs[which[r] % planned.program_count],
            foretold ? planned.programs[which[r + 1] % planned.program_count] : NULL, (uint64_t)r,
            out[r]);
}

static int uses_of(int program)
{
    return planned.plan->units[program].streamed[HDI_PHASE_FORWARD].use_count;
}

START_TEST(runs_give_the_bits_of_resident_weights)
{
    static float resident[RUNS][COUNT], streamed[RUNS][COUNT];
    hdt_make_plan(&planned, &(hd_plan_options){0});
    open_session();
    hdt_assert_ok(hd_session_initialize(session, 7));
    run_all(resident, false);
    close_session();
    hdt_drop_plan(&planned);
    for (int blocks = 1; blocks <= BLOCKS; blocks++)
        for (int slots = 1; slots <= 4; slots++)
            for (int foretold = 0; foretold < 2; foretold++) {
                hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_HOST,
                                                           .host_blocks = blocks,
                                                           .stream_slots = slots});
                open_session();
                hdt_assert_ok(hd_session_initialize(session, 7));
                const uint64_t allocations = hdi_alloc_count();
                run_all(streamed, foretold);
                ck_assert_uint_eq(hdi_alloc_count(), allocations);
                ck_assert_msg(memcmp(streamed, resident, sizeof resident) == 0,
                              "%d blocks, %d slots: other bits", blocks, slots);
                ck_assert_uint_eq(hd_session_high_water(session),
                                  hd_plan_arena_bytes(planned.plan));
                close_session();
                hdt_drop_plan(&planned);
            }
}
END_TEST

START_TEST(each_run_copies_each_host_block_once)
{
    float out[COUNT];
    for (int blocks = 3; blocks <= BLOCKS; blocks++) {
        hdt_make_plan(&planned,
                      &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .host_blocks = blocks});
        ck_assert_int_eq(uses_of(0), blocks);
        open_session();
        hdt_assert_ok(hd_session_initialize(session, 1));
        for (int r = 1; r <= 5; r++) {
            run(planned.programs[0], NULL, 1, out);
            ck_assert_int_eq(hdt_late_queued(),
                             blocks * r + 2); /* the next run's first two are on their way */
        }
        close_session();
        hdt_drop_plan(&planned);
    }
}
END_TEST

/* Without being told, the first two blocks of the same program are copied, and mostly not wanted. */
START_TEST(what_runs_next_is_copied_ahead_if_it_is_told)
{
    int copies[2];
    float out[RUNS][COUNT];
    for (int foretold = 0; foretold < 2; foretold++) {
        hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_HOST});
        open_session();
        hdt_assert_ok(hd_session_initialize(session, 1));
        run_all(out, foretold);
        copies[foretold] = hdt_late_queued();
        close_session();
        hdt_drop_plan(&planned);
    }
    ck_assert_int_le(copies[1], 5 * BLOCKS + 4 * 3 + 2);
    ck_assert_int_gt(copies[0], copies[1]);
}
END_TEST

START_TEST(blocks_that_all_have_a_slot_are_copied_once_and_for_all)
{
    float out[COUNT];
    hdt_make_plan(
        &planned,
        &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .host_blocks = 3, .stream_slots = 3});
    open_session();
    hdt_assert_ok(hd_session_initialize(session, 1));
    for (int r = 0; r < 4; r++)
        run(planned.programs[0], NULL, 1, out);
    ck_assert_int_eq(hdt_late_queued(), 3);
    close_session();
}
END_TEST

static void write_in_pieces(int64_t first, const float values[COUNT])
{
    for (int64_t at = 0; at < COUNT; at += COUNT / 4)
        hdt_assert_ok(hdi_session_write_flat(session, first + at, COUNT / 4, values + at));
}

START_TEST(weights_are_written_and_read_wherever_they_are)
{
    float values[COUNT], seen[COUNT], before[COUNT], after[COUNT];
    hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .host_blocks = 4});
    open_session();
    hdt_assert_ok(hd_session_initialize(session, 1));
    run(planned.programs[0], NULL, 1, before);
    const hdi_layout *layout = planned.plan->layout;
    for (int u = 0; u < planned.programs[0]->use_count; u++) {
        const hdi_use *use = &planned.programs[0]->uses[u];
        hdt_fill(values, COUNT, 100 + (uint64_t)u);
        if (u % 2)
            hdt_assert_ok(hd_session_write(session, planned.programs[0], use->tensor, 0, values));
        else
            write_in_pieces(layout->entries[hdi_layout_find(layout, use->name)].first, values);
        hdt_assert_ok(hd_session_read(session, planned.programs[0], use->tensor, 0, seen));
        ck_assert_mem_eq(seen, values, sizeof seen);
        run(planned.programs[0], NULL, 1, after); /* copies that were on their way are forgotten */
        ck_assert_mem_ne(after, before, sizeof after);
        memcpy(before, after, sizeof before);
    }
    close_session();
}
END_TEST

START_TEST(slots_hold_the_largest_blocks_and_the_rest_is_resident)
{
    const size_t one = hdi_place_round(COUNT * sizeof(float));
    hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_HOST});
    ck_assert_int_eq(planned.plan->residency.block_count, BLOCKS);
    ck_assert_uint_eq(hd_plan_region_bytes(planned.plan, HD_REGION_STREAMED), 2 * 3 * one);
    ck_assert_uint_eq(hd_plan_region_bytes(planned.plan, HD_REGION_WEIGHTS), 3 * one);
    hd_streaming streaming;
    hd_plan_streaming(planned.plan, planned.programs[0], &streaming);
    ck_assert_int_eq(streaming.host_blocks, BLOCKS);
    ck_assert_uint_eq(streaming.host_bytes, (4 * 2 + 3 * 3) * one);
    ck_assert_uint_eq(streaming.run_bytes, streaming.host_bytes);
}
END_TEST

/* Blocks of equal cost: two slots hide copies that take as long as a block's computation. */
START_TEST(the_estimate_tells_what_is_exposed)
{
    hd_streaming streaming;
    const double block_bytes = 3 * (double)hdi_place_round(COUNT * sizeof(float));
    hd_plan_options options = {.residency = HD_RESIDENCY_HOST, .rates = {.compute = 1}};
    hdt_make_plan(&planned, &options);
    hd_plan_streaming(planned.plan, planned.programs[0], &streaming);
    const double seconds = streaming.compute_seconds;
    ck_assert_double_gt(seconds, 0);
    hdt_drop_plan(&planned);
    for (int slow = 0; slow < 2; slow++) {
        options.rates.link = slow ? block_bytes / seconds : BLOCKS * 4 * block_bytes / seconds;
        hdt_make_plan(&planned, &options);
        hd_plan_streaming(planned.plan, planned.programs[0], &streaming);
        ck_assert_double_eq_tol(streaming.copy_seconds,
                                (double)streaming.run_bytes / options.rates.link, 1e-9 * seconds);
        if (slow) /* the link is never idle */
            ck_assert_double_eq_tol(streaming.exposed_seconds, streaming.copy_seconds - seconds,
                                    0.2 * streaming.copy_seconds);
        else
            ck_assert_double_eq_tol(streaming.exposed_seconds, 0, 1e-9 * seconds);
        hdt_drop_plan(&planned);
    }
    hdt_make_plan(&planned, &(hd_plan_options){0});
    hd_plan_streaming(planned.plan, planned.programs[0], &streaming);
    ck_assert_uint_eq(streaming.run_bytes, 0);
}
END_TEST

START_TEST(budgets_put_as_few_blocks_on_the_host_as_they_allow)
{
    size_t needs[BLOCKS + 1];
    hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_AUTO});
    ck_assert_int_eq(planned.plan->residency.host_blocks, 0);
    needs[0] = hd_plan_total_bytes(planned.plan);
    hdt_drop_plan(&planned);
    for (int blocks = 1; blocks <= BLOCKS; blocks++) {
        hdt_make_plan(&planned,
                      &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .host_blocks = blocks});
        needs[blocks] = hd_plan_total_bytes(planned.plan);
        hdt_drop_plan(&planned);
    }
    for (size_t budget = needs[0] + 512; budget >= needs[BLOCKS]; budget -= 256) {
        int fewest = 0;
        while (needs[fewest] > budget)
            fewest++;
        hdt_make_plan(&planned,
                      &(hd_plan_options){.residency = HD_RESIDENCY_AUTO, .budget = budget});
        ck_assert_int_eq(planned.plan->residency.host_blocks, fewest);
        ck_assert_uint_eq(hd_plan_total_bytes(planned.plan), needs[fewest]);
        hdt_drop_plan(&planned);
    }
}
END_TEST

START_TEST(the_refusal_says_the_smallest_budget_that_would_do)
{
    hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .stream_slots = 1});
    const size_t least = hd_plan_total_bytes(planned.plan);
    hdt_drop_plan(&planned);
    hd_plan_options options = {.residency = HD_RESIDENCY_AUTO, .budget = least - 1};
    char text[64];
    snprintf(text, sizeof text, "needs %zu bytes", least);
    hdt_assert_status(hdt_try_plan(&planned, &options), HD_ERROR_BUDGET, text);
    hdt_assert_status(hd_plan_finish(planned.plan), HD_ERROR_BUDGET, "no smaller budget would do");
    hdt_drop_plan(&planned);
    options.budget = least;
    hdt_make_plan(&planned, &options);
    ck_assert_int_eq(planned.plan->residency.slots, 1);
    ck_assert_uint_eq(hd_plan_total_bytes(planned.plan), least);
}
END_TEST

START_TEST(host_blocks_are_spread_evenly)
{
    for (int blocks = 1; blocks <= BLOCKS; blocks++) {
        int longest[2] = {0}, row[2] = {0}; /* of resident and of host blocks side by side */
        hdt_make_plan(&planned,
                      &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .host_blocks = blocks});
        for (int b = 0; b < 2 * BLOCKS; b++) {
            const bool host = planned.plan->residency.blocks[b % BLOCKS].host;
            row[!host] = 0;
            if (++row[host] > longest[host]) longest[host] = row[host];
        }
        const int rest = BLOCKS - blocks;
        ck_assert_int_le(longest[0], (rest + blocks - 1) / blocks);
        if (rest) ck_assert_int_le(longest[1], (blocks + rest - 1) / rest);
        hdt_drop_plan(&planned);
    }
}
END_TEST

/* Two micro-batches forward, two backward, twice, as a pipeline's first stage has them; the outputs of the
 * last and the sum of the gradients of all. */
static void train(hd_program *p, float *out, bool foretold)
{
    static const hd_phase phases[] = {HD_PHASE_FORWARD, HD_PHASE_FORWARD, HD_PHASE_BACKWARD,
                                      HD_PHASE_BACKWARD};
    float x[COUNT];
    for (int r = 0; r < 8; r++) {
        hdt_fill(x, COUNT, (uint64_t)r);
        const int batch = r % 2;
        const char *input = phases[r % 4] ? "seed" : "x";
        hdt_assert_ok(hd_session_write(session, p, hd_tensor_find(p, input), batch, x));
        hdt_assert_ok(hd_session_run(
            session, p,
            &(hd_session_run_options){.phase = phases[r % 4],
                                      .micro_batch = batch,
                                      .accumulate = r > 2,
                                      .next_phase = foretold ? phases[(r + 1) % 4] : 0,
                                      .no_next = r == 7}));
    }
    hdt_assert_ok(hd_session_read(session, p, hd_tensor_find(p, "y"), 1, out));
    for (int u = 0; u < p->use_count; u++)
        hdt_assert_ok(hd_session_read(session, p, p->uses[u].gradient, 0, out + (u + 1) * COUNT));
}

enum { TRAINED = 40 * COUNT };

static void train_planned(hd_program *p, const hd_plan_options *options, bool foretold, float *out)
{
    hdt_assert_ok(hd_plan_create(options, &planned.plan));
    hdt_assert_ok(
        hd_plan_add(planned.plan, p, &(hd_plan_program_options){.saved_slots = 2, .io_slots = 2}));
    hdt_assert_ok(hd_plan_finish(planned.plan));
    open_session();
    hdt_assert_ok(hd_session_initialize(session, 5));
    const uint64_t allocations = hdi_alloc_count();
    train(p, out, foretold);
    ck_assert_uint_eq(hdi_alloc_count(), allocations);
    close_session();
    hdt_drop_plan(&planned);
}

/* Of which some blocks are made again in the backward. */
START_TEST(gradients_have_the_bits_of_resident_weights)
{
    static float resident[TRAINED], streamed[TRAINED];
    for (uint64_t seed = 0; seed < 8; seed++) {
        hd_program *p = hdt_random_program(seed);
        ck_assert_int_lt((p->use_count + 1) * COUNT, TRAINED);
        train_planned(p, &(hd_plan_options){0}, false, resident);
        for (int slots = 1; slots <= 3; slots++)
            for (int foretold = 0; foretold < 2; foretold++) {
                train_planned(
                    p, &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .stream_slots = slots},
                    foretold, streamed);
                ck_assert_mem_eq(streamed, resident, sizeof resident);
            }
        hd_program_destroy(p);
    }
}
END_TEST

START_TEST(a_backward_finds_the_last_blocks_of_its_forward_in_place)
{
    hd_program *p = hdt_random_program(2);
    static float out[TRAINED];
    train_planned(p, &(hd_plan_options){.residency = HD_RESIDENCY_HOST}, true, out);
    const int foretold = hdt_late_queued();
    train_planned(p, &(hd_plan_options){.residency = HD_RESIDENCY_HOST}, false, out);
    ck_assert_int_lt(foretold, hdt_late_queued());
    hdt_assert_ok(
        hd_plan_create(&(hd_plan_options){.residency = HD_RESIDENCY_HOST}, &planned.plan));
    hdt_assert_ok(hd_plan_add(planned.plan, p, NULL));
    hdt_assert_ok(hd_plan_finish(planned.plan));
    const hdi_stream_run *run = planned.plan->units[0].streamed;
    const int blocks = run[HDI_PHASE_FORWARD].use_count;
    ck_assert_int_gt(blocks, 2);
    ck_assert_int_eq(run[HDI_PHASE_BACKWARD].use_count, blocks);
    for (int b = 0; b < blocks; b++)
        ck_assert_int_eq(run[HDI_PHASE_BACKWARD].uses[b].block,
                         run[HDI_PHASE_FORWARD].uses[blocks - 1 - b].block);
    /* F F B B twice: each of the three turns from F to B or back finds what both slots hold in place. */
    ck_assert_int_eq(foretold, 8 * blocks - 3 * 2);
    hdt_drop_plan(&planned);
    hd_program_destroy(p);
}
END_TEST

START_TEST(plans_that_write_weights_are_refused)
{
    hd_program *p = hdt_program();
    hd_tensor weights = hdi_flat_tensor(p, "weights", HDI_FLAT_WEIGHTS, HD_DTYPE_F32, 0, COUNT);
    hd_tensor x = hdt_mul(p, hdt_vector(p, "x", COUNT), hdt_weight(p, "w", COUNT));
    hdi_op_append(p, &hdt_op_double, NULL, 1, &x, 1, &weights);
    hdt_assert_ok(hd_program_finish(p));
    hdt_assert_ok(
        hd_plan_create(&(hd_plan_options){.residency = HD_RESIDENCY_AUTO}, &planned.plan));
    hdt_assert_ok(hd_plan_add(planned.plan, p, NULL));
    const hd_status status = hd_plan_finish(planned.plan);
    hdt_drop_plan(&planned);
    hd_program_destroy(p);
    hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "writes weights");
    hdt_assert_status(hd_plan_create(&(hd_plan_options){.stream_slots = 9}, &planned.plan),
                      HD_ERROR_ARGUMENT, "want 0..8 slots");
}
END_TEST

START_TEST(the_print_names_blocks_and_their_copies)
{
    static hdt_text text;
    text.used = 0;
    hdt_make_plan(&planned, &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .host_blocks = 2});
    hd_plan_print(planned.plan, hdt_collect, &text);
    ck_assert_ptr_nonnull(strstr(text.text, "2 of 7 blocks on the host, 2 slots"));
    ck_assert_ptr_nonnull(strstr(text.text, "block 'model.h.3': copied before op 0, read by "));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("residency");
    TCase *runs = tcase_create("runs");
    tcase_add_checked_fixture(runs, use_two, drop);
    tcase_add_test(runs, runs_give_the_bits_of_resident_weights);
    tcase_add_test(runs, what_runs_next_is_copied_ahead_if_it_is_told);
    suite_add_tcase(suite, runs);
    TCase *plans = tcase_create("plans");
    tcase_add_checked_fixture(plans, use_one, drop);
    tcase_add_test(plans, each_run_copies_each_host_block_once);
    tcase_add_test(plans, blocks_that_all_have_a_slot_are_copied_once_and_for_all);
    tcase_add_test(plans, weights_are_written_and_read_wherever_they_are);
    tcase_add_test(plans, slots_hold_the_largest_blocks_and_the_rest_is_resident);
    tcase_add_test(plans, the_estimate_tells_what_is_exposed);
    tcase_add_test(plans, budgets_put_as_few_blocks_on_the_host_as_they_allow);
    tcase_add_test(plans, the_refusal_says_the_smallest_budget_that_would_do);
    tcase_add_test(plans, host_blocks_are_spread_evenly);
    tcase_add_test(plans, gradients_have_the_bits_of_resident_weights);
    tcase_add_test(plans, a_backward_finds_the_last_blocks_of_its_forward_in_place);
    tcase_add_test(plans, plans_that_write_weights_are_refused);
    tcase_add_test(plans, the_print_names_blocks_and_their_copies);
    suite_add_tcase(suite, plans);
    return hdt_main(suite);
}
