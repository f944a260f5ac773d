/* What the layers share. */
#ifndef HDI_NN_NN_H
#define HDI_NN_NN_H

#include <heddle/nn.h>

#include "ops/slices.h"

/* The spread of first values where the options do not say. */
#define HDI_DEFAULT_STD 0.02

/* The parameters that hd_linear declares for rows of `inputs` columns, this rank's of a layer that is
 * split by rows. An invalid weight: the program has failed. */
hdi_linear_map hdi_linear_declare(hd_program *program, int64_t inputs,
                                  const hd_linear_options *options);

/* down(activation(up(x))), in slices of rows where the program makes MLPs in slices. */
hd_tensor hdi_mlp(hd_program *program, hdi_mlp_kind kind, hd_tensor x, const hd_linear_options *up,
                  const hd_linear_options *down);

/* hd_gelu_mlp of whole rows in two halves, between which something else may be computed. */
typedef struct hdi_gelu_half {
    hd_tensor activated, before; /* before: in training, what gelu_tanh is of */
} hdi_gelu_half;
hdi_gelu_half hdi_gelu_up(hd_program *program, hd_tensor x, const hd_linear_options *up);
hd_tensor hdi_gelu_down(hd_program *program, const hdi_gelu_half *half,
                        const hd_linear_options *down);

#endif
