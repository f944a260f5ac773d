/* The inside of a training job. */
#ifndef HDI_JOBS_TRAIN_H
#define HDI_JOBS_TRAIN_H

#include "io/checkpoint.h"
#include "io/dataset.h"
#include "jobs/config.h"
#include "jobs/run_files.h"
#include "jobs/trainer.h"

#include <heddle/model.h>

/* A host copy of a run of device memory. */
typedef struct hdi_mirror {
    const void *device;
    void *host;
    size_t bytes;
} hdi_mirror;

/* What a training run holds, in the order in which it is made. */
typedef struct hdi_train_job {
    const hd_config *config;
    hd_comm *world;
    hd_mesh *mesh;
    hd_context *context;
    hd_model *model;
    hdi_dataset *dataset;
    hd_trainer *trainer;
    hdi_run_files files;
    hdi_checkpoint_writer *writer;
    hdi_mirror *mirrors; /* of what the writer saves, where that is on a device; owned */
    int mirror_count, mirror_capacity;
    hdi_trace *trace;

    int64_t micro_batch, tokens; /* sequences, and tokens of each */
    int64_t samples;             /* of the training data consumed so far */
    uint64_t seed, fingerprint;
    double entropy;
    int32_t *window;   /* tokens + 1; owned */
    bool records_lost; /* the last record of metrics.jsonl could not be written */
    bool alone;        /* this rank failed where the others cannot know of it */
} hdi_train_job;

/* The trainer that the configuration asks for; mesh and model are the caller's. `foreign`: bytes of
 * the device that others take. */
hd_status hdi_train_create(const hd_config *config, hd_model *model, const hd_mesh *mesh,
                           const hd_backend *backend, size_t foreign, hd_trainer **out);

/* Make the writer for everything that the trainer holds. Collective. */
hd_status hdi_train_open_writer(hdi_train_job *job);

/* Save now, as of the trainer's steps. Collective. */
hd_status hdi_train_save(hdi_train_job *job);

/* Take up the newest good checkpoint of the run, if the configuration says so and there is one.
 * Collective. */
hd_status hdi_train_resume(hdi_train_job *job);

/* Start from model.weights, if given. Collective. */
hd_status hdi_train_load_weights(hdi_train_job *job);

#endif
