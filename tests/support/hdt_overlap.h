/* What travels under what, on the plans of ranks of which none runs. */
#ifndef HDT_OVERLAP_H
#define HDT_OVERLAP_H

#include "program/plan.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_split.h"

#include <heddle/model.h>

/* A causal model; the other is hdt_split_hunyuan, of double and single blocks. */
extern const char hdt_overlap_gpt2[];

/* A program of one of some ranks, planned. */
typedef struct hdt_overlap {
    hd_model *model;
    hd_mesh *mesh;
    hd_program *program;
    hd_plan *plan;
} hdt_overlap;

/* The whole model on one rank of `mesh`, which is taken over. Of `options` all but the mesh counts; of `sizes`
 * sequences and, as the model is, tokens or the video. */
hdt_overlap hdt_overlap_make(const char *json, hd_mesh *mesh, hd_program_options options,
                             const hd_stage *sizes);
void hdt_overlap_destroy(hdt_overlap *it);

/* Ops with products between an op's post and the first op that waits for it; those with `flags` alone. */
int hdt_overlap_count(const hdt_overlap *it, int posted, uint32_t flags);

#endif
