/* Greedy, temperature and top-k. */
#include "jobs/generate/sampling.h"

#include "core/random.h"

#include <math.h>

/* Is token a less likely than token b? Of equal logits, the higher number is. */
static bool is_below(const float *logits, int32_t a, int32_t b)
{
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

static void sift_down(const float *logits, int32_t *heap, int64_t count, int64_t at)
{
    for (;;) {
        int64_t least = at;
        for (int64_t child = 2 * at + 1; child <= 2 * at + 2 && child < count; child++)
            if (is_below(logits, heap[child], heap[least])) least = child;
        if (least == at) return;
        const int32_t moved = heap[at];
        heap[at] = heap[least];
        heap[least] = moved;
        at = least;
    }
}

/* The least likely of the k likeliest tokens. */
static int32_t find_threshold(const float *logits, int64_t vocab, int64_t k, int32_t *heap)
{
    for (int64_t i = 0; i < k; i++)
        heap[i] = (int32_t)i;
    for (int64_t i = k / 2 - 1; i >= 0; i--)
        sift_down(logits, heap, k, i);
    for (int64_t i = k; i < vocab; i++) {
        if (!is_below(logits, heap[0], (int32_t)i)) continue;
        heap[0] = (int32_t)i;
        sift_down(logits, heap, k, 0);
    }
    return heap[0];
}

/* Minus infinity rules a token out; other values that are not finite leave nothing to go by. */
static int32_t find_likeliest(const float *logits, int64_t vocab)
{
    int32_t best = -1;
    for (int64_t i = 0; i < vocab; i++) {
        if (isnan(logits[i]) || (isinf(logits[i]) && logits[i] > 0)) return -1;
        if (isinf(logits[i])) continue;
        if (best < 0 || logits[i] > logits[best]) best = (int32_t)i;
    }
    return best;
}

int32_t hdi_sample(const hd_sampling_options *sampling, const float *logits, int64_t vocab,
                   uint64_t prompt, uint64_t position, int32_t *heap)
{
    const int32_t best = find_likeliest(logits, vocab);
    if (best < 0 || sampling->temperature <= 0 || sampling->top_k == 1) return best;
    const bool cut = sampling->top_k > 0 && sampling->top_k < vocab;
    const int32_t threshold = cut ? find_threshold(logits, vocab, sampling->top_k, heap) : -1;
    double target = 0;
    for (int pass = 0; pass < 2; pass++) {
        double sum = 0;
        int32_t last = best;
        for (int64_t i = 0; i < vocab; i++) {
            if (cut && is_below(logits, (int32_t)i, threshold)) continue;
            const double weight =
                exp(((double)logits[i] - (double)logits[best]) / sampling->temperature);
            if (weight <= 0) continue;
            sum += weight;
            last = (int32_t)i;
            if (pass && sum > target) return last;
        }
        if (pass) return last; /* the product below was rounded up to the whole sum */
        target = (double)hdi_random_uniform(sampling->seed, prompt, position) * sum;
    }
    return best;
}
