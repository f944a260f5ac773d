/* Best fit, largest first: for each span, the tightest hole among those already placed that are
 * alive at the same time. */
#include "program/place.h"

#include "core/error.h"
#include "core/memory.h"

#include <stdlib.h>

size_t hdi_place_round(size_t bytes)
{
    return (bytes + HDI_PLACE_ALIGNMENT - 1) / HDI_PLACE_ALIGNMENT * HDI_PLACE_ALIGNMENT;
}

typedef struct placed_span {
    size_t begin, end;
    int first, last;
} placed_span;

static int larger_first(const void *left, const void *right)
{
    const hdi_span *a = *(hdi_span *const *)left, *b = *(hdi_span *const *)right;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return a < b ? -1 : a > b;
}

/* `placed` is sorted by begin. */
static size_t best_offset(const placed_span *placed, int count, const hdi_span *span, size_t bytes)
{
    size_t cursor = 0, best = SIZE_MAX, best_hole = SIZE_MAX;
    for (int i = 0; i < count; i++) {
        const placed_span *other = &placed[i];
        if (other->last < span->first || other->first > span->last) continue;
        if (other->begin >= cursor + bytes && other->begin - cursor < best_hole) {
            best = cursor;
            best_hole = other->begin - cursor;
        }
        if (other->end > cursor) cursor = other->end;
    }
    return best == SIZE_MAX ? cursor : best;
}

hd_status hdi_place(hdi_span *spans, int count, size_t *bytes)
{
    *bytes = 0;
    hdi_span **order = hdi_alloc_array((size_t)count, sizeof(hdi_span *));
    placed_span *placed = hdi_alloc_array((size_t)count, sizeof *placed);
    if (!order || !placed) {
        hdi_free(order);
        hdi_free(placed);
        return hdi_error(HD_ERROR_MEMORY, "placement: out of host memory");
    }
    for (int i = 0; i < count; i++)
        order[i] = &spans[i];
    qsort(order, (size_t)count, sizeof *order, larger_first);
    for (int i = 0; i < count; i++) {
        hdi_span *span = order[i];
        size_t wanted = hdi_place_round(span->bytes);
        span->offset = best_offset(placed, i, span, wanted);
        int slot = i;
        for (; slot > 0 && placed[slot - 1].begin > span->offset; slot--)
            placed[slot] = placed[slot - 1];
        placed[slot] = (placed_span){span->offset, span->offset + wanted, span->first, span->last};
        if (span->offset + wanted > *bytes) *bytes = span->offset + wanted;
    }
    hdi_free(order);
    hdi_free(placed);
    return HD_OK;
}
