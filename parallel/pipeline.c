/* Runs schedule rows: receives are posted early, sends are asynchronous, computes wait for what they
 * need. */
#include "parallel/pipeline.h"

#include "comm/comm.h"
#include "core/error.h"
#include "core/memory.h"
#include "ops/shard_sum.h"
#include "parallel/data.h"
#include "parallel/links.h"
#include "parallel/schedule_internal.h"

struct hdi_pipeline {
    const hdi_schedule *schedule;
    const hdi_pipeline_chunk *chunks;
    const hd_mesh *mesh;
    hd_comm *comm;
    hdi_gradient_sum sum;
    hd_request *requests; /* [chunk][op][micro-batch], owned */
    hdi_links *links;     /* owned; NULL: messages go as the transport likes */
};

static hd_request *request_of(hdi_pipeline *pipeline, int chunk, hdi_schedule_op op,
                              int micro_batch)
{
    int batches = pipeline->schedule->options.micro_batches;
    return &pipeline->requests[(chunk * HDI_SCHEDULE_OPS + (int)op) * batches + micro_batch];
}

hd_status hdi_pipeline_create(const hdi_schedule *schedule, const hdi_pipeline_chunk *chunks,
                              const hd_mesh *mesh, hdi_gradient_sum sum, hdi_pipeline **out)
{
    *out = NULL;
    hdi_pipeline *pipeline = hdi_alloc(sizeof *pipeline);
    if (!pipeline) return hdi_error(HD_ERROR_MEMORY, "pipeline: out of host memory");
    *pipeline = (hdi_pipeline){.schedule = schedule, .chunks = chunks, .mesh = mesh, .sum = sum};
    pipeline->comm = hd_mesh_device_comm(mesh, HD_AXIS_PIPELINE);
    size_t count = (size_t)schedule->options.chunks * HDI_SCHEDULE_OPS *
                   (size_t)schedule->options.micro_batches;
    pipeline->requests = hdi_alloc_array(count, sizeof *pipeline->requests);
    if (!pipeline->requests) {
        hdi_pipeline_destroy(pipeline);
        return hdi_error(HD_ERROR_MEMORY, "pipeline: out of host memory");
    }
    *out = pipeline;
    return HD_OK;
}

void hdi_pipeline_destroy(hdi_pipeline *pipeline)
{
    if (!pipeline) return;
    hdi_links_destroy(pipeline->links);
    hdi_free(pipeline->requests);
    hdi_free(pipeline);
}

hd_status hdi_pipeline_share(hdi_pipeline *pipeline, hd_session *session)
{
    return hdi_links_create(pipeline->schedule, pipeline->chunks, pipeline->mesh, session,
                            &pipeline->links);
}

static void set_slots(const hdi_pipeline_chunk *chunk, hd_tensor tensor, int slots)
{
    hdi_tensor *found = hdi_tensor_of(chunk->program, tensor);
    if (found) found->slots = slots > 0 ? slots : 1;
}

void hdi_pipeline_set_slots(const hdi_schedule *schedule, int chunk,
                            const hdi_pipeline_chunk *tensors)
{
    hdi_schedule_buffer input =
        hdi_schedule_has_backward(schedule) ? HDI_BUFFER_FORWARD_IN_KEPT : HDI_BUFFER_FORWARD_IN;
    set_slots(tensors, tensors->x, hdi_schedule_slots(schedule, chunk, input));
    set_slots(tensors, tensors->out, hdi_schedule_slots(schedule, chunk, HDI_BUFFER_FORWARD_OUT));
    set_slots(tensors, tensors->out_gradient,
              hdi_schedule_slots(schedule, chunk, HDI_BUFFER_BACKWARD_IN));
    set_slots(tensors, tensors->x_gradient,
              hdi_schedule_slots(schedule, chunk, HDI_BUFFER_BACKWARD_OUT));
}

static hd_status communicate(hdi_pipeline *pipeline, hd_session *session,
                             const hdi_schedule_row *row)
{
    const hdi_pipeline_chunk *chunk = &pipeline->chunks[row->chunk];
    hd_tensor tensor = hdi_pipeline_moved(chunk, row->op);
    void *data = hdi_session_address(session, hdi_session_unit(session, chunk->program), tensor,
                                     row->micro_batch);
    size_t bytes = hd_tensor_get(chunk->program, tensor)->bytes;
    hd_request *request = request_of(pipeline, row->chunk, row->op, row->micro_batch);
    const bool send = hdi_schedule_is_send(row->op);
    if (pipeline->links)
        pipeline->comm->way = hdi_links_way(pipeline->links, pipeline->schedule, row);
    const hd_status status =
        send ? hd_comm_send(pipeline->comm, data, bytes, row->peer, (int)row->channel, request)
             : hd_comm_recv(pipeline->comm, data, bytes, row->peer, (int)row->channel, request);
    pipeline->comm->way = NULL;
    HD_RETURN_IF_ERROR(status);
    hdi_comm_set_label(pipeline->comm, request,
                       &(hdi_comm_label){.program = chunk->program->name, .op = row->micro_batch});
    return HD_OK;
}

/* Wait until the input of a compute row is here and the slot of its output is free. */
static hd_status wait_before(hdi_pipeline *pipeline, const hdi_schedule_row *row, hdi_spans *spans,
                             int64_t step)
{
    bool forward = row->op == HDI_FORWARD;
    hdi_schedule_op recv = forward ? HDI_RECV_FORWARD : HDI_RECV_BACKWARD;
    hdi_schedule_op send = forward ? HDI_SEND_FORWARD : HDI_SEND_BACKWARD;
    int slots = hdi_schedule_slots(pipeline->schedule, row->chunk,
                                   forward ? HDI_BUFFER_FORWARD_OUT : HDI_BUFFER_BACKWARD_OUT);
    hd_request *in = request_of(pipeline, row->chunk, recv, row->micro_batch);
    hd_request *reused = slots && row->micro_batch >= slots
                             ? request_of(pipeline, row->chunk, send, row->micro_batch - slots)
                             : NULL;
    if (!in->id && !(reused && reused->id)) return HD_OK;
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(spans, &begin));
    HD_RETURN_IF_ERROR(hdi_comm_order(pipeline->comm, in));
    if (reused) HD_RETURN_IF_ERROR(hdi_comm_order(pipeline->comm, reused));
    return hdi_spans_record(spans,
                            &(hdi_trace_event){.name = "wait: communication",
                                               .category = HDI_TRACE_WAIT_COMM,
                                               .micro_batch = row->micro_batch,
                                               .chunk = row->chunk,
                                               .step = step},
                            &begin);
}

/* Neighbouring chunks on one rank: hand the tensor over by a copy. */
static hd_status hand_over(hdi_pipeline *pipeline, hd_session *session, const hdi_schedule_row *row)
{
    if (pipeline->schedule->options.stages > 1) return HD_OK;
    bool forward = row->op == HDI_FORWARD;
    int to = row->chunk + (forward ? 1 : -1);
    if (to < 0 || to >= pipeline->schedule->options.chunks) return HD_OK;
    const hdi_pipeline_chunk *source = &pipeline->chunks[row->chunk],
                             *target = &pipeline->chunks[to];
    hd_tensor from = forward ? source->out : source->x_gradient;
    hd_tensor into = forward ? target->x : target->out_gradient;
    return session->context->backend->copy(
        session->context->stream,
        hdi_session_address(session, hdi_session_unit(session, target->program), into,
                            row->micro_batch),
        hdi_session_address(session, hdi_session_unit(session, source->program), from,
                            row->micro_batch),
        hd_tensor_get(source->program, from)->bytes);
}

/* Weights that pass through slots are fetched ahead for the row that computes next. */
static void foretell(const hdi_pipeline *pipeline, const hdi_schedule_row *row,
                     hd_session_run_options *options)
{
    const hdi_schedule *schedule = pipeline->schedule;
    const hdi_schedule_row *end = schedule->rows + schedule->row_count;
    do
        row++;
    while (row < end && row->op != HDI_FORWARD && row->op != HDI_BACKWARD);
    options->no_next = row == end;
    if (row == end) return;
    options->next = pipeline->chunks[row->chunk].program;
    options->next_phase = row->op == HDI_BACKWARD ? HD_PHASE_BACKWARD : HD_PHASE_FORWARD;
}

static hd_status compute(hdi_pipeline *pipeline, hd_session *session, const hdi_schedule_row *row,
                         hdi_spans *spans, int64_t step)
{
    HD_RETURN_IF_ERROR(wait_before(pipeline, row, spans, step));
    int batches = pipeline->schedule->options.micro_batches;
    bool backward = row->op == HDI_BACKWARD, tree = pipeline->sum == HDI_GRADIENT_TREE;
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(spans, &begin));
    hd_session_run_options options = {
        .phase = backward ? HD_PHASE_BACKWARD : HD_PHASE_FORWARD,
        .micro_batch = row->micro_batch,
        .accumulate = pipeline->sum == HDI_GRADIENT_ADDED && row->micro_batch > 0,
        .last = row->micro_batch == batches - 1,
        .level = tree ? hdi_gradient_level(row->micro_batch) : 0,
        .folds = tree ? hdi_gradient_folds(row->micro_batch, batches) : 0};
    foretell(pipeline, row, &options);
    HD_RETURN_IF_ERROR(hd_session_run(session, pipeline->chunks[row->chunk].program, &options));
    HD_RETURN_IF_ERROR(hdi_spans_record(
        spans,
        &(hdi_trace_event){.name = backward ? "backward" : "forward",
                           .category = backward ? HDI_TRACE_BACKWARD : HDI_TRACE_FORWARD,
                           .micro_batch = row->micro_batch,
                           .chunk = row->chunk,
                           .step = step},
        &begin));
    return hand_over(pipeline, session, row);
}

static hd_status finish(hdi_pipeline *pipeline, hdi_spans *spans)
{
    const hdi_schedule_options *o = &pipeline->schedule->options;
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(spans, &begin));
    for (int i = 0; i < o->chunks * HDI_SCHEDULE_OPS * o->micro_batches; i++)
        HD_RETURN_IF_ERROR(hdi_comm_order(pipeline->comm, &pipeline->requests[i]));
    return hdi_spans_waited(spans, HDI_TRACE_WAIT_COMM, &begin);
}

static hd_status rehearse(hdi_pipeline *pipeline, hd_session *session)
{
    for (int i = 0; i < pipeline->schedule->row_count; i++) {
        const hdi_schedule_row *row = &pipeline->schedule->rows[i];
        HD_RETURN_IF_ERROR(hdi_schedule_is_compute(row->op) ? wait_before(pipeline, row, NULL, 0)
                                                            : communicate(pipeline, session, row));
    }
    return finish(pipeline, NULL);
}

hd_status hdi_pipeline_rehearse(hdi_pipeline *pipeline, hd_session *session)
{
    if (!hdi_comm_rehearse(pipeline->comm, true)) return HD_OK;
    const hd_status status = rehearse(pipeline, session);
    hdi_comm_rehearse(pipeline->comm, false);
    return status;
}

hd_status hdi_pipeline_run(hdi_pipeline *pipeline, hd_session *session, hdi_spans *spans,
                           int64_t step)
{
    const hdi_schedule *schedule = pipeline->schedule;
    for (int i = 0; i < schedule->row_count; i++) {
        const hdi_schedule_row *row = &schedule->rows[i];
        hd_status status = hdi_schedule_is_compute(row->op)
                               ? compute(pipeline, session, row, spans, step)
                               : communicate(pipeline, session, row);
        if (status != HD_OK)
            return hdi_error_context(status, "pipeline stage %d, %s of micro-batch %d, chunk %d",
                                     schedule->options.stage,
                                     row->op <= HDI_SEND_FORWARD ? "forward" : "backward",
                                     row->micro_batch, row->chunk);
    }
    return finish(pipeline, spans);
}
