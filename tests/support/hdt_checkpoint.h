/* Checkpoints to save, damage and compare: two tensors whose values tell the step. */
#ifndef HDT_CHECKPOINT_H
#define HDT_CHECKPOINT_H

#include "core/file.h"
#include "io/checkpoint.h"
#include "tests/support/hdt.h"

enum { HDT_ELEMENTS = 3000, HDT_BYTES = 700 };
extern float hdt_weights[HDT_ELEMENTS]; /* tensor "weights/a", in three pieces */
extern uint8_t hdt_flags[HDT_BYTES];    /* tensor "flags", in two */

/* Data that tells its step from any other's. */
void hdt_checkpoint_fill(int64_t step);

/* The path of a folder that is not there yet. Borrowed. */
const char *hdt_checkpoint_folder(void);

/* A writer of the tensors above, on one rank. */
hdi_checkpoint_writer *hdt_checkpoint_writer(const char *folder, int keep);

/* Fill and save. */
hd_status hdt_checkpoint_save(hdi_checkpoint_writer *writer, int64_t step);

/* Open the newest; it must be `step` and hold exactly that step's data, and the warning must have
 * this in it (NULL: there must be none). */
void hdt_assert_newest(const char *folder, int64_t step, bool verify_all, const char *warning);

/* "folder/name", borrowed until the next call; and whether it is there. */
const char *hdt_inside(const char *folder, const char *name);
bool hdt_is_inside(const char *folder, const char *name);

#endif
