/* The text that stands for none, of models whose weights hold one (Open-Sora 1.2, 1.3). */
#ifndef HDI_JOBS_NULL_TEXT_H
#define HDI_JOBS_NULL_TEXT_H

#include <heddle/model.h>

/* [text_tokens, text_columns], owned by the caller: of the weights at `path` (a checkpoint, safetensors),
 * or, if it is empty, as training from `seed` makes it. *out is NULL if the model has none. As many
 * of its rows stand in for a text as that has: the published code takes them by the text's own mask.
 * Local. */
hd_status hdi_null_text_read(const hd_video_model *model, const char *path, uint64_t seed,
                             float **out);

#endif
