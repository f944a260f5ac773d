/* One training step and one validation. Allocates nothing. */
#include "core/error.h"
#include "jobs/train/trainer.h"
#include "ops/ops.h"

#include <math.h>
#include <string.h>

hdi_deal hdi_trainer_deal(const hd_trainer *trainer)
{
    const hdi_layout *layout = trainer->plan->layout;
    const hd_mesh *mesh = trainer->options.mesh;
    return (hdi_deal){
        .rank = hd_mesh_index(mesh, HD_AXIS_DATA),
        .group = layout->gradients_sharded ? hd_mesh_size(mesh, HD_AXIS_DATA) / layout->copies : 1};
}

/* Fill the inputs of every micro-batch of this rank. */
static hd_status feed_inputs(hd_trainer *trainer, const hdi_pipeline_chunk *chunks, int batches,
                             hd_feed_fn feed, void *user)
{
    const hdi_deal deal = hdi_trainer_deal(trainer);
    for (int c = 0; c < trainer->chunks; c++) {
        const hd_program *program = chunks[c].program;
        for (int i = 1; i < program->tensor_count; i++) {
            const hd_tensor_info *info = &program->tensors[i]->info;
            if (info->role != HD_ROLE_INPUT) continue;
            for (int b = 0; b < batches; b++) {
                const hd_tensor input = {i};
                void *room;
                HD_RETURN_IF_ERROR(hdi_relay_room(trainer->session, program, input, b, &room));
                if (strcmp(info->name, HDI_LOSS_SCALE) == 0)
                    *(float *)room = (float)trainer->loss_scale;
                else
                    HD_RETURN_IF_ERROR(feed(user, info->name, hdi_deal_batch(deal, batches, b),
                                            room, info->bytes));
                HD_RETURN_IF_ERROR(hdi_relay_send(trainer->session, program, input, b));
            }
        }
    }
    return HD_OK;
}

/* How many losses of micro-batches and parts of them a step has on all ranks. */
static int loss_count(const hd_trainer *trainer, int batches)
{
    const hd_mesh *mesh = trainer->options.mesh;
    return batches * hd_mesh_size(mesh, HD_AXIS_DATA) * hd_mesh_size(mesh, HD_AXIS_SEQUENCE);
}

/* The losses of the ranks that have them or a part of them (of a tensor axis, where all have them, the
 * first) at their places among zeros: there when the device has passed the mark. The bytes may become
 * another program's after it. */
static hd_status read_losses(hd_trainer *trainer, const hdi_pipeline_chunk *chunks, int batches)
{
    const hd_mesh *mesh = trainer->options.mesh;
    const int parts = hd_mesh_size(mesh, HD_AXIS_SEQUENCE);
    const int part = hd_mesh_index(mesh, HD_AXIS_SEQUENCE);
    memset(trainer->losses, 0, sizeof(double) * 2 * (size_t)loss_count(trainer, batches));
    if (trainer->stage < trainer->pipeline - 1 || hd_mesh_index(mesh, HD_AXIS_TENSOR) > 0)
        return hdi_relay_mark(trainer->session);
    const hd_program *program = chunks[trainer->chunks - 1].program;
    const hd_tensor output = hd_tensor_find(program, "loss");
    if (!output.id)
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: the last stage has no output named 'loss'");
    const hdi_deal deal = hdi_trainer_deal(trainer);
    for (int b = 0; b < batches && !(program->whole_loss && part > 0); b++) {
        const int64_t at = hdi_deal_batch(deal, batches, b) * parts + part;
        HD_RETURN_IF_ERROR(
            hdi_relay_read(trainer->session, program, output, b, trainer->losses + 2 * at));
    }
    return hdi_relay_mark(trainer->session);
}

/* All ranks get what each has read, over the host's own messages while the device goes on. */
static hd_status share_losses(hd_trainer *trainer, int batches)
{
    hd_comm *world = hd_mesh_comm(trainer->options.mesh, HD_AXIS_NONE);
    if (hd_mesh_ranks(trainer->options.mesh) == 1) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_relay_await_mark(trainer->session));
    hd_request request;
    HD_RETURN_IF_ERROR(hd_comm_all_reduce(world, trainer->losses, 2 * loss_count(trainer, batches),
                                          HD_DTYPE_F64, HD_REDUCE_SUM, &request));
    return hd_comm_wait(world, &request);
}

/* Summed in the order of the micro-batches and the parts, once the device has been waited for. */
static double sum_losses(const hd_trainer *trainer, int batches, double *tokens)
{
    double loss = 0;
    *tokens = 0;
    for (int b = 0; b < loss_count(trainer, batches); b++) {
        loss += trainer->losses[2 * b];
        *tokens += trainer->losses[2 * b + 1];
    }
    return loss;
}

/* Of the summed gradients, whose program has run: partial sums of fixed blocks, added in the blocks' global
 * order. */
static double sum_squares(const hd_trainer *trainer)
{
    double sum = 0;
    for (int64_t b = 0; b < trainer->census.blocks; b++)
        sum += trainer->square_sums[b];
    return sum;
}

static hd_status end_program(hd_trainer *trainer)
{
    return hdi_trainer_ends_programs(trainer) ? hd_session_drain(trainer->session) : HD_OK;
}

/* What an update moves the average towards the weights by. */
static float average_share(const hd_trainer *trainer)
{
    const double t = (double)trainer->updates + 1, early = (1 + t) / (10 + t);
    const double decay = (double)trainer->options.ema_decay;
    return (float)(1 - (trainer->options.ema_warmup && early < decay ? early : decay));
}

/* An input of the update. The step's wait has seen the device pass the copy of the update before. */
static hd_status send(hd_trainer *trainer, hd_tensor input, const float *values, size_t bytes)
{
    void *room;
    HD_RETURN_IF_ERROR(hdi_relay_room(trainer->session, trainer->update, input, 0, &room));
    memcpy(room, values, bytes);
    return hdi_relay_send(trainer->session, trainer->update, input, 0);
}

static hd_status apply_update(hd_trainer *trainer, double learning_rate,
                              const hd_step_result *result)
{
    const hd_trainer_options *o = &trainer->options;
    double scale = 1 / (result->tokens * trainer->loss_scale), t = (double)trainer->updates + 1;
    if (o->clip_norm > 0 && result->grad_norm > 0) {
        double coefficient = o->clip_norm / (result->grad_norm + 1e-6);
        if (coefficient < 1) scale *= coefficient;
    }
    float scalars[5] = {(float)learning_rate, (float)scale,
                        (float)(1 - pow((double)o->adamw.beta1, t)),
                        (float)(1 - pow((double)o->adamw.beta2, t)), 1};
    HD_RETURN_IF_ERROR(send(trainer, trainer->scalars, scalars, sizeof scalars));
    if (trainer->average_share.id) {
        const float share = average_share(trainer);
        HD_RETURN_IF_ERROR(send(trainer, trainer->average_share, &share, sizeof share));
    }
    HD_RETURN_IF_ERROR(
        hd_session_run(trainer->session, trainer->update, &(hd_session_run_options){.last = true}));
    /* Else it goes on, or weights are gathered, while the next step begins. */
    if (!hdi_trainer_updates_beside(&trainer->options)) HD_RETURN_IF_ERROR(end_program(trainer));
    HD_RETURN_IF_ERROR(hdi_streaming_stale(trainer->session));
    trainer->updates++;
    return HD_OK;
}

/* Halve the scale after an overflow, try twice as much after many steps without one. */
static void adapt_loss_scale(hd_trainer *trainer, bool overflow)
{
    const double least = 1, most = 0x1p32;
    if (trainer->options.dtype != HD_DTYPE_F16) return;
    bool grow = !overflow && ++trainer->clean_steps >= trainer->options.loss_scale_steps;
    if (overflow || grow) trainer->clean_steps = 0;
    trainer->loss_scale *= overflow ? 0.5 : grow ? 2 : 1;
    if (trainer->loss_scale < least) trainer->loss_scale = least;
    if (trainer->loss_scale > most) trainer->loss_scale = most;
}

static hd_status check_shape(const hd_trainer *trainer, int shape)
{
    if (shape >= 0 && shape < trainer->shape_count) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "trainer: shape is %d, there are %d", shape,
                     trainer->shape_count);
}

hd_status hd_trainer_step(hd_trainer *trainer, double learning_rate, hd_feed_fn feed, void *user,
                          hd_step_result *out)
{
    return hd_trainer_step_shape(trainer, 0, learning_rate, feed, user, out);
}

static hd_status take_step(hd_trainer *trainer, int index, double learning_rate, hd_feed_fn feed,
                           void *user, hd_step_result *out)
{
    const hdi_trainer_shape *shape = &trainer->shapes[index];
    int batches = shape->is.accumulate;
    HD_RETURN_IF_ERROR(feed_inputs(trainer, shape->train, batches, feed, user));
    HD_RETURN_IF_ERROR(
        hdi_pipeline_run(shape->train_run, trainer->session, trainer->spans, trainer->steps));
    if (trainer->meanwhile) trainer->meanwhile(trainer->meanwhile_user);
    hdi_moment begin;
    HD_RETURN_IF_ERROR(hdi_spans_now(trainer->spans, &begin));
    HD_RETURN_IF_ERROR(read_losses(trainer, shape->train, batches));
    HD_RETURN_IF_ERROR(hdi_session_order(trainer->session));
    HD_RETURN_IF_ERROR(end_program(trainer));
    HD_RETURN_IF_ERROR(hdi_trainer_record(trainer, "reduce", HDI_TRACE_COMM, &begin));
    HD_RETURN_IF_ERROR(
        hd_session_run(trainer->session, trainer->norm, &(hd_session_run_options){.last = true}));
    HD_RETURN_IF_ERROR(hdi_spans_leave(trainer->spans));
    HD_RETURN_IF_ERROR(share_losses(trainer, batches));
    HD_RETURN_IF_ERROR(
        hdi_relay_read(trainer->session, trainer->norm, trainer->squares, 0, trainer->square_sums));
    HD_RETURN_IF_ERROR(hd_session_drain(trainer->session)); /* the step's one wait */
    const double sum = sum_losses(trainer, batches, &out->tokens);
    out->grad_norm = sqrt(sum_squares(trainer));
    HD_RETURN_IF_ERROR(hdi_trainer_record(trainer, "norm", HDI_TRACE_OPTIMIZER, &begin));
    HD_RETURN_IF_ERROR(hdi_spans_settle(trainer->spans));
    out->loss = sum / out->tokens;
    out->grad_norm /= out->tokens * trainer->loss_scale;
    out->loss_scale = trainer->loss_scale;
    out->skipped = !isfinite(out->loss) || !isfinite(out->grad_norm);
    HD_RETURN_IF_ERROR(hdi_spans_now(trainer->spans, &begin));
    if (!out->skipped) HD_RETURN_IF_ERROR(apply_update(trainer, learning_rate, out));
    adapt_loss_scale(trainer, out->skipped);
    HD_RETURN_IF_ERROR(hdi_trainer_record(trainer, "update", HDI_TRACE_OPTIMIZER, &begin));
    if (hdi_trainer_ends_programs(trainer)) HD_RETURN_IF_ERROR(hdi_spans_settle(trainer->spans));
    trainer->steps++;
    return HD_OK;
}

hd_status hd_trainer_step_shape(hd_trainer *trainer, int index, double learning_rate,
                                hd_feed_fn feed, void *user, hd_step_result *out)
{
    *out = (hd_step_result){0};
    if (!trainer->session) return hdi_error(HD_ERROR_ARGUMENT, "trainer: step before start");
    HD_RETURN_IF_ERROR(check_shape(trainer, index));
    hd_status status = hdi_spans_begin_step(trainer->spans, trainer->steps);
    if (status == HD_OK) status = take_step(trainer, index, learning_rate, feed, user, out);
    hdi_spans_end_step(trainer->spans);
    return status;
}

/* A validation's scratch lies where gradients do, on each rank differently: ranks would wait for releases, and post
 * what they gather, in different orders. */
static hd_status end_gathers(hd_trainer *trainer)
{
    return trainer->session->beside.communicates ? hdi_session_order(trainer->session) : HD_OK;
}

hd_status hd_trainer_validate(hd_trainer *trainer, hd_feed_fn feed, void *user, hd_step_result *out)
{
    return hd_trainer_validate_shape(trainer, 0, feed, user, out);
}

hd_status hd_trainer_validate_shape(hd_trainer *trainer, int index, hd_feed_fn feed, void *user,
                                    hd_step_result *out)
{
    *out = (hd_step_result){0};
    int batches = trainer->options.validate_batches;
    HD_RETURN_IF_ERROR(check_shape(trainer, index));
    const hdi_trainer_shape *shape = &trainer->shapes[index];
    if (!trainer->session || !shape->validate_run)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: validation before start, or none was planned");
    HD_RETURN_IF_ERROR(end_gathers(trainer));
    HD_RETURN_IF_ERROR(feed_inputs(trainer, shape->validate, batches, feed, user));
    HD_RETURN_IF_ERROR(hdi_pipeline_run(shape->validate_run, trainer->session, NULL, -1));
    HD_RETURN_IF_ERROR(read_losses(trainer, shape->validate, batches));
    HD_RETURN_IF_ERROR(hd_session_drain(trainer->session));
    HD_RETURN_IF_ERROR(share_losses(trainer, batches));
    const double sum = sum_losses(trainer, batches, &out->tokens);
    out->loss = sum / out->tokens;
    return HD_OK;
}
