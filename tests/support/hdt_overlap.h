/* What travels under what, on the plans of ranks of which none runs. */
#ifndef HDT_OVERLAP_H
#define HDT_OVERLAP_H

#include "program/plan.h"
#include "tests/support/hdt.h"

#include <heddle/model.h>

/* Configurations: double and single blocks of a video model; a causal one. */
extern const char *const hdt_overlap_hunyuan, *const hdt_overlap_gpt2;

/* A program of one of some ranks, planned. */
typedef struct hdt_overlap {
    hd_model *model;
    hd_mesh *mesh;
    hd_program *program;
    hd_plan *plan;
} hdt_overlap;

void hdt_overlap_destroy(hdt_overlap *it);

/* Ops with products between an op's post and the first op that waits for it; those with `flags` alone. */
int hdt_overlap_count(const hdt_overlap *it, int posted, uint32_t flags);

#endif
