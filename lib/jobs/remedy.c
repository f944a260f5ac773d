/* The search for settings that fit: savers of memory from cheap to dear, on one layout after another. */
#include "jobs/remedy.h"

#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"
#include "report/format.h"

#include <inttypes.h>
#include <string.h>

/* Savers: bits, so that of two choices the larger number costs more time. Of the levels of sharding the
 * highest counts. */
enum {
    ONE_F_ONE_B = 1,     /* fewer micro-batches in flight than gpipe, for nothing */
    SLICES = 2,          /* of the loss: smaller products, and one sum more for each */
    LEVEL_1 = 4,         /* weights travel once a step */
    LEVEL_2 = 8,         /* gradients travel with each micro-batch */
    HOST_INPUTS = 16,    /* of blocks, if these are computed again: copies beside that */
    MLP_SLICES = 32,     /* up to a ninth more computation */
    HOST_OPTIMIZER = 64, /* the update waits for copies */
    ALL_BLOCKS = 128, /* where activations of some are not kept: up to a third more computation */
    RECOMPUTE = 256,  /* a third more computation */
    LEVEL_3 = 512,    /* weights travel twice with each micro-batch */
    HOST_GRADIENTS = 1024, /* copies both ways with each micro-batch */
    HOST_WEIGHTS = 2048,   /* copies in for each forward and backward */
    LEVELS = LEVEL_1 | LEVEL_2 | LEVEL_3
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
    bool all_ranks; /* are measured, not only the first one of each stage */
} search;

static bool is_gpipe(const hd_trainer_options *options)
{
    return options->schedule && strcmp(options->schedule, "gpipe") == 0;
}

/* Ranks that share out what is sharded. */
static int replicas(const hd_trainer_options *options, const setting *tried)
{
    return tried->data * hd_mesh_size(options->mesh, HD_AXIS_SEQUENCE);
}

static int shard_state(const hd_trainer_options *options, const setting *tried)
{
    if (tried->savers & LEVEL_3) return 3;
    if (tried->savers & LEVEL_2) return 2;
    return tried->savers & LEVEL_1 ? 1 : options->shard_state;
}

static bool gradients_may_leave(const hd_trainer_options *options, const setting *tried)
{
    return replicas(options, tried) == 1 || shard_state(options, tried) >= 2;
}

static bool inputs_leave(const hd_trainer_options *options, const setting *tried)
{
    const bool again = options->recompute || options->activations == HD_ACTIVATIONS_RECOMPUTE ||
                       tried->savers & RECOMPUTE;
    return again && tried->savers & HOST_INPUTS;
}

/* Savers that would change something, beside levels. */
static int useful_savers(const hd_trainer_options *options, const setting *tried)
{
    int savers = 0;
    if (is_gpipe(options) && tried->pipeline > 1) savers |= ONE_F_ONE_B;
    if (options->tokens && options->slices >= 0 && options->slices < HD_SLICES_AUTO_MOST)
        savers |= SLICES;
    if (options->mlp_slices >= 0 && options->mlp_slices < HD_SLICES_AUTO_MOST) savers |= MLP_SLICES;
    if (options->optimizer_residency == HD_RESIDENCY_RESIDENT) savers |= HOST_OPTIMIZER;
    const bool keeps = options->activations == HD_ACTIVATIONS_KEEP;
    if (keeps && !options->recompute) savers |= RECOMPUTE;
    if (options->activation_blocks) savers |= ALL_BLOCKS;
    if (keeps || options->activations == HD_ACTIVATIONS_RECOMPUTE) savers |= HOST_INPUTS;
    if (options->gradient_residency == HD_RESIDENCY_RESIDENT && gradients_may_leave(options, tried))
        savers |= HOST_GRADIENTS;
    const bool fills_slots = options->layers <= 2 * tried->pipeline;
    if (options->residency == HD_RESIDENCY_RESIDENT && !fills_slots) savers |= HOST_WEIGHTS;
    return savers;
}

/* What is chosen by the budget was tried with all that saves. */
static hd_trainer_options changed(const hd_trainer_options *options, const setting *tried)
{
    hd_trainer_options out = *options;
    out.budget = 0;
    out.in_turn = true;
    out.sequences = tried->micro_batch;
    out.accumulate = tried->accumulate;
    out.shard_state = shard_state(options, tried);
    if (tried->savers & SLICES || out.slices == HD_SLICES_AUTO) out.slices = HD_SLICES_AUTO_MOST;
    if (tried->savers & MLP_SLICES || out.mlp_slices == HD_SLICES_AUTO)
        out.mlp_slices = HD_SLICES_AUTO_MOST;
    if (out.activations == HD_ACTIVATIONS_AUTO) out.activations = HD_ACTIVATIONS_RECOMPUTE_HOST;
    if (tried->savers & RECOMPUTE) out.recompute = true;
    if (tried->savers & ALL_BLOCKS) out.activation_blocks = 0;
    if (inputs_leave(options, tried)) out.activations = HD_ACTIVATIONS_RECOMPUTE_HOST;
    if (tried->savers & ONE_F_ONE_B) out.schedule = "1f1b";
    if (tried->savers & HOST_OPTIMIZER || out.optimizer_residency == HD_RESIDENCY_AUTO)
        out.optimizer_residency = HD_RESIDENCY_HOST;
    if (out.gradient_residency == HD_RESIDENCY_AUTO)
        out.gradient_residency =
            gradients_may_leave(options, tried) ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT;
    if (tried->savers & HOST_GRADIENTS) out.gradient_residency = HD_RESIDENCY_HOST;
    if (tried->savers & HOST_WEIGHTS || out.residency == HD_RESIDENCY_AUTO)
        out.residency = HD_RESIDENCY_HOST;
    return out;
}

static hd_status measure_rank(const hd_trainer_options *options, const setting *tried, int rank,
                              size_t *largest)
{
    const hd_mesh *mesh = options->mesh;
    const int copies = hd_mesh_size(mesh, HD_AXIS_COPY);
    const int group = hd_mesh_size(mesh, HD_AXIS_DATA) / copies;
    const hd_mesh_options sizes = {.data = tried->data,
                                   .pipeline = tried->pipeline,
                                   .sequence = hd_mesh_size(mesh, HD_AXIS_SEQUENCE),
                                   .shard_group =
                                       copies > 1 && tried->data % group == 0 ? group : 0,
                                   .ring = hd_mesh_ring(mesh),
                                   .tensor = hd_mesh_size(mesh, HD_AXIS_TENSOR)};
    hd_trainer_options with = changed(options, tried);
    hd_mesh *fake = NULL;
    hd_trainer *trainer = NULL;
    hd_trainer_shape *shapes = hdi_alloc_array((size_t)options->shape_count + 1, sizeof *shapes);
    if (!shapes) return hdi_error(HD_ERROR_MEMORY, "remedy: out of host memory");
    for (int i = 0; i < options->shape_count; i++) {
        shapes[i] = options->shapes[i];
        shapes[i].accumulate *= tried->accumulate; /* of 1 as it is */
    }
    with.shapes = shapes;
    hd_status status = hd_mesh_create_fake(
        rank, replicas(options, tried) * tried->pipeline * sizes.tensor, &sizes, &fake);
    with.mesh = fake;
    if (status == HD_OK) status = hd_trainer_create(&with, &trainer);
    if (status == HD_OK && hd_plan_total_bytes(hd_trainer_plan(trainer)) > *largest)
        *largest = hd_plan_total_bytes(hd_trainer_plan(trainer));
    hd_trainer_destroy(trainer);
    hd_mesh_destroy(fake);
    hdi_free(shapes);
    return status;
}

/* What the hungriest rank needs: the first one of each stage, and where these fit, and all are asked for, the
 * others, whose shards, parts and messages are almost equal. What is over `enough` need not be known better. */
static hd_status measure(const hd_trainer_options *options, const setting *tried, bool all_ranks,
                         size_t enough, size_t *bytes)
{
    const int each = replicas(options, tried) * hd_mesh_size(options->mesh, HD_AXIS_TENSOR);
    *bytes = 0;
    for (int later = 0; later <= all_ranks; later++)
        for (int rank = 0; rank < each * tried->pipeline && *bytes <= enough; rank++)
            if ((rank % each > 0) == later)
                HD_RETURN_IF_ERROR(measure_rank(options, tried, rank, bytes));
    return HD_OK;
}

/* A choice that cannot be planned does not fit. */
static bool fits(search *s, const setting *tried, size_t *bytes)
{
    const size_t budget = s->options->budget;
    const size_t enough = s->best_bytes > budget ? s->best_bytes : budget;
    if (measure(s->options, tried, s->all_ranks, s->best_bytes ? enough : SIZE_MAX, bytes) != HD_OK)
        return false;
    if (!s->best_bytes || *bytes < s->best_bytes) {
        s->best_bytes = *bytes;
        s->best = *tried;
    }
    return *bytes <= budget;
}

/* The cheapest choice of savers on a layout; true if one fits. At each level of sharding: if it fits with
 * all that saves, the dear ones are left out first. */
static bool try_savers(search *s, setting tried)
{
    static const int levels[] = {0, LEVEL_1, LEVEL_2, LEVEL_3};
    setting found = {.savers = -1};
    size_t bytes, found_bytes = 0;
    for (int level = 0; level < 4; level++) {
        if (level && (level <= s->options->shard_state || replicas(s->options, &tried) == 1))
            continue;
        if (found.savers >= 0 && levels[level] > found.savers) break;
        tried.savers = levels[level];
        tried.savers |= useful_savers(s->options, &tried);
        if (!fits(s, &tried, &bytes)) continue;
        for (int bit = HOST_WEIGHTS; bit; bit >>= 1) {
            setting fewer = tried;
            size_t fewer_bytes;
            fewer.savers &= ~bit;
            if (!(tried.savers & bit & ~LEVELS) || !fits(s, &fewer, &fewer_bytes)) continue;
            tried = fewer;
            bytes = fewer_bytes;
        }
        if (found.savers >= 0 && found.savers < tried.savers) continue;
        found = tried;
        found_bytes = bytes;
    }
    if (found.savers < 0) return false;
    s->best = found;
    s->best_bytes = found_bytes;
    return true;
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

/* All ranks are measured for what is named only; and where one of them needs more than the first, which is
 * rare, for all that is tried. */
static bool find_for_all(search *s)
{
    s->best = s->now;
    const bool found = find(s);
    size_t bytes;
    if (measure(s->options, &s->best, true, SIZE_MAX, &bytes) == HD_OK) s->best_bytes = bytes;
    if (!found || s->best_bytes <= s->options->budget) return found;
    s->best_bytes = 0;
    s->all_ranks = true;
    return find(s);
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
    if (best->savers & SLICES) add_key(text, "train.slices", HD_SLICES_AUTO_MOST);
    if (best->savers & MLP_SLICES) add_key(text, "train.mlp_slices", HD_SLICES_AUTO_MOST);
    if (best->savers & LEVELS) add_key(text, "layout.shard_state", shard_state(s->options, best));
    if (best->savers & HOST_OPTIMIZER) hdi_text_append(text, " optimizer.residency=host");
    if (inputs_leave(s->options, best))
        hdi_text_append(text, " train.activations=recompute-host");
    else if (best->savers & RECOMPUTE)
        hdi_text_append(text, " layout.recompute=layer");
    if (best->savers & ALL_BLOCKS) hdi_text_append(text, " train.activation_blocks=0");
    if (best->savers & HOST_GRADIENTS) hdi_text_append(text, " train.gradient_residency=host");
    if (best->savers & HOST_WEIGHTS) hdi_text_append(text, " train.residency=host");
    if (best->data * best->pipeline != now->data * now->pipeline)
        hdi_text_printf(text, " on %d ranks",
                        replicas(s->options, best) * best->pipeline *
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
    hdi_log(HD_LOG_INFO, "memory.budget does not hold it: looking for settings that fit");
    hdi_text changes = {0};
    const bool fits = find_for_all(&s);
    name_changes(&s, &changes);
    if (fits)
        hdi_text_printf(&text, "\nwith%s it needs %s and fits", changes.data,
                        hdi_bytes(s.best_bytes).text);
    else if (changes.data)
        hdi_text_printf(&text, "\nnothing tried fits; the smallest found is %s with%s",
                        hdi_bytes(s.best_bytes).text, changes.data);
    else
        hdi_text_append(&text, "\nnothing tried needs less");
    hdi_text_free(&changes);
    size_t bytes;
    if (measure(options, &s.now, true, SIZE_MAX, &bytes) == HD_OK) {
        char size[HDI_NUMBER_TEXT];
        hdi_format_bytes((double)bytes, size);
        hdi_text_printf(&text, "\nas it is, memory.budget=%zu is the smallest that would do (%s)",
                        bytes, size);
    }
    hd_status status = text.failed ? hdi_error(HD_ERROR_BUDGET, "does not fit memory.budget")
                                   : hdi_error(HD_ERROR_BUDGET, "%s", text.data);
    hdi_text_free(&text);
    return status;
}
