/* Shards of gradients: their sums over micro-batches, level by level where these are exact. */
#include "ops/shard_sum.h"

#include "backend/backend.h"
#include "core/error.h"

#include <limits.h>

static hd_status no_shape(hd_program *program, const hd_op *op)
{
    (void)program;
    return hdi_error(HD_ERROR_INTERNAL, "%s: appended without outputs", op->kind->name);
}

/* Bits of an index: the tree joins like the carries of a binary counter. */
int hdi_gradient_level(int micro_batch)
{
    return __builtin_popcount((unsigned)micro_batch);
}

int hdi_gradient_folds(int micro_batch, int count)
{
    int depth = hdi_gradient_level(micro_batch);
    if (micro_batch == count - 1) return depth; /* all that is left joins, from the right */
    return __builtin_ctz((unsigned)micro_batch + 1);
}

int hdi_gradient_levels(int count)
{
    int most = 0;
    for (int i = 0; i < count; i++)
        if (hdi_gradient_level(i) > most) most = hdi_gradient_level(i);
    return most + 1;
}

int hdi_shard_leaves(int parts, bool accumulates)
{
    return accumulates ? parts / (parts & -parts) : 1;
}

hd_status hdi_gradient_fold(const hd_run *run, char *at, int64_t elements, size_t level_bytes,
                            int folds)
{
    for (int i = 0; i < folds; i++, at -= level_bytes)
        HD_RETURN_IF_ERROR(run->backend->add(run->stream, HD_DTYPE_F32, elements, at - level_bytes,
                                             at, at - level_bytes));
    return HD_OK;
}

/* The leaves of a micro-batch, and when there will be no more. */
typedef struct leaves {
    int first, count, end;
} leaves;

static leaves leaves_of(const hd_run *run, const hdi_shard_sum_options *o)
{
    leaves out = {.count = hdi_shard_leaves(o->parts, o->accumulates), .end = INT_MAX};
    out.first = run->micro_batch * out.count;
    if (run->last) out.end = out.first + out.count;
    return out;
}

/* Of fp32, as all that is exact. */
static hd_status sum_leaves(const hd_run *run, const hdi_shard_sum_options *o, int64_t elements)
{
    const leaves all = leaves_of(run, o);
    const int runs = o->parts / all.count;
    const size_t level_bytes = (size_t)elements * sizeof(float);
    for (int leaf = 0; leaf < all.count; leaf++) {
        const int index = all.first + leaf;
        char *level = (char *)run->out[0] + (size_t)hdi_gradient_level(index) * level_bytes;
        const float *from = (const float *)run->in[0] + (int64_t)leaf * runs * elements;
        HD_RETURN_IF_ERROR(run->backend->tree_sum(run->stream, HD_DTYPE_F32, from, elements, runs,
                                                  elements, level));
        HD_RETURN_IF_ERROR(hdi_gradient_fold(run, level, elements, level_bytes,
                                             hdi_gradient_folds(index, all.end)));
    }
    return HD_OK;
}

static hd_status run_shard_sum(const hd_run *run)
{
    const hdi_shard_sum_options *o = run->op->options;
    const hd_tensor_info *info = run->op->out_info[0];
    const int64_t elements = info->elements / o->levels;
    if (o->exact) return sum_leaves(run, o, elements);
    const bool first = run->micro_batch == 0;
    HD_RETURN_IF_ERROR(run->backend->tree_sum(run->stream, info->dtype, run->in[0], elements,
                                              o->parts, elements,
                                              first ? run->out[0] : run->workspace));
    if (first) return HD_OK;
    return run->backend->add(run->stream, info->dtype, elements, run->out[0], run->workspace,
                             run->out[0]);
}

/* The micro-batch's sum, before it is added to those of earlier ones. */
static size_t shard_sum_workspace(const hd_op *op)
{
    const hdi_shard_sum_options *o = op->options;
    return o->exact || !o->accumulates ? 0 : op->out_info[0]->bytes;
}

/* Levels from `first` on, up to `before` that hold something when a micro-batch comes and up to `after`
 * when it has been added. Those below `first` it does not touch. */
typedef struct span {
    int first, before, after;
} span;

static span span_of(const hd_run *run, const hdi_shard_sum_options *o)
{
    if (!o->exact) return (span){.before = run->micro_batch > 0, .after = 1};
    const leaves all = leaves_of(run, o);
    span out = {.first = INT_MAX, .before = hdi_gradient_level(all.first), .after = 1};
    for (int index = all.first; index < all.first + all.count; index++) {
        const int lowest = hdi_gradient_level(index) - hdi_gradient_folds(index, all.end);
        if (out.first > lowest) out.first = lowest;
    }
    if (!run->last) out.after = hdi_gradient_level(all.first + all.count);
    return out;
}

static hd_status copy_levels(const hd_run *run, bool loads)
{
    const hdi_shard_sum_options *o = run->op->options;
    const size_t level_bytes = run->op->out_info[0]->bytes / (size_t)o->levels;
    const span levels = span_of(run, o);
    const int end = loads ? levels.before : levels.after;
    if (end <= levels.first) return HD_OK;
    const size_t at = (size_t)levels.first * level_bytes;
    const size_t bytes = (size_t)(end - levels.first) * level_bytes;
    return (loads ? run->backend->fetch : run->backend->store)(
        run->stream, run->slot, (char *)run->out[0] + at, (const char *)run->in[0] + at, bytes);
}

static hd_status run_shard_load(const hd_run *run)
{
    return copy_levels(run, true);
}

static hd_status run_shard_store(const hd_run *run)
{
    return copy_levels(run, false);
}

/* As over many micro-batches: of each but the first one level comes, and of each one goes. */
static void cost_of_level(const hd_op *op, hd_cost *out)
{
    const hdi_shard_sum_options *o = op->options;
    out->bytes = (double)op->out_info[0]->bytes / o->levels;
}

const hd_op_kind hdi_op_shard_sum = {.name = "shard_sum",
                                     .options_bytes = sizeof(hdi_shard_sum_options),
                                     .flags = HD_OP_UPDATES,
                                     .shape = no_shape,
                                     .workspace = shard_sum_workspace,
                                     .run = run_shard_sum};

const hd_op_kind hdi_op_shard_load = {.name = "shard_load",
                                      .options_bytes = sizeof(hdi_shard_sum_options),
                                      .flags = HD_OP_LOADS,
                                      .shape = no_shape,
                                      .cost = cost_of_level,
                                      .run = run_shard_load};

const hd_op_kind hdi_op_shard_store = {.name = "shard_store",
                                       .options_bytes = sizeof(hdi_shard_sum_options),
                                       .flags = HD_OP_STORES,
                                       .shape = no_shape,
                                       .cost = cost_of_level,
                                       .run = run_shard_store};
