/* manifest.json of a checkpoint: what makes a folder of shards a whole checkpoint.
 *
 * The text begins with {"xxh3": "<16 digits>", and that sum covers every byte after it, so that any
 * flipped bit or cut is found before the JSON is believed. */
#ifndef HDI_IO_MANIFEST_H
#define HDI_IO_MANIFEST_H

#include <heddle/status.h>

#define HDI_MANIFEST_NAME "manifest.json"

/* The shard that a rank writes. */
typedef struct hdi_manifest_file {
    int64_t bytes;
    uint64_t *sums; /* [hdi_block_count(bytes)] */
} hdi_manifest_file;

typedef struct hdi_manifest {
    int64_t step;
    char *state; /* JSON object text, owned when read */
    hdi_manifest_file *files;
    int count;
} hdi_manifest;

/* A text that grows; kept from save to save so that a save allocates nothing new. */
typedef struct hdi_manifest_text {
    char *data;
    size_t length, capacity;
} hdi_manifest_text;

/* "rank-R.safetensors". */
void hdi_manifest_file_name(int rank, char out[32]);

/* Room for at least `bytes`. */
hd_status hdi_manifest_reserve(hdi_manifest_text *text, size_t bytes);

/* Bytes that the text of a manifest may take, the state's text aside. */
size_t hdi_manifest_bound(const hdi_manifest *manifest);

/* Make the text. HD_ERROR_ARGUMENT if manifest->state is no JSON object. */
hd_status hdi_manifest_format(const hdi_manifest *manifest, hdi_manifest_text *inout);

/* Read and check a manifest; destroy it by hdi_manifest_destroy. */
hd_status hdi_manifest_read(const char *path, hdi_manifest *out);
void hdi_manifest_destroy(hdi_manifest *manifest);

#endif
