/* Collectives on axes of the mesh, and ordered sums of what they bring. */
#include "ops/collective.h"

#include "backend/backend.h"
#include "core/error.h"
#include "ops/regroup.h"
#include "ops/ring.h"
#include "ops/tensor_axis.h"

#include <limits.h>

/* These ops are appended by passes with outputs that exist, never through a shape rule. */
static hd_status no_shape(hd_program *program, const hd_op *op)
{
    (void)program;
    return hdi_error(HD_ERROR_INTERNAL, "%s: appended without outputs", op->kind->name);
}

static void cost_moved(const hd_op *op, hd_cost *out)
{
    out->bytes = (double)op->out_info[0]->bytes;
}

static hd_comm *comm_of(const hd_run *run)
{
    const hdi_collective *options = run->op->options;
    return hd_mesh_device_comm(run->mesh, options->axis);
}

static hd_status run_all_to_all(const hd_run *run)
{
    const hdi_all_to_all_options *o = run->op->options;
    *run->posted_on = comm_of(run);
    return hd_comm_all_to_all(*run->posted_on, run->in[0], o->send_counts, o->send_offsets,
                              run->out[0], o->recv_counts, o->recv_offsets,
                              run->op->in_info[0]->dtype, run->request);
}

static hd_status run_all_gather(const hd_run *run)
{
    const hdi_all_gather_options *o = run->op->options;
    *run->posted_on = comm_of(run);
    return hd_comm_all_gather(*run->posted_on, run->out[0], o->counts, o->offsets,
                              run->op->out_info[0]->dtype, run->request);
}

static hd_status run_all_reduce(const hd_run *run)
{
    const hd_tensor_info *info = run->op->out_info[0];
    *run->posted_on = comm_of(run);
    return hd_comm_all_reduce(*run->posted_on, run->out[0], info->elements, info->dtype,
                              HD_REDUCE_SUM, run->request);
}

static hd_status run_tree_sum(const hd_run *run)
{
    const hdi_tree_sum_options *o = run->op->options;
    int64_t elements = run->op->out_info[0]->elements;
    return run->backend->tree_sum(run->stream, run->op->out_info[0]->dtype, run->in[0], elements,
                                  o->parts, elements, run->out[0]);
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

/* Join the level at `at` with `folds` levels below. */
static hd_status fold(const hd_run *run, char *at, int folds)
{
    for (int i = 0; i < folds; i++, at -= run->level_bytes)
        HD_RETURN_IF_ERROR(run->backend->add(run->stream, HD_DTYPE_F32,
                                             run->op->out_info[0]->elements, at - run->level_bytes,
                                             at, at - run->level_bytes));
    return HD_OK;
}

/* Of fp32, as all that is exact. */
static hd_status sum_leaves(const hd_run *run, const hdi_shard_sum_options *o)
{
    const int64_t elements = run->op->out_info[0]->elements;
    const int leaves = hdi_shard_leaves(o->parts, o->accumulates), runs = o->parts / leaves;
    for (int leaf = 0; leaf < leaves; leaf++) {
        const int index = run->micro_batch * leaves + leaf;
        const int count = run->last && leaf == leaves - 1 ? index + 1 : INT_MAX;
        char *level = (char *)run->out[0] + (size_t)hdi_gradient_level(index) * run->level_bytes;
        const float *from = (const float *)run->in[0] + (int64_t)leaf * runs * elements;
        HD_RETURN_IF_ERROR(run->backend->tree_sum(run->stream, HD_DTYPE_F32, from, elements, runs,
                                                  elements, level));
        HD_RETURN_IF_ERROR(fold(run, level, hdi_gradient_folds(index, count)));
    }
    return HD_OK;
}

static hd_status run_shard_sum(const hd_run *run)
{
    const hdi_shard_sum_options *o = run->op->options;
    const hd_tensor_info *info = run->op->out_info[0];
    if (o->exact) return sum_leaves(run, o);
    const bool first = run->micro_batch == 0;
    HD_RETURN_IF_ERROR(run->backend->tree_sum(run->stream, info->dtype, run->in[0], info->elements,
                                              o->parts, info->elements,
                                              first ? run->out[0] : run->workspace));
    if (first) return HD_OK;
    return run->backend->add(run->stream, info->dtype, info->elements, run->out[0], run->workspace,
                             run->out[0]);
}

/* The micro-batch's sum, before it is added to those of earlier ones. */
static size_t shard_sum_workspace(const hd_op *op)
{
    const hdi_shard_sum_options *o = op->options;
    return o->exact || !o->accumulates ? 0 : op->out_info[0]->bytes;
}

static hd_status run_join(const hd_run *run)
{
    const hd_tensor_info *info = run->op->out_info[0];
    return run->backend->add(run->stream, info->dtype, info->elements, run->out[0], run->in[0],
                             run->out[0]);
}

static hd_status run_fold(const hd_run *run)
{
    return fold(run, run->out[0], run->folds);
}

const hd_op_kind hdi_op_all_to_all = {.name = "all_to_all",
                                      .options_bytes = sizeof(hdi_all_to_all_options),
                                      .flags = HD_OP_COMMUNICATES,
                                      .shape = no_shape,
                                      .cost = cost_moved,
                                      .run = run_all_to_all};

const hd_op_kind hdi_op_all_gather = {.name = "all_gather",
                                      .options_bytes = sizeof(hdi_all_gather_options),
                                      .flags = HD_OP_COMMUNICATES | HD_OP_UPDATES,
                                      .shape = no_shape,
                                      .cost = cost_moved,
                                      .run = run_all_gather};

const hd_op_kind hdi_op_all_reduce = {.name = "all_reduce",
                                      .options_bytes = sizeof(hdi_collective),
                                      .flags = HD_OP_COMMUNICATES | HD_OP_UPDATES,
                                      .shape = no_shape,
                                      .cost = cost_moved,
                                      .run = run_all_reduce};

const hd_op_kind hdi_op_tree_sum = {.name = "tree_sum",
                                    .options_bytes = sizeof(hdi_tree_sum_options),
                                    .shape = no_shape,
                                    .run = run_tree_sum};

const hd_op_kind hdi_op_shard_sum = {.name = "shard_sum",
                                     .options_bytes = sizeof(hdi_shard_sum_options),
                                     .flags = HD_OP_UPDATES,
                                     .shape = no_shape,
                                     .workspace = shard_sum_workspace,
                                     .run = run_shard_sum};

const hd_op_kind hdi_op_gradient_join = {
    .name = "gradient_join", .flags = HD_OP_UPDATES, .shape = no_shape, .run = run_join};

const hd_op_kind hdi_op_gradient_fold = {
    .name = "gradient_fold", .flags = HD_OP_UPDATES, .shape = no_shape, .run = run_fold};

const hdi_collective *hdi_op_collective(const hd_op *op)
{
    bool ours = op->kind == &hdi_op_all_to_all || op->kind == &hdi_op_all_gather ||
                op->kind == &hdi_op_all_reduce || op->kind == &hdi_op_sequence_exchange ||
                op->kind == &hdi_op_sequence_share || op->kind == &hdi_op_sequence_scatter ||
                op->kind == &hdi_op_ring_shift || op->kind == &hdi_op_ring_gather ||
                op->kind == &hdi_op_ring_scatter || op->kind == &hdi_op_tensor_gather ||
                op->kind == &hdi_op_tensor_exchange || op->kind == &hdi_op_tensor_step ||
                op->kind == &hdi_op_regroup_exchange;
    return ours ? op->options : NULL;
}
