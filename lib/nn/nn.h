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

#endif
