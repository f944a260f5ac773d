/* Embeddings of class names. */
#include "jobs/class_text.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/random.h"

enum { SEED = 1, WORD_BYTES = 64 };

static bool is_letter(char c)
{
    const unsigned char byte = (unsigned char)c;
    return byte > 127 || (byte >= '0' && byte <= '9') || ((byte | 32) >= 'a' && (byte | 32) <= 'z');
}

/* The first word from *at on, cut to what fits; "" at the end. Moves *at behind it. */
static void next_word(const char **at, char out[WORD_BYTES])
{
    size_t used = 0;
    while (**at && !is_letter(**at))
        ++*at;
    for (; is_letter(**at); ++*at)
        if (used + 1 < WORD_BYTES) out[used++] = **at;
    out[used] = '\0';
}

int64_t hdi_class_words(const char *name)
{
    char word[WORD_BYTES];
    for (int64_t count = 0;; count++) {
        next_word(&name, word);
        if (!*word) return count;
    }
}

void hdi_class_embed(const char *name, int64_t tokens, int64_t columns, float *text, float *pooled)
{
    memset(pooled, 0, (size_t)columns * sizeof *pooled);
    for (int64_t t = 0; t < tokens; t++) {
        char word[WORD_BYTES], stream_name[WORD_BYTES + 8];
        next_word(&name, word);
        snprintf(stream_name, sizeof stream_name, "word:%s", word);
        const uint64_t stream = hdi_random_stream(stream_name);
        double square = 0;
        for (int64_t c = 0; c < columns; c++) {
            const float value = hdi_random_normal(SEED, stream, (uint64_t)c);
            square += (double)value * value;
            text[t * columns + c] = value;
        }
        const float scale = (float)sqrt((double)columns / square);
        for (int64_t c = 0; c < columns; c++) {
            text[t * columns + c] *= scale;
            pooled[c] += text[t * columns + c] / sqrtf((float)tokens);
        }
    }
}
