/* Exchanges of heads travel under what is computed meanwhile: on the plans of ranks that share sequences,
 * without any of them running. */
#include "ops/sequence.h"
#include "tests/support/hdt_overlap.h"

#include <heddle/op.h>
#include <string.h>

static hdt_overlap make(const char *json, bool training, int groups, int slices)
{
    const hd_stage sizes = {
        .sequences = 1, .tokens = 11, .video = {.frames = 7, .height = 2, .width = 2, .text = 4}};
    hd_mesh *mesh;
    hdt_assert_ok(hd_mesh_create_fake(1, 2, &(hd_mesh_options){.sequence = 2}, &mesh));
    return hdt_overlap_make(
        json, mesh,
        (hd_program_options){
            .name = "half", .training = training, .slices = slices, .sequence_groups = groups},
        &sizes);
}

/* Exchanges of one phase in scopes whose names hold `scope`: all, and those under nothing. */
static void count(const hdt_overlap *it, hdi_phase phase, const char *scope, int *all, int *bare)
{
    const hd_program *program = it->program;
    *all = *bare = 0;
    for (int i = 0; i < program->op_count; i++) {
        const hdi_op *op = program->ops[i];
        if (op->op.kind != &hdi_op_sequence_exchange || op->phase != phase ||
            !strstr(program->scopes[op->scope].name, scope))
            continue;
        *all += 1;
        *bare += hdt_overlap_count(it, i, 0) == 0;
    }
}

START_TEST(a_single_block_computes_under_every_exchange)
{
    for (int groups = 1; groups <= 3; groups++)
        for (int training = 0; training < 2; training++) {
            hdt_overlap it = make(hdt_split_hunyuan, training, groups, 1);
            for (int phase = 0; phase <= training; phase++) {
                int all, bare;
                count(&it, (hdi_phase)phase, "single_blocks", &all, &bare);
                ck_assert_int_eq(all, 2 * 2 * groups);
                ck_assert_msg(bare == 0, "%d groups, training %d, phase %d: %d of %d are bare",
                              groups, training, phase, bare, all);
            }
            hdt_overlap_destroy(&it);
        }
}
END_TEST

/* Two slices are two groups at least. What the second is made of hides the first's way, and the whole MLP the
 * last one's way back. */
START_TEST(in_slices_a_single_block_computes_under_every_exchange_too)
{
    for (int groups = 1; groups <= 3; groups++) {
        hdt_overlap it = make(hdt_split_hunyuan, false, groups, 2);
        int all, bare;
        count(&it, HDI_PHASE_FORWARD, "single_blocks", &all, &bare);
        ck_assert_int_eq(all, 2 * 2 * (groups > 2 ? groups : 2));
        ck_assert_int_eq(bare, 0);
        hdt_overlap_destroy(&it);
    }
}
END_TEST

START_TEST(of_other_blocks_one_group_each_way_is_bare_at_most)
{
    const char *const models[] = {hdt_overlap_gpt2, hdt_split_hunyuan}, *const scopes[] = {
                                                                            "h.", "double_blocks"};
    const int layers[] = {2, 1};
    for (int groups = 1; groups <= 3; groups++) {
        hdt_overlap it = make(models[_i], true, groups, 1);
        for (int phase = 0; phase < HDI_PHASES; phase++) {
            int all, bare;
            count(&it, (hdi_phase)phase, scopes[_i], &all, &bare);
            ck_assert_int_eq(all, layers[_i] * 2 * groups);
            ck_assert_msg(bare <= 2 * layers[_i], "%d groups, phase %d: %d of %d are bare", groups,
                          phase, bare, all);
        }
        hdt_overlap_destroy(&it);
    }
}
END_TEST

START_TEST(groups_follow_from_bytes_and_heads)
{
    const struct {
        hdi_sequence_shape shape;
        int ranks, asked, turns;
    } cases[] = {
        {{1, 42840, 24, 24, 128}, 2, 0, 3}, /* 188 MiB to the other rank */
        {{1, 118800, 24, 24, 128}, 2, 0, 4},
        {{1, 118800, 24, 24, 128}, 8, 0, 3}, /* seven ranks get 8 heads' parts of 14,850 tokens */
        {{8, 256, 12, 12, 64}, 2, 0, 1},
        {{1, 42840, 24, 24, 128}, 2, 1, 1},
        {{1, 42840, 24, 24, 128}, 7, 4, 3}, /* most ranks have three heads */
        {{1, 7, 8, 2, 4}, 2, 2, 1},
        {{1, 7, 8, 8, 4}, 1, 4, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hd_mesh *mesh;
        hd_program *program;
        const int ranks = cases[i].ranks;
        hdt_assert_ok(
            hd_mesh_create_fake(ranks - 1, ranks, &(hd_mesh_options){.sequence = ranks}, &mesh));
        hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "p",
                                                              .dtype = HD_DTYPE_BF16,
                                                              .mesh = mesh,
                                                              .sequence_groups = cases[i].asked},
                                        &program));
        const int turns = hdi_sequence_turns(program, &cases[i].shape);
        ck_assert_msg(turns == cases[i].turns, "case %zu: %d turns, want %d", i, turns,
                      cases[i].turns);
        int64_t heads = 0;
        for (int t = 0; t < turns; t++) {
            const int64_t own = hdi_sequence_turn_heads(program, cases[i].shape.heads,
                                                        cases[i].shape.kv_heads, turns, t);
            ck_assert_int_ge(own, 1);
            heads += own;
        }
        ck_assert_int_eq(heads, hdi_sequence_turn_heads(program, cases[i].shape.heads,
                                                        cases[i].shape.kv_heads, 1, 0));
        hd_program_destroy(program);
        hd_mesh_destroy(mesh);
    }
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("overlap");
    tcase_add_test(tests, a_single_block_computes_under_every_exchange);
    tcase_add_test(tests, in_slices_a_single_block_computes_under_every_exchange_too);
    tcase_add_loop_test(tests, of_other_blocks_one_group_each_way_is_bare_at_most, 0, 2);
    tcase_add_test(tests, groups_follow_from_bytes_and_heads);
    Suite *suite = suite_create("overlap");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
