/* Rotary position embedding (Su et al., arXiv 2104.09864): pairs of columns rotated by an angle
 * that a table gives for each position. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

static void rotate_halves(const float *x, const float *table, float sign, int64_t half, float *out)
{
    HDI_INDEPENDENT
    for (int64_t i = 0; i < half; i++) {
        const float cosine = table[2 * i], sine = sign * table[2 * i + 1];
        const float first = x[i], second = x[half + i];
        out[i] = first * cosine - second * sine;
        out[half + i] = second * cosine + first * sine;
    }
}

static void rotate_interleaved(const float *x, const float *table, float sign, int64_t half,
                               float *out)
{
    HDI_INDEPENDENT
    for (int64_t i = 0; i < half; i++) {
        const float cosine = table[2 * i], sine = sign * table[2 * i + 1];
        const float first = x[2 * i], second = x[2 * i + 1];
        out[2 * i] = first * cosine - second * sine;
        out[2 * i + 1] = second * cosine + first * sine;
    }
}

static void rotate_rows(void *context, int64_t index, int lane)
{
    const hdi_rope_args *args = context;
    (void)lane;
    const int64_t half = args->head_dim / 2;
    const int64_t chunk = hdi_cpu_chunk_rows(args->heads * args->head_dim);
    const int64_t end = hdi_cpu_min((index + 1) * chunk, args->rows);
    const float sign = args->inverse ? -1.0f : 1.0f;
    for (int64_t r = index * chunk; r < end; r++) {
        const int64_t position = args->positions ? args->positions[r] : r % args->period;
        const float *table = args->table + position * args->head_dim;
        for (int64_t head = 0; head < args->heads; head++) {
            const int64_t offset = r * args->x_stride + head * args->head_dim;
            const float *x = (const float *)args->x + offset;
            float *out = (float *)args->out + offset;
            if (args->pairing == HDI_ROPE_HALVES)
                rotate_halves(x, table, sign, half, out);
            else
                rotate_interleaved(x, table, sign, half, out);
        }
    }
}

hd_status hdi_cpu_rope(hd_stream *stream, const hdi_rope_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("rope", args->dtype));
    hdi_rope_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->rows, hdi_cpu_chunk_rows(args->heads * args->head_dim)),
                     rotate_rows, &work);
    return HD_OK;
}
