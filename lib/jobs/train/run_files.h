/* The run directory: where it is, its logs, metrics and pictures. */
#ifndef HDI_JOBS_TRAIN_RUN_FILES_H
#define HDI_JOBS_TRAIN_RUN_FILES_H

#include "jobs/config.h"
#include "jobs/train/trainer.h"
#include "report/metrics.h"

typedef struct hdi_run_files {
    char *directory, *checkpoints; /* owned */
    int rank;
    int log, rank_log;    /* descriptors, -1 if closed; log on rank 0 only */
    hdi_metrics *metrics; /* rank 0 only */
} hdi_run_files;

/* Make the directory and open the logs: log.txt on rank 0, ranks/NNNN.log for warnings of every
 * rank. Collective over `world`. */
hd_status hdi_run_files_open(const hd_config *config, hd_comm *world, hdi_run_files *out);
void hdi_run_files_close(hdi_run_files *files); /* takes a zeroed one */

/* Rank 0: open metrics.jsonl, dropping records of steps after `resumed`, and write config.json. */
hd_status hdi_run_files_start(hdi_run_files *files, const hd_config *config, int64_t resumed);

/* Rank 0: loss.svg from metrics.jsonl, with the corpus' entropy as the level to beat. */
hd_status hdi_run_files_loss_curve(const hdi_run_files *files, double entropy);

/* A path in the run directory; owned by the caller, NULL when memory is out. */
char *hdi_run_files_path(const hdi_run_files *files, const char *name);

#endif
