/* GEMM on tiles that are fixed by the shape; threads share the tiles. */
#include "backend/cpu/blas.h"
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

#include <stdatomic.h>

typedef struct gemm_tiles {
    const hdi_gemm_args *args;
    int64_t tile_rows, tile_columns, down, across; /* tiles one below another, and side by side */
    atomic_bool failed;
} gemm_tiles;

static void add_bias(const float *bias, int64_t rows, int64_t columns, float *out, int64_t stride)
{
    for (int64_t r = 0; r < rows; r++) {
        float *row = out + r * stride;
        HDI_INDEPENDENT
        for (int64_t c = 0; c < columns; c++)
            row[c] += bias[c];
    }
}

static void compute_tile(void *context, int64_t index, int lane)
{
    gemm_tiles *tiles = context;
    const hdi_gemm_args *args = tiles->args;
    (void)lane;
    const int64_t row = index / tiles->across * tiles->tile_rows;
    const int64_t column = index % tiles->across * tiles->tile_columns;
    const bool last = index / tiles->across == tiles->down - 1;
    const int64_t rows = last ? args->rows - row : tiles->tile_rows;
    const int64_t columns = hdi_cpu_min(tiles->tile_columns, args->columns - column);
    const float *a = (const float *)args->a + (args->transpose_a ? row : row * args->a_stride);
    const float *b =
        (const float *)args->b + (args->transpose_b ? column * args->b_stride : column);
    float *out = (float *)args->out + row * args->out_stride + column;
    if (!hdi_cpu_sgemm(args->transpose_a, args->transpose_b, rows, columns, args->inner, 1.0f, a,
                       args->a_stride, b, args->b_stride, args->accumulate, out, args->out_stride))
        atomic_store(&tiles->failed, true);
    if (args->bias)
        add_bias((const float *)args->bias + column, rows, columns, out, args->out_stride);
}

/* Tall tiles, since each one packs its part of b again; about four down and 384 columns across
 * cost one thread at most a tenth. Small products are one tile. A short rest of rows goes with the last
 * tile: for few rows the BLAS has other kernels, whose bits would tell in how many products they came. */
static void choose_tiles(const hdi_gemm_args *args, gemm_tiles *out)
{
    enum { TALLEST = 512, SHORTEST = 128, WIDEST = 384, REST = 64 };
    const double products = (double)args->rows * (double)args->columns * (double)args->inner;
    out->tile_rows = args->rows;
    out->tile_columns = args->columns;
    if (products > 1 << 20) {
        int64_t quarter = hdi_round_up(hdi_ceil_div(args->rows, 4), 64);
        out->tile_rows = quarter > TALLEST ? TALLEST : quarter < SHORTEST ? SHORTEST : quarter;
        out->tile_columns = hdi_cpu_min(args->columns, WIDEST);
    }
    out->across = hdi_ceil_div(args->columns, out->tile_columns);
    out->down = hdi_ceil_div(args->rows, out->tile_rows);
    if (out->down > 1 && args->rows - (out->down - 1) * out->tile_rows < REST) out->down--;
}

hd_status hdi_cpu_gemm(hd_stream *stream, const hdi_gemm_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("gemm", args->dtype));
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("gemm", args->out_dtype));
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    gemm_tiles tiles = {.args = args};
    choose_tiles(args, &tiles);
    const int saved = hdi_cpu_blas_enter();
    hdi_cpu_parallel(tiles.down * tiles.across, compute_tile, &tiles);
    hdi_cpu_blas_leave(saved);
    if (atomic_load(&tiles.failed))
        return hdi_error(HD_ERROR_DEVICE, "gemm: the BLAS refused a product");
    return HD_OK;
}
