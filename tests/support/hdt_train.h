/* Small trainings for tests: a tiny model on made-up tokens, on any layout. */
#ifndef HDT_TRAIN_H
#define HDT_TRAIN_H

#include "tests/support/hdt.h"

#include <heddle/model.h>
#include <heddle/trainer.h>

enum { HDT_VOCAB = 97, HDT_TOKENS = 24, HDT_SEQUENCES = 2, HDT_GLOBAL_BATCHES = 8 };

/* A tiny model with `layers` layers; `family` is "gpt2" or "llama". Owned by the caller. */
hd_model *hdt_tiny_model(const char *family, int layers);

/* "tokens" and "targets" of a global micro-batch of step `*(int64_t *)user`. */
hd_status hdt_feed(void *user, const char *name, int64_t global_batch, void *out, size_t bytes);

typedef struct hdt_training {
    const char *family;
    int layers, steps;
    int global_batches; /* zero: HDT_GLOBAL_BATCHES */
    hd_mesh_options mesh;
    bool late_copies;           /* on the CPU, of hdt_late.h */
    bool staged;                /* on the CPU, by the eager backend of hdt_deferred.h */
    hd_trainer_options options; /* what concerns model, mesh and batches is filled in */
} hdt_training;

typedef struct hdt_trained {
    uint64_t hash;
    double first_loss, last_loss, last_norm, validation_loss;
    size_t planned, high_water, host_planned;
    size_t weights, gradients, optimizer; /* planned bytes */
    uint64_t allocations;                 /* after the first step */
} hdt_trained;

/* Train on `comm`; collective over it. */
hd_status hdt_train(hd_comm *comm, const hdt_training *training, hdt_trained *out);

#endif
