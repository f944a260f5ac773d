/* Rows travel on the tensor axis under products and attention: on the plans of ranks that share layers, without
 * any of them running. */
#include "ops/tensor_axis.h"
#include "ops/tensor_pieces.h"
#include "parallel/match.h"
#include "tests/support/hdt_overlap.h"

#include <string.h>

/* What a program of one of some ranks is made of. */
typedef struct making {
    const char *json;
    bool training;
    int ranks, rank, groups;
    double peer; /* bytes in a second */
} making;

/* On a device of 1 GFLOP/s what travels of these models takes about as long as the products beside it. */
enum { EVEN = 24 * 1000 * 1000 };

static hdt_overlap make(making of)
{
    const hd_rates rates = {.compute = 1e9, .memory = 1e12, .peer = of.peer};
    const hd_stage sizes = {.sequences = of.json == hdt_split_hunyuan ? 1 : 2,
                            .tokens = 13,
                            .video = {.frames = 13, .height = 2, .width = 2, .text = 4}};
    hd_mesh *mesh;
    hdt_assert_ok(
        hd_mesh_create_fake(of.rank, of.ranks, &(hd_mesh_options){.tensor = of.ranks}, &mesh));
    return hdt_overlap_make(
        of.json, mesh,
        (hd_program_options){
            .name = "part", .training = of.training, .tensor_groups = of.groups, .rates = &rates},
        &sizes);
}

static bool is_step(const hdt_overlap *it, int op)
{
    return it->program->ops[op]->op.kind == &hdi_op_tensor_step;
}

START_TEST(every_step_travels_under_a_product)
{
    const char *const models[] = {hdt_split_hunyuan, hdt_overlap_gpt2};
    const int ways[] = {2 * 2 + 2 * 2, 2 * 2 * 2}; /* in and out of blocks */
    for (int ranks = 2; ranks <= 3; ranks++)
        for (int groups = 2; groups <= 3; groups++)
            for (int training = 0; training < 2; training++) {
                hdt_overlap it =
                    make((making){models[_i], training, ranks, ranks - 1, groups, EVEN});
                int steps = 0;
                for (int i = 0; i < it.program->op_count; i++) {
                    if (!is_step(&it, i)) continue;
                    steps++;
                    ck_assert_msg(hdt_overlap_count(&it, i, 0) > 0,
                                  "%d ranks, %d groups, training %d: op %d is bare", ranks, groups,
                                  training, i);
                }
                ck_assert_int_eq(steps, ways[_i] * (1 + training) * (ranks - 1) * (groups - 1));
                ck_assert_int_eq(it.program->tensor_pieces, groups);
                hdt_overlap_destroy(&it);
            }
}
END_TEST

START_TEST(results_leave_under_attention_where_nothing_follows)
{
    hdt_overlap it = make((making){hdt_split_hunyuan, false, 2, 0, 2, EVEN});
    int under = 0;
    for (int i = 0; i < it.program->op_count; i++)
        under += is_step(&it, i) && hdt_overlap_count(&it, i, HD_OP_ATTENDS) > 0;
    ck_assert_int_eq(under, 2); /* a way out of each single block */
    hdt_overlap_destroy(&it);
}
END_TEST

/* Own rows' MLP, which needs no others, comes before these where the link is slow. */
START_TEST(more_is_computed_under_a_slow_link)
{
    const double peers[] = {1e12, EVEN / 100};
    int under[2] = {0};
    for (int p = 0; p < 2; p++) {
        hdt_overlap it = make((making){hdt_split_hunyuan, false, 2, 0, 2, peers[p]});
        for (int i = 0; i < it.program->op_count && !under[p]; i++)
            if (is_step(&it, i) &&
                strstr(it.program->scopes[it.program->ops[i]->scope].name, "single_blocks.0"))
                under[p] = hdt_overlap_count(&it, i, 0);
        hdt_overlap_destroy(&it);
    }
    ck_assert_int_eq(under[0], 1);
    ck_assert_int_eq(under[1], 3); /* queries, keys and values; up; down */
}
END_TEST

START_TEST(predicted_seconds_fall_and_memory_stays)
{
    const char *const models[] = {hdt_split_hunyuan, hdt_overlap_gpt2};
    for (int ranks = 2; ranks <= 3; ranks++)
        for (int training = 0; training < 2; training++) {
            double seconds[4];
            size_t bytes[4];
            for (int groups = 0; groups < 4; groups++) {
                hdt_overlap it = make((making){models[_i], training, ranks, 1, groups, EVEN});
                hdt_assert_ok(hd_plan_seconds(it.plan, it.program, &seconds[groups]));
                bytes[groups] = hd_plan_total_bytes(it.plan);
                hdt_overlap_destroy(&it);
            }
            ck_assert_double_lt(seconds[2], 0.95 * seconds[1]);
            ck_assert_double_lt(seconds[3], seconds[2]);
            ck_assert_uint_le(bytes[2], bytes[1] + bytes[1] / 20);
            ck_assert_uint_le(bytes[3], bytes[1] + bytes[1] / 20);
            /* Pieces of these models are dearer than what they hide. */
            ck_assert_double_eq_tol(seconds[0], seconds[1], 1e-4 * seconds[1]);
        }
}
END_TEST

/* Ranks with unequal shares of heads and tokens post the same steps. */
START_TEST(all_ranks_post_alike)
{
    enum { RANKS = 5 };
    const double peers[] = {EVEN, 1e3, 1};
    for (int p = 0; p < 3; p++)
        for (int groups = 0; groups <= 3; groups += 3) {
            hdt_overlap it[RANKS];
            hdi_calls calls[RANKS] = {{0}};
            hd_mesh *meshes[RANKS];
            for (int r = 0; r < RANKS; r++) {
                it[r] = make((making){hdt_split_hunyuan, true, RANKS, r, groups, peers[p]});
                meshes[r] = it[r].mesh;
                for (int phase = 0; phase < HDI_PHASES; phase++)
                    hdt_assert_ok(hdi_calls_add(&calls[r], it[r].program, (hdi_phase)phase));
            }
            hdt_assert_ok(hdi_calls_match(calls, meshes, RANKS));
            if (p == 2) ck_assert_int_gt(it[0].program->tensor_pieces, 1);
            for (int r = 0; r < RANKS; r++) {
                hdi_calls_free(&calls[r]);
                hdt_overlap_destroy(&it[r]);
            }
        }
}
END_TEST

/* Seconds of a product, of what travels, of what is computed beside it; for one extra of each piece. */
START_TEST(groups_follow_from_seconds)
{
    const struct {
        hdi_piece_timing timing;
        bool gathers;
        int groups;
    } cases[] = {
        {{8e-3, 1e-3, 0, 2e-5, 2}, true, 2},     /* own rows hide all that travels */
        {{8e-3, 1e-3, 0, 2e-5, 2}, false, 2},    /* the same */
        {{8e-3, 8e-3, 0, 2e-5, 2}, true, 8},     /* what others sent is multiplied as it comes */
        {{8e-3, 1e-5, 0, 1e-3, 2}, true, 1},     /* pieces cost more than they hide */
        {{8e-3, 1e-3, 9e-3, 2e-5, 2}, false, 1}, /* weight gradients hide it whole */
        {{8e-3, 1e-3, 0, 2e-5, 8}, false, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int groups = hdi_piece_groups(&cases[i].timing, cases[i].gathers);
        ck_assert_msg(groups == cases[i].groups, "case %zu: %d groups, want %d", i, groups,
                      cases[i].groups);
    }
    const hdi_piece_timing even = {4e-3, 4e-3, 0, 0, 2};
    ck_assert_double_eq_tol(hdi_piece_seconds(&even, true, 1), 8.02e-3, 1e-9);
    ck_assert_double_eq_tol(hdi_piece_seconds(&even, true, 2), 6.02e-3, 1e-9);
    ck_assert_double_eq_tol(hdi_piece_seconds(&even, true, 3), 5.04e-3, 1e-9);
    ck_assert_double_eq_tol(hdi_piece_seconds(&even, false, 3), 5.04e-3, 1e-9);
    ck_assert_double_eq_tol(hdi_piece_seconds(&even, false, 1), 8.02e-3, 1e-9);
    /* What is computed beside the rows hides them, and comes before the product in either way. */
    const hdi_piece_timing beside = {4e-3, 4e-3, 5e-3, 0, 2};
    ck_assert_double_eq_tol(hdi_piece_seconds(&beside, true, 1), 9e-3, 1e-9);
    ck_assert_double_eq_tol(hdi_piece_seconds(&beside, true, 2), 9e-3, 1e-9);
}
END_TEST

/* The verifier, on a plan that is right, of whose first step the piece or the wait is then moved. */
START_TEST(a_piece_out_of_place_or_order_is_found)
{
    hdt_overlap it = make((making){hdt_overlap_gpt2, true, 2, 1, 3, EVEN});
    hdi_unit *unit = &it.plan->units[0];
    int step = 0;
    while (!is_step(&it, step))
        step++;
    const int piece = it.program->ops[step]->op.out[0].id;
    const hdi_place_of place = unit->places[piece];
    unit->places[piece].offset += 4; /* onto the piece beside it */
    hdt_assert_status(hdi_plan_verify(it.plan), HD_ERROR_INTERNAL, "verifier");
    unit->places[piece] = place;
    hdt_assert_ok(hdi_plan_verify(it.plan));
    unit->places[piece].bytes -= 4; /* a hole */
    hdt_assert_status(hdi_plan_verify(it.plan), HD_ERROR_INTERNAL, "not all is written");
    unit->places[piece] = place;
    for (int w = 0; w < unit->wait_count; w++)
        if (unit->waits[w] == step) unit->waits[w] = unit->waits[w == 0];
    hdt_assert_status(hdi_plan_verify(it.plan), HD_ERROR_INTERNAL, "unordered with posted");
    hdt_overlap_destroy(&it);
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("tensor overlap");
    tcase_add_loop_test(tests, every_step_travels_under_a_product, 0, 2);
    tcase_add_test(tests, results_leave_under_attention_where_nothing_follows);
    tcase_add_test(tests, more_is_computed_under_a_slow_link);
    tcase_add_loop_test(tests, predicted_seconds_fall_and_memory_stays, 0, 2);
    tcase_add_test(tests, all_ranks_post_alike);
    tcase_add_test(tests, groups_follow_from_seconds);
    tcase_add_test(tests, a_piece_out_of_place_or_order_is_found);
    Suite *suite = suite_create("tensor overlap");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
