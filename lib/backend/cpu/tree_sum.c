/* Sums of several runs in the order of a binary tree, a piece at a time so that partial sums stay in
 * the cache. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/widen.h"

enum { PIECE = 512, DEEPEST = 32 };

static void add_into(float *restrict sum, const float *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] += x[i];
}

hd_status hdi_cpu_tree_sum(hd_stream *stream, hd_dtype dtype, const void *x, int64_t stride,
                           int parts, int64_t elements, void *out)
{
    (void)stream;
    const size_t width = hd_dtype_bytes(dtype);
    static _Thread_local float levels[DEEPEST][PIECE];
    for (int64_t begin = 0; begin < elements; begin += PIECE) {
        int64_t count = elements - begin < PIECE ? elements - begin : PIECE;
        int depth = 0;
        for (int part = 0; part < parts; part++) {
            const char *from = (const char *)x + (size_t)(part * stride + begin) * width;
            hdi_cpu_widen(dtype, from, count, levels[depth++]);
            for (int index = part; index & 1; index >>= 1, depth--)
                add_into(levels[depth - 2], levels[depth - 1], count);
        }
        for (; depth > 1; depth--)
            add_into(levels[depth - 2], levels[depth - 1], count);
        hdi_cpu_round(dtype, levels[0], count, (char *)out + (size_t)begin * width);
    }
    return HD_OK;
}
