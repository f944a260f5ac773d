/* The verifier: a good plan passes, and each way of spoiling it is caught. */
#include "parallel/data.h"
#include "program/plan.h"

#include "tests/support/hdt_program.h"

enum { COUNT = 5000, SHARDS = 4 };

static hd_program *p;
static hd_plan *plan;
static hdi_unit *unit;

static void finish(const hd_plan_program_options *options, hdi_layout *layout)
{
    hdt_assert_ok(hd_program_finish(p));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){.gradient_levels = 2}, &plan));
    if (layout) hdi_plan_set_layout(plan, layout);
    hdt_assert_ok(hd_plan_add(plan, p, options));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hdi_plan_verify(plan));
    unit = &plan->units[0];
}

static void drop(void)
{
    hd_plan_destroy(plan);
    hd_program_destroy(p);
}

/* y = through(2x * 4x) in the forward alone: everything is a transient. */
static hd_tensor a, b, product;
static void make_forward(void)
{
    p = hdt_program();
    hd_tensor x = hdt_vector(p, "x", COUNT);
    a = hdt_double(p, x);
    b = hdt_double(p, a);
    product = hdt_mul(p, a, b);
    hd_tensor again = hdt_mul(p, product, a);
    hd_output(p, hdt_through(p, again, 3000), "y");
    finish(NULL, NULL);
}

static void caught(const char *text)
{
    hdt_assert_status(hdi_plan_verify(plan), HD_ERROR_INTERNAL, text);
}

START_TEST(a_tensor_on_a_live_one_is_caught)
{
    unit->places[product.id].offset = unit->places[a.id].offset;
    caught("program 'p', op 2 (mul): overwrites live tensor");
}
END_TEST

START_TEST(a_partial_overlap_is_caught)
{
    unit->places[b.id].offset = unit->places[a.id].offset + unit->places[a.id].bytes - 4;
    plan->arena_bytes += 100000;
    caught("op 1 (double): overwrites live tensor");
}
END_TEST

START_TEST(in_place_is_for_records_that_allow_it)
{
    /* `again` reads product last, but mul may not work in place. */
    hd_tensor again = p->ops[3]->op.out[0];
    unit->places[again.id].offset = unit->places[product.id].offset;
    caught("op 3 (mul): overwrites live tensor");
}
END_TEST

START_TEST(ops_in_the_wrong_order_are_caught)
{
    hdi_op_move(p, 3, 2);
    hdi_program_index(p);
    caught("op 2 (mul): reads unwritten tensor");
}
END_TEST

START_TEST(a_read_before_the_write_is_caught)
{
    p->ops[1]->op.in[0] = product;
    caught("op 1 (double): reads unwritten tensor");
}
END_TEST

START_TEST(workspace_on_a_live_tensor_is_caught)
{
    unit->workspaces[4] = unit->places[p->ops[4]->op.in[0].id].offset;
    caught("op 4 (through): overwrites live tensor");
}
END_TEST

START_TEST(writing_past_the_arena_is_caught)
{
    if (_i == 0)
        unit->places[b.id].offset = plan->arena_bytes;
    else if (_i == 1)
        unit->workspaces[4] = plan->arena_bytes;
    else
        plan->arena_bytes = unit->base[HD_REGION_IO] + 1;
    caught("past the arena");
}
END_TEST

START_TEST(a_tensor_without_a_place_is_caught)
{
    unit->places[b.id].placed = false;
    caught("writes unplaced tensor");
}
END_TEST

START_TEST(an_output_that_is_overwritten_is_caught)
{
    hd_tensor y = hd_tensor_find(p, "y");
    p->tensors[p->ops[3]->op.out[0].id]->keep = true; /* wanted after the run */
    unit->places[y.id].region = HD_REGION_TRANSIENT;
    unit->places[y.id].offset = unit->places[p->ops[3]->op.out[0].id].offset;
    caught("overwrites live tensor");
}
END_TEST

/* Two weights, a backward, gradients over 4 data ranks in exact mode, 2 slots of everything. */
static void make_trained(int sharding)
{
    hdt_assert_ok(
        hd_program_create(&(hd_program_options){.name = "p", .training = true, .exact = true}, &p));
    const int64_t dims = COUNT;
    hd_tensor x = hdi_tensor_add(p, "x", HD_DTYPE_F32, HD_ROLE_BOUNDARY, 1, &dims);
    hd_input_needs_gradient(p, x);
    a = hdt_double(p, hdt_mul(p, x, hdt_weight(p, "first", COUNT)));
    hd_tensor y = hdt_mul(p, a, hdt_weight(p, "second", COUNT));
    hd_program_backward(p, y, hdt_vector(p, "seed", COUNT));
    hd_program *programs[] = {p};
    hdi_layout *layout;
    hdt_assert_ok(hdi_layout_create(
        programs, 1,
        &(hdi_layout_options){.bucket_elements = 1,
                              .shards = SHARDS,
                              .shard = sharding ? 0 : 1, /* the first has blocks of its own */
                              .sharding = sharding},
        &layout));
    hdi_data_reduce(p, 0, layout, NULL);
    finish(&(hd_plan_program_options){.saved_slots = 2, .io_slots = 2, .boundary_slots = 2},
           layout);
}

static void make_training(void)
{
    make_trained(0);
}

/* Whose gradients are whole in passing only. */
static void make_sharded(void)
{
    make_trained(2);
}

static int find_op(const char *name, int number)
{
    for (int i = 0; i < p->op_count; i++)
        if (strcmp(p->ops[i]->op.kind->name, name) == 0 && number-- == 0) return i;
    ck_abort_msg("no %s", name);
    return -1;
}

START_TEST(every_wait_that_is_dropped_is_caught)
{
    ck_assert_int_ge(unit->wait_count, 2); /* the sum of each of two buckets */
    for (int w = 0; w < unit->wait_count; w++) {
        int kept = unit->waits[w];
        unit->waits[w] = -1;
        caught("unordered with posted communication");
        unit->waits[w] = kept;
        hdt_assert_ok(hdi_plan_verify(plan));
    }
}
END_TEST

START_TEST(workspace_on_posted_bytes_is_caught)
{
    int post = find_op("all_to_all", 0), later = post + 1;
    ck_assert_int_eq(unit->wait_begin[later], unit->wait_begin[later + 1]);
    /* The replay knows what is alive in scratch; the sent gradients are not scratch. */
    size_t sent = hdi_plan_address(plan, 0, p->ops[post]->op.in[0], 0, 0);
    unit->workspaces[later] = sent - unit->base[HD_REGION_TRANSIENT];
    unit->workspace_bytes[later] = 64;
    caught("tensor 0 'workspace'");
}
END_TEST

START_TEST(a_gradient_that_is_used_before_it_is_complete_is_caught)
{
    int fold = find_op("gradient_fold", 0), weight = find_op("mul_weight", 0);
    ck_assert_int_eq(fold, weight + 1);
    hdi_op_move(p, fold, weight);
    hdi_program_index(p);
    caught("adds to a gradient that has been used");
}
END_TEST

START_TEST(a_bucket_that_travels_before_it_is_written_is_caught)
{
    int post = find_op("all_to_all", 0), weight = find_op("mul_weight", 0);
    ck_assert_int_eq(post, weight + 1);
    ck_assert_int_eq((int)unit->places[p->ops[weight]->op.out[0].id].region, HD_REGION_TRANSIENT);
    hdi_op_move(p, post, weight);
    hdi_program_index(p);
    caught("reads, before it is written, tensor");
}
END_TEST

START_TEST(a_gradient_on_a_bucket_that_travels_is_caught)
{
    const int first = p->ops[find_op("mul_weight", 0)]->op.out[0].id;
    const int second = p->ops[find_op("mul_weight", 1)]->op.out[0].id;
    unit->places[second].offset = unit->places[first].offset;
    caught("unordered with posted communication");
}
END_TEST

START_TEST(a_transient_that_crosses_phases_is_caught)
{
    ck_assert_int_eq((int)unit->places[a.id].region, HD_REGION_SAVED);
    unit->places[a.id].region = HD_REGION_TRANSIENT;
    unit->places[a.id].offset = unit->bytes[HD_REGION_TRANSIENT];
    plan->arena_bytes += 2 * unit->places[a.id].bytes;
    caught("made in another phase but not saved");
}
END_TEST

START_TEST(slots_that_overlap_are_caught)
{
    hd_tensor x = {1};
    const int tensors[] = {a.id, x.id, hd_tensor_find(p, "seed").id};
    unit->places[tensors[_i]].stride -= 256;
    caught("2 slots of 20000 bytes");
    unit->places[tensors[_i]].stride += 256;
    hdt_assert_ok(hdi_plan_verify(plan));
}
END_TEST

START_TEST(programs_and_regions_that_overlap_are_caught)
{
    switch (_i) {
    case 0: /* a boundary's second slot on transients */
        unit->places[1].stride = unit->base[HD_REGION_TRANSIENT] - unit->base[HD_REGION_BOUNDARY];
        caught("share bytes");
        break;
    case 1: /* transients on weights */
        unit->base[HD_REGION_TRANSIENT] = 0;
        caught("weights of 'all programs'");
        break;
    case 2: /* the second gradient level on inputs */
        plan->gradient_level_bytes *= 2;
        caught("share bytes");
        break;
    case 3: /* a parameter outside the weights */
        unit->places[p->uses[1].tensor.id].offset += (size_t)1 << 20;
        caught("leaves its region, weights");
        break;
    case 4:
        plan->layout->entries[1].first -= HDI_FLAT_ALIGNMENT;
        caught("parameters 'second' and 'first' share bytes");
        break;
    }
}
END_TEST

START_TEST(saved_bytes_under_another_programs_transients_are_caught)
{
    hd_program *other = hdt_random_program(1);
    hd_plan *both;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &both));
    hdt_assert_ok(hd_plan_add(both, other, NULL));
    hd_program *small = hdt_program();
    hd_output(small, hdt_through(small, hdt_double(small, hdt_vector(small, "x", 10)), 50), "y");
    hdt_assert_ok(hd_program_finish(small));
    hdt_assert_ok(hd_plan_add(both, small, NULL));
    hdt_assert_ok(hd_plan_finish(both));
    both->units[1].base[HD_REGION_TRANSIENT] = both->units[0].base[HD_REGION_SAVED];
    hd_status status = hdi_plan_verify(both);
    hd_plan_destroy(both);
    hd_program_destroy(small);
    hd_program_destroy(other);
    hdt_assert_status(status, HD_ERROR_INTERNAL, "saved activations of 'p'");
}
END_TEST

START_TEST(states_that_overlap_are_caught)
{
    hd_program *states = hdt_program();
    hd_state(states, "m", HD_DTYPE_F32, 1, &(int64_t){10});
    hd_state(states, "v", HD_DTYPE_F32, 1, &(int64_t){10});
    hd_output(states, hdt_double(states, hdt_vector(states, "x", 10)), "y");
    hdt_assert_ok(hd_program_finish(states));
    hd_plan *made;
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &made));
    hdt_assert_ok(hd_plan_add(made, states, NULL));
    hdt_assert_ok(hd_plan_finish(made));
    made->states[1].offset = 0;
    hd_status status = hdi_plan_verify(made);
    hd_plan_destroy(made);
    hd_program_destroy(states);
    hdt_assert_status(status, HD_ERROR_INTERNAL, "states 'm' and 'v' share bytes");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("verify");
    TCase *forward = tcase_create("forward");
    tcase_add_checked_fixture(forward, make_forward, drop);
    tcase_add_test(forward, a_tensor_on_a_live_one_is_caught);
    tcase_add_test(forward, a_partial_overlap_is_caught);
    tcase_add_test(forward, in_place_is_for_records_that_allow_it);
    tcase_add_test(forward, ops_in_the_wrong_order_are_caught);
    tcase_add_test(forward, a_read_before_the_write_is_caught);
    tcase_add_test(forward, workspace_on_a_live_tensor_is_caught);
    tcase_add_loop_test(forward, writing_past_the_arena_is_caught, 0, 3);
    tcase_add_test(forward, a_tensor_without_a_place_is_caught);
    tcase_add_test(forward, an_output_that_is_overwritten_is_caught);
    suite_add_tcase(suite, forward);
    TCase *training = tcase_create("training");
    tcase_add_checked_fixture(training, make_training, drop);
    tcase_add_test(training, every_wait_that_is_dropped_is_caught);
    tcase_add_test(training, workspace_on_posted_bytes_is_caught);
    tcase_add_test(training, a_gradient_that_is_used_before_it_is_complete_is_caught);
    tcase_add_test(training, a_transient_that_crosses_phases_is_caught);
    tcase_add_loop_test(training, slots_that_overlap_are_caught, 0, 3);
    tcase_add_loop_test(training, programs_and_regions_that_overlap_are_caught, 0, 5);
    suite_add_tcase(suite, training);
    TCase *sharded = tcase_create("sharded");
    tcase_add_checked_fixture(sharded, make_sharded, drop);
    tcase_add_test(sharded, every_wait_that_is_dropped_is_caught);
    tcase_add_test(sharded, a_bucket_that_travels_before_it_is_written_is_caught);
    tcase_add_test(sharded, a_gradient_on_a_bucket_that_travels_is_caught);
    suite_add_tcase(suite, sharded);
    TCase *alone = tcase_create("alone");
    tcase_add_test(alone, saved_bytes_under_another_programs_transients_are_caught);
    tcase_add_test(alone, states_that_overlap_are_caught);
    suite_add_tcase(suite, alone);
    return hdt_main(suite);
}
