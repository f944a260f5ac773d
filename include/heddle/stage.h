/* Stages: what a model is asked to build for one pipeline stage. */
#ifndef HEDDLE_STAGE_H
#define HEDDLE_STAGE_H

#include <heddle/program.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hd_purpose {
    HD_PURPOSE_TRAIN,    /* ends in a loss, a backward follows */
    HD_PURPOSE_EVALUATE, /* ends in a loss */
    HD_PURPOSE_GENERATE  /* ends in logits of the last valid token; attention reads a cache */
} hd_purpose;

/* A run of a model's layers (its repeated blocks), on one (virtual) pipeline stage. */
typedef struct hd_stage {
    hd_purpose purpose;
    int first_layer, layers;
    bool first, last;          /* holds what stands before and after the blocks */
    int64_t sequences, tokens; /* of a micro-batch: `sequences` rows of `tokens` tokens */
    int64_t capacity;          /* generate: positions of the cache */
    bool recompute;            /* mark the blocks' scopes */
} hd_stage;

/* Builds a stage into `program`. `x` [sequences * tokens, hidden] comes from the stage before; it is
 * invalid on the first one, which declares the inputs that it needs itself. Returns x for the next
 * stage, or on the last stage the result of hd_cross_entropy (train, evaluate) or logits
 * (generate). For token models the inputs are "tokens" I32 [sequences * tokens], "targets" alike;
 * to generate (one sequence) "position" I32 [1] and "count" I32 [1], the valid ones among
 * `tokens`. */
typedef hd_tensor (*hd_build_fn)(void *user, hd_program *program, const hd_stage *stage,
                                 hd_tensor x);

#ifdef __cplusplus
}
#endif
#endif
