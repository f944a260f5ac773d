/* Element-wise ops without a family: sum, conversion, random numbers. */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "backend/cpu/widen.h"
#include "core/error.h"
#include "core/random.h"

typedef struct add_work {
    int64_t elements;
    const float *x, *y;
    float *out;
} add_work;

static void add_chunk(void *context, int64_t index, int lane)
{
    const add_work *work = context;
    (void)lane;
    const int64_t first = index * HDI_CPU_CHUNK;
    const int64_t end = hdi_cpu_min(first + HDI_CPU_CHUNK, work->elements);
    const float *x = work->x, *y = work->y;
    float *out = work->out;
    HDI_INDEPENDENT
    for (int64_t i = first; i < end; i++)
        out[i] = x[i] + y[i];
}

hd_status hdi_cpu_add(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                      const void *y, void *out)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("add", dtype));
    add_work work = {elements, x, y, out};
    hdi_cpu_parallel(hdi_ceil_div(elements, HDI_CPU_CHUNK), add_chunk, &work);
    return HD_OK;
}

hd_status hdi_cpu_convert(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to, void *out,
                          int64_t elements)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("convert from", from));
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("convert to", to));
    if (elements > 0 && out != x) memcpy(out, x, (size_t)elements * sizeof(float));
    return HD_OK;
}

typedef struct round_work {
    hd_dtype dtype;
    int64_t elements;
    const float *x;
    bool accumulate;
    uint16_t *out;
} round_work;

static void round_chunk(void *context, int64_t index, int lane)
{
    enum { PIECE = 1024 };
    const round_work *work = context;
    (void)lane;
    const int64_t end = hdi_cpu_min((index + 1) * HDI_CPU_CHUNK, work->elements);
    float sum[PIECE];
    for (int64_t first = index * HDI_CPU_CHUNK; first < end; first += PIECE) {
        const int64_t count = hdi_cpu_min(PIECE, end - first);
        const float *x = work->x + first;
        if (work->accumulate) {
            hdi_cpu_widen(work->dtype, work->out + first, count, sum);
            for (int64_t i = 0; i < count; i++)
                sum[i] += x[i];
            x = sum;
        }
        hdi_cpu_round(work->dtype, x, count, work->out + first);
    }
}

hd_status hdi_cpu_round_sum(hd_stream *stream, hd_dtype dtype, int64_t elements, const float *x,
                            bool accumulate, void *out)
{
    (void)stream;
    round_work work = {dtype, elements, x, accumulate, out};
    hdi_cpu_parallel(hdi_ceil_div(elements, HDI_CPU_CHUNK), round_chunk, &work);
    return HD_OK;
}

typedef struct normal_work {
    float *out;
    int64_t elements;
    uint64_t seed, stream_number;
    int64_t first;
    float std;
} normal_work;

enum { NORMALS = 2048 }; /* per item: each costs as much as many additions */

static void fill_chunk(void *context, int64_t index, int lane)
{
    const normal_work *work = context;
    (void)lane;
    const int64_t first = index * NORMALS;
    const int64_t end = hdi_cpu_min(first + NORMALS, work->elements);
    for (int64_t i = first; i < end; i++)
        work->out[i] = work->std * hdi_random_normal(work->seed, work->stream_number,
                                                     (uint64_t)(work->first + i));
}

hd_status hdi_cpu_fill_normal(hd_stream *stream, hd_dtype dtype, void *out, int64_t elements,
                              uint64_t seed, uint64_t stream_number, int64_t first, float std)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("fill_normal", dtype));
    normal_work work = {out, elements, seed, stream_number, first, std};
    hdi_cpu_parallel(hdi_ceil_div(elements, NORMALS), fill_chunk, &work);
    return HD_OK;
}
