/* XXH3 of each 16 MiB block. */
#include "io/block_sums.h"

#include <inttypes.h>
#include <xxhash.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"

int64_t hdi_block_count(int64_t bytes)
{
    return bytes / HDI_BLOCK_BYTES + (bytes % HDI_BLOCK_BYTES != 0);
}

uint64_t hdi_block_sum(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

hd_status hdi_block_sums_create(int64_t bytes, hdi_block_sums *out)
{
    *out = (hdi_block_sums){.capacity = hdi_block_count(bytes)};
    out->sums = hdi_alloc_array((size_t)out->capacity, sizeof *out->sums);
    out->state =
        XXH3_createState(); /* wants 64-byte alignment, which the library knows how to get */
    if (out->sums && out->state) return HD_OK;
    hdi_block_sums_destroy(out);
    return hdi_error(HD_ERROR_MEMORY, "no memory for the sums of %" PRId64 " bytes", bytes);
}

void hdi_block_sums_destroy(hdi_block_sums *sums)
{
    hdi_free(sums->sums);
    XXH3_freeState(sums->state);
    *sums = (hdi_block_sums){0};
}

void hdi_block_sums_begin(hdi_block_sums *sums)
{
    XXH3_64bits_reset(sums->state);
    sums->count = 0;
    sums->bytes = 0;
}

static void finish_block(hdi_block_sums *sums)
{
    if (sums->count < sums->capacity) sums->sums[sums->count++] = XXH3_64bits_digest(sums->state);
    XXH3_64bits_reset(sums->state);
}

void hdi_block_sums_add(hdi_block_sums *sums, const void *data, size_t bytes)
{
    const char *cursor = data;
    while (bytes > 0) {
        size_t room = (size_t)(HDI_BLOCK_BYTES - sums->bytes % HDI_BLOCK_BYTES);
        size_t piece = bytes < room ? bytes : room;
        XXH3_64bits_update(sums->state, cursor, piece);
        sums->bytes += (int64_t)piece;
        cursor += piece;
        bytes -= piece;
        if (piece == room) finish_block(sums);
    }
}

void hdi_block_sums_end(hdi_block_sums *sums)
{
    if (sums->bytes % HDI_BLOCK_BYTES != 0) finish_block(sums);
}
