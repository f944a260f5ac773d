/* Speed of the CUDA backend on the shapes of GPT-2 124M, B 32, T 1024: one line per op with its time
 * and GB/s (bytes that must be read and written once) or TFLOP/s. Usage: speed [pattern] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/attention.h"
#include "tests/gpu/hdt_speed.h"

enum { BATCH = 32, TOKENS = 1024, HEADS = 12, HEAD_DIM = 64, VOCABULARY = 50304 };
enum { ROWS = BATCH * TOKENS, WIDTH = HEADS * HEAD_DIM, PARAMETERS = 124475904 };

static const hd_backend *const backend = &hdi_backend_cuda;
static hd_stream *stream;

static void *ids(int64_t count, int32_t entries)
{
    int32_t *values = malloc((size_t)count * sizeof *values);
    void *out = hdt_take((size_t)count * sizeof *values);
    if (!values) exit(EXIT_FAILURE);
    uint32_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        const uint32_t draw = state >> 8;
        values[i] =
            (int32_t)(draw % 8 == 0 ? draw % 97 : draw % (uint32_t)entries); /* some often */
    }
    hdt_must(backend->copy_in(stream, out, values, (size_t)count * sizeof *values));
    hdt_must(backend->synchronize(stream));
    free(values);
    return out;
}

#define RUN(op, type)                                   \
    static hd_status run_##op(const void *args)         \
    {                                                   \
        return backend->op(stream, (const type *)args); \
    }
RUN(gemm, hdi_gemm_args)
RUN(gemm_gelu, hdi_gemm_args)
RUN(column_sum, hdi_column_sum_args)
RUN(embedding, hdi_embedding_args)
RUN(embedding_gradient, hdi_embedding_gradient_args)
RUN(norm, hdi_norm_args)
RUN(norm_gradient, hdi_norm_gradient_args)
RUN(activation, hdi_activation_args)
RUN(activation_gradient, hdi_activation_args)
RUN(gated, hdi_gated_args)
RUN(gated_gradient, hdi_gated_args)
RUN(rope, hdi_rope_args)
RUN(attention, hdi_attention_args)
RUN(attention_gradient, hdi_attention_args)
RUN(attention_cached, hdi_attention_cached_args)
RUN(cross_entropy, hdi_cross_entropy_args)
RUN(adamw, hdi_adamw_args)

static hd_status run_tiled(const void *args)
{
    return hdi_cuda_tiled_attention(stream, (const hdi_attention_args *)args);
}

static hd_status run_tiled_gradient(const void *args)
{
    return hdi_cuda_tiled_attention_gradient(stream, (const hdi_attention_args *)args);
}

typedef struct two_arrays {
    void *out, *x;
    int64_t count;
} two_arrays;

static hd_status run_copy(const void *args)
{
    const two_arrays *a = args;
    return backend->copy(stream, a->out, a->x, (size_t)a->count);
}

static hd_status run_add(const void *args)
{
    const two_arrays *a = args;
    return backend->add(stream, HD_DTYPE_BF16, a->count, a->out, a->x, a->out);
}

static hd_status run_convert(const void *args)
{
    const two_arrays *a = args;
    return backend->convert(stream, HD_DTYPE_F32, a->x, HD_DTYPE_BF16, a->out, a->count);
}

static hd_status run_squares(const void *args)
{
    const two_arrays *a = args;
    return backend->sum_of_squares(stream, HD_DTYPE_F32, a->x, a->count, a->out);
}

static void measure_simple(void)
{
    if (hdt_wanted("copy, add, convert, squares")) {
        two_arrays a = {hdt_numbers(HD_DTYPE_F32, PARAMETERS),
                        hdt_numbers(HD_DTYPE_F32, PARAMETERS), PARAMETERS * (int64_t)4};
        hdt_measure("copy of 500 MB", run_copy, &a, 2.0 * (double)a.count, 0);
        a.count = PARAMETERS;
        hdt_measure("add bf16, 124M", run_add, &a, 6.0 * PARAMETERS, 0);
        hdt_measure("convert fp32 to bf16, 124M", run_convert, &a, 6.0 * PARAMETERS, 0);
        hdt_measure("sum_of_squares, 124M", run_squares, &a, 4.0 * PARAMETERS, 0);
    }
}

static void measure_gemm(const char *name, int64_t rows, int64_t columns, int64_t inner, bool ta,
                         bool tb, bool accumulate, bool biased)
{
    if (!hdt_wanted(name)) return;
    const hd_dtype out = accumulate ? HD_DTYPE_F32 : HD_DTYPE_BF16;
    const hdi_gemm_args args = {.dtype = HD_DTYPE_BF16,
                                .out_dtype = out,
                                .rows = rows,
                                .columns = columns,
                                .inner = inner,
                                .a = hdt_numbers(HD_DTYPE_BF16, rows * inner),
                                .b = hdt_numbers(HD_DTYPE_BF16, inner * columns),
                                .a_stride = ta ? rows : inner,
                                .b_stride = tb ? inner : columns,
                                .out_stride = columns,
                                .transpose_a = ta,
                                .transpose_b = tb,
                                .accumulate = accumulate,
                                .bias = biased ? hdt_numbers(HD_DTYPE_BF16, columns) : NULL,
                                .out = hdt_numbers(out, rows * columns)};
    hdt_measure(name, run_gemm, &args, 0, 2.0 * (double)rows * (double)columns * (double)inner);
}

/* The faster of one kernel and two, as the first call found: the log has both times. */
static void measure_gemm_gelu(const char *name, hdi_gemm_gelu gelu)
{
    if (!hdt_wanted(name)) return;
    const bool forward = gelu == HDI_GEMM_GELU;
    const hdi_gemm_args args = {.dtype = HD_DTYPE_BF16,
                                .out_dtype = HD_DTYPE_BF16,
                                .rows = ROWS,
                                .columns = 4 * WIDTH,
                                .inner = WIDTH,
                                .a = hdt_numbers(HD_DTYPE_BF16, ROWS * WIDTH),
                                .b = hdt_numbers(HD_DTYPE_BF16, 4 * WIDTH * WIDTH),
                                .a_stride = WIDTH,
                                .b_stride = forward ? WIDTH : 4 * WIDTH,
                                .out_stride = 4 * WIDTH,
                                .transpose_b = forward,
                                .bias = forward ? hdt_numbers(HD_DTYPE_BF16, 4 * WIDTH) : NULL,
                                .out = hdt_numbers(HD_DTYPE_BF16, 4 * ROWS * WIDTH),
                                .gelu = gelu,
                                .pre = hdt_numbers(HD_DTYPE_BF16, 4 * ROWS * WIDTH)};
    hdt_measure(name, run_gemm_gelu, &args, 0, 8.0 * ROWS * WIDTH * WIDTH);
}

static void measure_gemms(void)
{
    measure_gemm("gemm qkv forward + bias", ROWS, 3 * WIDTH, WIDTH, false, true, false, true);
    measure_gemm("gemm qkv forward + bias, (in, out) weight", ROWS, 3 * WIDTH, WIDTH, false, false,
                 false, true);
    measure_gemm("gemm mlp up forward + bias", ROWS, 4 * WIDTH, WIDTH, false, true, false, true);
    measure_gemm("gemm mlp down forward + bias", ROWS, WIDTH, 4 * WIDTH, false, true, false, true);
    measure_gemm("gemm mlp up data gradient", ROWS, WIDTH, 4 * WIDTH, false, false, false, false);
    measure_gemm("gemm mlp down data gradient", ROWS, 4 * WIDTH, WIDTH, false, false, false, false);
    measure_gemm_gelu("gemm mlp up forward + bias + gelu", HDI_GEMM_GELU);
    measure_gemm_gelu("gemm mlp down data gradient + gelu's", HDI_GEMM_GELU_GRADIENT);
    measure_gemm("gemm mlp up weight gradient", 4 * WIDTH, WIDTH, ROWS, true, false, true, false);
    measure_gemm("gemm logits, 8192 rows", 8192, VOCABULARY, WIDTH, false, true, false, false);
    measure_gemm("gemm logits data gradient, 8192 rows", 8192, WIDTH, VOCABULARY, false, false,
                 false, false);
    measure_gemm("gemm logits weight gradient, 8192 rows", VOCABULARY, WIDTH, 8192, true, false,
                 true, false);
}

static void measure_attention(int64_t head_dim, int64_t heads)
{
    char name[64];
    const int64_t width = heads * head_dim;
    const double products = (double)BATCH * (double)heads * TOKENS * TOKENS * (double)head_dim;
    for (int way = 0; way < 3; way++) {
        static const char *const ways[] = {"", ", exact", ", own kernels"};
        snprintf(name, sizeof name, "attention, heads of %d%s", (int)head_dim, ways[way]);
        if (!hdt_wanted(name)) continue;
        hdi_attention_args args = {.dtype = HD_DTYPE_BF16,
                                   .batch = BATCH,
                                   .tokens = TOKENS,
                                   .kv_tokens = TOKENS,
                                   .heads = heads,
                                   .kv_heads = heads,
                                   .head_dim = head_dim,
                                   .q_stride = 3 * width,
                                   .k_stride = 3 * width,
                                   .v_stride = 3 * width,
                                   .out_stride = width,
                                   .scale = 0.125f,
                                   .causal = true,
                                   .exact = way == 1};
        char *qkv = hdt_numbers(HD_DTYPE_BF16, 3 * ROWS * width);
        char *gradient = hdt_numbers(HD_DTYPE_BF16, 3 * ROWS * width);
        args.q = qkv, args.k = qkv + 2 * width, args.v = qkv + 4 * width;
        args.q_gradient = gradient, args.k_gradient = gradient + 2 * width;
        args.v_gradient = gradient + 4 * width;
        args.out = hdt_numbers(HD_DTYPE_BF16, ROWS * width);
        args.out_gradient = hdt_numbers(HD_DTYPE_BF16, ROWS * width);
        args.lse = hdt_take((size_t)(ROWS * heads) * sizeof(float));
        const size_t forward = backend->attention_workspace(&args);
        const size_t backward = backend->attention_gradient_workspace(&args);
        args.workspace = hdt_take(forward > backward ? forward : backward);
        /* Causal: half of the products count. */
        hdt_measure(name, way == 2 ? run_tiled : run_attention, &args, 0, 2 * products);
        strncat(name, ", gradient", sizeof name - strlen(name) - 1);
        hdt_measure(name, way == 2 ? run_tiled_gradient : run_attention_gradient, &args, 0,
                    5 * products);
        printf("%-44s %9.1f MiB forward, %.1f MiB backward\n", "  workspace",
               (double)forward / 1048576, (double)backward / 1048576);
    }
}

static void measure_cached(void)
{
    if (!hdt_wanted("cached attention, 1 token at 1000")) return;
    const int32_t values[] = {1000, 1};
    int32_t *place = hdt_take(sizeof values);
    hdt_must(backend->copy_in(stream, place, values, sizeof values));
    hdi_attention_cached_args args = {.dtype = HD_DTYPE_BF16,
                                      .tokens = 1,
                                      .capacity = TOKENS,
                                      .heads = HEADS,
                                      .kv_heads = HEADS,
                                      .head_dim = HEAD_DIM,
                                      .q_stride = 3 * WIDTH,
                                      .k_stride = 3 * WIDTH,
                                      .v_stride = 3 * WIDTH,
                                      .out_stride = WIDTH,
                                      .scale = 0.125f,
                                      .position = place,
                                      .count = place + 1};
    char *qkv = hdt_numbers(HD_DTYPE_BF16, 3 * WIDTH);
    args.q = qkv, args.k = qkv + 2 * WIDTH, args.v = qkv + 4 * WIDTH;
    args.k_cache = hdt_numbers(HD_DTYPE_BF16, TOKENS * WIDTH);
    args.v_cache = hdt_numbers(HD_DTYPE_BF16, TOKENS * WIDTH);
    args.out = hdt_numbers(HD_DTYPE_BF16, WIDTH);
    args.workspace = hdt_take(backend->attention_cached_workspace(&args));
    hdt_measure("cached attention, 1 token at 1000", run_attention_cached, &args,
                4.0 * 1000 * WIDTH, 0);
}

static void measure_rows(void)
{
    const int64_t count = (int64_t)ROWS * WIDTH;
    const double bytes = (double)count * 2;
    if (hdt_wanted("norm")) {
        enum { PARTS = 512 };
        hdi_norm_args args = {
            .dtype = HD_DTYPE_BF16, .rows = ROWS, .columns = WIDTH, .epsilon = 1e-5f};
        args.x = hdt_numbers(HD_DTYPE_BF16, count),
        args.residual = hdt_numbers(HD_DTYPE_BF16, count);
        args.weight = hdt_numbers(HD_DTYPE_BF16, WIDTH),
        args.bias = hdt_numbers(HD_DTYPE_BF16, WIDTH);
        args.sum = hdt_numbers(HD_DTYPE_BF16, count), args.out = hdt_numbers(HD_DTYPE_BF16, count);
        args.mean = hdt_take(ROWS * 4), args.rstd = hdt_take(ROWS * 4);
        hdt_measure("norm, residual + layer", run_norm, &args, 4 * bytes, 0);
        const hdi_norm_gradient_args back = {.dtype = HD_DTYPE_BF16,
                                             .rows = ROWS,
                                             .columns = WIDTH,
                                             .partial_rows = PARTS,
                                             .gradient = args.out,
                                             .x = args.sum,
                                             .weight = args.weight,
                                             .carry = args.x,
                                             .mean = args.mean,
                                             .rstd = args.rstd,
                                             .x_gradient = (void *)args.x,
                                             .partials = hdt_take(PARTS * 2 * WIDTH * 4)};
        hdt_measure("norm gradient + carry, 512 parts", run_norm_gradient, &back, 4 * bytes, 0);
        const hdi_column_sum_args sum = {.dtype = HD_DTYPE_F32,
                                         .out_dtype = HD_DTYPE_F32,
                                         .rows = PARTS,
                                         .columns = 2 * WIDTH,
                                         .x_stride = 2 * WIDTH,
                                         .x = back.partials,
                                         .out = hdt_take(2 * WIDTH * 4)};
        hdt_measure("norm gradient: sum of the parts", run_column_sum, &sum,
                    PARTS * 2.0 * WIDTH * 4, 0);
    }
    if (hdt_wanted("activation")) {
        hdi_activation_args args = {
            .kind = HDI_GELU_TANH, .dtype = HD_DTYPE_BF16, .elements = 4 * count};
        args.x = hdt_numbers(HD_DTYPE_BF16, 4 * count),
        args.gradient = hdt_numbers(HD_DTYPE_BF16, 4 * count);
        args.out = hdt_numbers(HD_DTYPE_BF16, 4 * count);
        hdt_measure("activation gelu tanh", run_activation, &args, 8 * bytes, 0);
        hdt_measure("activation gelu tanh gradient", run_activation_gradient, &args, 12 * bytes, 0);
        args.kind = HDI_GELU_ERF;
        hdt_measure("activation gelu erf", run_activation, &args, 8 * bytes, 0);
        hdt_measure("activation gelu erf gradient", run_activation_gradient, &args, 12 * bytes, 0);
        hdi_gated_args gate = {.kind = HDI_SILU,
                               .dtype = HD_DTYPE_BF16,
                               .rows = ROWS,
                               .columns = 2 * WIDTH,
                               .x = args.x,
                               .gradient = args.gradient};
        gate.out = args.out, gate.x_gradient = args.out;
        hdt_measure("activation swiglu", run_gated, &gate, 6 * bytes, 0);
        hdt_measure("activation swiglu gradient", run_gated_gradient, &gate, 10 * bytes, 0);
    }
    if (hdt_wanted("column_sum")) {
        hdi_column_sum_args sum = {.dtype = HD_DTYPE_BF16,
                                   .out_dtype = HD_DTYPE_F32,
                                   .rows = ROWS,
                                   .columns = 4 * WIDTH,
                                   .x_stride = 4 * WIDTH,
                                   .accumulate = true};
        sum.x = hdt_numbers(HD_DTYPE_BF16, 4 * count),
        sum.out = hdt_numbers(HD_DTYPE_F32, 4 * WIDTH);
        sum.workspace = hdt_take(backend->column_sum_workspace(ROWS, 4 * WIDTH));
        hdt_measure("column_sum bf16, 3072 columns", run_column_sum, &sum, 4 * bytes, 0);
        sum.columns = sum.x_stride = WIDTH;
        hdt_measure("column_sum bf16, 768 columns", run_column_sum, &sum, bytes, 0);
    }
    if (hdt_wanted("rope")) {
        const hdi_rope_args rope = {.dtype = HD_DTYPE_BF16,
                                    .rows = ROWS,
                                    .heads = 2 * HEADS,
                                    .head_dim = HEAD_DIM,
                                    .x_stride = 3 * WIDTH,
                                    .period = TOKENS,
                                    .table = hdt_numbers(HD_DTYPE_F32, TOKENS * HEAD_DIM),
                                    .x = hdt_numbers(HD_DTYPE_BF16, 3 * count)};
        hdi_rope_args in_place = rope;
        in_place.out = (void *)rope.x;
        hdt_measure("rope of queries and keys in place", run_rope, &in_place, 4 * bytes, 0);
    }
}

static void measure_tables(void)
{
    const int64_t count = (int64_t)ROWS * WIDTH, table = (int64_t)VOCABULARY * WIDTH;
    const double bytes = (double)count * 2;
    if (hdt_wanted("embedding")) {
        hdi_embedding_args args = {.dtype = HD_DTYPE_BF16,
                                   .rows = ROWS,
                                   .columns = WIDTH,
                                   .entries = VOCABULARY,
                                   .second_entries = TOKENS};
        args.ids = ids(ROWS, VOCABULARY), args.second_ids = ids(ROWS, TOKENS);
        args.table = hdt_numbers(HD_DTYPE_BF16, table);
        args.second_table = hdt_numbers(HD_DTYPE_BF16, TOKENS * WIDTH);
        args.out = hdt_numbers(HD_DTYPE_BF16, count);
        hdt_measure("embedding of tokens + positions", run_embedding, &args, 2 * bytes, 0);
        hdi_embedding_gradient_args back = {.dtype = HD_DTYPE_BF16,
                                            .rows = ROWS,
                                            .columns = WIDTH,
                                            .entries = VOCABULARY,
                                            .ids = args.ids,
                                            .gradient = args.out,
                                            .accumulate = true};
        back.table_gradient = hdt_numbers(HD_DTYPE_F32, table);
        back.workspace = hdt_take(backend->embedding_gradient_workspace(ROWS, VOCABULARY));
        hdt_measure("embedding gradient of tokens, accumulated", run_embedding_gradient, &back,
                    bytes + 2.0 * (double)count * 4, 0);
        back.ids = args.second_ids, back.entries = TOKENS, back.period = TOKENS;
        hdt_measure("embedding gradient of positions", run_embedding_gradient, &back, bytes, 0);
    }
    if (hdt_wanted("cross_entropy")) {
        enum { SLICE = 8192 };
        hdi_cross_entropy_args args = {
            .dtype = HD_DTYPE_BF16, .rows = SLICE, .classes = 50257, .logits_stride = VOCABULARY};
        void *logits = hdt_numbers(HD_DTYPE_BF16, (int64_t)SLICE * VOCABULARY);
        args.logits = logits, args.targets = ids(SLICE, 50257);
        args.loss = hdt_take(SLICE * 4), args.gradient = logits;
        hdt_measure("cross_entropy in place, 8192 rows", run_cross_entropy, &args,
                    4.0 * SLICE * VOCABULARY, 0);
    }
    if (hdt_wanted("adamw")) {
        const float values[] = {1e-4f, 1, 0.5f, 0.5f, 1};
        hdi_adamw_args args = {.dtype = HD_DTYPE_BF16,
                               .elements = PARAMETERS,
                               .beta1 = 0.9f,
                               .beta2 = 0.95f,
                               .epsilon = 1e-8f,
                               .weight_decay = 0.1f};
        args.weights = hdt_numbers(HD_DTYPE_BF16, PARAMETERS);
        args.master = hdt_numbers(HD_DTYPE_F32, PARAMETERS);
        args.m = hdt_take((size_t)PARAMETERS * 4), args.v = hdt_take((size_t)PARAMETERS * 4);
        hdt_must(backend->zero(stream, args.m, (size_t)PARAMETERS * 4));
        hdt_must(backend->zero(stream, args.v, (size_t)PARAMETERS * 4));
        args.gradient = hdt_numbers(HD_DTYPE_F32, PARAMETERS);
        float *scalars = hdt_take(sizeof values);
        hdt_must(backend->copy_in(stream, scalars, values, sizeof values));
        args.scalars = scalars;
        hdt_measure("adamw bf16 + fp32 master, 124M", run_adamw, &args, 30.0 * PARAMETERS, 0);
        args.dtype = HD_DTYPE_F32, args.weights = args.master, args.master = NULL;
        hdt_measure("adamw fp32, 124M", run_adamw, &args, 28.0 * PARAMETERS, 0);
    }
}

int main(int argc, char **argv)
{
    stream = hdt_speed_open(argc > 1 ? argv[1] : NULL, (size_t)16 << 30);
    measure_simple();
    measure_gemms();
    measure_attention(64, 12);
    measure_attention(128, 6);
    measure_cached();
    measure_rows();
    measure_tables();
    hdt_speed_close();
    return EXIT_SUCCESS;
}
