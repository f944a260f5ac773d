/* safetensors files for tests: made from raw text, legal or not, and out of golden ones. */
#ifndef HDT_SAFETENSORS_H
#define HDT_SAFETENSORS_H

#include "io/weights_index.h"
#include "tests/support/hdt.h"

/* Entry of a tensor in a header; all arguments are string literals in JSON, the name aside. */
#define HDT_TENSOR(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"

/* A file in the temporary folder that claims a header of `claimed` bytes, then has this header and
 * `data_bytes` bytes 0, 1, 2, ... Gives its path, borrowed. */
const char *hdt_raw_safetensors(const char *name, uint64_t claimed, const char *header,
                                size_t data_bytes);

/* The same with the right length. */
const char *hdt_text_safetensors(const char *name, const char *header, size_t data_bytes);

/* The tensors of a file whose names begin with `prefix`, as a file of their own, under their names
 * without it and without `cut` after it ("": nothing). Owned by the caller. */
hdi_weights *hdt_extract(const hdi_safetensors *file, const char *prefix, const char *cut);

/* A tensor as doubles, whatever it holds; *count (may be NULL) its elements. To be freed. */
double *hdt_values(const hdi_safetensors *file, const char *name, int64_t *count);

#endif
