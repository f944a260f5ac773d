/* Programs of rings, for ranks that are not there: blocks travel while others are attended, and all
 * ranks send what others expect. */
#include "ops/ring.h"
#include "parallel/match.h"
#include "program/plan.h"
#include "tests/support/hdt.h"

#include <heddle/nn.h>
#include <string.h>

enum { SEQUENCES = 2, TOKENS = 41, TEXT = 7, HEADS = 2, DIM = 4, COLUMNS = 3 * HEADS * DIM };

typedef struct ring {
    hd_mesh *mesh;
    hd_program *program;
    hd_plan *plan;
} ring;

/* Attention of what a layer makes of this rank's rows, and its backward; causal, or with text. */
static void build(ring *on, int rank, const hd_mesh_options *layout, bool causal)
{
    hdt_assert_ok(hd_mesh_create_fake(rank, layout->sequence, layout, &on->mesh));
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = "ring", .mesh = on->mesh, .training = true}, &on->program));
    hd_program *p = on->program;
    if (causal) hdi_sequence_is_causal(p);
    int64_t first;
    const int64_t text = causal ? 0 : hdi_ring_alike(p, TEXT);
    const int64_t rows = SEQUENCES * (hdi_ring_cut(p, TOKENS, &first) + text);
    const int64_t x_dims[] = {rows, 3}, seed_dims[] = {rows, HEADS * DIM};
    const hd_tensor x = hd_input(p, "x", HD_DTYPE_F32, 2, x_dims);
    const hd_tensor qkv =
        hd_linear(p, x, &(hd_linear_options){.name = "qkv", .outputs = COLUMNS, .bias = true});
    const hd_tensor out = hdi_ring_attention(p, qkv,
                                             &(hdi_ring_shape){.sequences = SEQUENCES,
                                                               .heads = HEADS,
                                                               .kv_heads = HEADS,
                                                               .head_dim = DIM,
                                                               .tokens = TOKENS,
                                                               .alike = causal ? 0 : TEXT,
                                                               .causal = causal});
    hd_program_backward(p, out, hd_input(p, "seed", HD_DTYPE_F32, 2, seed_dims));
    hdt_assert_ok(hd_program_finish(p));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &on->plan));
    hdt_assert_ok(
        hd_plan_add(on->plan, p, &(hd_plan_program_options){.saved_slots = 1, .io_slots = 1}));
    hdt_assert_ok(hd_plan_finish(on->plan));
}

static void discard(ring *on)
{
    hd_plan_destroy(on->plan);
    hd_program_destroy(on->program);
    hd_mesh_destroy(on->mesh);
}

static bool waits_for(const hdi_unit *unit, int op, int posted)
{
    for (int w = unit->wait_begin[op]; w < unit->wait_begin[op + 1]; w++)
        if (unit->waits[w] == posted) return true;
    return false;
}

/* Whether what is posted at `op` is waited for by an op from `first` to `last`. */
static bool is_awaited(const hdi_unit *unit, int op, int first, int last)
{
    for (int i = first; i <= last; i++)
        if (waits_for(unit, i, op)) return true;
    return false;
}

START_TEST(blocks_travel_while_others_are_attended)
{
    ring on;
    const bool causal = _i;
    const hd_mesh_options layout = {.sequence = 4, .ring = 4};
    build(&on, 1, &layout, causal);
    const hdi_unit *unit = &on.plan->units[0];
    int blocks = 0, hidden = 0, posted = -1;
    for (int i = 0; i < on.program->op_count; i++) {
        const hd_op *op = &on.program->ops[i]->op;
        const bool is_block = strncmp(op->kind->name, "ring_attention", 14) == 0;
        if (op->kind == &hdi_op_ring_shift &&
            strcmp(hdi_op_collective(op)->what, "keys and values") == 0)
            posted = i;
        blocks += is_block;
        if (is_block && posted >= 0 && !is_awaited(unit, posted, posted + 1, i)) hidden++;
        if (is_block) posted = -1;
    }
    /* Four forward and four backward, the last of each without a next one. */
    ck_assert_int_eq(blocks, 8);
    ck_assert_int_eq(hidden, 6);
    discard(&on);
}
END_TEST

/* Gradients of keys and values are sent before the next block's gradient, and come after it. */
START_TEST(gradients_travel_while_others_are_made)
{
    ring on;
    const hd_mesh_options layout = {.sequence = 3, .ring = 3};
    build(&on, 2, &layout, _i);
    const hdi_unit *unit = &on.plan->units[0];
    int posted = -1, hidden = 0;
    for (int i = 0; i < on.program->op_count; i++) {
        const hd_op *op = &on.program->ops[i]->op;
        if (op->kind == &hdi_op_ring_shift && hdi_op_collective(op)->what[0] == 'g') posted = i;
        if (strcmp(op->kind->name, "ring_attention_gradient") != 0) continue;
        if (posted >= 0) hidden += !is_awaited(unit, posted, posted + 1, i);
        posted = -1;
    }
    ck_assert_int_eq(hidden, 2);
    ck_assert_int_ge(posted, 0); /* the last one brings them home */
    discard(&on);
}
END_TEST

START_TEST(ranks_agree_on_what_they_send)
{
    enum { RANKS = 6 };
    static const int rings[] = {6, 3, 2};
    const hd_mesh_options layout = {.sequence = RANKS, .ring = rings[_i / 2]};
    ring all[RANKS];
    hdi_calls calls[RANKS] = {{0}};
    hd_mesh *meshes[RANKS];
    for (int r = 0; r < RANKS; r++) {
        build(&all[r], r, &layout, _i % 2);
        meshes[r] = all[r].mesh;
        hdt_assert_ok(hdi_calls_add(&calls[r], all[r].program, HDI_PHASE_FORWARD));
        hdt_assert_ok(hdi_calls_add(&calls[r], all[r].program, HDI_PHASE_BACKWARD));
        ck_assert_int_eq(calls[r].count, 3 * layout.ring - 2);
    }
    hdt_assert_ok(hdi_calls_match(calls, meshes, RANKS));
    for (int r = 0; r < RANKS; r++) {
        hdi_calls_free(&calls[r]);
        discard(&all[r]);
    }
}
END_TEST

/* What one rank's neighbour sends it has the size that it has set aside. */
START_TEST(a_block_is_as_large_here_as_where_it_came_from)
{
    enum { RANKS = 5 };
    const hd_mesh_options layout = {.sequence = RANKS, .ring = RANKS};
    ring all[RANKS];
    for (int r = 0; r < RANKS; r++)
        build(&all[r], r, &layout, _i);
    for (int r = 0; r < RANKS; r++) {
        const hd_program *here = all[r].program, *next = all[(r + 1) % RANKS].program;
        for (int i = 0, j = 0; i < here->op_count; i++) {
            if (here->ops[i]->op.kind != &hdi_op_ring_shift) continue;
            while (next->ops[j]->op.kind != &hdi_op_ring_shift)
                j++;
            ck_assert_int_eq(here->ops[i]->op.in_info[0]->elements,
                             next->ops[j]->op.out_info[0]->elements);
            j++;
        }
    }
    for (int r = 0; r < RANKS; r++)
        discard(&all[r]);
}
END_TEST

START_TEST(a_mask_and_text_together_are_refused)
{
    hd_mesh *mesh;
    hd_program *p;
    const int64_t dims[] = {48, COLUMNS};
    hdt_assert_ok(hd_mesh_create_fake(0, 2, &(hd_mesh_options){.sequence = 2, .ring = 2}, &mesh));
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "x", .mesh = mesh}, &p));
    hdi_ring_attention(p, hd_input(p, "x", HD_DTYPE_F32, 2, dims),
                       &(hdi_ring_shape){.sequences = 1,
                                         .heads = HEADS,
                                         .kv_heads = HEADS,
                                         .head_dim = DIM,
                                         .tokens = 41,
                                         .alike = TEXT,
                                         .causal = true});
    hdt_assert_status(hd_program_finish(p), HD_ERROR_UNSUPPORTED, "and a causal mask");
    hd_program_destroy(p);
    hd_mesh_destroy(mesh);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("ring program");
    TCase *tests = tcase_create("programs");
    tcase_add_loop_test(tests, blocks_travel_while_others_are_attended, 0, 2);
    tcase_add_loop_test(tests, gradients_travel_while_others_are_made, 0, 2);
    tcase_add_loop_test(tests, ranks_agree_on_what_they_send, 0, 6);
    tcase_add_loop_test(tests, a_block_is_as_large_here_as_where_it_came_from, 0, 2);
    tcase_add_test(tests, a_mask_and_text_together_are_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
