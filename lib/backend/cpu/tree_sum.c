/* Sums of several runs in the order of a binary tree, a piece at a time so that partial sums stay in
 * the cache. */
#include "backend/cpu/cpu.h"

#include "core/error.h"

#include <string.h>

enum { PIECE = 512, DEEPEST = 32 };

static void add_into(float *restrict sum, const float *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] += x[i];
}

hd_status hdi_cpu_tree_sum(hd_stream *stream, const float *x, int64_t stride, int parts,
                           int64_t elements, float *out)
{
    (void)stream;
    static _Thread_local float levels[DEEPEST][PIECE];
    for (int64_t begin = 0; begin < elements; begin += PIECE) {
        int64_t count = elements - begin < PIECE ? elements - begin : PIECE;
        int depth = 0;
        for (int part = 0; part < parts; part++) {
            memcpy(levels[depth++], x + part * stride + begin, (size_t)count * sizeof(float));
            for (int index = part; index & 1; index >>= 1, depth--)
                add_into(levels[depth - 2], levels[depth - 1], count);
        }
        for (; depth > 1; depth--)
            add_into(levels[depth - 2], levels[depth - 1], count);
        memcpy(out + begin, levels[0], (size_t)count * sizeof(float));
    }
    return HD_OK;
}
