/* The inside of a training job. */
#ifndef HDI_JOBS_TRAIN_TRAIN_H
#define HDI_JOBS_TRAIN_TRAIN_H

#include "io/checkpoint.h"
#include "jobs/config.h"
#include "jobs/train/run_files.h"
#include "jobs/train/trainer.h"
#include "jobs/train/trainer_search.h"
#include "jobs/train/video_buckets.h"

#include <heddle/job.h>
#include <heddle/model.h>

/* Where the writer fetches a piece from. */
typedef struct hdi_train_source hdi_train_source;
struct hdi_train_source {
    hd_trainer *trainer; /* borrowed */
    hdi_trainer_part part;
    const float *device;    /* NULL: the part's values, as hdi_trainer_read makes them */
    hdi_train_source *next; /* owned */
};

/* What a training reads: text, or videos. */
typedef struct hdi_train_feed hdi_train_feed;
struct hdi_train_feed {
    uint64_t fingerprint; /* of the data */
    double entropy;  /* nats per token of what knows nothing but frequencies; NaN: no such thing */
    int64_t samples; /* to train on that were consumed so far; a resume sets it */

    /* Once, before the first step, which is the trainer's next. */
    hd_status (*start)(hdi_train_feed *feed, const hd_trainer *trainer);

    /* Have the inputs of a step ready, whose shape *shape is; `end` says that it is over. `ahead`, while the
     * device computes the step, gets those of the next one; NULL: nothing to do. */
    hd_status (*begin)(hdi_train_feed *feed, int64_t step, int *shape);
    void (*ahead)(hdi_train_feed *feed);
    void (*end)(hdi_train_feed *feed, const hd_trainer_shape *shape);

    /* The same for part `part` of a validation, counted from 0; *shape < 0: there are no more. */
    hd_status (*validate)(hdi_train_feed *feed, int part, int *shape);

    hd_feed_fn fill; /* `user` is the feed */
    double (*tokens)(const hdi_train_feed *feed,
                     int shape); /* of a step; NULL: as the loss counts */
    void (*destroy)(hdi_train_feed *feed);
};

/* What a training run holds, in the order in which it is made. */
typedef struct hdi_train_job {
    const hd_config *config;
    hd_comm *world;
    hd_mesh *mesh;
    hd_context *context;
    hd_model *model;
    hdi_train_feed *feed;
    hd_trainer *trainer;
    hdi_run_files files;
    hdi_checkpoint_writer *writer;
    hdi_train_source
        *sources; /* of what the writer saves and does not find in host memory; owned */
    hdi_trace *trace;

    /* Of a traced run, a rank's mean: the last step's, and the sums over all but the first. */
    hdi_exposed exposed, exposed_sums;
    int64_t exposed_steps;

    uint64_t seed;
    bool records_lost; /* the last record of metrics.jsonl could not be written */
    double logs_next;  /* when log.txt gets its next line on progress */
    bool alone;        /* this rank failed where the others cannot know of it */
} hdi_train_job;

/* What a trainer is made for; all borrowed. */
typedef struct hdi_train_target {
    const hd_config *config;
    hd_model *model;
    const hd_mesh *mesh; /* may be fake */
    const hd_backend *backend;
    size_t foreign;      /* bytes of the device that others take */
    size_t transport;    /* and communicators */
    bool remedy;         /* look for settings that fit, for the message */
    int64_t activations; /* as another rank has them, for hdi_trainer_adopt; zero: to be chosen */
    bool in_turn;        /* so is the update, as that of another rank */
    hdi_searches *searches; /* of the ranks before, of a fake mesh; NULL: this one's alone */
} hdi_train_target;

/* The trainer that the configuration asks for; `buckets` of video models, NULL for others. */
hd_status hdi_train_create(const hdi_train_target *on, const hdi_video_buckets *buckets,
                           hd_trainer **out);

/* Text at data.path, in windows. */
hd_status hdi_train_tokens(const hd_config *config, const hd_model *model, hdi_train_feed **out);

/* Videos at data.path, and the trainer for their shapes. Collective over the mesh. */
hd_status hdi_train_videos(const hdi_train_target *on, hdi_train_feed **out_feed,
                           hd_trainer **out_trainer);

/* The buckets that the configuration asks for, with batch sizes that fit; `dataset` may be NULL. Where
 * the mesh is a real one its ranks agree on them. Collective over it. */
hd_status hdi_train_buckets(const hdi_train_target *on, const hdi_video_dataset *dataset,
                            hdi_video_buckets *out);

/* Make the writer for everything that the trainer holds. Collective. */
hd_status hdi_train_open_writer(hdi_train_job *job);

/* train_exposed.c: of a traced run, for how much of a step the devices stood. Begin: the step begins, before its
 * inputs are ready. Take: at its end; what of its update runs into the next step counts there. Record: up to
 * HDI_TRAIN_EXPOSED fields, and their number. Sum up: shares of the whole run. Take is collective. */
enum { HDI_TRAIN_EXPOSED = 4 };
hd_status hdi_train_begin_step(hdi_train_job *job);
hd_status hdi_train_take_exposed(hdi_train_job *job);
int hdi_train_record_exposed(const hdi_train_job *job, hdi_metric *fields);
void hdi_train_sum_up_exposed(const hdi_train_job *job, hd_train_result *out);

/* train_memory.c: what was in use, into the result and metrics.jsonl. Collective. */
hd_status hdi_train_sum_up_memory(hdi_train_job *job, hd_train_result *out);

/* Rank 0: a line of metrics.jsonl. A full disk may cost records, with one warning, but not the run. */
void hdi_train_keep_record(hdi_train_job *job, const hdi_metric *record, int count);

/* Save now, as of the trainer's steps. Collective. */
hd_status hdi_train_save(hdi_train_job *job);

/* Take up the newest good checkpoint of the run, if the configuration says so and there is one.
 * Collective. */
hd_status hdi_train_resume(hdi_train_job *job);

/* Start from model.weights, if given. Collective. */
hd_status hdi_train_load_weights(hdi_train_job *job);

#endif
