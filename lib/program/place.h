/* Offsets for things that are alive over spans of positions: best fit, largest first. */
#ifndef HDI_PROGRAM_PLACE_H
#define HDI_PROGRAM_PLACE_H

#include <heddle/status.h>

typedef struct hdi_span {
    size_t bytes;
    int first, last; /* positions at which it is alive, inclusive */
    size_t offset;   /* out: a multiple of HDI_PLACE_ALIGNMENT */
} hdi_span;

enum { HDI_PLACE_ALIGNMENT = 256 };

/* Place all spans so that no two that are alive at one position share bytes. *bytes is the end of
 * the highest. Deterministic. */
hd_status hdi_place(hdi_span *spans, int count, size_t *bytes);

/* `bytes` rounded up to the alignment. */
size_t hdi_place_round(size_t bytes);

#endif
