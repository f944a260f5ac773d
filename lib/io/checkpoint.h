/* Checkpoints: folders step-N that are whole or absent, readable onto any layout.
 *
 * A checkpoint holds global tensors as flat element ranges ("pieces"). Each rank writes its pieces to
 * step-N.tmp/rank-R.safetensors, as tensors named "name[begin:end/elements]", or, where ranks have
 * columns of a matrix, "name[begin:end/elements,first+width/columns]": elements begin to end of the
 * matrix of those columns alone. Rank 0 then writes
 * manifest.json with the sizes and sums of all files and renames the folder to step-N. Reading
 * gathers any range of a tensor from whatever pieces cover it and checks each 16 MiB block that it
 * touches against its sum. */
#ifndef HDI_IO_CHECKPOINT_H
#define HDI_IO_CHECKPOINT_H

#include <heddle/comm.h>

typedef struct hdi_checkpoint_writer hdi_checkpoint_writer;
typedef struct hdi_checkpoint hdi_checkpoint;

/* Elements first .. first + count of a piece that is not in host memory, to `out`. */
typedef hd_status (*hdi_checkpoint_fetch_fn)(void *user, int64_t first, int64_t count, void *out);

typedef struct hdi_checkpoint_piece {
    const char *name; /* of the global tensor; copied */
    hd_dtype dtype;
    int64_t global_elements;
    int64_t begin, count; /* this rank's elements; over all ranks they tile the tensor once */
    int64_t first, width, columns; /* of a matrix of `columns`; zeros: all columns */
    const void *data; /* [count], read at every save; borrowed for the writer's life; or NULL: */
    hdi_checkpoint_fetch_fn fetch;
    void *user; /* of fetch; borrowed as data is */
} hdi_checkpoint_piece;

/* Prepare to save these pieces under `folder` (made if missing), keeping the newest `keep`
 * checkpoints that verify (zero means 2). Left-overs of saves that died are removed. `comm` may be
 * NULL for one rank, else it is borrowed and must outlive the writer. Collective. */
hd_status hdi_checkpoint_writer_create(hd_comm *comm, const char *folder, int keep,
                                       const hdi_checkpoint_piece *pieces, int count,
                                       hdi_checkpoint_writer **out);
void hdi_checkpoint_writer_destroy(hdi_checkpoint_writer *writer); /* Local; takes NULL */

/* Save as step-`step` in two phases. `state` is a JSON object, that of rank 0 is kept. On failure
 * every rank gets a failing status, earlier checkpoints are as they were and step-N.tmp is gone.
 * After the first save, nothing is allocated that grows with the checkpoint. Collective. */
hd_status hdi_checkpoint_save(hdi_checkpoint_writer *writer, int64_t step, const char *state);

/* What went wrong after the last save was safe (an old folder that could not be removed), "" if
 * nothing did. Rank 0 knows. Local. */
const char *hdi_checkpoint_writer_warning(const hdi_checkpoint_writer *writer);

/* Bytes of one checkpoint over all ranks, the manifest aside. Local. */
int64_t hdi_checkpoint_writer_bytes(const hdi_checkpoint_writer *writer);

typedef struct hdi_checkpoint_options {
    bool verify_all; /* check every block of every file before a checkpoint is chosen */
} hdi_checkpoint_options;

/* Open the newest checkpoint that verifies: manifest, sizes, headers, no hole or overlap in any
 * tensor. `path` is a folder of checkpoints, a run's folder with checkpoints/ in it, or one step-N.
 * Damaged ones are passed over; *out_warning then says which and why, else it is NULL; free it by
 * hdi_free. `options` may be NULL. HD_ERROR_IO if there is no checkpoint at all. Local. */
hd_status hdi_checkpoint_open(const char *path, const hdi_checkpoint_options *options,
                              char **out_warning, hdi_checkpoint **out);

/* The same on all ranks: rank 0 chooses, the others open what it chose. Collective. */
hd_status hdi_checkpoint_open_all(hd_comm *comm, const char *path,
                                  const hdi_checkpoint_options *options, char **out_warning,
                                  hdi_checkpoint **out);
void hdi_checkpoint_close(hdi_checkpoint *checkpoint); /* Local; takes NULL */

/* True if hdi_checkpoint_open would find a folder step-N to try. Local. */
bool hdi_checkpoint_exists(const char *path);

const char *hdi_checkpoint_folder(const hdi_checkpoint *checkpoint); /* .../step-N */
int64_t hdi_checkpoint_step(const hdi_checkpoint *checkpoint);
const char *hdi_checkpoint_state(const hdi_checkpoint *checkpoint); /* JSON object text */
int hdi_checkpoint_file_count(const hdi_checkpoint *checkpoint);    /* ranks that wrote it */
int64_t hdi_checkpoint_bytes(const hdi_checkpoint *checkpoint);

/* A global tensor, with how many pieces it is stored in. */
typedef struct hdi_checkpoint_tensor {
    const char *name;
    hd_dtype dtype;
    int64_t elements;
    int first_piece, pieces;
} hdi_checkpoint_tensor;

/* Tensors by name order; find gives NULL for a name that is not there. Borrowed. Local. */
int hdi_checkpoint_count(const hdi_checkpoint *checkpoint);
const hdi_checkpoint_tensor *hdi_checkpoint_get(const hdi_checkpoint *checkpoint, int index);
const hdi_checkpoint_tensor *hdi_checkpoint_find(const hdi_checkpoint *checkpoint,
                                                 const char *name);

/* Elements begin .. begin + count of a tensor, which must have this dtype, into out [count]. Reads
 * only what is needed, in whole blocks the first time a block is met. HD_ERROR_FORMAT when a block
 * does not match its sum. Local; one thread at a time. */
hd_status hdi_checkpoint_read(hdi_checkpoint *checkpoint, const char *name, int64_t begin,
                              int64_t count, hd_dtype dtype, void *out);

/* Check every block of every file against its sum. Local. */
hd_status hdi_checkpoint_verify(hdi_checkpoint *checkpoint);

#endif
