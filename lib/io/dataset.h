/* Datasets: text or llm.c shards as windows of tokens, shuffled by a function of the seed alone, so
 * that what step N sees does not depend on the ranks. Everything here is Local. */
#ifndef HDI_IO_DATASET_H
#define HDI_IO_DATASET_H

#include <heddle/status.h>

typedef struct hdi_dataset hdi_dataset;

typedef enum hdi_dataset_split { HDI_DATASET_TRAIN, HDI_DATASET_VALIDATION } hdi_dataset_split;

typedef struct hdi_dataset_options {
    /* A file: its bytes are the tokens. A folder: the bytes of all text files below it, by sorted
     * resolved path, each once. llm.c `.bin` shards: their tokens. A pattern (data/train_*.bin), or
     * several of these files separated by commas: one after the other. */
    const char *path;
    int64_t seq_len;            /* a window is seq_len + 1 tokens */
    int64_t vocab_size;         /* tokens must be smaller; bytes want 256 at least */
    double validation_fraction; /* of the windows, from the end, at least one; zero: none */
} hdi_dataset_options;

typedef struct hdi_dataset_info {
    const char *name;   /* the path given; borrowed from the dataset */
    int files, skipped; /* files used; binary files and dead links passed over */
    bool is_bytes;      /* tokens are byte values */
    int64_t tokens;     /* in all files, those beyond the last whole window too */
    int64_t windows[2]; /* by hdi_dataset_split */
    int64_t seq_len, vocab_size;
} hdi_dataset_info;

/* Open the files and cut the windows. HD_ERROR_IO: missing or unreadable. HD_ERROR_FORMAT: empty,
 * or a `.bin` whose header or size is wrong. HD_ERROR_CONFIG: too short for a window, or a
 * vocabulary that is too small. Text of a folder is held in memory; files are read as needed. */
hd_status hdi_dataset_open(const hdi_dataset_options *options, hdi_dataset **out);
void hdi_dataset_close(hdi_dataset *dataset); /* takes NULL */

void hdi_dataset_get_info(const hdi_dataset *dataset, hdi_dataset_info *out);

/* Number of the window, among those of its split, that is sample `sample`. Training visits all
 * windows once per epoch, each epoch in another order; validation has one order for ever, whatever
 * the seed, and starts over at its end. `sample` >= 0, and the split has windows. */
int64_t hdi_dataset_window_at(const hdi_dataset *dataset, hdi_dataset_split split, uint64_t seed,
                              int64_t sample);

/* Copy the window of sample `sample` to out[seq_len + 1]. Allocates nothing; thread-safe.
 * HD_ERROR_FORMAT: a token outside the vocabulary. HD_ERROR_IO: the file shrank or failed. Both
 * name the file and the offset. */
hd_status hdi_dataset_window(const hdi_dataset *dataset, hdi_dataset_split split, uint64_t seed,
                             int64_t sample, int32_t *out);

/* Entropy of single tokens over the training part, in nats per token: the loss of a model that
 * knows how frequent tokens are and nothing else. Both read all tokens of up to 2^26, and 1024
 * evenly spaced pieces of 2^16 tokens of anything larger. */
hd_status hdi_dataset_entropy(const hdi_dataset *dataset, double *out);

/* XXH3 of the tokens and their number, equal on ranks that see the same data. */
hd_status hdi_dataset_fingerprint(const hdi_dataset *dataset, uint64_t *out);

#endif
