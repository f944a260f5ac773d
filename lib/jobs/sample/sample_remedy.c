/* The search for settings with which a sampling fits: what chooses by the budget, other layouts of the ranks,
 * bf16, more ranks; the first that fits changes the least. */
#include "jobs/sample/sample_remedy.h"

#include "core/error.h"
#include "core/memory.h"
#include "core/text.h"
#include "jobs/sample/sampler.h"
#include "jobs/setup.h"
#include "report/format.h"

#include <inttypes.h>

typedef struct setting {
    hd_dtype dtype;
    int data, pipeline, sequence, tensor;
} setting;

typedef struct search {
    const hd_config *config;
    const hd_sampler_options *options;
    setting now;
    setting best;      /* of the smallest need that was found, or what fits */
    size_t best_bytes; /* its need; 0: nothing could be planned yet */
    int tries;
} search;

static int ranks_of(const setting *of)
{
    return of->data * of->pipeline * of->sequence * of->tensor;
}

/* Plan a rank. HD_ERROR_BUDGET: *bytes is what would do. */
static hd_status try_rank(const search *s, const setting *tried, int rank, size_t *bytes)
{
    const hd_mesh *mesh = s->options->mesh;
    const int copies = hd_mesh_size(mesh, HD_AXIS_COPY);
    const hd_mesh_options sizes = {.data = tried->data,
                                   .pipeline = tried->pipeline,
                                   .sequence = tried->sequence,
                                   .tensor = tried->tensor,
                                   .ring = hd_mesh_ring(mesh),
                                   .shard_group =
                                       copies > 1 ? hd_mesh_size(mesh, HD_AXIS_DATA) / copies : 0};
    const int ranks = ranks_of(tried);
    hd_mesh *fake;
    HD_RETURN_IF_ERROR(hd_mesh_create_fake(rank, ranks, &sizes, &fake));
    hd_sampler_options with = *s->options;
    with.mesh = fake;
    with.dtype = tried->dtype;
    with.residency = HD_RESIDENCY_AUTO;
    with.host_blocks = with.slices = 0;
    if (ranks != ranks_of(&s->now))
        with.transport = hdi_job_transport(s->config, fake, with.backend);
    hd_sampler *sampler;
    const hd_status status = hdi_sampler_create(&with, bytes, &sampler);
    hd_sampler_destroy(sampler);
    hd_mesh_destroy(fake);
    return status;
}

/* What the hungriest rank wants that does not fit: the first one of each stage, and where these fit, or `all`, the
 * others, whose tokens, heads and shards are almost as many. What is `enough` or more need not be known better.
 * Zero: all fit. */
static hd_status measure(const search *s, const setting *tried, bool all, size_t enough,
                         size_t *most)
{
    const int ranks = ranks_of(tried), each = ranks / tried->pipeline;
    *most = 0;
    for (int later = 0; later < 2 && (all || !*most); later++)
        for (int rank = 0; rank < ranks; rank++) {
            size_t bytes = 0;
            if ((rank % each > 0) != later) continue;
            const hd_status status = try_rank(s, tried, rank, &bytes);
            if (status != HD_OK && status != HD_ERROR_BUDGET) return status;
            if (*most < bytes && status == HD_ERROR_BUDGET) *most = bytes;
            if (*most >= enough) return HD_OK;
        }
    return HD_OK;
}

/* True if all ranks fit. What cannot be planned does not, nor what comes after so many tries that somebody
 * waits for the answer. */
static bool fits(search *s, setting tried)
{
    enum { MOST_TRIES = 64 };
    const size_t enough = s->best_bytes ? s->best_bytes : SIZE_MAX;
    size_t most;
    if (s->tries++ >= MOST_TRIES) return false;
    if (measure(s, &tried, false, enough, &most) != HD_OK || most >= enough) return false;
    s->best = tried;
    s->best_bytes = most;
    return most == 0;
}

/* As many ranks: the layout that is there, then more stages, more ranks to a video, more to a layer. */
static bool try_layouts(search *s, setting tried)
{
    const int ranks = ranks_of(&tried);
    if (fits(s, tried)) return true;
    for (int tensor = 1; tensor <= ranks; tensor++)
        for (int sequence = 1; sequence <= ranks / tensor; sequence++)
            for (int pipeline = 1; pipeline <= ranks / tensor / sequence; pipeline++) {
                if (ranks % (tensor * sequence * pipeline) || pipeline > s->options->layers)
                    continue;
                const setting other = {.dtype = tried.dtype,
                                       .data = ranks / tensor / sequence / pipeline,
                                       .pipeline = pipeline,
                                       .sequence = sequence,
                                       .tensor = tensor};
                if (fits(s, other)) return true;
            }
    return false;
}

static bool try_more_ranks(search *s, hd_dtype dtype)
{
    enum { MOST = 8 };
    for (int times = 2; times <= MOST; times *= 2) {
        setting deeper = s->now, split = s->now, shared = s->now;
        deeper.dtype = split.dtype = shared.dtype = dtype;
        deeper.pipeline *= times, split.sequence *= times, shared.tensor *= times;
        if (deeper.pipeline <= s->options->layers && fits(s, deeper)) return true;
        if (fits(s, split) || fits(s, shared)) return true;
    }
    return false;
}

static bool find(search *s)
{
    setting in_bf16 = s->now;
    in_bf16.dtype = HD_DTYPE_BF16;
    const bool is_wide = s->now.dtype == HD_DTYPE_F32;
    return try_layouts(s, s->now) || (is_wide && try_layouts(s, in_bf16)) ||
           try_more_ranks(s, s->now.dtype) || (is_wide && try_more_ranks(s, HD_DTYPE_BF16));
}

static void name_axis(hdi_text *text, const char *axis, int best, int now)
{
    if (best != now) hdi_text_printf(text, " layout.%s=%d", axis, best);
}

static void name_changes(const search *s, hdi_text *text)
{
    const setting *best = &s->best, *now = &s->now;
    if (s->options->residency != HD_RESIDENCY_AUTO) hdi_text_append(text, " sample.residency=auto");
    if (s->options->slices) hdi_text_append(text, " sample.slices=0");
    if (best->dtype != now->dtype) hdi_text_append(text, " sample.dtype=bf16");
    if (hdi_config_int(s->config->values, "layout.data"))
        name_axis(text, "data", best->data, now->data);
    name_axis(text, "pipeline", best->pipeline, now->pipeline);
    name_axis(text, "sequence", best->sequence, now->sequence);
    name_axis(text, "tensor", best->tensor, now->tensor);
    if (ranks_of(best) != ranks_of(now)) hdi_text_printf(text, " on %d ranks", ranks_of(best));
}

hd_status hdi_sample_remedy_add(const hd_config *config, const hd_sampler_options *options)
{
    hdi_text text = {0}, changes = {0};
    hdi_text_append(&text, hd_last_error());
    search s = {.config = config,
                .options = options,
                .now = {.dtype = options->dtype,
                        .data = hd_mesh_size(options->mesh, HD_AXIS_DATA),
                        .pipeline = hd_mesh_size(options->mesh, HD_AXIS_PIPELINE),
                        .sequence = hd_mesh_size(options->mesh, HD_AXIS_SEQUENCE),
                        .tensor = hd_mesh_size(options->mesh, HD_AXIS_TENSOR)}};
    const bool found = find(&s);
    size_t most;
    if (s.best_bytes && measure(&s, &s.best, true, SIZE_MAX, &most) == HD_OK) s.best_bytes = most;
    name_changes(&s, &changes);
    if (found && changes.data)
        hdi_text_printf(&text, "\nwith%s it fits", changes.data);
    else if (!found && s.best_bytes)
        hdi_text_printf(&text, "\nnothing tried fits; the smallest budget found is %s%s%s",
                        hdi_bytes(s.best_bytes).text, changes.data ? ", with" : "",
                        changes.data ? changes.data : "");
    hdi_text_free(&changes);
    const hd_status status = text.failed ? hdi_error(HD_ERROR_BUDGET, "does not fit memory.budget")
                                         : hdi_error(HD_ERROR_BUDGET, "%s", text.data);
    hdi_text_free(&text);
    return status;
}
