/* The inside of a trainer. */
#ifndef HDI_JOBS_TRAIN_TRAINER_H
#define HDI_JOBS_TRAIN_TRAINER_H

#include "ops/update.h"
#include "parallel/data.h"
#include "parallel/pipeline.h"
#include "parallel/schedule.h"
#include "program/layout.h"
#include "program/plan.h"

#include <heddle/trainer.h>

/* A parameter of the whole model, in the order in which stages declare it. */
typedef struct hdi_global_parameter {
    char *name; /* owned */
    int64_t elements, first_block;
    int *stages; /* virtual stages that use it, ascending, owned */
    int stage_count, stage_capacity;
} hdi_global_parameter;

/* The whole model's facts, found by building it part by part. */
typedef struct hdi_census {
    hdi_global_parameter *parameters;
    int count, capacity;
    hdi_names by_name;   /* of parameters */
    int64_t blocks;      /* of HDI_BLOCK_ELEMENTS, over all parameters */
    double *layer_costs; /* [layers] FLOPs of forward and backward, about; owned */
    double first_cost, last_cost;
    int *stage_layers; /* [virtual stages] owned */
} hdi_census;

/* Exchange of a parameter's gradient between the pipeline ranks that hold it. */
typedef struct hdi_tie {
    int parameter; /* of the census */
    int members;
    int64_t *send_counts, *send_offsets, *recv_counts,
        *recv_offsets; /* [pipeline], one block, owned */
} hdi_tie;

/* The programs of one shape. Those of shape 0 say where parameters and gradients lie. */
typedef struct hdi_trainer_shape {
    hd_trainer_shape is;
    hd_dtype x_dtype; /* of the tensor between stages */
    int x_rank;
    int64_t x_dims[HD_MAX_DIMS];
    hdi_schedule *schedule;
    hdi_pipeline_chunk *train, *validate; /* [chunks], programs owned */
    hdi_pipeline *train_run, *validate_run;
} hdi_trainer_shape;

/* A run of this rank's weights that is updated at once; all of it in one bucket. */
typedef struct hdi_update_chunk {
    int bucket;
    int64_t first, elements; /* of the flat weights */
    int64_t state_first;     /* of the flat optimizer state */
    int first_piece, pieces; /* of update_pieces */
} hdi_update_chunk;

struct hd_trainer {
    hd_trainer_options options;
    int pipeline, stage, chunks;
    bool cuts_blocks; /* of the layout */
    hdi_census census;
    hdi_trainer_shape *shapes; /* [shape_count], owned */
    int shape_count;
    hdi_schedule *validate_schedule;
    hdi_tie *ties;
    int tie_count, tie_capacity;
    int64_t *alike_counts; /* of exchanges on the tensor axis; owned */
    hdi_piece *square_pieces, *update_pieces;
    int square_count, square_capacity, update_count, update_capacity;
    hdi_update_chunk *update_chunks;
    int chunk_count, chunk_capacity;
    hd_program *norm, *update; /* owned */
    hd_tensor squares, scalars;
    hd_tensor average_share; /* input of `update`: 1 - decay; invalid without an average */
    hd_plan *plan;

    hd_session *session;
    hdi_spans *spans; /* of a trace, owned; or NULL */
    void (*meanwhile)(
        void *user);      /* called while the device computes a step, or NULL; fails in silence */
    void *meanwhile_user; /* borrowed */
    double *losses;       /* [2 * most micro-batches * replicas]: sum and count; owned */
    double *square_sums;  /* [blocks] */
    int64_t steps;        /* taken, skipped ones included */
    int64_t updates;      /* applied: AdamW's t */
    double loss_scale;    /* of the next step; 1 unless F16 */
    int64_t clean_steps;  /* since the scale changed */
};

/* hd_trainer_create where trainer_choice.c has decided what was AUTO. `cuts_blocks`: buckets end where blocks
 * do even if no block is on the host. */
hd_status hdi_trainer_create_as(const hd_trainer_options *options, bool cuts_blocks,
                                hd_trainer **out);

/* trainer_slices.c: whether slices, of the loss or MLPs, may be AUTO where they are; and the same as create_as, with
 * as few of the loss as fit where these are AUTO. */
hd_status hdi_trainer_check_slices(const hd_trainer_options *options);
hd_status hdi_trainer_create_sliced(const hd_trainer_options *options, bool cuts_blocks,
                                    hd_trainer **out);

/* trainer_choice.c: which activations a trainer does not keep, as a number that is larger for later kinds, for
 * MLPs in more slices and for more blocks; and a trainer that has what such a number says, or, where that does
 * not fit, all blocks of the kind, and then the most slices. Ranks of one data rank and stage must have the same:
 * their collectives of the forward run again in recomputed blocks, and slices change their order. */
int64_t hdi_trainer_activations_code(const hd_trainer *trainer);
hd_status hdi_trainer_adopt(const hd_trainer_options *options, int64_t code, hd_trainer **out);

/* trainer_choice.c: of one whose update goes on beside the next step, and where its blocks are then; zero: it does
 * not. Ranks that gather what it changes post in one order because they wait at the same places: those that share
 * state must have the same, or their updates take turns with the rest, as this trainer's then does. */
int64_t hdi_trainer_overlap_code(const hd_trainer *trainer);
hd_status hdi_trainer_take_turns(hd_trainer **inout);

/* trainer_census.c: learn parameters, costs and the boundary; cut the layers into stages. */
hd_status hdi_census_take(hd_trainer *trainer);
void hdi_census_release(hdi_census *census);
const hdi_global_parameter *hdi_census_find(const hdi_census *census, const char *name);

/* trainer_trace.c: from here on steps are in `trace`, which is borrowed, once they are settled; and a span of
 * the step, as hdi_spans_record has it. */
hd_status hdi_trainer_start_trace(hd_trainer *trainer, hdi_trace *trace);
hd_status hdi_trainer_record(hd_trainer *trainer, const char *name, hdi_trace_category category,
                             hdi_moment *inout);

/* trainer_programs.c: one chunk's program for a purpose, with its backward when training. */
hd_status hdi_trainer_build_chunk(hd_trainer *trainer, int shape, int chunk, hd_purpose purpose,
                                  hdi_pipeline_chunk *out);

/* Blocks of this rank's stages. */
int hdi_trainer_layers(const hd_trainer *trainer);

/* Inputs, losses and squares of a finished program are staged where the device lags behind the host. */
void hdi_trainer_set_staged(const hd_trainer *trainer, hd_program *program);

/* Whether this rank's stages read an input of that name when they train on a shape. */
bool hdi_trainer_reads(const hd_trainer *trainer, int shape, const char *name);

/* trainer_update.c: what of the layout this rank works on; then the norm and update programs, the second
 * by trainer_chunks.c. */
hd_status hdi_trainer_cut_pieces(hd_trainer *trainer, const hdi_layout *layout);
hd_status hdi_trainer_build_update(hd_trainer *trainer, const hdi_layout *layout);
hd_status hdi_trainer_build_chunks(hd_trainer *trainer, const hdi_layout *layout);

/* Is the optimizer's state in pinned host memory? */
static inline bool hdi_trainer_on_host(const hd_trainer *trainer)
{
    return trainer->options.optimizer_residency == HD_RESIDENCY_HOST;
}

/* Which micro-batches are this rank's. Local. */
hdi_deal hdi_trainer_deal(const hd_trainer *trainer);

/* Is the device waited for behind the backward and behind an update that does not go on? Copies of ops from and to
 * the host do not wait for programs before. */
static inline bool hdi_trainer_ends_programs(const hd_trainer *trainer)
{
    return hdi_plan_uses_host(trainer->plan) || trainer->plan->residency.host_blocks;
}

/* Does the update go on while the next step begins? Ranks that gather what it changes all say the same. */
bool hdi_trainer_updates_beside(const hd_trainer_options *decided);

/* What an update copies, and for how long it and the first forward of the next step make each other wait
 * (trainer_choice.c). */
hd_status hdi_trainer_copies_of_update(const hd_trainer *trainer, hdi_copies *out);

/* Predicted, of this rank, in a step of shape 0 in which it waits for no other (trainer_choice.c). */
hd_status hdi_trainer_step_seconds(const hd_trainer *trainer, double *out);

/* Are the sums of gradients? */
static inline bool hdi_trainer_gradients_on_host(const hd_trainer *trainer)
{
    return trainer->options.gradient_residency == HD_RESIDENCY_HOST;
}

/* May they be? Of several ranks each adds up its share. */
static inline bool hdi_trainer_gradients_may_leave(const hd_trainer_options *options)
{
    return hd_mesh_size(options->mesh, HD_AXIS_REPLICA) == 1 || options->shard_state >= 2;
}

/* In program `norm`, a range of the stored gradients on the device, of those on the host a copy; which,
 * if it was changed, goes back to where it is kept. */
hd_tensor hdi_trainer_take(const hd_trainer *trainer, int64_t first, int64_t elements);
void hdi_trainer_give_back(const hd_trainer *trainer, int64_t first, int64_t elements,
                           hd_tensor copy);

/* trainer_alike.c: in the norm program, sums over the tensor axis. */
hd_status hdi_trainer_sum_alike(hd_trainer *trainer, const hdi_layout *layout);

/* Pipeline rank of a virtual stage. */
static inline int hdi_trainer_rank_of(const hd_trainer *trainer, int virtual_stage)
{
    return virtual_stage % trainer->pipeline;
}

/* The first pipeline rank that holds a parameter speaks for it, and of what all ranks of the tensor axis
 * have the first: norms and checkpoints. */
bool hdi_trainer_speaks_for(const hd_trainer *trainer, const hdi_entry *entry);

/* trainer_master.c: fp32 values whatever the dtype of the weights. */

/* First values of all weights and of what is kept behind them. */
hd_status hdi_trainer_initialize(hd_trainer *trainer, uint64_t seed);

/* Give elements of a parameter these values, between steps; host memory. */
hd_status hdi_trainer_write(hd_trainer *trainer, const hdi_entry *entry, int64_t begin,
                            int64_t count, const float *values);

/* Make the average of the weights equal to them, if there is one. */
hd_status hdi_trainer_reset_average(hd_trainer *trainer);

/* Device addresses: of weights from flat position `first`, of optimizer state in fp32 elements, and
 * of the values behind weights whose state begins at `state`; NULL where weights and remainders make
 * them. */
char *hdi_trainer_weights(const hd_trainer *trainer, int64_t first);
float *hdi_trainer_state(const hd_trainer *trainer, int64_t element);
float *hdi_trainer_values(const hd_trainer *trainer, int64_t first, int64_t state);

/* The optimizer region holds m, v, what is kept behind 16-bit weights and the weights' average, in
 * fp32 elements. */
static inline int64_t hdi_trainer_master_first(const hdi_layout *layout)
{
    return 2 * layout->optimizer_elements;
}

static inline int64_t hdi_trainer_average_first(const hd_trainer *trainer, const hdi_layout *layout)
{
    const int64_t each = layout->optimizer_elements; /* a multiple of HDI_FLAT_ALIGNMENT */
    if (trainer->options.dtype == HD_DTYPE_F32) return 2 * each;
    return 2 * each + (trainer->options.master == HD_MASTER_REMAINDER ? each / 2 : each);
}

/* This rank's part of what a checkpoint holds: flat runs of parameters. Called once per run;
 * values, m and v are device addresses, values only where m is given, and NULL where weights and
 * remainders make them. Stops at the first error. */
typedef struct hdi_trainer_part {
    const hdi_entry *entry;
    int64_t begin, count; /* elements of the parameter */
    float *values, *m, *v;
    float *average; /* NULL where m is, and without an average */
} hdi_trainer_part;
typedef hd_status (*hdi_trainer_part_fn)(void *user, const hdi_trainer_part *part);

/* Values of elements first .. first + count of a part that has m, to host memory, between steps. */
hd_status hdi_trainer_read(hd_trainer *trainer, const hdi_trainer_part *part, int64_t first,
                           int64_t count, float *out);

/* Parts that this rank saves: every element of the model once over all ranks. */
hd_status hdi_trainer_saved_parts(hd_trainer *trainer, hdi_trainer_part_fn visit, void *user);

/* Parts that this rank needs back: whole parameters, m and v NULL where it holds no state. */
hd_status hdi_trainer_loaded_parts(hd_trainer *trainer, hdi_trainer_part_fn visit, void *user);

#endif
