/* The choice of the next token, on the host. */
#ifndef HDI_JOBS_GENERATE_SAMPLING_H
#define HDI_JOBS_GENERATE_SAMPLING_H

#include <heddle/generator.h>

/* The token that the options choose from logits [vocab] for `position` of prompt `prompt`; -1 if the
 * logits hold a NaN or an infinity that leaves no choice. The same for the same arguments
 * everywhere: sums are fp64, in the order of the tokens. `heap` holds sampling->top_k indices when
 * 0 < top_k < vocab. Allocates nothing. */
int32_t hdi_sample(const hd_sampling_options *sampling, const float *logits, int64_t vocab,
                   uint64_t prompt, uint64_t position, int32_t *heap);

#endif
