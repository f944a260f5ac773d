/* One training step and one validation of a tiny model on ranks that split its batches, stages, sequences
 * or layers, held against one rank's. */
#ifndef HDT_SPLIT_H
#define HDT_SPLIT_H

#include "jobs/train/trainer.h"

enum { HDT_SPLIT_SEQUENCES = 2, HDT_SPLIT_VALUES = 1 << 19, HDT_SPLIT_PARAMETERS = 192 };

/* Of a micro-batch: HDT_SPLIT_SEQUENCES, or what a test makes it. */
extern int hdt_split_sequences;

/* A model and what it trains on. */
typedef struct hdt_split {
    const char *name, *json;
    int64_t tokens; /* of a sequence; 0: a video of `frames` patches */
    int64_t frames, text;
    int heads;             /* of keys and values */
    int64_t height, width; /* of the video; zero means 2 */
    bool masked;
    int roundings; /* of a row on its way from the tokens to the loss; zero means 8 */
} hdt_split;

/* Models of 5 heads of queries, keys and values, of 6, of 5. */
extern const char hdt_split_gpt2[], hdt_split_hunyuan[], hdt_split_open_sora[];

/* Of this rank's parameters, by their places in whole ones, NAN where another rank has the element. */
typedef struct hdt_split_gradients {
    float values[HDT_SPLIT_VALUES]; /* of all parameters, one after another */
    int64_t firsts[HDT_SPLIT_PARAMETERS], sizes[HDT_SPLIT_PARAMETERS];
    char names[HDT_SPLIT_PARAMETERS][64];
    int parameters;
} hdt_split_gradients;

/* What one step is worth. */
typedef struct hdt_split_outcome {
    double loss, validation, norm;
    hdt_split_gradients gradients; /* none where state is sharded */
    uint64_t weights;              /* after the update */
} hdt_split_outcome;

/* The parts of a training: hd_feed_fn's values for an hdt_split, its only shape, weights that leave no
 * block without effect, gradients after a step, and those against one rank's. */
hd_status hdt_split_feed(void *user, const char *name, int64_t batch, void *out, size_t bytes);
hd_trainer_shape hdt_split_shape(const hdt_split *one, int accumulate);
hd_status hdt_split_set_weights(hd_trainer *trainer);
hd_status hdt_split_read_gradients(hd_trainer *trainer, hdt_split_gradients *out);
void hdt_split_compare_gradients(const hdt_split *one, const char *what, double bound,
                                 const hdt_split_gradients *seen, const hdt_split_gradients *alone);

/* What is done with a trainer that has not started yet, for `out`. */
typedef hd_status (*hdt_split_run)(const hdt_split *one, hd_trainer *trainer, hd_context *context,
                                   void *out);

/* A trainer on `layout` for the time of `run`. Collective over comm. */
hd_status hdt_split_with_trainer(hd_comm *comm, const hdt_split *one, const hd_mesh_options *layout,
                                 hd_trainer_options options, hdt_split_run run, void *out);

/* Collective over comm. */
hd_status hdt_split_train(hd_comm *comm, const hdt_split *one, const hd_mesh_options *layout,
                          hd_trainer_options options, hdt_split_outcome *out);

/* On this rank alone; asserts. */
void hdt_split_train_alone(const hdt_split *one, const hd_trainer_options *options,
                           hdt_split_outcome *out);

/* BLAS may round a product's rows otherwise where there are fewer of them; beyond that forwards are
 * equal. A gradient is a sum over rows and ranks, which rounds once more for each layer that it has
 * come through; it is held against the largest of its parameter. */
void hdt_split_compare(const hdt_split *one, const char *what, const hdt_split_outcome *seen,
                       const hdt_split_outcome *alone);

#endif
