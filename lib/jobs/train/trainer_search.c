/* Searches for settings that serve several ranks, and when they do. */
#include "jobs/train/trainer_search.h"

#include "core/error.h"
#include "core/memory.h"

#include <xxhash.h>

static void mix(uint64_t *hash, const void *bytes, size_t count)
{
    *hash = XXH3_64bits_withSeed(bytes, count, *hash);
}

static void mix_words(uint64_t *hash, const int64_t *words, size_t count)
{
    mix(hash, words, count * sizeof *words);
}

/* Of ranges of what ranks share the lengths tell, not where they begin: of each rank's own rows, say. */
static void mix_tensor(uint64_t *hash, const hdi_unit *unit, int id)
{
    const hdi_tensor *tensor = unit->program->tensors[id];
    const hdi_place_of *place = &unit->places[id];
    const bool is_range = tensor->flat || tensor->within.id;
    const int64_t words[] = {tensor->info.elements,
                             (int64_t)tensor->info.bytes,
                             tensor->info.dtype,
                             tensor->info.role,
                             tensor->flat,
                             tensor->host,
                             tensor->within.id,
                             place->region,
                             is_range ? 0 : (int64_t)place->offset,
                             (int64_t)place->bytes,
                             (int64_t)place->stride,
                             place->slots};
    mix_words(hash, words, sizeof words / sizeof *words);
}

static void mix_op(uint64_t *hash, const hdi_unit *unit, int index)
{
    const hdi_op *op = unit->program->ops[index];
    const int64_t words[] = {(int64_t)(uintptr_t)op->op.kind,
                             op->op.inputs,
                             op->op.outputs,
                             op->phase,
                             op->scope,
                             op->recomputed,
                             op->last_only,
                             op->adds_only,
                             (int64_t)unit->workspaces[index],
                             (int64_t)unit->workspace_bytes[index],
                             unit->wait_begin[index + 1]};
    hd_cost cost;
    hdi_op_cost(op, &cost);
    const double costs[] = {cost.flops, cost.bytes, cost.head_dim, cost.keys};
    mix_words(hash, words, sizeof words / sizeof *words);
    mix(hash, costs, sizeof costs);
    for (int k = 0; k < op->op.inputs; k++)
        mix_words(hash, &(int64_t){op->op.in[k].id}, 1);
    for (int k = 0; k < op->op.outputs; k++)
        mix_words(hash, &(int64_t){op->op.out[k].id}, 1);
}

static void mix_unit(uint64_t *hash, const hdi_unit *unit)
{
    const hd_program *program = unit->program;
    mix_words(hash, (const int64_t[]){program->tensor_count, program->op_count}, 2);
    for (int i = 1; i < program->tensor_count; i++)
        mix_tensor(hash, unit, i);
    for (int i = 0; i < program->op_count; i++)
        mix_op(hash, unit, i);
}

static void mix_layout(uint64_t *hash, const hdi_layout *layout)
{
    for (int b = 0; b < layout->bucket_count; b++) {
        const hdi_bucket *bucket = &layout->buckets[b];
        const int64_t words[] = {bucket->elements, bucket->own_counts[0], bucket->part_counts[0],
                                 bucket->copy_counts[layout->copy], bucket->block};
        mix_words(hash, words, sizeof words / sizeof *words);
    }
}

hd_status hdi_trainer_likeness(const hd_trainer *trainer, uint64_t *out)
{
    const hd_plan *plan = trainer->plan;
    double seconds;
    uint64_t hash = 0;
    HD_RETURN_IF_ERROR(hdi_trainer_step_seconds(trainer, &seconds));
    const int64_t words[] = {trainer->stage, (int64_t)hd_plan_total_bytes(plan),
                             (int64_t)hd_plan_host_bytes(plan), trainer->square_count,
                             trainer->update_count};
    mix_words(&hash, words, sizeof words / sizeof *words);
    mix(&hash, &seconds, sizeof seconds);
    mix(&hash, plan->bytes, sizeof plan->bytes);
    mix_layout(&hash, plan->layout);
    for (int u = 0; u < plan->unit_count; u++)
        mix_unit(&hash, &plan->units[u]);
    *out = hash;
    return HD_OK;
}

/* What of a rank's options a search decides, as another's has. */
static hd_trainer_options decided(const hd_trainer_options *options,
                                  const hd_trainer_options *found)
{
    hd_trainer_options out = *options;
    out.slices = found->slices;
    out.mlp_slices = found->mlp_slices;
    out.activations = found->activations;
    out.recompute = found->recompute;
    out.activation_blocks = found->activation_blocks;
    out.residency = found->residency;
    out.host_blocks = found->host_blocks;
    out.optimizer_residency = found->optimizer_residency;
    out.gradient_residency = found->gradient_residency;
    out.in_turn = found->in_turn;
    return out;
}

static bool is_same_decision(const hd_trainer_options *a, const hd_trainer_options *b)
{
    return a->slices == b->slices && a->mlp_slices == b->mlp_slices &&
           a->activations == b->activations && a->recompute == b->recompute &&
           a->activation_blocks == b->activation_blocks && a->residency == b->residency &&
           a->host_blocks == b->host_blocks && a->optimizer_residency == b->optimizer_residency &&
           a->gradient_residency == b->gradient_residency && a->in_turn == b->in_turn;
}

/* Whether a trainer of the settings of search `index` is like one that was found with them: *out, which is
 * NULL if not. */
static hd_status try_found(const hdi_searches *searches, int index,
                           const hd_trainer_options *options, hd_trainer **out)
{
    const hdi_search *search = &searches->items[index];
    const hd_trainer_options tried = decided(options, &search->found);
    uint64_t likeness;
    *out = NULL;
    if (hdi_trainer_create_as(&tried, search->cuts_blocks, out) != HD_OK) return HD_OK;
    const hd_status status = hdi_trainer_likeness(*out, &likeness);
    for (int s = 0; s < searches->count && status == HD_OK; s++) {
        const hdi_search *other = &searches->items[s];
        if (other->code == search->code && other->likeness == likeness &&
            is_same_decision(&other->found, &search->found))
            return HD_OK;
    }
    hd_trainer_destroy(*out);
    *out = NULL;
    return status;
}

static hd_status keep(hdi_searches *searches, int64_t code, const hd_trainer *trainer)
{
    hdi_search made = {
        .code = code, .found = trainer->options, .cuts_blocks = trainer->cuts_blocks};
    HD_RETURN_IF_ERROR(hdi_trainer_likeness(trainer, &made.likeness));
    if (!HDI_GROW(searches->items, searches->count, searches->capacity))
        return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    searches->items[searches->count++] = made;
    return HD_OK;
}

/* Without a search there is nothing to save. */
static bool is_searched(const hd_trainer_options *o)
{
    return o->budget &&
           (o->slices == HD_SLICES_AUTO || o->mlp_slices == HD_SLICES_AUTO ||
            o->activations == HD_ACTIVATIONS_AUTO || o->residency == HD_RESIDENCY_AUTO ||
            o->optimizer_residency == HD_RESIDENCY_AUTO ||
            o->gradient_residency == HD_RESIDENCY_AUTO);
}

hd_status hdi_searches_create_trainer(hdi_searches *searches, const hd_trainer_options *options,
                                      int64_t code, hd_trainer **out)
{
    *out = NULL;
    for (int s = searches->count - 1; s >= 0 && is_searched(options); s--) {
        bool is_new = searches->items[s].code == code;
        for (int later = s + 1; later < searches->count && is_new; later++)
            is_new = searches->items[later].code != code ||
                     !is_same_decision(&searches->items[later].found, &searches->items[s].found);
        if (is_new) HD_RETURN_IF_ERROR(try_found(searches, s, options, out));
        if (*out) return HD_OK;
    }
    HD_RETURN_IF_ERROR(code ? hdi_trainer_adopt(options, code, out)
                            : hd_trainer_create(options, out));
    const hd_status status = is_searched(options) ? keep(searches, code, *out) : HD_OK;
    if (status == HD_OK) return HD_OK;
    hd_trainer_destroy(*out);
    *out = NULL;
    return status;
}

void hdi_searches_release(hdi_searches *searches)
{
    hdi_free(searches->items);
    *searches = (hdi_searches){0};
}
