/* Into how many pieces products beside what travels on the tensor axis are worth cutting. */
#ifndef HDI_OPS_TENSOR_PIECES_H
#define HDI_OPS_TENSOR_PIECES_H

#include <stdbool.h>

/* Seconds of a product of all ranks' rows, of what travels before it (a gather) or after it, and of what
 * is computed beside that, whatever happens to the product. */
typedef struct hdi_piece_timing {
    double product, sent, beside;
    int ranks;
} hdi_piece_timing;

enum { HDI_TENSOR_GROUPS = 8 };

/* Seconds until both are through in `groups` groups: one, all ranks' rows at once, or own rows and groups
 * - 1 pieces of each other rank's. And the number of groups that takes the fewest. */
double hdi_piece_seconds(const hdi_piece_timing *timing, bool gathers, int groups);
int hdi_piece_groups(const hdi_piece_timing *timing, bool gathers);

#endif
