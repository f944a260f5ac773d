/* Activations of 8 bits, block by block. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "core/error.h"
#include "core/half.h"

#include <math.h>

enum { BLOCK = HDI_QUANTIZE_ELEMENTS, CHUNK_BLOCKS = 64, MOST = 127 };

static float value_at(const hdi_quantize_args *args, int64_t index)
{
    if (args->dtype == HD_DTYPE_F32) return ((const float *)args->x)[index];
    return hdi_half_to_float(args->dtype, ((const uint16_t *)args->x)[index]);
}

static void quantize_block(const hdi_quantize_args *args, int64_t block)
{
    const int64_t first = block * BLOCK, end = hdi_cpu_min(first + BLOCK, args->elements);
    float values[BLOCK], largest = 0;
    bool finite = true;
    for (int64_t i = first; i < end; i++) {
        const float value = values[i - first] = value_at(args, i);
        finite = finite && isfinite(value);
        if (fabsf(value) > largest) largest = fabsf(value);
    }
    if (largest < 0x1p-119f) largest = 0;
    args->scales[block] = finite ? largest / MOST : NAN;
    const float inverse = largest > 0 ? MOST / largest : 0;
    for (int64_t i = first; i < end; i++) {
        const float code = finite ? rintf(values[i - first] * inverse) : 0;
        args->codes[i] = (int8_t)(code > MOST ? MOST : code < -MOST ? -MOST : code);
    }
}

static void quantize_chunk(void *context, int64_t index, int lane)
{
    const hdi_quantize_args *args = context;
    const int64_t blocks = hdi_ceil_div(args->elements, BLOCK);
    const int64_t end = hdi_cpu_min((index + 1) * CHUNK_BLOCKS, blocks);
    (void)lane;
    for (int64_t b = index * CHUNK_BLOCKS; b < end; b++)
        quantize_block(args, b);
}

static void dequantize_chunk(void *context, int64_t index, int lane)
{
    const hdi_quantize_args *args = context;
    const int64_t first = index * CHUNK_BLOCKS * BLOCK;
    const int64_t end = hdi_cpu_min(first + (int64_t)CHUNK_BLOCKS * BLOCK, args->elements);
    (void)lane;
    for (int64_t i = first; i < end; i++) {
        const float value = (float)args->codes[i] * args->scales[i / BLOCK];
        if (args->dtype == HD_DTYPE_F32)
            ((float *)args->x)[i] = value;
        else
            ((uint16_t *)args->x)[i] = hdi_half_from_float(args->dtype, value);
    }
}

static hd_status run(const hdi_quantize_args *args, hdi_cpu_work work)
{
    if (!hdi_is_half(args->dtype)) HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("quantize", args->dtype));
    hdi_quantize_args given = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->elements, (int64_t)CHUNK_BLOCKS * BLOCK), work, &given);
    return HD_OK;
}

hd_status hdi_cpu_quantize(hd_stream *stream, const hdi_quantize_args *args)
{
    (void)stream;
    return run(args, quantize_chunk);
}

hd_status hdi_cpu_dequantize(hd_stream *stream, const hdi_quantize_args *args)
{
    (void)stream;
    return run(args, dequantize_chunk);
}
