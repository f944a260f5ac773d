/* A long run of tokens from one or more files: what a dataset cuts windows from. */
#ifndef HDI_IO_TOKEN_SOURCE_H
#define HDI_IO_TOKEN_SOURCE_H

#include <heddle/status.h>

/* Consecutive tokens of one file. */
typedef struct hdi_token_segment {
    char *path;      /* owned */
    char *data;      /* owned: the file's bytes; NULL: they are read from the file */
    int file;        /* open descriptor, owned, if `data` is NULL */
    int token_bytes; /* 1, 2 or 4; unsigned, little-endian */
    int64_t offset;  /* bytes before the first token */
    int64_t first;   /* number of the first token in the source */
    int64_t count;
} hdi_token_segment;

/* Zeroed is empty. */
typedef struct hdi_token_source {
    hdi_token_segment *segments;
    int count, capacity;
    int skipped;        /* files passed over in folders */
    int64_t tokens;     /* of all segments */
    int64_t vocab_size; /* reading refuses tokens that reach it */
} hdi_token_source;

/* Fill an empty source from `path`, as hdi_dataset_options says. */
hd_status hdi_token_source_open(hdi_token_source *source, const char *path);
void hdi_token_source_close(hdi_token_source *source); /* takes a half-filled one */

/* Copy tokens first .. first + count - 1 to `out`. Allocates nothing. */
hd_status hdi_token_source_read(const hdi_token_source *source, int64_t first, int64_t count,
                                int32_t *out);

/* Append a segment, taking its path, data and descriptor over even on failure. Sets `first`. */
hd_status hdi_token_source_append(hdi_token_source *source, hdi_token_segment *segment);

/* Append all text files below a folder, held in memory. */
hd_status hdi_token_source_append_folder(hdi_token_source *source, const char *path);

/* Set a segment's geometry from the header of an llm.c shard of `file_bytes` bytes. */
hd_status hdi_token_segment_read_header(hdi_token_segment *segment, int64_t file_bytes);

#endif
