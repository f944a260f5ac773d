/* Programs of blocks with weights, for tests of where weights are. */
#ifndef HDT_BLOCKS_H
#define HDT_BLOCKS_H

#include "tests/support/hdt_program.h"

enum { HDT_BLOCK_COUNT = 100 };

/* A finished forward from input "x" to output "y", vectors of HDT_BLOCK_COUNT: parameter "model.first",
 * the blocks "model.h.N" in this order, "model.last". A block reads two parameters of its own, three if
 * its number is odd, and "tied", which all share. Owned by the caller. */
hd_program *hdt_blocks_program(const char *name, const int *order, int count);

/* The same of matrices [width, width] named "w", from and to [rows, width]: blocks "block.N", N = first ..
 * first + count. */
typedef struct hdt_matrices {
    int64_t rows, width;
    int first, count;
    bool biases; /* in odd blocks */
    bool last;   /* one more matrix "last", in no block */
} hdt_matrices;
hd_program *hdt_matrices_program(const hdt_matrices *of);

#endif
