/* Counter-based random numbers: a function of (seed, stream, index), so no rank has a state of its
 * own. Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3". */
#ifndef HDI_CORE_RANDOM_H
#define HDI_CORE_RANDOM_H

#include <stdint.h>

/* Four 32-bit words for the counter (stream, index) under `seed`. */
void hdi_random_words(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);

/* Uniform in [0, 1), 24 bits. */
float hdi_random_uniform(uint64_t seed, uint64_t stream, uint64_t index);

/* Standard normal (Box-Muller). */
float hdi_random_normal(uint64_t seed, uint64_t stream, uint64_t index);

/* A stream number from a name: the same for the same name everywhere. */
uint64_t hdi_random_stream(const char *name);

/* The image of `index` under a bijection of [0, count) chosen by (seed, stream): a shuffle without
 * a table. Feistel network with cycle walking. */
uint64_t hdi_random_permute(uint64_t seed, uint64_t stream, uint64_t index, uint64_t count);

#endif
