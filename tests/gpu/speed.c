/* Speed of the CUDA backend on the shapes of GPT-2 124M, B 32, T 1024: one line per op with its time
 * and GB/s (bytes that must be read and written once) or TFLOP/s. Usage: speed [pattern] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <heddle/log.h>

#include "backend/backend.h"
#include "backend/cuda/attention.h"
#include "backend/cuda/cuda.h"

enum { BATCH = 32, TOKENS = 1024, HEADS = 12, HEAD_DIM = 64, VOCABULARY = 50304 };
enum { ROWS = BATCH * TOKENS, WIDTH = HEADS * HEAD_DIM, PARAMETERS = 124475904 };

static const hd_backend *const backend = &hdi_backend_cuda;
static const char *pattern = "";
static hdi_device *device;
static hd_stream *stream;
static char *arena;
static size_t used, room;

static void check(hd_status status)
{
    if (status == HD_OK) return;
    printf("%s: %s\n", hd_status_string(status), hd_last_error());
    exit(EXIT_FAILURE);
}

/* Each measurement takes its arrays from the start of the arena. */
static void *take(size_t bytes)
{
    void *out = arena + used;
    used += (bytes + 255) / 256 * 256;
    if (used > room) {
        printf("the arena has %zu bytes, want %zu\n", room, used);
        exit(EXIT_FAILURE);
    }
    return out;
}

/* Small random numbers, so that the clocks are those of real work. */
static void *numbers(hd_dtype dtype, int64_t count)
{
    void *out = take((size_t)count * hd_dtype_bytes(dtype));
    check(backend->fill_normal(stream, dtype, out, count, 1, used, 0, 0.5f));
    return out;
}

static void *ids(int64_t count, int32_t entries)
{
    int32_t *values = malloc((size_t)count * sizeof *values);
    void *out = take((size_t)count * sizeof *values);
    if (!values) exit(EXIT_FAILURE);
    uint32_t state = 1;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        const uint32_t draw = state >> 8;
        values[i] =
            (int32_t)(draw % 8 == 0 ? draw % 97 : draw % (uint32_t)entries); /* some often */
    }
    check(backend->copy_in(stream, out, values, (size_t)count * sizeof *values));
    check(backend->synchronize(stream));
    free(values);
    return out;
}

typedef hd_status (*call)(const void *args);

/* Prints the mean of the middle runs. */
static void measure(const char *name, call run, const void *args, double bytes, double flops)
{
    enum { WARM = 3, RUNS = 20 };
    float milliseconds = 0;
    for (int i = 0; i < WARM; i++)
        check(run(args));
    check(hdi_cuda_status(cudaEventRecord(device->begin, stream->handle), "cudaEventRecord"));
    for (int i = 0; i < RUNS; i++)
        check(run(args));
    check(hdi_cuda_status(cudaEventRecord(device->end, stream->handle), "cudaEventRecord"));
    check(backend->synchronize(stream));
    check(hdi_cuda_status(cudaEventElapsedTime(&milliseconds, device->begin, device->end),
                          "cudaEventElapsedTime"));
    const double time = (double)milliseconds / RUNS;
    printf("%-44s %9.3f ms", name, time);
    if (bytes > 0) printf(" %8.0f GB/s", bytes / time * 1e-6);
    if (flops > 0) printf(" %8.1f TFLOP/s", flops / time * 1e-9);
    printf("\n");
    fflush(stdout);
}

static bool wanted(const char *name)
{
    used = 0;
    return strstr(name, pattern) != NULL;
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
    return backend->sum_of_squares(stream, a->x, a->count, a->out);
}

static void measure_simple(void)
{
    if (wanted("copy, add, convert, squares")) {
        two_arrays a = {numbers(HD_DTYPE_F32, PARAMETERS), numbers(HD_DTYPE_F32, PARAMETERS),
                        PARAMETERS * (int64_t)4};
        measure("copy of 500 MB", run_copy, &a, 2.0 * (double)a.count, 0);
        a.count = PARAMETERS;
        measure("add bf16, 124M", run_add, &a, 6.0 * PARAMETERS, 0);
        measure("convert fp32 to bf16, 124M", run_convert, &a, 6.0 * PARAMETERS, 0);
        measure("sum_of_squares, 124M", run_squares, &a, 4.0 * PARAMETERS, 0);
    }
}

static void measure_gemm(const char *name, int64_t rows, int64_t columns, int64_t inner, bool ta,
                         bool tb, bool accumulate, bool biased)
{
    if (!wanted(name)) return;
    const hd_dtype out = accumulate ? HD_DTYPE_F32 : HD_DTYPE_BF16;
    const hdi_gemm_args args = {.dtype = HD_DTYPE_BF16,
                                .out_dtype = out,
                                .rows = rows,
                                .columns = columns,
                                .inner = inner,
                                .a = numbers(HD_DTYPE_BF16, rows * inner),
                                .b = numbers(HD_DTYPE_BF16, inner * columns),
                                .a_stride = ta ? rows : inner,
                                .b_stride = tb ? inner : columns,
                                .out_stride = columns,
                                .transpose_a = ta,
                                .transpose_b = tb,
                                .accumulate = accumulate,
                                .bias = biased ? numbers(HD_DTYPE_BF16, columns) : NULL,
                                .out = numbers(out, rows * columns)};
    measure(name, run_gemm, &args, 0, 2.0 * (double)rows * (double)columns * (double)inner);
}

/* The faster of one kernel and two, as the first call found: the log has both times. */
static void measure_gemm_gelu(const char *name, hdi_gemm_gelu gelu)
{
    if (!wanted(name)) return;
    const bool forward = gelu == HDI_GEMM_GELU;
    const hdi_gemm_args args = {.dtype = HD_DTYPE_BF16,
                                .out_dtype = HD_DTYPE_BF16,
                                .rows = ROWS,
                                .columns = 4 * WIDTH,
                                .inner = WIDTH,
                                .a = numbers(HD_DTYPE_BF16, ROWS * WIDTH),
                                .b = numbers(HD_DTYPE_BF16, 4 * WIDTH * WIDTH),
                                .a_stride = WIDTH,
                                .b_stride = forward ? WIDTH : 4 * WIDTH,
                                .out_stride = 4 * WIDTH,
                                .transpose_b = forward,
                                .bias = forward ? numbers(HD_DTYPE_BF16, 4 * WIDTH) : NULL,
                                .out = numbers(HD_DTYPE_BF16, 4 * ROWS * WIDTH),
                                .gelu = gelu,
                                .pre = numbers(HD_DTYPE_BF16, 4 * ROWS * WIDTH)};
    measure(name, run_gemm_gelu, &args, 0, 8.0 * ROWS * WIDTH * WIDTH);
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
        if (!wanted(name)) continue;
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
        char *qkv = numbers(HD_DTYPE_BF16, 3 * ROWS * width);
        char *gradient = numbers(HD_DTYPE_BF16, 3 * ROWS * width);
        args.q = qkv, args.k = qkv + 2 * width, args.v = qkv + 4 * width;
        args.q_gradient = gradient, args.k_gradient = gradient + 2 * width;
        args.v_gradient = gradient + 4 * width;
        args.out = numbers(HD_DTYPE_BF16, ROWS * width);
        args.out_gradient = numbers(HD_DTYPE_BF16, ROWS * width);
        args.lse = take((size_t)(ROWS * heads) * sizeof(float));
        const size_t forward = backend->attention_workspace(&args);
        const size_t backward = backend->attention_gradient_workspace(&args);
        args.workspace = take(forward > backward ? forward : backward);
        /* Causal: half of the products count. */
        measure(name, way == 2 ? run_tiled : run_attention, &args, 0, 2 * products);
        strncat(name, ", gradient", sizeof name - strlen(name) - 1);
        measure(name, way == 2 ? run_tiled_gradient : run_attention_gradient, &args, 0,
                5 * products);
        printf("%-44s %9.1f MiB forward, %.1f MiB backward\n", "  workspace",
               (double)forward / 1048576, (double)backward / 1048576);
    }
}

static void measure_cached(void)
{
    if (!wanted("cached attention, 1 token at 1000")) return;
    const int32_t values[] = {1000, 1};
    int32_t *place = take(sizeof values);
    check(backend->copy_in(stream, place, values, sizeof values));
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
    char *qkv = numbers(HD_DTYPE_BF16, 3 * WIDTH);
    args.q = qkv, args.k = qkv + 2 * WIDTH, args.v = qkv + 4 * WIDTH;
    args.k_cache = numbers(HD_DTYPE_BF16, TOKENS * WIDTH);
    args.v_cache = numbers(HD_DTYPE_BF16, TOKENS * WIDTH);
    args.out = numbers(HD_DTYPE_BF16, WIDTH);
    args.workspace = take(backend->attention_cached_workspace(&args));
    measure("cached attention, 1 token at 1000", run_attention_cached, &args, 4.0 * 1000 * WIDTH,
            0);
}

static void measure_rows(void)
{
    const int64_t count = (int64_t)ROWS * WIDTH;
    const double bytes = (double)count * 2;
    if (wanted("norm")) {
        enum { PARTS = 512 };
        hdi_norm_args args = {
            .dtype = HD_DTYPE_BF16, .rows = ROWS, .columns = WIDTH, .epsilon = 1e-5f};
        args.x = numbers(HD_DTYPE_BF16, count), args.residual = numbers(HD_DTYPE_BF16, count);
        args.weight = numbers(HD_DTYPE_BF16, WIDTH), args.bias = numbers(HD_DTYPE_BF16, WIDTH);
        args.sum = numbers(HD_DTYPE_BF16, count), args.out = numbers(HD_DTYPE_BF16, count);
        args.mean = take(ROWS * 4), args.rstd = take(ROWS * 4);
        measure("norm, residual + layer", run_norm, &args, 4 * bytes, 0);
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
                                             .partials = take(PARTS * 2 * WIDTH * 4)};
        measure("norm gradient + carry, 512 parts", run_norm_gradient, &back, 4 * bytes, 0);
        const hdi_column_sum_args sum = {.dtype = HD_DTYPE_F32,
                                         .out_dtype = HD_DTYPE_F32,
                                         .rows = PARTS,
                                         .columns = 2 * WIDTH,
                                         .x_stride = 2 * WIDTH,
                                         .x = back.partials,
                                         .out = take(2 * WIDTH * 4)};
        measure("norm gradient: sum of the parts", run_column_sum, &sum, PARTS * 2.0 * WIDTH * 4,
                0);
    }
    if (wanted("activation")) {
        hdi_activation_args args = {
            .kind = HDI_GELU_TANH, .dtype = HD_DTYPE_BF16, .elements = 4 * count};
        args.x = numbers(HD_DTYPE_BF16, 4 * count),
        args.gradient = numbers(HD_DTYPE_BF16, 4 * count);
        args.out = numbers(HD_DTYPE_BF16, 4 * count);
        measure("activation gelu tanh", run_activation, &args, 8 * bytes, 0);
        measure("activation gelu tanh gradient", run_activation_gradient, &args, 12 * bytes, 0);
        args.kind = HDI_GELU_ERF;
        measure("activation gelu erf", run_activation, &args, 8 * bytes, 0);
        measure("activation gelu erf gradient", run_activation_gradient, &args, 12 * bytes, 0);
        hdi_gated_args gate = {.kind = HDI_SILU,
                               .dtype = HD_DTYPE_BF16,
                               .rows = ROWS,
                               .columns = 2 * WIDTH,
                               .x = args.x,
                               .gradient = args.gradient};
        gate.out = args.out, gate.x_gradient = args.out;
        measure("activation swiglu", run_gated, &gate, 6 * bytes, 0);
        measure("activation swiglu gradient", run_gated_gradient, &gate, 10 * bytes, 0);
    }
    if (wanted("column_sum")) {
        hdi_column_sum_args sum = {.dtype = HD_DTYPE_BF16,
                                   .out_dtype = HD_DTYPE_F32,
                                   .rows = ROWS,
                                   .columns = 4 * WIDTH,
                                   .x_stride = 4 * WIDTH,
                                   .accumulate = true};
        sum.x = numbers(HD_DTYPE_BF16, 4 * count), sum.out = numbers(HD_DTYPE_F32, 4 * WIDTH);
        sum.workspace = take(backend->column_sum_workspace(ROWS, 4 * WIDTH));
        measure("column_sum bf16, 3072 columns", run_column_sum, &sum, 4 * bytes, 0);
        sum.columns = sum.x_stride = WIDTH;
        measure("column_sum bf16, 768 columns", run_column_sum, &sum, bytes, 0);
    }
    if (wanted("rope")) {
        const hdi_rope_args rope = {.dtype = HD_DTYPE_BF16,
                                    .rows = ROWS,
                                    .heads = 2 * HEADS,
                                    .head_dim = HEAD_DIM,
                                    .x_stride = 3 * WIDTH,
                                    .period = TOKENS,
                                    .table = numbers(HD_DTYPE_F32, TOKENS * HEAD_DIM),
                                    .x = numbers(HD_DTYPE_BF16, 3 * count),
                                    .out = arena};
        hdi_rope_args in_place = rope;
        in_place.out = (void *)rope.x;
        measure("rope of queries and keys in place", run_rope, &in_place, 4 * bytes, 0);
    }
}

static void measure_tables(void)
{
    const int64_t count = (int64_t)ROWS * WIDTH, table = (int64_t)VOCABULARY * WIDTH;
    const double bytes = (double)count * 2;
    if (wanted("embedding")) {
        hdi_embedding_args args = {.dtype = HD_DTYPE_BF16,
                                   .rows = ROWS,
                                   .columns = WIDTH,
                                   .entries = VOCABULARY,
                                   .second_entries = TOKENS};
        args.ids = ids(ROWS, VOCABULARY), args.second_ids = ids(ROWS, TOKENS);
        args.table = numbers(HD_DTYPE_BF16, table);
        args.second_table = numbers(HD_DTYPE_BF16, TOKENS * WIDTH);
        args.out = numbers(HD_DTYPE_BF16, count);
        measure("embedding of tokens + positions", run_embedding, &args, 2 * bytes, 0);
        hdi_embedding_gradient_args back = {.dtype = HD_DTYPE_BF16,
                                            .rows = ROWS,
                                            .columns = WIDTH,
                                            .entries = VOCABULARY,
                                            .ids = args.ids,
                                            .gradient = args.out,
                                            .accumulate = true};
        back.table_gradient = numbers(HD_DTYPE_F32, table);
        back.workspace = take(backend->embedding_gradient_workspace(ROWS, VOCABULARY));
        measure("embedding gradient of tokens, accumulated", run_embedding_gradient, &back,
                bytes + 2.0 * (double)count * 4, 0);
        back.ids = args.second_ids, back.entries = TOKENS, back.period = TOKENS;
        measure("embedding gradient of positions", run_embedding_gradient, &back, bytes, 0);
    }
    if (wanted("cross_entropy")) {
        enum { SLICE = 8192 };
        hdi_cross_entropy_args args = {
            .dtype = HD_DTYPE_BF16, .rows = SLICE, .classes = 50257, .logits_stride = VOCABULARY};
        void *logits = numbers(HD_DTYPE_BF16, (int64_t)SLICE * VOCABULARY);
        args.logits = logits, args.targets = ids(SLICE, 50257);
        args.loss = take(SLICE * 4), args.gradient = logits;
        measure("cross_entropy in place, 8192 rows", run_cross_entropy, &args,
                4.0 * SLICE * VOCABULARY, 0);
    }
    if (wanted("adamw")) {
        const float values[] = {1e-4f, 1, 0.5f, 0.5f, 1};
        hdi_adamw_args args = {.dtype = HD_DTYPE_BF16,
                               .elements = PARAMETERS,
                               .beta1 = 0.9f,
                               .beta2 = 0.95f,
                               .epsilon = 1e-8f,
                               .weight_decay = 0.1f};
        args.weights = numbers(HD_DTYPE_BF16, PARAMETERS);
        args.master = numbers(HD_DTYPE_F32, PARAMETERS);
        args.m = take((size_t)PARAMETERS * 4), args.v = take((size_t)PARAMETERS * 4);
        check(backend->zero(stream, args.m, (size_t)PARAMETERS * 4));
        check(backend->zero(stream, args.v, (size_t)PARAMETERS * 4));
        args.gradient = numbers(HD_DTYPE_F32, PARAMETERS);
        float *scalars = take(sizeof values);
        check(backend->copy_in(stream, scalars, values, sizeof values));
        args.scalars = scalars;
        measure("adamw bf16 + fp32 master, 124M", run_adamw, &args, 30.0 * PARAMETERS, 0);
        args.dtype = HD_DTYPE_F32, args.weights = args.master, args.master = NULL;
        measure("adamw fp32, 124M", run_adamw, &args, 28.0 * PARAMETERS, 0);
    }
}

static void print_line(void *user, hd_log_level level, const char *line)
{
    (void)user;
    (void)level;
    printf("  %s\n", line);
}

int main(int argc, char **argv)
{
    hdi_memory_info memory;
    if (argc > 1) pattern = argv[1];
    hd_log_set_sink(print_line, NULL, HD_LOG_DEBUG);
    if (hdi_cuda_device_count() == 0) {
        printf("no CUDA device\n");
        return EXIT_FAILURE;
    }
    check(backend->open(0, &device));
    stream = backend->stream(device);
    check(backend->memory_info(device, &memory));
    room = memory.free_bytes / 10 * 9;
    if (room > (size_t)16 << 30) room = (size_t)16 << 30;
    check(backend->reserve(device, room, (void **)&arena));
    printf("sm_%d, %d processors, %.1f of %.1f GiB free\n", device->architecture,
           device->processors, (double)memory.free_bytes / 1073741824,
           (double)memory.total_bytes / 1073741824);
    measure_simple();
    measure_gemms();
    measure_attention(64, 12);
    measure_attention(128, 6);
    measure_cached();
    measure_rows();
    measure_tables();
    backend->release(device, arena, room);
    backend->close(device);
    return EXIT_SUCCESS;
}
