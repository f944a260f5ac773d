/* Pipeline schedules against their formulas, and the checker against broken tables. */
#include <check.h>

#include "parallel/schedule.h"
#include "tests/support/hdt.h"

enum { MOST_STAGES = 8, MOST_CHUNKS = 4, MOST_MICRO_BATCHES = 32 };

typedef struct pipeline {
    int stages;
    hdi_schedule *tables[MOST_STAGES];
} pipeline;

static pipeline make(hdi_schedule_kind kind, int stages, int micro_batches, int chunks)
{
    pipeline made = {.stages = stages};
    for (int stage = 0; stage < stages; stage++)
        hdt_assert_ok(hdi_schedule_create(&(hdi_schedule_options){.kind = kind,
                                                                  .stages = stages,
                                                                  .stage = stage,
                                                                  .micro_batches = micro_batches,
                                                                  .chunks = chunks},
                                          &made.tables[stage]));
    return made;
}

static void destroy(pipeline *made)
{
    for (int stage = 0; stage < made->stages; stage++)
        hdi_schedule_destroy(made->tables[stage]);
}

static hd_status check(const pipeline *made)
{
    return hdi_schedule_check(made->tables, made->stages);
}

static int find_row(const hdi_schedule *table, hdi_schedule_op op, int micro_batch, int chunk)
{
    for (int i = 0; i < table->row_count; i++)
        if (table->rows[i].op == op && table->rows[i].micro_batch == micro_batch &&
            table->rows[i].chunk == chunk)
            return i;
    ck_abort_msg("no such row");
}

static void swap_rows(hdi_schedule *table, int a, int b)
{
    const hdi_schedule_row row = table->rows[a];
    table->rows[a] = table->rows[b];
    table->rows[b] = row;
}

/* Move a row up or down so that it stands directly before the row that is at `target` now. */
static void move_before(hdi_schedule *table, int row, int target)
{
    for (; row > target; row--)
        swap_rows(table, row, row - 1);
    for (; row < target - 1; row++)
        swap_rows(table, row, row + 1);
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* The table in schedule.h; p = stages, m = micro-batches, v = chunks, i = stage. */
static int wanted_in_flight(hdi_schedule_kind kind, int p, int m, int v, int i)
{
    const int group = m < p ? m : (m + m / p - 1) / (m / p);
    switch (kind) {
    case HDI_SCHEDULE_GPIPE: return m * v;
    case HDI_SCHEDULE_ONE_F_ONE_B: return smaller(m, p - i);
    case HDI_SCHEDULE_INTERLEAVED: break;
    case HDI_SCHEDULE_FORWARD_ONLY: return 1;
    }
    if (v == 1) return smaller(m, p - i);
    return smaller(m * v, 2 * (p - i - 1) + (v - 1) * group + 1);
}

/* Costs are those of a chunk, so (F+B)/v is forward + backward and everything stays an integer. */
static void check_formulas(hdi_schedule_kind kind, int p, int m, int v, int forward, int backward)
{
    double forwards[MOST_STAGES * MOST_CHUNKS], backwards[MOST_STAGES * MOST_CHUNKS];
    for (int i = 0; i < p * v; i++) {
        forwards[i] = forward;
        backwards[i] = backward;
    }
    const int turn = kind == HDI_SCHEDULE_FORWARD_ONLY ? forward : forward + backward;
    const int short_group = m < p ? (v - 1) * (p - m) : 0;

    pipeline made = make(kind, p, m, v);
    for (int sends = HDI_SENDS_BUFFERED; sends <= HDI_SENDS_RENDEZVOUS; sends++) {
        hdi_schedule_timing timing;
        hdi_stage_timing stages[MOST_STAGES];
        hdt_assert_ok(hdi_schedule_simulate(made.tables, p,
                                            &(hdi_schedule_costs){.forward = forwards,
                                                                  .backward = backwards,
                                                                  .sends = (hdi_send_mode)sends},
                                            &timing, stages));
        ck_assert_msg(timing.bubble == (p - 1 + short_group) * turn &&
                          timing.makespan == (m * v + p - 1 + short_group) * turn,
                      "%s p %d m %d v %d F %d B %d sends %d: bubble %g, makespan %g",
                      hdi_schedule_kind_name(kind), p, m, v, forward, backward, sends,
                      timing.bubble, timing.makespan);
        for (int i = 0; i < p; i++)
            ck_assert_msg(stages[i].peak_in_flight == wanted_in_flight(kind, p, m, v, i) &&
                              stages[i].busy == m * v * turn,
                          "%s p %d m %d v %d stage %d: %d in flight, want %d",
                          hdi_schedule_kind_name(kind), p, m, v, i, stages[i].peak_in_flight,
                          wanted_in_flight(kind, p, m, v, i));
    }
    destroy(&made);
}

START_TEST(bubble_and_in_flight_equal_the_formulas_without_deadlock)
{
    for (int kind = HDI_SCHEDULE_GPIPE; kind <= HDI_SCHEDULE_FORWARD_ONLY; kind++)
        for (int m = 1; m <= MOST_MICRO_BATCHES; m++)
            for (int v = 1; v <= (kind == HDI_SCHEDULE_ONE_F_ONE_B ? 1 : MOST_CHUNKS); v++) {
                check_formulas((hdi_schedule_kind)kind, _i, m, v, 1, 1);
                check_formulas((hdi_schedule_kind)kind, _i, m, v, 1, 2);
                check_formulas((hdi_schedule_kind)kind, _i, m, v, 7, 3);
            }
}
END_TEST

START_TEST(one_stage_computes_everything_and_sends_nothing)
{
    for (int v = 1; v <= MOST_CHUNKS; v++)
        for (int m = 1; m <= 5; m++) {
            pipeline made =
                make((hdi_schedule_kind)_i, 1, m, _i == HDI_SCHEDULE_ONE_F_ONE_B ? 1 : v);
            hdt_assert_ok(check(&made));
            const hdi_schedule *table = made.tables[0];
            ck_assert_int_eq(table->row_count, table->action_count);
            for (int c = 0; c < table->options.chunks; c++) {
                ck_assert_int_eq(hdi_schedule_slots(table, c, HDI_BUFFER_FORWARD_OUT), 0);
                /* The chunk before writes straight into this chunk's input. */
                ck_assert_int_eq(hdi_schedule_slots(table, c, HDI_BUFFER_FORWARD_IN) > 0, c > 0);
            }
            destroy(&made);
        }
}
END_TEST

START_TEST(interleaved_with_one_chunk_is_1f1b)
{
    for (int m = 1; m <= 9; m++) {
        pipeline plain = make(HDI_SCHEDULE_ONE_F_ONE_B, _i, m, 0);
        pipeline interleaved = make(HDI_SCHEDULE_INTERLEAVED, _i, m, 1);
        for (int stage = 0; stage < _i; stage++) {
            const hdi_schedule *a = plain.tables[stage], *b = interleaved.tables[stage];
            ck_assert_int_eq(a->row_count, b->row_count);
            for (int i = 0; i < a->row_count; i++)
                ck_assert(a->rows[i].op == b->rows[i].op &&
                          a->rows[i].micro_batch == b->rows[i].micro_batch &&
                          a->rows[i].peer == b->rows[i].peer);
        }
        destroy(&plain);
        destroy(&interleaved);
    }
}
END_TEST

START_TEST(a_receive_is_posted_one_compute_before_the_one_that_needs_it)
{
    pipeline made = make(HDI_SCHEDULE_INTERLEAVED, _i, 7, 2);
    for (int stage = 0; stage < _i; stage++) {
        const hdi_schedule *table = made.tables[stage];
        for (int i = 0, computes_before = 0; i < table->row_count; i++) {
            const hdi_schedule_row *row = &table->rows[i];
            if (row->op == HDI_FORWARD || row->op == HDI_BACKWARD) computes_before++;
            if (row->op != HDI_RECV_FORWARD && row->op != HDI_RECV_BACKWARD) continue;
            const int consumer =
                find_row(table, row->op == HDI_RECV_FORWARD ? HDI_FORWARD : HDI_BACKWARD,
                         row->micro_batch, row->chunk);
            int between = 0;
            for (int j = i; j < consumer; j++)
                between += table->rows[j].op == HDI_FORWARD || table->rows[j].op == HDI_BACKWARD;
            /* The table's first compute has none before it. */
            ck_assert(between == 1 || (between == 0 && computes_before == 0));
        }
    }
    destroy(&made);
}
END_TEST

START_TEST(slot_counts_are_the_least_that_do_not_collide)
{
    for (int kind = HDI_SCHEDULE_GPIPE; kind <= HDI_SCHEDULE_FORWARD_ONLY; kind++)
        for (int m = 1; m <= 9; m++)
            for (int v = 1; v <= (kind == HDI_SCHEDULE_ONE_F_ONE_B ? 1 : 3); v++) {
                pipeline made = make((hdi_schedule_kind)kind, _i, m, v);
                hdt_assert_ok(check(&made));
                for (int i = 0; i < _i * v * HDI_SCHEDULE_BUFFERS; i++) {
                    const int buffer = i % HDI_SCHEDULE_BUFFERS;
                    int *slots = &made.tables[i / HDI_SCHEDULE_BUFFERS % _i]
                                      ->slots[i / HDI_SCHEDULE_BUFFERS / _i][buffer];
                    const int right = *slots;
                    const bool output =
                        buffer == HDI_BUFFER_FORWARD_OUT || buffer == HDI_BUFFER_BACKWARD_OUT;
                    if (right == 0) continue;
                    *slots = output ? 0 : right - 1;
                    hdt_assert_status(check(&made), HD_ERROR_INTERNAL,
                                      output ? "no slot" : "too few");
                    *slots = right;
                }
                destroy(&made);
            }
}
END_TEST

START_TEST(activation_slots_of_1f1b_are_its_micro_batches_in_flight)
{
    for (int m = 1; m <= MOST_MICRO_BATCHES; m++) {
        pipeline made = make(HDI_SCHEDULE_ONE_F_ONE_B, _i, m, 1);
        for (int stage = 0; stage < _i; stage++)
            ck_assert_int_eq(hdi_schedule_slots(made.tables[stage], 0, HDI_BUFFER_ACTIVATIONS),
                             smaller(m, _i - stage));
        destroy(&made);
    }
}
END_TEST

/* Two messages of one kind trade places, or two computes of one chunk: nothing else would notice
 * on the wire, where messages carry no label. */
START_TEST(any_swap_of_like_rows_is_caught)
{
    for (int v = 1; v <= 2; v++) {
        pipeline made = make(HDI_SCHEDULE_INTERLEAVED, _i, 5, v);
        for (int stage = 0; stage < _i; stage++) {
            hdi_schedule *table = made.tables[stage];
            for (int a = 0; a < table->row_count; a++)
                for (int b = a + 1; b < table->row_count; b++) {
                    const hdi_schedule_row *first = &table->rows[a], *second = &table->rows[b];
                    const bool compute = first->op == HDI_FORWARD || first->op == HDI_BACKWARD;
                    if (first->op != second->op || (compute && first->chunk != second->chunk))
                        continue;
                    swap_rows(table, a, b);
                    hdt_assert_status(check(&made), HD_ERROR_INTERNAL, "schedule: ");
                    swap_rows(table, a, b);
                }
        }
        hdt_assert_ok(check(&made));
        destroy(&made);
    }
}
END_TEST

START_TEST(a_swap_of_two_sends_names_both_micro_batches)
{
    /* Two stages with two chunks: messages of both chunks share one sender, receiver and channel. */
    pipeline made = make(HDI_SCHEDULE_INTERLEAVED, 2, 4, 2);
    hdi_schedule *table = made.tables[1];
    swap_rows(table, find_row(table, HDI_RECV_FORWARD, 1, 0),
              find_row(table, HDI_RECV_FORWARD, 0, 0));
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL,
                      "message 0 from stage 0 to stage 1 on the forward channel is sent for "
                      "micro-batch 0 chunk 0");
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL, "received for micro-batch 1 chunk 0");
    destroy(&made);
}
END_TEST

START_TEST(misplaced_rows_are_named)
{
    static const struct {
        hdi_schedule_op op, before;
        const char *text;
    } cases[] = {
        {HDI_SEND_FORWARD, HDI_FORWARD,
         "send after the forward of micro-batch 2 chunk 0 stands "
         "before the forward of micro-batch 2"},
        {HDI_FORWARD, HDI_RECV_FORWARD,
         "forward of micro-batch 2 chunk 0 stands before the receive"},
        {HDI_BACKWARD, HDI_FORWARD, "backward of micro-batch 2 chunk 0 stands before the"},
        {HDI_BACKWARD, HDI_RECV_BACKWARD, "stands before the receive for the backward"},
        {HDI_SEND_BACKWARD, HDI_BACKWARD,
         "send after the backward of micro-batch 2 chunk 0 stands"},
    };
    pipeline made = make(HDI_SCHEDULE_ONE_F_ONE_B, 3, 4, 1);
    hdi_schedule *table = made.tables[1];
    move_before(table, find_row(table, cases[_i].op, 2, 0),
                find_row(table, cases[_i].before, 2, 0));
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL, "stage 1 row ");
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL, cases[_i].text);
    destroy(&made);
}
END_TEST

START_TEST(rows_that_are_missing_twice_or_elsewhere_are_named)
{
    pipeline made = make(HDI_SCHEDULE_ONE_F_ONE_B, 3, 4, 1);
    hdi_schedule *table = made.tables[1];
    const int row = find_row(table, HDI_BACKWARD, 3, 0);
    const hdi_schedule_row right = table->rows[row];

    table->rows[row].micro_batch = 2;
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL,
                      "backward of micro-batch 2 chunk 0 was already");
    table->rows[row].micro_batch = 4;
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL,
                      "backward of micro-batch 4 chunk 0 is out of");
    table->rows[row] = right;

    move_before(table, row, table->row_count);
    table->row_count--;
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL,
                      "stage 1 has no backward of micro-batch 3 chunk 0");
    table->row_count++;
    move_before(table, table->row_count - 1, row);
    hdt_assert_ok(check(&made));

    table->rows[find_row(table, HDI_SEND_FORWARD, 1, 0)].peer = 0;
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL,
                      "has peer 0 on channel 0, want 2 on channel 0");
    destroy(&made);
}
END_TEST

START_TEST(a_deadlock_is_told_as_who_waits_for_whom)
{
    /* The first stage wants a gradient after two forwards, the last sends none before all four. */
    pipeline patient = make(HDI_SCHEDULE_GPIPE, 2, 4, 1);
    pipeline eager = make(HDI_SCHEDULE_ONE_F_ONE_B, 2, 4, 1);
    pipeline mixed = {.stages = 2, .tables = {eager.tables[0], patient.tables[1]}};
    hdt_assert_status(check(&mixed), HD_ERROR_INTERNAL,
                      "backward of micro-batch 0 chunk 0) waits for its gradient from stage 1; ");
    hdt_assert_status(check(&mixed), HD_ERROR_INTERNAL,
                      "forward of micro-batch 2 chunk 0) waits for its input from stage 0");
    destroy(&patient);
    destroy(&eager);
}
END_TEST

START_TEST(a_deadlock_of_sends_that_wait_for_their_receive_is_caught)
{
    pipeline made = make(HDI_SCHEDULE_INTERLEAVED, 2, 4, 2);
    hdi_schedule *first = made.tables[0], *last = made.tables[1];
    first->slots[0][HDI_BUFFER_FORWARD_OUT] = 1;
    hdt_assert_ok(check(&made));

    /* Stage 0 overwrites its only output before it gives stage 1 the gradient of chunk 0; stage 1
     * makes room for that output only when it has used that gradient. */
    move_before(first, find_row(first, HDI_FORWARD, 3, 0), find_row(first, HDI_BACKWARD, 0, 1));
    move_before(last, find_row(last, HDI_BACKWARD, 0, 0), find_row(last, HDI_FORWARD, 2, 0));
    move_before(last, find_row(last, HDI_RECV_FORWARD, 2, 0), find_row(last, HDI_FORWARD, 2, 0));

    hdi_schedule_timing timing;
    hdi_schedule_costs costs = {.sends = HDI_SENDS_BUFFERED};
    hdt_assert_ok(hdi_schedule_simulate(made.tables, 2, &costs, &timing, NULL));
    hdt_assert_status(check(&made), HD_ERROR_INTERNAL,
                      "forward of micro-batch 3 chunk 0) waits for "
                      "stage 1 to receive the output of micro-batch 2; stage 1");
    destroy(&made);
}
END_TEST

START_TEST(tables_of_different_schedules_are_refused)
{
    pipeline made = make(HDI_SCHEDULE_GPIPE, 2, 4, 1), other = make(HDI_SCHEDULE_GPIPE, 2, 5, 1);
    pipeline mixed = {.stages = 2, .tables = {made.tables[0], other.tables[1]}};
    hdt_assert_status(check(&mixed), HD_ERROR_INTERNAL, "5 micro-batches");
    destroy(&made);
    destroy(&other);
}
END_TEST

START_TEST(uneven_stages_and_latency_cost_what_they_must)
{
    const double forward[] = {2, 5, 3}, backward[] = {4, 6, 11};
    hdi_schedule_costs costs = {.forward = forward, .backward = backward, .latency = 2};
    hdi_schedule_timing timing;
    hdi_stage_timing stages[3];

    /* Fill through all stages, then one micro-batch per turn of the slowest. */
    pipeline made = make(HDI_SCHEDULE_FORWARD_ONLY, 3, 6, 1);
    hdt_assert_ok(hdi_schedule_simulate(made.tables, 3, &costs, &timing, stages));
    ck_assert(timing.makespan == 2 + 5 + 3 + 2 * 2 + 5 * 5);
    ck_assert(timing.bubble == timing.makespan - 6 * 5);
    ck_assert(stages[2].busy == 6 * 3);
    destroy(&made);

    made = make(HDI_SCHEDULE_GPIPE, 3, 6, 1);
    hdt_assert_ok(hdi_schedule_simulate(made.tables, 3, &costs, &timing, stages));
    ck_assert(timing.makespan == (2 + 5 + 3 + 2 * 2 + 5 * 5) + (11 + 6 + 4 + 2 * 2 + 5 * 11));
    destroy(&made);
}
END_TEST

START_TEST(impossible_options_are_refused_with_the_remedy)
{
    hdi_schedule *table;
    hdi_schedule_options options = {
        .kind = HDI_SCHEDULE_ONE_F_ONE_B, .stages = 4, .chunks = 2, .micro_batches = 8};
    hdt_assert_status(hdi_schedule_create(&options, &table), HD_ERROR_CONFIG,
                      "the schedule \"interleaved\"");
    ck_assert_ptr_null(table);
    options = (hdi_schedule_options){.stages = 4, .stage = 4, .micro_batches = 8};
    hdt_assert_status(hdi_schedule_create(&options, &table), HD_ERROR_ARGUMENT, "stage is 4");
    options = (hdi_schedule_options){.stages = 4};
    hdt_assert_status(hdi_schedule_create(&options, &table), HD_ERROR_ARGUMENT,
                      "micro-batches is 0");
    options = (hdi_schedule_options){.micro_batches = 1};
    hdt_assert_status(hdi_schedule_create(&options, &table), HD_ERROR_ARGUMENT, "stages is 0");
    options = (hdi_schedule_options){.stages = 1, .micro_batches = 1 << 20, .chunks = 1 << 20};
    hdt_assert_status(hdi_schedule_create(&options, &table), HD_ERROR_ARGUMENT, "want at most");
}
END_TEST

START_TEST(kinds_have_names_that_read_back)
{
    hdi_schedule_kind kind = HDI_SCHEDULE_GPIPE;
    hdt_assert_ok(hdi_schedule_kind_parse(hdi_schedule_kind_name((hdi_schedule_kind)_i), &kind));
    ck_assert_int_eq((int)kind, _i);
    hdt_assert_status(hdi_schedule_kind_parse("zero", &kind), HD_ERROR_CONFIG, "\"1f1b\"");
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("schedule");
    tcase_add_loop_test(tests, bubble_and_in_flight_equal_the_formulas_without_deadlock, 2, 9);
    tcase_add_loop_test(tests, one_stage_computes_everything_and_sends_nothing, 0, 4);
    tcase_add_loop_test(tests, interleaved_with_one_chunk_is_1f1b, 1, 9);
    tcase_add_loop_test(tests, a_receive_is_posted_one_compute_before_the_one_that_needs_it, 2, 5);
    tcase_add_loop_test(tests, slot_counts_are_the_least_that_do_not_collide, 1, 6);
    tcase_add_loop_test(tests, activation_slots_of_1f1b_are_its_micro_batches_in_flight, 1, 9);
    tcase_add_loop_test(tests, any_swap_of_like_rows_is_caught, 2, 5);
    tcase_add_test(tests, a_swap_of_two_sends_names_both_micro_batches);
    tcase_add_loop_test(tests, misplaced_rows_are_named, 0, 5);
    tcase_add_test(tests, rows_that_are_missing_twice_or_elsewhere_are_named);
    tcase_add_test(tests, a_deadlock_is_told_as_who_waits_for_whom);
    tcase_add_test(tests, a_deadlock_of_sends_that_wait_for_their_receive_is_caught);
    tcase_add_test(tests, tables_of_different_schedules_are_refused);
    tcase_add_test(tests, uneven_stages_and_latency_cost_what_they_must);
    tcase_add_test(tests, impossible_options_are_refused_with_the_remedy);
    tcase_add_loop_test(tests, kinds_have_names_that_read_back, 0, 4);
    Suite *suite = suite_create("schedule");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
