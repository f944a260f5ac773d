/* Collectives on axes of the mesh, and ordered sums of what they bring. */
#include "ops/collective.h"

#include "backend/backend.h"
#include "core/error.h"
#include "ops/ring.h"
#include "ops/shard_sum.h"
#include "ops/tensor_axis.h"

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

static hd_status run_join(const hd_run *run)
{
    const hd_tensor_info *info = run->op->out_info[0];
    return run->backend->add(run->stream, info->dtype, info->elements, run->out[0], run->in[0],
                             run->out[0]);
}

static hd_status run_fold(const hd_run *run)
{
    return hdi_gradient_fold(run, run->out[0], run->op->out_info[0]->elements, run->level_bytes,
                             run->folds);
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
                op->kind == &hdi_op_tensor_exchange || op->kind == &hdi_op_tensor_step;
    return ours ? op->options : NULL;
}
