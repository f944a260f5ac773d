/* safetensors files: a reader that trusts nothing in the file, and a streaming writer.
 *
 * A file is 8 bytes of header length (little endian), a JSON header, and the tensors' bytes without
 * gaps. Files come from strangers: every size is checked before it is used, content errors are
 * HD_ERROR_FORMAT and name file, tensor, value seen and value wanted. All calls are Local. */
#ifndef HDI_IO_SAFETENSORS_H
#define HDI_IO_SAFETENSORS_H

#include <heddle/dtype.h>
#include <heddle/program.h>

#include "io/block_sums.h"

enum {
    HDI_SAFETENSORS_NAME_BYTES = 4096,        /* longest tensor name */
    HDI_SAFETENSORS_HEADER_BYTES = 16 << 20,  /* longest header unless the caller allows more */
    HDI_SAFETENSORS_HEADER_LIMIT = 100000000, /* longest header of the format */
};

typedef struct hdi_safetensors hdi_safetensors;

typedef struct hdi_safetensors_tensor {
    const char *name;
    hd_dtype dtype;
    int rank;
    int64_t dims[HD_MAX_DIMS];
    int64_t elements;
    int64_t begin, bytes; /* begin counts from the first byte after the header */
} hdi_safetensors_tensor;

/* Open for reading. The file is read by pread, never mapped: one that shrinks gives an error. */
hd_status hdi_safetensors_open(const char *path, hdi_safetensors **out);

/* The same on an open descriptor, which becomes the file's even on failure. `path` is for messages;
 * headers longer than `max_header_bytes` (zero: 16 MiB) are refused. */
hd_status hdi_safetensors_open_descriptor(int descriptor, const char *path,
                                          int64_t max_header_bytes, hdi_safetensors **out);
void hdi_safetensors_close(hdi_safetensors *file); /* takes NULL */

const char *hdi_safetensors_path(const hdi_safetensors *file);
int64_t hdi_safetensors_file_bytes(const hdi_safetensors *file);
int64_t hdi_safetensors_data_offset(const hdi_safetensors *file); /* header's end */

/* Tensors in the order of their bytes, borrowed from the file. */
int hdi_safetensors_count(const hdi_safetensors *file);
const hdi_safetensors_tensor *hdi_safetensors_get(const hdi_safetensors *file, int index);
const hdi_safetensors_tensor *hdi_safetensors_find(const hdi_safetensors *file, const char *name);

/* A value of the file's metadata, NULL if the key is absent; all of them by index. Borrowed. */
const char *hdi_safetensors_metadata(const hdi_safetensors *file, const char *key);
int hdi_safetensors_metadata_count(const hdi_safetensors *file);
void hdi_safetensors_metadata_get(const hdi_safetensors *file, int index, const char **out_key,
                                  const char **out_value);

/* Read `bytes` of a tensor from `byte_offset` on. */
hd_status hdi_safetensors_pread(const hdi_safetensors *file, const hdi_safetensors_tensor *tensor,
                                int64_t byte_offset, int64_t bytes, void *out);

/* Read bytes of the file itself, the header included. */
hd_status hdi_safetensors_pread_file(const hdi_safetensors *file, int64_t offset, int64_t bytes,
                                     void *out);

/* Read `count` elements from `first` on as fp32: BF16 and F16 widened exactly, F64 rounded. */
hd_status hdi_safetensors_read_f32(const hdi_safetensors *file,
                                   const hdi_safetensors_tensor *tensor, int64_t first,
                                   int64_t count, float *out);

typedef struct hdi_safetensors_writer hdi_safetensors_writer;

/* Declare tensors and metadata first; prepare fixes the layout and allocates all that writing needs.
 * Then begin, write the tensors' bytes in the order of declaration in pieces of any size, end.
 * begin .. end may be repeated, on any path, without allocating again. */
hd_status hdi_safetensors_writer_create(hdi_safetensors_writer **out);
void hdi_safetensors_writer_destroy(hdi_safetensors_writer *writer); /* takes NULL */
hd_status hdi_safetensors_writer_metadata(hdi_safetensors_writer *writer, const char *key,
                                          const char *value);
hd_status hdi_safetensors_writer_tensor(hdi_safetensors_writer *writer, const char *name,
                                        hd_dtype dtype, int rank, const int64_t *dims);
hd_status hdi_safetensors_writer_prepare(hdi_safetensors_writer *writer);

/* Size of the file to be written; valid after prepare. */
int64_t hdi_safetensors_writer_bytes(const hdi_safetensors_writer *writer);

/* Create or replace the file and write its header. After a failure, and if end is never reached,
 * the file is there and not valid: write to a temporary name and rename where that matters. */
hd_status hdi_safetensors_writer_begin(hdi_safetensors_writer *writer, const char *path);
hd_status hdi_safetensors_writer_write(hdi_safetensors_writer *writer, const void *data,
                                       size_t bytes);

/* Check that all bytes were given, make them durable, close. */
hd_status hdi_safetensors_writer_end(hdi_safetensors_writer *writer);

/* Close without finishing; for failures elsewhere. Does nothing when no file is being written. */
void hdi_safetensors_writer_cancel(hdi_safetensors_writer *writer);

/* Sums of the file's 16 MiB blocks, header included, after end. Borrowed until the next begin. */
const uint64_t *hdi_safetensors_writer_sums(const hdi_safetensors_writer *writer,
                                            int64_t *out_count);

#endif
