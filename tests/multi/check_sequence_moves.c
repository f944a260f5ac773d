/* ranks: 2 3 4 5, at most 5 */
/* Rows and heads change places between ranks, heads a group at a time, and are bit for bit where they
 * should be. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "ops/sequence.h"
#include "ops/slices.h"

#include <heddle/diffusion.h>
#include <heddle/session.h>
#include <stdio.h>
#include <string.h>

/* A program of a test's own, on a mesh of all ranks along the sequence axis. */
typedef struct bench {
    hd_mesh *mesh;
    hd_context *context;
    hd_program *program;
    hd_plan *plan;
    hd_session *session;
} bench;

static hd_status bench_begin(bench *on)
{
    memset(on, 0, sizeof *on);
    HD_RETURN_IF_ERROR(hdt_open_place(hdt_world,
                                      &(hd_mesh_options){.sequence = hd_comm_size(hdt_world)},
                                      &on->mesh, &on->context));
    return hd_program_create(&(hd_program_options){.name = "bench",
                                                   .mesh = on->mesh,
                                                   .backend = hd_context_backend(on->context)},
                             &on->program);
}

/* Two inputs' values. */
static hd_status bench_run(bench *on, const hd_tensor in[2], const float *const values[2])
{
    HD_RETURN_IF_ERROR(hd_program_finish(on->program));
    HD_RETURN_IF_ERROR(hd_plan_create(&(hd_plan_options){0}, &on->plan));
    HD_RETURN_IF_ERROR(hd_plan_add(on->plan, on->program, &(hd_plan_program_options){.group = 0}));
    HD_RETURN_IF_ERROR(hd_plan_finish(on->plan));
    HD_RETURN_IF_ERROR(hd_session_create(on->context, on->plan, on->mesh, &on->session));
    for (int i = 0; i < 2; i++)
        if (in[i].id)
            HD_RETURN_IF_ERROR(hd_session_write(on->session, on->program, in[i], 0, values[i]));
    HD_RETURN_IF_ERROR(
        hd_session_run(on->session, on->program, &(hd_session_run_options){.last = true}));
    return hd_session_drain(on->session);
}

static void bench_end(bench *on)
{
    hd_session_destroy(on->session);
    hd_plan_destroy(on->plan);
    hd_program_destroy(on->program);
    hdt_close_place(on->mesh, on->context);
}

enum {
    HEADS = 20,
    KV_HEADS = 10,
    DIM = 3,
    COLUMNS = (HEADS + 2 * KV_HEADS) * DIM,
    TEXT = 3,
    MOST_ROWS = 3 * (TEXT + 8)
};

/* Sequences and tokens: one and several sequences, tokens that ranks do not divide. */
static const int64_t sizes[][2] = {{1, 7}, {3, 5}, {2, 8}};

/* The heads of `rank`, in one turn, of a row of queries, keys and values, packed. */
static int64_t turn_columns(const float *row, int ranks, int rank, int turns, int turn, float *out)
{
    int64_t first = 0, own = 0, count = 0;
    for (int r = 0; r <= rank; r++, first += own)
        own = KV_HEADS / ranks + (r < KV_HEADS % ranks);
    first -= own;
    const int64_t begin = first + own * turn / turns, end = first + own * (turn + 1) / turns;
    const int64_t group = HEADS / KV_HEADS * DIM;
    const int64_t parts[][2] = {{begin * group, end * group},
                                {(HEADS + begin) * DIM, (HEADS + end) * DIM},
                                {(HEADS + KV_HEADS + begin) * DIM, (HEADS + KV_HEADS + end) * DIM}};
    for (int p = 0; p < 3; p++)
        for (int64_t i = parts[p][0]; i < parts[p][1]; i++)
            out[count++] = row[i];
    return count;
}

/* Rows of a tensor, one sequence's text and image after another's, and what became of them. */
typedef struct moved {
    float x[MOST_ROWS * COLUMNS], back[MOST_ROWS * COLUMNS];
    float own[HDI_SEQUENCE_TURNS][MOST_ROWS * COLUMNS],
        alike[HDI_SEQUENCE_TURNS][MOST_ROWS * COLUMNS];
    int64_t sequences, tokens;
    int turns;
    bool sliced; /* made and put together a turn at a time */
} moved;

/* The linear map that leaves everything as it is. */
static const float *identity(void)
{
    static float weight[COLUMNS * COLUMNS];
    for (int i = 0; i < COLUMNS; i++)
        weight[i * COLUMNS + i] = 1;
    return weight;
}

/* Heads of whole sequences as this rank has them, and back, as if attention gave back its queries. */
static hd_status move(moved *it, bool text_first)
{
    bench on;
    HD_RETURN_IF_ERROR(bench_begin(&on));
    hd_program *p = on.program;
    const int64_t dims[] = {it->sequences * (TEXT + it->tokens), COLUMNS};
    const int text = text_first ? 0 : 1;
    const int64_t parts[] = {text_first ? TEXT : it->tokens, text_first ? it->tokens : TEXT};
    const int64_t square[] = {COLUMNS, COLUMNS};
    hd_tensor in[2] = {hd_input(p, "x", HD_DTYPE_F32, 2, dims), {0}};
    if (it->sliced) in[1] = hd_input(p, "weight", HD_DTYPE_F32, 2, square);
    const hdi_linear_map map = {.weight = in[1]};
    hd_tensor rows[2], own[HDI_SEQUENCE_TURNS], alike[HDI_SEQUENCE_TURNS];
    hd_split_rows(p, in[0], it->sequences, 2, parts, rows);
    rows[1 - text] = hdi_sequence_own_rows(p, rows[1 - text], it->sequences, it->tokens);
    hdi_sequence_heads heads = {
        .shape = {it->sequences, it->tokens, HEADS, KV_HEADS, DIM},
        .before = text_first ? TEXT : 0,
        .after = text_first ? 0 : TEXT,
        .turns = it->turns,
    };
    const hd_tensor joined = hd_join_rows(p, it->sequences, 2, rows);
    for (int t = 0; it->sliced && t < it->turns; t++)
        hdi_sequence_slice_to_heads(p, joined, &map, &heads, t, &own[t], &alike[t]);
    if (!it->sliced) hdi_sequence_to_heads(p, joined, &heads, own, alike);
    hdi_sequence_heads back = heads;
    back.shape.heads = COLUMNS / DIM;
    hd_tensor own_back[HDI_SEQUENCE_TURNS], alike_back[HDI_SEQUENCE_TURNS];
    for (int t = 0; t < it->turns; t++) {
        own[t] = hdi_sequence_arrive(p, own[t], &heads, t);
        own_back[t] = hdi_sequence_return(p, own[t], &back, t, false);
        alike_back[t] = hdi_sequence_return(p, alike[t], &back, t, true);
        char name[32];
        snprintf(name, sizeof name, "own.%d", t);
        hd_output(p, own[t], name);
        snprintf(name, sizeof name, "alike.%d", t);
        hd_output(p, alike[t], name);
    }
    hd_tensor whole = {0};
    for (int t = 0; it->sliced && t < it->turns; t++)
        whole = hdi_sequence_slice_to_tokens(p, whole, &back, t, own_back[t], alike_back[t]);
    if (!it->sliced) whole = hdi_sequence_to_tokens(p, &back, own_back, alike_back);
    hd_output(p, whole, "whole");
    hd_status status = bench_run(&on, in, (const float *const[]){it->x, identity()});
    for (int t = 0; t < it->turns && status == HD_OK; t++) {
        status = hd_session_read(on.session, p, own[t], 0, it->own[t]);
        if (status == HD_OK) status = hd_session_read(on.session, p, alike[t], 0, it->alike[t]);
    }
    if (status == HD_OK) status = hd_session_read(on.session, p, whole, 0, it->back);
    bench_end(&on);
    return status;
}

/* One row of x: what this rank has of each turn of it, and what came back. */
static void check_row(const moved *it, const float *x, bool alike, int64_t row, const float *back)
{
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    float wanted[COLUMNS];
    int64_t at = 0;
    for (int t = 0; t < it->turns; t++) {
        const int64_t columns = turn_columns(x, ranks, rank, it->turns, t, wanted);
        ck_assert_mem_eq((alike ? it->alike : it->own)[t] + row * columns, wanted,
                         (size_t)columns * sizeof *x);
    }
    if (!back) return;
    for (int r = 0; r < ranks; r++) /* the packed heads of all ranks and turns, side by side */
        for (int t = 0; t < it->turns; t++)
            at += turn_columns(x, ranks, r, it->turns, t, wanted + at);
    ck_assert_mem_eq(back, wanted, sizeof wanted);
}

START_TEST(rows_and_heads_change_places_bit_for_bit)
{
    static moved it;
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    const bool text_first = _i % 2;
    it.sliced = _i >= 6;
    it.sequences = sizes[_i / 2 % 3][0];
    it.tokens = sizes[_i / 2 % 3][1];
    const int64_t first = hdi_sequence_first(it.tokens, ranks, rank);
    const int64_t own = hdi_sequence_first(it.tokens, ranks, rank + 1) - first;
    hdt_fill(it.x, it.sequences * (TEXT + it.tokens) * COLUMNS, 3);
    for (it.turns = 1; it.turns <= 3 && it.turns <= KV_HEADS / ranks; it.turns++) {
        hdt_assert_ok(move(&it, text_first));
        for (int64_t s = 0; s < it.sequences; s++) {
            const float *x = it.x + s * (TEXT + it.tokens) * COLUMNS;
            const float *back = it.back + s * (TEXT + own) * COLUMNS;
            for (int64_t i = 0; i < TEXT; i++)
                check_row(&it, x + (i + (text_first ? 0 : it.tokens)) * COLUMNS, true, s * TEXT + i,
                          back + (i + (text_first ? 0 : own)) * COLUMNS);
            for (int64_t i = 0; i < it.tokens; i++) {
                const bool is_own = i >= first && i < first + own;
                const int64_t at = i - first + (text_first ? TEXT : 0);
                check_row(&it, x + (i + (text_first ? TEXT : 0)) * COLUMNS, false,
                          s * it.tokens + i, is_own ? back + at * COLUMNS : NULL);
            }
        }
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("sequence moves");
    tcase_add_loop_test(tests, rows_and_heads_change_places_bit_for_bit, 0, 12);
    return hdt_main_ranks(argc, argv, "sequence moves", tests);
}
