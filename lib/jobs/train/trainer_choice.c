/* What is kept where, as the planner chooses it from the budget. */
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"

#include <stdint.h>

/* From cheap to dear. Copies of optimizer state cost a part of a step's end; computing again, a third of
 * all micro-batches; copies of activations, what the link is too slow for; those of gradients, both ways
 * in every micro-batch, and of weights, for each forward and backward and for the update, the most. */
typedef enum on_host {
    NOTHING,
    OPTIMIZER,
    GRADIENTS,
    WEIGHTS
} on_host; /* each with those before it */

static const struct rung {
    hd_activations activations;
    on_host most;
} rungs[] = {
    {HD_ACTIVATIONS_KEEP, NOTHING},
    {HD_ACTIVATIONS_KEEP, OPTIMIZER},
    {HD_ACTIVATIONS_RECOMPUTE, NOTHING},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, NOTHING},
    {HD_ACTIVATIONS_RECOMPUTE, OPTIMIZER},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, OPTIMIZER},
    {HD_ACTIVATIONS_HOST, NOTHING},
    {HD_ACTIVATIONS_HOST, OPTIMIZER},
    {HD_ACTIVATIONS_KEEP, GRADIENTS},
    {HD_ACTIVATIONS_RECOMPUTE, GRADIENTS},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, GRADIENTS},
    {HD_ACTIVATIONS_HOST, GRADIENTS},
    {HD_ACTIVATIONS_KEEP, WEIGHTS},
    {HD_ACTIVATIONS_RECOMPUTE, WEIGHTS},
    {HD_ACTIVATIONS_RECOMPUTE_HOST, WEIGHTS},
    {HD_ACTIVATIONS_HOST, WEIGHTS},
};

static void choose_place(const struct rung *rung, on_host what, hd_residency *inout)
{
    if (*inout == HD_RESIDENCY_AUTO)
        *inout = rung->most >= what ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT;
}

/* What the user has decided stays. */
static void choose(const hd_trainer_options *wanted, const struct rung *rung,
                   hd_trainer_options *out)
{
    *out = *wanted;
    if (wanted->activations == HD_ACTIVATIONS_AUTO) out->activations = rung->activations;
    choose_place(rung, OPTIMIZER, &out->optimizer_residency);
    if (hdi_trainer_gradients_may_leave(wanted))
        choose_place(rung, GRADIENTS, &out->gradient_residency);
    else if (wanted->gradient_residency == HD_RESIDENCY_AUTO)
        out->gradient_residency = HD_RESIDENCY_RESIDENT;
    choose_place(rung, WEIGHTS, &out->residency);
}

static bool is_same_choice(const hd_trainer_options *a, const hd_trainer_options *b)
{
    return a->activations == b->activations && a->optimizer_residency == b->optimizer_residency &&
           a->gradient_residency == b->gradient_residency && a->residency == b->residency;
}

typedef struct choice {
    bool cuts_blocks; /* of the layout */
    int slices; /* of the loss, as wanted: what is kept on the device is paid with these first */
    bool may_slice;   /* MLPs */
    hd_trainer *best; /* NULL: none yet */
    on_host most;     /* of its rung */
    double seconds;   /* of its step */
} choice;

/* What the budget leaves beside a trainer, in as many slices as there may be. */
static hd_status find_room(const choice *c, const hd_trainer *trainer, size_t *out)
{
    hd_trainer_options options = trainer->options;
    *out = options.budget - hd_plan_total_bytes(trainer->plan);
    if (c->slices != HD_SLICES_AUTO || options.slices == HD_SLICES_AUTO_MOST) return HD_OK;
    hd_trainer *sliced = NULL;
    options.slices = HD_SLICES_AUTO_MOST;
    const hd_status status = hdi_trainer_create_as(&options, c->cuts_blocks, &sliced);
    if (status == HD_ERROR_BUDGET) return HD_OK;
    HD_RETURN_IF_ERROR(status);
    *out = options.budget - hd_plan_total_bytes(sliced->plan);
    hd_trainer_destroy(sliced);
    return HD_OK;
}

/* Of a trainer with all blocks on the host: another, if that fits, with as many on the device as there is
 * room for. */
static hd_status keep_blocks(const choice *c, hd_trainer **inout)
{
    const hd_plan *plan = (*inout)->plan;
    const hdi_residency *it = &plan->residency;
    const int blocks = plan->layout->host_blocks;
    const size_t each = it->gathers ? it->shard_bytes : it->slot_bytes;
    size_t room;
    HD_RETURN_IF_ERROR(find_room(c, *inout, &room));
    if (!blocks || room < each) return HD_OK;
    const size_t fit = room / each, most = (size_t)blocks - 1;
    hd_trainer_options fewer = (*inout)->options;
    hd_trainer *kept = NULL;
    fewer.slices = c->slices;
    fewer.host_blocks = blocks - (int)(fit < most ? fit : most);
    const hd_status status = hdi_trainer_create_sliced(&fewer, c->cuts_blocks, &kept);
    if (status == HD_ERROR_BUDGET) return HD_OK;
    HD_RETURN_IF_ERROR(status);
    hd_trainer_destroy(*inout);
    *inout = kept;
    return HD_OK;
}

/* Of a trainer in which activations of no block are kept: another that keeps those of as many as there is room
 * for. */
static hd_status keep_activations(const choice *c, hd_trainer **inout)
{
    const hd_activations how = (*inout)->options.activations;
    int too_few = 0, enough = hdi_trainer_layers(*inout);
    if (how == HD_ACTIVATIONS_KEEP || (*inout)->options.activation_blocks) return HD_OK;
    while (enough - too_few > 1) {
        hd_trainer_options fewer = (*inout)->options;
        hd_trainer *kept = NULL;
        const int blocks = fewer.activation_blocks = too_few + (enough - too_few) / 2;
        fewer.slices = c->slices;
        const hd_status status = hdi_trainer_create_sliced(&fewer, c->cuts_blocks, &kept);
        if (status == HD_ERROR_BUDGET) {
            too_few = blocks;
            continue;
        }
        HD_RETURN_IF_ERROR(status);
        hd_trainer_destroy(*inout);
        *inout = kept;
        enough = blocks;
    }
    return HD_OK;
}

hd_status hdi_trainer_copies_of_update(const hd_trainer *trainer, hdi_copies *out)
{
    if (!hdi_trainer_updates_beside(&trainer->options))
        return hdi_plan_copies(trainer->plan, trainer->update, out);
    hd_program **next = hdi_alloc_array((size_t)trainer->chunks, sizeof(hd_program *));
    if (!next) return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    for (int c = 0; c < trainer->chunks; c++)
        next[c] = trainer->shapes[0].train[c].program;
    const hd_status status =
        hdi_plan_copies_beside(trainer->plan, trainer->update, next, trainer->chunks, out);
    hdi_free(next);
    return status;
}

hd_status hdi_trainer_step_seconds(const hd_trainer *trainer, double *out)
{
    const hdi_trainer_shape *shape = &trainer->shapes[0];
    double norm;
    hdi_copies update;
    *out = 0;
    for (int c = 0; c < trainer->chunks; c++) {
        double seconds;
        HD_RETURN_IF_ERROR(hd_plan_seconds(trainer->plan, shape->train[c].program, &seconds));
        *out += seconds * shape->is.accumulate;
    }
    HD_RETURN_IF_ERROR(hd_plan_seconds(trainer->plan, trainer->norm, &norm));
    HD_RETURN_IF_ERROR(hdi_trainer_copies_of_update(trainer, &update));
    *out += norm + update.compute_seconds + update.exposed_seconds;
    return HD_OK;
}

/* What an update beside the next step has to itself is given up before anything but slices is, and for nothing
 * less. What does not fit without it is not tried with it. */
static hd_status create(const hd_trainer_options *options, bool cuts_blocks, hd_trainer **out)
{
    if (!options->budget || !hdi_trainer_updates_beside(options))
        return hdi_trainer_create_sliced(options, cuts_blocks, out);
    hd_trainer_options less = *options;
    hd_trainer *in_turn = NULL;
    less.in_turn = true;
    HD_RETURN_IF_ERROR(hdi_trainer_create_sliced(&less, cuts_blocks, &in_turn));
    hd_status status = hdi_trainer_create_sliced(options, cuts_blocks, out);
    if (status == HD_ERROR_BUDGET) {
        *out = in_turn;
        return HD_OK;
    }
    hd_trainer_destroy(in_turn);
    return status;
}

/* Of rungs further down those with less of the state on the host may be faster, where a few blocks are enough;
 * and of those with as much there, and no more activations, some blocks at once in place of all MLPs in slices, or
 * these in place of some blocks. */
static bool may_gain(const choice *c, const struct rung *rung, bool slices_mlps)
{
    if (!c->best || rung->most < c->most) return true;
    const hd_trainer_options *best = &c->best->options;
    const bool is_sliced = best->mlp_slices > 1;
    const bool makes_again = is_sliced || best->activations != HD_ACTIVATIONS_KEEP;
    const bool copies = rung->activations != HD_ACTIVATIONS_KEEP &&
                        rung->activations != HD_ACTIVATIONS_RECOMPUTE &&
                        rung->activations != best->activations;
    return c->may_slice && rung->most == c->most && makes_again && !copies &&
           slices_mlps != is_sliced;
}

/* What is faster for more of the host's memory is not taken: nobody has said how much there is. */
static bool wins(const choice *c, const hd_trainer *trainer, double seconds)
{
    return !c->best || (seconds < c->seconds &&
                        hd_plan_host_bytes(trainer->plan) <= hd_plan_host_bytes(c->best->plan));
}

/* Takes the trainer, which has all blocks where the rung says. */
static hd_status consider(choice *c, const hd_trainer_options *wanted, const struct rung *rung,
                          hd_trainer *trainer)
{
    const bool streams = trainer->options.residency == HD_RESIDENCY_HOST;
    double seconds = 0;
    hd_status status = HD_OK;
    if (wanted->residency == HD_RESIDENCY_AUTO && streams) status = keep_blocks(c, &trainer);
    if (status == HD_OK && wanted->activations == HD_ACTIVATIONS_AUTO && wanted->budget)
        status = keep_activations(c, &trainer);
    if (status == HD_OK) status = hdi_trainer_step_seconds(trainer, &seconds);
    const bool is_better = status == HD_OK && wins(c, trainer, seconds);
    hd_trainer_destroy(is_better ? c->best : trainer);
    if (!is_better) return status;
    c->best = trainer;
    c->most = rung->most;
    c->seconds = seconds;
    return HD_OK;
}

/* MLPs in as few slices as fit. The most are tried first: where these do not fit, no others do. */
static hd_status create_with_mlps(const hd_trainer_options *options, bool cuts_blocks,
                                  hd_trainer **out)
{
    hd_trainer_options tried = *options;
    tried.mlp_slices = HD_SLICES_AUTO_MOST;
    HD_RETURN_IF_ERROR(create(&tried, cuts_blocks, out));
    for (int slices = 2; slices < HD_SLICES_AUTO_MOST; slices *= 2) {
        hd_trainer *fewer = NULL;
        tried.mlp_slices = slices;
        const hd_status status = create(&tried, cuts_blocks, &fewer);
        if (status == HD_ERROR_BUDGET) continue;
        hd_trainer_destroy(*out);
        *out = fewer;
        return status;
    }
    return HD_OK;
}

/* MLPs at once, and then in as few slices as fit, where the user leaves that open. */
static hd_status try_rung(choice *c, const hd_trainer_options *wanted, const struct rung *rung,
                          hd_trainer_options *tried)
{
    hd_status status = HD_OK;
    for (int sliced = 0; sliced <= c->may_slice; sliced++) {
        hd_trainer *trainer = NULL;
        if (!may_gain(c, rung, sliced)) continue;
        if (c->may_slice) tried->mlp_slices = 1;
        status = sliced ? create_with_mlps(tried, c->cuts_blocks, &trainer)
                        : create(tried, c->cuts_blocks, &trainer);
        if (status == HD_OK) status = consider(c, wanted, rung, trainer);
        if (status != HD_OK && status != HD_ERROR_BUDGET) break;
    }
    return status;
}

/* Ranks that sum gradients may choose differently, since their shards and parts differ by a little: their
 * buckets must not. */
static hd_status choose_alone(const hd_trainer_options *options, hd_trainer **out)
{
    const bool may_stream = options->residency == HD_RESIDENCY_AUTO && options->budget;
    const int others = hd_mesh_ranks(options->mesh) / hd_mesh_size(options->mesh, HD_AXIS_PIPELINE);
    const bool skips_keep =
        options->activations == HD_ACTIVATIONS_AUTO && options->activation_blocks;
    choice c = {.cuts_blocks = may_stream && others > 1,
                .slices = options->slices,
                .may_slice = options->mlp_slices == HD_SLICES_AUTO};
    hd_status status = HD_OK;
    *out = NULL;
    HD_RETURN_IF_ERROR(hdi_trainer_check_slices(options));
    for (size_t r = 0; r < sizeof rungs / sizeof rungs[0]; r++) {
        hd_trainer_options tried, before;
        bool is_new = !(skips_keep && rungs[r].activations == HD_ACTIVATIONS_KEEP);
        choose(options, &rungs[r], &tried);
        for (size_t earlier = 0; earlier < r && is_new; earlier++) {
            choose(options, &rungs[earlier], &before);
            is_new = !is_same_choice(&tried, &before);
        }
        if (is_new) status = try_rung(&c, options, &rungs[r], &tried);
        if (status == HD_OK || status == HD_ERROR_BUDGET) continue;
        hd_trainer_destroy(c.best);
        return status;
    }
    *out = c.best;
    return c.best ? HD_OK : status;
}

enum { SLICES_SHIFT = 32, KIND_SHIFT = 48 };

int64_t hdi_trainer_activations_code(const hd_trainer *trainer)
{
    const hd_trainer_options *o = &trainer->options;
    const int blocks = o->activation_blocks ? o->activation_blocks : hdi_trainer_layers(trainer);
    const int64_t slices = o->mlp_slices > 1 ? (int64_t)o->mlp_slices << SLICES_SHIFT : 0;
    if (o->activations == HD_ACTIVATIONS_KEEP) return slices;
    return (int64_t)o->activations << KIND_SHIFT | slices | blocks;
}

hd_status hdi_trainer_adopt(const hd_trainer_options *options, int64_t code, hd_trainer **out)
{
    const bool may_slice = options->mlp_slices == HD_SLICES_AUTO;
    hd_trainer_options as = *options;
    as.activations = (hd_activations)(code >> KIND_SHIFT);
    as.activation_blocks = (int)(code & (((int64_t)1 << SLICES_SHIFT) - 1));
    if (may_slice)
        as.mlp_slices = (int)(code >> SLICES_SHIFT & ((1 << (KIND_SHIFT - SLICES_SHIFT)) - 1));
    hd_status status = choose_alone(&as, out);
    if (status == HD_ERROR_BUDGET && options->activations == HD_ACTIVATIONS_AUTO) {
        as.activation_blocks = 0;
        status = choose_alone(&as, out);
    }
    if (status == HD_ERROR_BUDGET && may_slice) {
        as.mlp_slices = HD_SLICES_AUTO_MOST;
        status = choose_alone(&as, out);
    }
    return status;
}

static hd_status largest(const hd_mesh *mesh, hd_axis axis, int64_t inout[2])
{
    hd_comm *comm = hd_mesh_comm(mesh, axis);
    hd_request request;
    if (!comm || hd_comm_size(comm) < 2) return HD_OK;
    HD_RETURN_IF_ERROR(hd_comm_all_reduce(comm, inout, 2, HD_DTYPE_I64, HD_REDUCE_MAX, &request));
    return hd_comm_wait(comm, &request);
}

/* Over the ranks whose collectives stand in the forward, which runs again in a recomputed block; an MMDiT's come
 * in another order where its MLPs are made in slices.
 * Each takes the largest code that there is, until all have it. Where one has failed the others go on as they
 * are: whoever starts the ranks learns of it. */
static hd_status agree(const hd_trainer_options *options, hd_status status, hd_trainer **inout)
{
    const int64_t has_failed = INT64_MAX;
    for (;;) {
        const int64_t own = status == HD_OK ? hdi_trainer_activations_code(*inout) : has_failed;
        int64_t codes[] = {own, -own};
        hd_status reduced = largest(options->mesh, HD_AXIS_TENSOR, codes);
        if (reduced == HD_OK) reduced = largest(options->mesh, HD_AXIS_SEQUENCE, codes);
        if (status == HD_OK) status = reduced;
        if (reduced != HD_OK || codes[0] == has_failed || codes[0] == -codes[1]) break;
        if (own == codes[0]) continue;
        hd_trainer_destroy(*inout);
        status = hdi_trainer_adopt(options, codes[0], inout);
    }
    if (status == HD_OK) return HD_OK;
    hd_trainer_destroy(*inout);
    *inout = NULL;
    return status;
}

/* May ranks gather what an update that goes on beside the next step has changed? */
static bool may_gather_beside(const hd_trainer_options *options)
{
    const bool passes = options->optimizer_residency != HD_RESIDENCY_RESIDENT ||
                        options->gradient_residency != HD_RESIDENCY_RESIDENT ||
                        options->residency != HD_RESIDENCY_RESIDENT;
    return passes && !options->in_turn && options->shard_state &&
           hd_mesh_size(options->mesh, HD_AXIS_SHARD) > 1;
}

int64_t hdi_trainer_overlap_code(const hd_trainer *trainer)
{
    return hdi_trainer_updates_beside(&trainer->options) ? 1 + trainer->plan->layout->host_blocks
                                                         : 0;
}

hd_status hdi_trainer_take_turns(hd_trainer **inout)
{
    hd_trainer_options less = (*inout)->options;
    const bool cuts_blocks = (*inout)->cuts_blocks;
    less.in_turn = true;
    hd_trainer_destroy(*inout);
    *inout = NULL;
    return hdi_trainer_create_as(&less, cuts_blocks, inout);
}

/* One that has failed does not. */
static hd_status agree_to_overlap(const hd_trainer_options *options, hd_status status,
                                  hd_trainer **inout)
{
    const int64_t own = status == HD_OK ? hdi_trainer_overlap_code(*inout) : 0;
    int64_t codes[] = {own, -own};
    const hd_status reduced = largest(options->mesh, HD_AXIS_SHARD, codes);
    if (status == HD_OK) status = reduced;
    if (status == HD_OK)
        return own && codes[0] != -codes[1] ? hdi_trainer_take_turns(inout) : HD_OK;
    hd_trainer_destroy(*inout);
    *inout = NULL;
    return status;
}

hd_status hd_trainer_create(const hd_trainer_options *options, hd_trainer **out)
{
    hd_status status = choose_alone(options, out);
    const bool is_open = options->mlp_slices == HD_SLICES_AUTO ||
                         (options->activations == HD_ACTIVATIONS_AUTO && options->budget);
    if (is_open) status = agree(options, status, out);
    return may_gather_beside(options) ? agree_to_overlap(options, status, out) : status;
}
