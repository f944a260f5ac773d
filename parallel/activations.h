/* Where the activations of blocks wait for the backward. */
#ifndef HDI_PARALLEL_ACTIVATIONS_H
#define HDI_PARALLEL_ACTIVATIONS_H

#include "program/program.h"

typedef enum hdi_saved_as {
    HDI_SAVED_ON_HOST, /* copied out once made, and in again one block ahead */
    HDI_SAVED_AS_INT8 /* rounded (hdi_quantize_args), restored before the first op that reads them */
} hdi_saved_as;

typedef struct hdi_activations_options {
    hdi_saved_as how;
    bool keep_last;  /* of the block whose backward comes first nothing changes */
    bool again_only; /* nor of those that do not run again in the backward */
    int blocks;      /* of the others so many change, evenly spread, or all if there are fewer */
} hdi_activations_options;

/* Change what a program with a backward keeps of its blocks, scopes without scopes inside. Tensors of
 * less than a sixteenth of the block's largest stay as they are: what the norms and attention know of a
 * row. Sticky errors of the program apply. */
void hdi_activations_move(hd_program *program, const hdi_activations_options *options);

#endif
