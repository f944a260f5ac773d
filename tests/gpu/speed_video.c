/* Speed of the CUDA backend on the shapes of video diffusion transformers: HunyuanVideo's rows of 3072
 * (24 heads of 128), STDiT's of 1152 (16 heads of 72). Usage: speed_video [pattern] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/hdt_speed.h"

enum { ROWS = 25344, WIDTH = 3072, TOKENS = 25600, HEADS = 24, HEAD_DIM = 128, PARTS = 512 };
enum { FRAMES = 30, PLACES = 1590, SMALL_HEADS = 16, SMALL_DIM = 72, SMALL = 1152, KEYS = 300 };

static const hd_backend *const backend = &hdi_backend_cuda;
static hd_stream *stream;

#define RUN(op, type)                                   \
    static hd_status run_##op(const void *args)         \
    {                                                   \
        return backend->op(stream, (const type *)args); \
    }
RUN(modulate, hdi_modulate_args)
RUN(modulate_gradient, hdi_modulate_gradient_args)
RUN(add_rows, hdi_add_rows_args)
RUN(copy_blocks, hdi_copy_blocks_args)
RUN(joint_qkv, hdi_joint_qkv_args)
RUN(joint_qkv_gradient, hdi_joint_qkv_gradient_args)
RUN(attention, hdi_attention_args)
RUN(attention_gradient, hdi_attention_args)
RUN(cross_attention, hdi_cross_attention_args)
RUN(cross_attention_gradient, hdi_cross_attention_args)
RUN(squared_error, hdi_squared_error_args)

static void *sixteen(int64_t count)
{
    return hdt_numbers(HD_DTYPE_BF16, count);
}

static void measure_modulation(int64_t rows, int64_t columns, int64_t groups)
{
    char name[96];
    const double bytes = 2.0 * (double)rows * (double)columns;
    const int64_t count = rows * columns;
    snprintf(name, sizeof name, "modulation, %lld x %lld, %lld groups", (long long)rows,
             (long long)columns, (long long)groups);
    if (!hdt_wanted(name)) return;
    char *table = sixteen(groups * 3 * columns);
    hdi_modulate_args args = {.dtype = HD_DTYPE_BF16,
                              .rows = rows,
                              .columns = columns,
                              .rows_per_group = rows / groups,
                              .gate_rows_per_group = rows / groups,
                              .epsilon = 1e-6f,
                              .x = sixteen(count),
                              .shift = table,
                              .scale = table + 2 * columns,
                              .gate_stride = 3 * columns,
                              .stride = 3 * columns,
                              .gate_entries = groups,
                              .entries = groups,
                              .out = sixteen(count),
                              .mean = hdt_take((size_t)rows * 4),
                              .rstd = hdt_take((size_t)rows * 4)};
    printf("%s\n", name);
    hdt_measure("  modulated norm", run_modulate, &args, 2 * bytes, 0);
    args.delta = sixteen(count), args.gate = table + 4 * columns, args.sum = sixteen(count);
    hdt_measure("  gated add and modulated norm", run_modulate, &args, 4 * bytes, 0);
    hdi_modulate_args add = args;
    add.out = NULL;
    hdt_measure("  gated add", run_modulate, &add, 3 * bytes, 0);
    hdi_modulate_gradient_args back = {
        .dtype = HD_DTYPE_BF16,
        .rows = rows,
        .columns = columns,
        .rows_per_group = rows / groups,
        .gate_rows_per_group = rows / groups,
        .gradient = args.out,
        .x = args.sum,
        .scale = args.scale,
        .gate_stride = 3 * columns,
        .stride = 3 * columns,
        .gate_entries = groups,
        .entries = groups,
        .mean = args.mean,
        .rstd = args.rstd,
        .x_gradient = sixteen(count),
        .sums = hdt_take((size_t)(groups * 2 * columns) * 4),
    };
    back.workspace = hdt_take(backend->modulate_gradient_workspace(&back));
    hdt_measure("  gradient of the norm", run_modulate_gradient, &back, 3 * bytes, 0);
    back.carry = sixteen(count), back.delta = args.delta, back.gate = args.gate;
    back.delta_gradient = sixteen(count);
    back.gate_sums = hdt_take((size_t)(groups * columns) * 4);
    hdt_measure("  gradient of both", run_modulate_gradient, &back, 6 * bytes, 0);
}

static void measure_rows(void)
{
    const double bytes = 2.0 * ROWS * WIDTH;
    if (hdt_wanted("add_rows, join_rows")) {
        const hdi_add_rows_args add = {.dtype = HD_DTYPE_BF16,
                                       .rows = ROWS,
                                       .columns = WIDTH,
                                       .period = 768,
                                       .x = sixteen((int64_t)ROWS * WIDTH),
                                       .table = sixteen(768 * WIDTH),
                                       .out = sixteen((int64_t)ROWS * WIDTH)};
        hdt_measure("add_rows, 25344 x 3072", run_add_rows, &add, 2 * bytes, 0);
        const hdi_copy_blocks_args copy = {.blocks = 4,
                                           .block_bytes = (size_t)ROWS / 4 * WIDTH * 2,
                                           .x_stride = (size_t)ROWS / 4 * WIDTH * 2,
                                           .out_stride = (size_t)(ROWS / 4 + 64) * WIDTH * 2,
                                           .x = add.x,
                                           .out = sixteen((int64_t)(ROWS + 256) * WIDTH)};
        hdt_measure("join_rows, 4 x 6336 x 3072", run_copy_blocks, &copy, 2 * bytes, 0);
    }
    if (hdt_wanted("squared_error")) {
        enum { COLUMNS = 64 };
        const hdi_squared_error_args args = {
            .dtype = HD_DTYPE_BF16,
            .rows = ROWS,
            .columns = COLUMNS,
            .prediction = sixteen(ROWS * COLUMNS),
            .target = hdt_numbers(HD_DTYPE_F32, ROWS * COLUMNS),
            .loss = hdt_take(16),
            .gradient = sixteen(ROWS * COLUMNS),
            .workspace = hdt_take(backend->squared_error_workspace(ROWS, COLUMNS))};
        hdt_measure("squared_error, 25344 x 64", run_squared_error, &args, 8.0 * ROWS * COLUMNS, 0);
    }
}

static void measure_joint_qkv(bool halves)
{
    const int64_t count = (int64_t)TOKENS * 3 * WIDTH;
    const double bytes = 2.0 * (double)count;
    const char *name = halves ? "joint_qkv by halves" : "joint_qkv";
    if (!hdt_wanted(name)) return;
    hdi_joint_qkv_gradient_args args = {
        .forward = {.dtype = HD_DTYPE_BF16,
                    .sequences = 1,
                    .tokens = TOKENS,
                    .out_tokens = TOKENS + 256,
                    .heads = HEADS,
                    .head_dim = HEAD_DIM,
                    .epsilon = 1e-6f,
                    .qkv = sixteen(count),
                    .query_norm = sixteen(HEAD_DIM),
                    .key_norm = sixteen(HEAD_DIM),
                    .rope = {3,
                             halves,
                             {16, 56, 56},
                             {25, 32, 32},
                             {1024, 32, 1},
                             0,
                             0,
                             0,
                             hdt_numbers(HD_DTYPE_F32, 25 * 16 + 64 * 56)},
                    .out = sixteen(count + 256 * 3 * WIDTH)},
        .partial_rows = PARTS,
        .qkv_gradient = sixteen(count),
        .partials = hdt_take((size_t)(PARTS * 2 * HEAD_DIM) * 4),
    };
    args.gradient = args.forward.out;
    char line[64];
    hdt_measure(name, run_joint_qkv, &args.forward, 2 * bytes, 0);
    snprintf(line, sizeof line, "%s, gradient", name);
    /* Values need no second look at the forward's. */
    hdt_measure(line, run_joint_qkv_gradient, &args, 8.0 / 3 * bytes, 0);
}

typedef struct attention_case {
    const char *name;
    int64_t batch, tokens, heads, head_dim, interleave;
    bool exact, counted, gradient;
} attention_case;

static const attention_case attentions[] = {
    {"attention, 25600 tokens", 1, 25600, HEADS, HEAD_DIM, 0, false, false, true},
    {"attention, 25601 tokens", 1, 25601, HEADS, HEAD_DIM, 0, false, false, true},
    {"attention, 25600 tokens, exact", 1, 25600, HEADS, HEAD_DIM, 0, true, false, true},
    {"attention, 25600 tokens, counted", 1, 25600, HEADS, HEAD_DIM, 0, false, true, true},
    {"attention, 43100 tokens", 1, 43100, HEADS, HEAD_DIM, 0, false, false, false},
    {"attention over time, 1590 x 30", PLACES, FRAMES, SMALL_HEADS, SMALL_DIM, PLACES, false, false,
     true},
    {"attention over time, in place order", PLACES, FRAMES, SMALL_HEADS, SMALL_DIM, 0, false, false,
     true},
    {"attention in space, 30 x 1590", FRAMES, PLACES, SMALL_HEADS, SMALL_DIM, 0, false, false,
     true},
};

enum { ATTENTIONS = sizeof attentions / sizeof *attentions };

static void measure_attention(const attention_case *c)
{
    if (!hdt_wanted(c->name)) return;
    const int64_t width = c->heads * c->head_dim, rows = c->batch * c->tokens;
    const double products = (double)rows * (double)c->tokens * (double)width;
    const int32_t count = (int32_t)c->tokens - 200;
    char *qkv = sixteen(rows * 3 * width), *gradient = sixteen(rows * 3 * width), line[64];
    hdi_attention_args args = {.dtype = HD_DTYPE_BF16,
                               .batch = c->batch,
                               .tokens = c->tokens,
                               .kv_tokens = c->tokens,
                               .heads = c->heads,
                               .kv_heads = c->heads,
                               .head_dim = c->head_dim,
                               .q_stride = 3 * width,
                               .k_stride = 3 * width,
                               .v_stride = 3 * width,
                               .out_stride = width,
                               .scale = 0.1f,
                               .exact = c->exact,
                               .interleave = c->interleave,
                               .q = qkv,
                               .k = qkv + 2 * width,
                               .v = qkv + 4 * width,
                               .out = sixteen(rows * width),
                               .lse = hdt_take((size_t)(rows * c->heads) * sizeof(float)),
                               .out_gradient = sixteen(rows * width),
                               .q_gradient = gradient,
                               .k_gradient = gradient + 2 * width,
                               .v_gradient = gradient + 4 * width};
    if (c->counted) {
        int32_t *counts = hdt_take(sizeof count);
        hdt_must(backend->copy_in(stream, counts, &count, sizeof count));
        args.counts = counts;
    }
    const size_t forward = backend->attention_workspace(&args);
    const size_t backward = backend->attention_gradient_workspace(&args);
    args.workspace = hdt_take(forward > backward ? forward : backward);
    hdt_measure(c->name, run_attention, &args, 0, 4 * products);
    if (!c->gradient) return;
    snprintf(line, sizeof line, "%s, gradient", c->name);
    hdt_measure(line, run_attention_gradient, &args, 0, 10 * products);
    printf("%-44s %9.1f MiB forward, %.1f MiB backward\n", "  workspace", (double)forward / 1048576,
           (double)backward / 1048576);
}

static void measure_cross_attention(bool packed)
{
    static const int32_t ends[] = {0, KEYS};
    const int64_t queries = FRAMES * PLACES;
    const double products = (double)queries * KEYS * SMALL;
    const char *name = packed ? "cross attention, packed keys" : "cross attention, 47700 x 300";
    if (!hdt_wanted(name)) return;
    char *kv = sixteen(KEYS * 2 * SMALL), *gradient = sixteen(KEYS * 2 * SMALL), line[64];
    hdi_cross_attention_args args = {.dtype = HD_DTYPE_BF16,
                                     .sequences = 1,
                                     .tokens = queries,
                                     .kv_rows = KEYS,
                                     .heads = SMALL_HEADS,
                                     .head_dim = SMALL_DIM,
                                     .q_stride = SMALL,
                                     .k_stride = 2 * SMALL,
                                     .v_stride = 2 * SMALL,
                                     .out_stride = SMALL,
                                     .scale = 0.1f,
                                     .q = sixteen(queries * SMALL),
                                     .k = kv,
                                     .v = kv + 2 * SMALL,
                                     .out = sixteen(queries * SMALL),
                                     .lse = hdt_take((size_t)(queries * SMALL_HEADS) * 4),
                                     .out_gradient = sixteen(queries * SMALL),
                                     .q_gradient = sixteen(queries * SMALL),
                                     .k_gradient = gradient,
                                     .v_gradient = gradient + 2 * SMALL};
    if (packed) {
        int32_t *offsets = hdt_take(sizeof ends);
        hdt_must(backend->copy_in(stream, offsets, ends, sizeof ends));
        args.offsets = offsets;
        args.most_keys = KEYS;
    }
    const size_t forward = backend->cross_attention_workspace(&args);
    const size_t backward = backend->cross_attention_gradient_workspace(&args);
    args.workspace = hdt_take(forward > backward ? forward : backward);
    hdt_measure(name, run_cross_attention, &args, 0, 4 * products);
    snprintf(line, sizeof line, "%s, gradient", name);
    hdt_measure(line, run_cross_attention_gradient, &args, 0, 10 * products);
}

int main(int argc, char **argv)
{
    stream = hdt_speed_open(argc > 1 ? argv[1] : NULL, (size_t)16 << 30);
    measure_modulation(ROWS, WIDTH, 1);
    measure_modulation(ROWS, WIDTH, 33);
    measure_modulation(2 * FRAMES * PLACES, SMALL, 2);
    measure_modulation(14400, 1872, 4);
    measure_rows();
    measure_joint_qkv(false);
    measure_joint_qkv(true);
    for (int i = 0; i < ATTENTIONS; i++)
        measure_attention(&attentions[i]);
    measure_cross_attention(false);
    measure_cross_attention(true);
    hdt_speed_close();
    return EXIT_SUCCESS;
}
