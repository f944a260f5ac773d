/* XXH3 (64 bits) of each 16 MiB block of a byte stream, computed while the stream is written. */
#ifndef HDI_IO_BLOCK_SUMS_H
#define HDI_IO_BLOCK_SUMS_H

#include <heddle/status.h>

#define HDI_BLOCK_BYTES ((int64_t)16 << 20)

typedef struct hdi_block_sums {
    void *state;    /* of the hash, owned */
    uint64_t *sums; /* [capacity], owned; the first `count` are done */
    int64_t capacity, count;
    int64_t bytes; /* taken so far */
} hdi_block_sums;

/* Blocks of a stream of `bytes`; the last one may be short. */
int64_t hdi_block_count(int64_t bytes);

uint64_t hdi_block_sum(const void *data, size_t bytes);

/* Allocate for streams of up to `bytes`; nothing later allocates. */
hd_status hdi_block_sums_create(int64_t bytes, hdi_block_sums *out);
void hdi_block_sums_destroy(hdi_block_sums *sums);

void hdi_block_sums_begin(hdi_block_sums *sums);
void hdi_block_sums_add(hdi_block_sums *sums, const void *data, size_t bytes);
void hdi_block_sums_end(hdi_block_sums *sums);

#endif
