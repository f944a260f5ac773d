/* Embeddings for data that have classes but no text encoder: each word of a class's name is one
 * token, a random vector that is a function of the word alone, so that any two are nearly
 * orthogonal and what classes share ("red") is shared by their texts. */
#ifndef HDI_JOBS_CLASS_TEXT_H
#define HDI_JOBS_CLASS_TEXT_H

#include <stdint.h>

/* Words of a name: runs of letters and digits (bytes above 127 are letters). */
int64_t hdi_class_words(const char *name);

/* text [tokens, columns] of variance 1: the name's words, then empty words; "" is the empty prompt.
 * pooled [columns]: their sum, of variance 1. */
void hdi_class_embed(const char *name, int64_t tokens, int64_t columns, float *text, float *pooled);

#endif
