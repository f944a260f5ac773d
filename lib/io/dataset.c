/* Datasets: windows over a token source, their order, and facts about the tokens. */
#include "io/dataset.h"

#include <inttypes.h>
#include <math.h>
#include <xxhash.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/random.h"
#include "io/token_source.h"

enum { PIECE_TOKENS = 1 << 16, PIECES_MAX = 1024 };

struct hdi_dataset {
    char *name; /* owned */
    hdi_token_source source;
    int64_t seq_len;
    int64_t windows[2]; /* by split; validation lies behind training */
};

static hd_status check_options(const hdi_dataset_options *options)
{
    if (options->seq_len < 1 || options->seq_len >= INT32_MAX)
        return hdi_error(HD_ERROR_ARGUMENT, "dataset: seq_len is %" PRId64 ", wanted at least 1",
                         options->seq_len);
    if (options->vocab_size < 1 || options->vocab_size > INT32_MAX)
        return hdi_error(HD_ERROR_ARGUMENT, "dataset: vocab_size is %" PRId64 ", wanted 1 to %d",
                         options->vocab_size, INT32_MAX);
    if (!(options->validation_fraction >= 0 && options->validation_fraction < 1))
        return hdi_error(HD_ERROR_ARGUMENT, "dataset: validation_fraction is %g, wanted 0 to 1",
                         options->validation_fraction);
    return HD_OK;
}

static bool is_bytes(const hdi_dataset *dataset)
{
    return dataset->source.segments[0].token_bytes == 1;
}

static hd_status cut_windows(hdi_dataset *dataset, double validation_fraction)
{
    const int64_t window_tokens = dataset->seq_len + 1;
    const int64_t windows = dataset->source.tokens / window_tokens;
    const int64_t wanted = validation_fraction > 0 ? 2 : 1;
    if (windows < wanted)
        return hdi_error(HD_ERROR_CONFIG,
                         "%s: seen %" PRId64 " tokens, wanted at least %" PRId64 " for %" PRId64
                         " window%s of seq_len + 1 = %" PRId64,
                         dataset->name, dataset->source.tokens, wanted * window_tokens, wanted,
                         wanted == 1 ? "" : "s (training and validation)", window_tokens);
    int64_t validation = 0;
    if (validation_fraction > 0) {
        validation = llround(validation_fraction * (double)windows);
        if (validation < 1) validation = 1;
        if (validation > windows - 1) validation = windows - 1;
    }
    dataset->windows[HDI_DATASET_TRAIN] = windows - validation;
    dataset->windows[HDI_DATASET_VALIDATION] = validation;
    return HD_OK;
}

static hd_status fill(hdi_dataset *dataset, const hdi_dataset_options *options)
{
    dataset->name = hdi_strdup(options->path);
    if (!dataset->name) return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    dataset->seq_len = options->seq_len;
    dataset->source.vocab_size = options->vocab_size;
    HD_RETURN_IF_ERROR(hdi_token_source_open(&dataset->source, options->path));
    if (is_bytes(dataset) && options->vocab_size < 256)
        return hdi_error(HD_ERROR_CONFIG,
                         "%s: vocabulary of %" PRId64 ", wanted at least 256 for bytes",
                         dataset->name, options->vocab_size);
    return cut_windows(dataset, options->validation_fraction);
}

hd_status hdi_dataset_open(const hdi_dataset_options *options, hdi_dataset **out)
{
    *out = NULL;
    HD_RETURN_IF_ERROR(check_options(options));
    hdi_dataset *dataset = hdi_alloc(sizeof *dataset);
    if (!dataset) return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    hd_status status = fill(dataset, options);
    if (status != HD_OK) {
        hdi_dataset_close(dataset);
        return status;
    }
    *out = dataset;
    return HD_OK;
}

void hdi_dataset_close(hdi_dataset *dataset)
{
    if (!dataset) return;
    hdi_token_source_close(&dataset->source);
    hdi_free(dataset->name);
    hdi_free(dataset);
}

void hdi_dataset_get_info(const hdi_dataset *dataset, hdi_dataset_info *out)
{
    *out = (hdi_dataset_info){
        .name = dataset->name,
        .files = dataset->source.count,
        .skipped = dataset->source.skipped,
        .is_bytes = is_bytes(dataset),
        .tokens = dataset->source.tokens,
        .windows = {dataset->windows[0], dataset->windows[1]},
        .seq_len = dataset->seq_len,
        .vocab_size = dataset->source.vocab_size,
    };
}

int64_t hdi_dataset_window_at(const hdi_dataset *dataset, hdi_dataset_split split, uint64_t seed,
                              int64_t sample)
{
    const int64_t windows = dataset->windows[split];
    const uint64_t within = (uint64_t)(sample % windows);
    uint64_t stream = hdi_random_stream(split == HDI_DATASET_TRAIN ? "train" : "validation");
    if (split == HDI_DATASET_TRAIN)
        stream += (uint64_t)(sample / windows); /* the epoch */
    else
        seed = 0;
    return (int64_t)hdi_random_permute(seed, stream, within, (uint64_t)windows);
}

hd_status hdi_dataset_window(const hdi_dataset *dataset, hdi_dataset_split split, uint64_t seed,
                             int64_t sample, int32_t *out)
{
    if (sample < 0 || dataset->windows[split] == 0)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: sample %" PRId64 " of %" PRId64 " %s windows",
                         dataset->name, sample, dataset->windows[split],
                         split == HDI_DATASET_TRAIN ? "training" : "validation");
    int64_t window = hdi_dataset_window_at(dataset, split, seed, sample);
    if (split == HDI_DATASET_VALIDATION) window += dataset->windows[HDI_DATASET_TRAIN];
    const int64_t window_tokens = dataset->seq_len + 1;
    return hdi_token_source_read(&dataset->source, window * window_tokens, window_tokens, out);
}

typedef void (*visit_fn)(void *user, const int32_t *tokens, int64_t count);

/* Hand the first `tokens` tokens to `visit` piece by piece; of more than PIECES_MAX pieces, that
 * many, evenly spaced from the first to the last. */
static hd_status visit_tokens(const hdi_dataset *dataset, int64_t tokens, visit_fn visit,
                              void *user)
{
    const int64_t all_pieces = hdi_ceil_div(tokens, PIECE_TOKENS);
    const bool all = all_pieces <= PIECES_MAX;
    const int64_t pieces = all ? all_pieces : PIECES_MAX;
    int32_t *piece = hdi_alloc_array(PIECE_TOKENS, sizeof *piece);
    if (!piece) return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    hd_status status = HD_OK;
    for (int64_t i = 0; i < pieces && status == HD_OK; i++) {
        int64_t first = all ? i * PIECE_TOKENS : i * (tokens - PIECE_TOKENS) / (PIECES_MAX - 1);
        int64_t count = tokens - first < PIECE_TOKENS ? tokens - first : PIECE_TOKENS;
        status = hdi_token_source_read(&dataset->source, first, count, piece);
        if (status == HD_OK) visit(user, piece, count);
    }
    hdi_free(piece);
    return status;
}

static void count_tokens(void *user, const int32_t *tokens, int64_t count)
{
    int64_t *counts = user;
    for (int64_t i = 0; i < count; i++)
        counts[tokens[i]]++;
}

hd_status hdi_dataset_entropy(const hdi_dataset *dataset, double *out)
{
    const int64_t vocab_size = dataset->source.vocab_size;
    int64_t *counts = hdi_alloc_array((size_t)vocab_size, sizeof *counts);
    if (!counts) return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    hd_status status =
        visit_tokens(dataset, dataset->windows[HDI_DATASET_TRAIN] * (dataset->seq_len + 1),
                     count_tokens, counts);
    int64_t total = 0;
    for (int64_t token = 0; token < vocab_size; token++)
        total += counts[token];
    double entropy = 0;
    for (int64_t token = 0; token < vocab_size && status == HD_OK; token++) {
        if (counts[token] == 0) continue;
        double probability = (double)counts[token] / (double)total;
        entropy -= probability * log(probability);
    }
    hdi_free(counts);
    if (status == HD_OK) *out = entropy;
    return status;
}

static void hash_tokens(void *user, const int32_t *tokens, int64_t count)
{
    uint64_t *hash = user;
    *hash = XXH3_64bits_withSeed(tokens, (size_t)count * sizeof *tokens, *hash);
}

hd_status hdi_dataset_fingerprint(const hdi_dataset *dataset, uint64_t *out)
{
    uint64_t hash = (uint64_t)dataset->source.tokens;
    HD_RETURN_IF_ERROR(visit_tokens(dataset, dataset->source.tokens, hash_tokens, &hash));
    *out = hash;
    return HD_OK;
}
