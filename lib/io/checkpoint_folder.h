/* Names inside a folder of checkpoints. */
#ifndef HDI_IO_CHECKPOINT_FOLDER_H
#define HDI_IO_CHECKPOINT_FOLDER_H

#include "core/file.h"
#include "io/checkpoint.h"

/* What a name stands for:
 * step-N      a committed checkpoint
 * step-N.old  the same, being replaced by a new save of the same step
 * step-N.tmp  a save under way, or one that died
 * step-N.del  being removed */
typedef enum hdi_step_kind {
    HDI_STEP_NONE,
    HDI_STEP_WHOLE,
    HDI_STEP_OLD,
    HDI_STEP_TEMPORARY,
    HDI_STEP_REMOVED
} hdi_step_kind;

typedef struct hdi_step_name {
    int64_t step;
    hdi_step_kind kind;
} hdi_step_name;

typedef struct hdi_step_list {
    hdi_step_name *steps; /* newest first, whole before old; owned */
    int count, capacity;
} hdi_step_list;

hdi_step_name hdi_step_name_parse(const char *name);

/* "FOLDER/step-N" with the ending of the kind; HD_ERROR_IO if it is too long. */
hd_status hdi_step_path(const char *folder, hdi_step_name name, char out[HDI_PATH_BYTES]);

/* All names of any kind but HDI_STEP_NONE. hdi_free(out->steps). */
hd_status hdi_step_list_read(const char *folder, hdi_step_list *out);

/* Remove in a way that is safe to interrupt: rename to step-N.del first. */
hd_status hdi_step_remove(const char *folder, hdi_step_name name);

/* Remove what dead saves and dead removals left, and settle each step-N.old: it goes if step-N
 * verifies, else it takes its place. Not while another process saves there. */
hd_status hdi_step_sweep(const char *folder);

/* Open the checkpoint in exactly this folder. */
hd_status hdi_checkpoint_open_step(const char *folder, const hdi_checkpoint_options *options,
                                   hdi_checkpoint **out);

#endif
