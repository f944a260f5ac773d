/* Philox4x32-10 and what is drawn from it. */
#include "core/random.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

/* Multipliers and Weyl constants of the paper's section 4.3. */
#define PHILOX_MULTIPLIER_0 UINT64_C(0xD2511F53)
#define PHILOX_MULTIPLIER_1 UINT64_C(0xCD9E8D57)
#define PHILOX_WEYL_0 UINT32_C(0x9E3779B9)
#define PHILOX_WEYL_1 UINT32_C(0xBB67AE85)

enum { PHILOX_ROUNDS = 10, PERMUTE_ROUNDS = 8 };

void hdi_random_words(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4])
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t product0 = PHILOX_MULTIPLIER_0 * c0;
        uint64_t product1 = PHILOX_MULTIPLIER_1 * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
        c3 = (uint32_t)product0;
        key0 += PHILOX_WEYL_0;
        key1 += PHILOX_WEYL_1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

float hdi_random_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t words[4];
    hdi_random_words(seed, stream, index, words);
    return (float)(words[0] >> 8) * 0x1p-24f;
}

float hdi_random_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    const double two_pi = 6.283185307179586476925;
    uint32_t words[4];
    hdi_random_words(seed, stream, index, words);
    double radius_uniform = ((double)words[0] + 1) * 0x1p-32; /* in (0, 1]: the logarithm exists */
    double angle_uniform = (double)words[1] * 0x1p-32;
    return (float)(sqrt(-2 * log(radius_uniform)) * cos(two_pi * angle_uniform));
}

uint64_t hdi_random_stream(const char *name)
{
    return XXH3_64bits(name, strlen(name));
}

/* One pass of the Feistel network over `high_bits + low_bits` bits: each round changes one half by
 * a function of the other, which a second application would undo, so the whole is a bijection. */
static uint64_t feistel(uint64_t seed, uint64_t stream, uint64_t value, int high_bits, int low_bits)
{
    const uint64_t high_mask = (UINT64_C(1) << high_bits) - 1;
    const uint64_t low_mask = (UINT64_C(1) << low_bits) - 1;
    uint64_t high = value >> low_bits, low = value & low_mask;
    for (uint64_t round = 0; round < PERMUTE_ROUNDS; round++) {
        uint32_t words[4];
        if (round % 2 == 0) {
            hdi_random_words(seed, stream, round << 32 | low, words);
            high ^= words[0] & high_mask;
        } else {
            hdi_random_words(seed, stream, round << 32 | high, words);
            low ^= words[0] & low_mask;
        }
    }
    return high << low_bits | low;
}

uint64_t hdi_random_permute(uint64_t seed, uint64_t stream, uint64_t index, uint64_t count)
{
    if (index >= count || count == 1) return index;

    int bits = 64 - __builtin_clzll(count - 1); /* 2^bits >= count > 2^(bits - 1) */
    int high_bits = (bits + 1) / 2, low_bits = bits / 2;

    /* Images outside [0, count) are permuted again. The cycle through `index` returns to `index`
     * at the latest, so this ends; fewer than two passes are expected. */
    uint64_t image = index;
    do {
        image = feistel(seed, stream, image, high_bits, low_bits);
    } while (image >= count);
    return image;
}
