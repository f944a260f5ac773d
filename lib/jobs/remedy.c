/* The search for settings that fit: savers of memory from cheap to dear, on one layout after another. */
#include "jobs/remedy.h"

#include "core/error.h"
#include "core/memory.h"
#include "core/text.h"

#include <inttypes.h>
#include <string.h>

/* Savers, in the order of what they cost in time: the bits of a choice, tried in rising order. */
enum {
    ONE_F_ONE_B = 1, /* fewer micro-batches in flight than gpipe, for nothing */
    SHARD_STATE = 2, /* weights travel once a step */
    RECOMPUTE = 4,   /* a third more computation */
    CHOICES = 8
};

typedef struct setting {
    int savers;
    int64_t micro_batch;
    int data, pipeline, accumulate;
} setting;

typedef struct search {
    const hd_config *config;
    const hd_trainer_options *options;
    setting now;
    setting best; /* the smallest need that was found */
    size_t best_bytes;
} search;

static bool is_gpipe(const hd_trainer_options *options)
{
    return options->schedule && strcmp(options->schedule, "gpipe") == 0;
}

/* Savers that would change something. */
static int useful_savers(const hd_trainer_options *options, const setting *tried)
{
    int savers = 0;
    if (is_gpipe(options) && tried->pipeline > 1) savers |= ONE_F_ONE_B;
    if (!options->shard_state && tried->data > 1) savers |= SHARD_STATE;
    if (options->activations == HD_ACTIVATIONS_KEEP && !options->recompute) savers |= RECOMPUTE;
    return savers;
}

/* The least that one rank needs: what is AUTO still, activations alone, in each way that may be it. */
static hd_status measure_least(hd_trainer_options options, size_t *bytes)
{
    static const hd_activations ways[] = {HD_ACTIVATIONS_RECOMPUTE, HD_ACTIVATIONS_HOST};
    const bool open = options.activations == HD_ACTIVATIONS_AUTO;
    *bytes = SIZE_MAX;
    for (int way = 0; way < (open ? 2 : 1); way++) {
        hd_trainer *trainer = NULL;
        if (open) options.activations = ways[way];
        HD_RETURN_IF_ERROR(hd_trainer_create(&options, &trainer));
        const size_t total = hd_plan_total_bytes(hd_trainer_plan(trainer));
        if (total < *bytes) *bytes = total;
        hd_trainer_destroy(trainer);
    }
    return HD_OK;
}

static hd_status measure_rank(const hd_trainer_options *options, const setting *tried, int stage,
                              int data, size_t *largest)
{
    const int sequence = hd_mesh_size(options->mesh, HD_AXIS_SEQUENCE);
    const int tensor = hd_mesh_size(options->mesh, HD_AXIS_TENSOR);
    const int copies = hd_mesh_size(options->mesh, HD_AXIS_COPY);
    const int group = hd_mesh_size(options->mesh, HD_AXIS_DATA) / copies;
    const hd_mesh_options sizes = {.data = tried->data,
                                   .pipeline = tried->pipeline,
                                   .sequence = sequence,
                                   .shard_group =
                                       copies > 1 && tried->data % group == 0 ? group : 0,
                                   .ring = hd_mesh_ring(options->mesh),
                                   .tensor = tensor};
    const int ranks = tried->data * tried->pipeline * sequence * tensor;
    const int line =
        (stage * tried->data + data) * sequence + hd_mesh_index(options->mesh, HD_AXIS_SEQUENCE);
    const int rank = line * tensor + hd_mesh_index(options->mesh, HD_AXIS_TENSOR);
    hd_trainer_options changed = *options;
    hd_mesh *mesh;
    HD_RETURN_IF_ERROR(hd_mesh_create_fake(rank, ranks, &sizes, &mesh));
    changed.mesh = mesh;
    changed.budget = 0; /* what is chosen by it was tried with all that saves */
    if (changed.optimizer_residency == HD_RESIDENCY_AUTO)
        changed.optimizer_residency = HD_RESIDENCY_HOST;
    if (changed.gradient_residency == HD_RESIDENCY_AUTO)
        changed.gradient_residency = HD_RESIDENCY_HOST;
    if (changed.residency == HD_RESIDENCY_AUTO) changed.residency = HD_RESIDENCY_HOST;
    changed.sequences = tried->micro_batch;
    changed.accumulate = tried->accumulate;
    hd_trainer_shape *shapes = hdi_alloc_array((size_t)options->shape_count + 1, sizeof *shapes);
    if (!shapes) {
        hd_mesh_destroy(mesh);
        return hdi_error(HD_ERROR_MEMORY, "remedy: out of host memory");
    }
    for (int i = 0; i < options->shape_count; i++) {
        shapes[i] = options->shapes[i];
        shapes[i].accumulate *= tried->accumulate; /* of 1 as it is */
    }
    changed.shapes = shapes;
    if (tried->savers & SHARD_STATE) changed.shard_state = 1;
    changed.recompute = options->recompute || (tried->savers & RECOMPUTE);
    if (tried->savers & ONE_F_ONE_B) changed.schedule = "1f1b";
    size_t bytes = 0;
    const hd_status status = measure_least(changed, &bytes);
    if (status == HD_OK && bytes > *largest) *largest = bytes;
    hd_mesh_destroy(mesh);
    hdi_free(shapes);
    return status;
}

/* What the hungriest of the first data ranks needs, or of all. */
static hd_status measure_ranks(const search *s, const setting *tried, int data_ranks, size_t *bytes)
{
    *bytes = 0;
    for (int stage = 0; stage < tried->pipeline; stage++)
        for (int data = 0; data < data_ranks; data++)
            HD_RETURN_IF_ERROR(measure_rank(s->options, tried, stage, data, bytes));
    return HD_OK;
}

/* Data ranks differ only by their shards of the state, which are almost equal. */
static hd_status measure(const search *s, const setting *tried, size_t *bytes)
{
    const bool differ = s->options->shard_state > 0 || (tried->savers & SHARD_STATE);
    HD_RETURN_IF_ERROR(measure_ranks(s, tried, 1, bytes));
    if (!differ || *bytes > s->options->budget) return HD_OK;
    return measure_ranks(s, tried, tried->data, bytes);
}

/* The cheapest choice of savers on a layout; true if one fits. A choice that cannot be planned is
 * passed over. */
static bool try_savers(search *s, setting tried)
{
    const int useful = useful_savers(s->options, &tried);
    size_t bytes;
    tried.savers = useful;
    if (measure(s, &tried, &bytes) != HD_OK) return false;
    if (!s->best_bytes || bytes < s->best_bytes) {
        s->best_bytes = bytes;
        s->best = tried;
    }
    if (bytes > s->options->budget) return false; /* then fewer savers do not fit either */
    for (tried.savers = 0; tried.savers < CHOICES; tried.savers++) {
        if (tried.savers & ~useful) continue;
        if (measure(s, &tried, &bytes) != HD_OK || bytes > s->options->budget) continue;
        s->best = tried;
        s->best_bytes = bytes;
        return true;
    }
    return false;
}

/* Smaller and smaller micro-batches, more of them, the same batch. */
static bool try_micro_batches(search *s, setting tried)
{
    const int64_t batch = s->now.micro_batch * s->now.accumulate * s->now.data;
    for (int64_t micro_batch = s->now.micro_batch;; micro_batch /= 2) {
        tried.micro_batch = micro_batch;
        tried.accumulate = (int)(batch / (micro_batch * tried.data));
        if (batch % (micro_batch * tried.data) == 0 && try_savers(s, tried)) return true;
        if (micro_batch % 2) return false;
    }
}

static bool find(search *s)
{
    if (try_micro_batches(s, s->now)) return true;
    if (s->options->stage_layers) return false; /* given for this number of stages */
    setting tried = s->now;
    while (tried.data % 2 == 0 && tried.pipeline * 2 <= s->options->layers) {
        tried.data /= 2;
        tried.pipeline *= 2;
        if (try_micro_batches(s, tried)) return true;
    }
    tried = s->now;
    while (tried.pipeline * 2 <= s->options->layers && tried.pipeline < 8 * s->now.pipeline) {
        tried.pipeline *= 2;
        if (try_micro_batches(s, tried)) return true;
    }
    return false;
}

static void add_key(hdi_text *text, const char *key, int64_t value)
{
    hdi_text_printf(text, " %s=%" PRId64, key, value);
}

static void name_changes(const search *s, hdi_text *text)
{
    const setting *best = &s->best, *now = &s->now;
    const hdi_config *values = s->config->values;
    if (best->pipeline != now->pipeline) add_key(text, "layout.pipeline", best->pipeline);
    if (best->data != now->data && hdi_config_int(values, "layout.data"))
        add_key(text, "layout.data", best->data);
    if (best->micro_batch != now->micro_batch)
        add_key(text, "train.micro_batch", best->micro_batch);
    if (best->accumulate != now->accumulate && !hdi_config_int(values, "train.batch") &&
        !hdi_config_int(values, "train.tokens_per_step"))
        add_key(text, "train.accumulate", best->accumulate);
    if (best->savers & ONE_F_ONE_B) hdi_text_append(text, " layout.schedule=1f1b");
    if (best->savers & SHARD_STATE) hdi_text_append(text, " layout.shard_state=true");
    if (best->savers & RECOMPUTE) hdi_text_append(text, " layout.recompute=layer");
    if (best->data * best->pipeline != now->data * now->pipeline)
        hdi_text_printf(text, " on %d ranks",
                        best->data * best->pipeline *
                            hd_mesh_size(s->options->mesh, HD_AXIS_SEQUENCE) *
                            hd_mesh_size(s->options->mesh, HD_AXIS_TENSOR));
}

hd_status hdi_remedy_add(const hd_config *config, const hd_trainer_options *options)
{
    hdi_text text = {0};
    hdi_text_append(&text, hd_last_error());
    search s = {.config = config,
                .options = options,
                .now = {.micro_batch = options->shape_count ? 1 : options->sequences,
                        .data = hd_mesh_size(options->mesh, HD_AXIS_DATA),
                        .pipeline = hd_mesh_size(options->mesh, HD_AXIS_PIPELINE),
                        .accumulate = options->accumulate > 0 ? options->accumulate : 1}};
    hdi_text changes = {0};
    const bool fits = find(&s);
    name_changes(&s, &changes);
    if (fits)
        hdi_text_printf(&text, "\nwith%s it needs %zu bytes and fits", changes.data, s.best_bytes);
    else if (changes.data)
        hdi_text_printf(&text, "\nnothing tried fits; the smallest found is %zu bytes with%s",
                        s.best_bytes, changes.data);
    else
        hdi_text_append(&text, "\nnothing tried needs less");
    hdi_text_free(&changes);
    size_t bytes;
    if (measure_ranks(&s, &s.now, options->shard_state ? s.now.data : 1, &bytes) == HD_OK)
        hdi_text_printf(&text, "\nas it is, memory.budget=%zu is the smallest that would do",
                        bytes);
    hd_status status = text.failed ? hdi_error(HD_ERROR_BUDGET, "does not fit memory.budget")
                                   : hdi_error(HD_ERROR_BUDGET, "%s", text.data);
    hdi_text_free(&text);
    return status;
}
