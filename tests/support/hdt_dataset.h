/* Datasets of the tests: files in a folder of the test's own. Included by one file per program. */
#ifndef HDT_DATASET_H
#define HDT_DATASET_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "io/dataset.h"
#include "tests/support/hdt.h"

static char folder[4200]; /* of this test, removed after it or, if it failed, with its process */
static hdi_dataset *dataset;

static inline void setup(void)
{
    snprintf(folder, sizeof folder, "%s/XXXXXX", hdt_temp_dir());
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static inline void teardown(void)
{
    hdi_dataset_close(dataset);
    dataset = NULL;
    hdi_remove_tree(folder);
}

/* "folder/name" for the calls below; the text lives until the fourth call after this one. */
static inline const char *in_folder(const char *name)
{
    static char paths[4][4400];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static inline void write_file(const char *name, const void *data, size_t bytes)
{
    FILE *file = fopen(in_folder(name), "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* An llm.c shard whose token i is first + i. */
static inline void write_shard(const char *name, int32_t magic, int32_t version, int32_t promised,
                               int count, uint32_t first)
{
    static char content[1024 + 4 * 4096];
    const int32_t header[3] = {magic, version, promised};
    const int token_bytes = magic == 20240801 ? 4 : 2;
    memset(content, 0, sizeof content);
    memcpy(content, header, sizeof header);
    for (int i = 0; i < count; i++) {
        uint32_t token = first + (uint32_t)i;
        memcpy(content + 1024 + i * token_bytes, &token, (size_t)token_bytes);
    }
    write_file(name, content, 1024 + (size_t)(count * token_bytes));
}

/* A right one of uint16 tokens 0, 1, 2, ... */
static inline void write_counting(int count)
{
    write_shard("s.bin", 20240520, 1, count, count, 0);
}

static inline hd_status open_path(const char *path, int64_t seq_len, int64_t vocab_size,
                                  double fraction)
{
    return hdi_dataset_open(&(hdi_dataset_options){.path = path,
                                                   .seq_len = seq_len,
                                                   .vocab_size = vocab_size,
                                                   .validation_fraction = fraction},
                            &dataset);
}

static inline void open_well(const char *path, int64_t seq_len, int64_t vocab_size, double fraction)
{
    hdt_assert_ok(open_path(path, seq_len, vocab_size, fraction));
}

#endif
