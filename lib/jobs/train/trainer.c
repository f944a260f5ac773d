/* Trainers: creation, planning and start. */
#include "jobs/train/trainer.h"
#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "ops/shard_sum.h"
#include "parallel/data.h"

#include <limits.h>
#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
}

static hd_status check_gradients(hd_trainer_options *o)
{
    if (!o->gradients) o->gradients = HD_DTYPE_F32;
    if (o->gradients == HD_DTYPE_F32) return HD_OK;
    if (o->gradients != HD_DTYPE_BF16)
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: gradients are %s, want F32 or BF16",
                         hd_dtype_name(o->gradients));
    if (o->dtype != HD_DTYPE_BF16)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "trainer: gradients of BF16 want weights of BF16, seen %s",
                         hd_dtype_name(o->dtype));
    if (o->exact)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "layout.reduction exact with gradients of BF16: a sum is rounded at each "
                         "micro-batch, so its bits would tell how they were dealt to ranks");
    return HD_OK;
}

static hd_status check_dtype(hd_trainer *trainer)
{
    hd_trainer_options *o = &trainer->options;
    if (!o->dtype) o->dtype = HD_DTYPE_F32;
    if (o->dtype != HD_DTYPE_F32 && o->dtype != HD_DTYPE_BF16 && o->dtype != HD_DTYPE_F16)
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: dtype is %s, want F32, BF16 or F16",
                         hd_dtype_name(o->dtype));
    if (o->master == HD_MASTER_AUTO)
        o->master = o->dtype == HD_DTYPE_BF16 ? HD_MASTER_REMAINDER : HD_MASTER_F32;
    if (o->master == HD_MASTER_REMAINDER && o->dtype != HD_DTYPE_BF16)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "trainer: masters as remainders want weights of BF16, seen %s",
                         hd_dtype_name(o->dtype));
    HD_RETURN_IF_ERROR(check_gradients(o));
    if (o->loss_scale == 0) o->loss_scale = 32768;
    if (o->loss_scale_steps == 0) o->loss_scale_steps = 1000;
    if (!(o->loss_scale >= 1) || o->loss_scale_steps < 1)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: loss scale is %g, doubled after %d steps; want both >= 1",
                         (double)o->loss_scale, o->loss_scale_steps);
    trainer->loss_scale = o->dtype == HD_DTYPE_F16 ? (double)o->loss_scale : 1;
    return HD_OK;
}

/* The caller's shapes, or the one of sequences, tokens and accumulate. */
static hd_status take_shapes(hd_trainer *trainer)
{
    const hd_trainer_options *o = &trainer->options;
    const hd_trainer_shape single = {
        .sequences = o->sequences, .tokens = o->tokens, .accumulate = o->accumulate};
    const hd_trainer_shape *given = o->shape_count > 0 ? o->shapes : &single;
    trainer->shape_count = o->shape_count > 0 ? o->shape_count : 1;
    trainer->shapes = hdi_alloc_array((size_t)trainer->shape_count, sizeof *trainer->shapes);
    if (!trainer->shapes) return out_of_memory();
    const int data = hd_mesh_size(o->mesh, HD_AXIS_DATA);
    const int group = o->shard_state >= 2 ? data / hd_mesh_size(o->mesh, HD_AXIS_COPY) : 1;
    if (o->exact && hd_mesh_size(o->mesh, HD_AXIS_SEQUENCE) > 1)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "layout.reduction exact with layout.sequence %d: one token's share of a "
                         "gradient is not "
                         "kept apart, and sums over a part of the tokens round otherwise",
                         hd_mesh_size(o->mesh, HD_AXIS_SEQUENCE));
    if (o->exact && hd_mesh_size(o->mesh, HD_AXIS_TENSOR) > 1)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "layout.reduction exact with layout.tensor %d: a layer's result is a sum "
                         "over the ranks' "
                         "parts, which rounds otherwise than the whole (docs/adr/0007)",
                         hd_mesh_size(o->mesh, HD_AXIS_TENSOR));
    for (int s = 0; s < trainer->shape_count; s++) {
        hd_trainer_shape *shape = &trainer->shapes[s].is;
        *shape = given[s];
        if (shape->accumulate < 1) shape->accumulate = 1;
        if (shape->sequences < 1 || (shape->tokens < 1 && shape->video.frames < 1))
            return hdi_error(HD_ERROR_ARGUMENT,
                             "trainer: shape %d has %lld sequences of %lld tokens, %lld frames; "
                             "want sequences, and tokens or frames, >= 1",
                             s, (long long)shape->sequences, (long long)shape->tokens,
                             (long long)shape->video.frames);
        const int row = shape->accumulate * group;
        if (o->exact && data > group && (row & (row - 1)))
            return hdi_error(HD_ERROR_UNSUPPORTED,
                             "layout.reduction exact with %d data ranks: %d micro-batches for each "
                             "%s, want a power of two (the tree over them must cut evenly)%s",
                             data, row, group > 1 ? "shard group" : "of them (train.accumulate)",
                             group > 1 ? "" : ", or layout.shard_state 2");
    }
    return HD_OK;
}

static hd_status check_gradient_residency(const hd_trainer_options *o)
{
    if (o->gradient_residency != HD_RESIDENCY_HOST || hdi_trainer_gradients_may_leave(o))
        return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "train.gradient_residency host with %d data and sequence ranks and "
                     "layout.shard_state %d: all would come and go on each; want "
                     "layout.shard_state 2 or 3",
                     hd_mesh_size(o->mesh, HD_AXIS_REPLICA), o->shard_state);
}

/* What is kept for a weight is larger than the weight and used once a step: it leaves the device first. */
static hd_status check_residency(hd_trainer_options *o)
{
    if (o->host_blocks < 0)
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: %d blocks on the host, want >= 0",
                         o->host_blocks);
    if (o->residency == HD_RESIDENCY_SHARDED || o->residency == HD_RESIDENCY_HOST_SHARDED)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: weights in shards are shard_state 3's, seen as residency; want "
                         "RESIDENT, HOST or AUTO");
    if (o->residency == HD_RESIDENCY_HOST) o->optimizer_residency = HD_RESIDENCY_HOST;
    return HD_OK;
}

static hd_status check_activations(hd_trainer_options *o)
{
    if (o->recompute && o->activations == HD_ACTIVATIONS_KEEP)
        o->activations = HD_ACTIVATIONS_RECOMPUTE;
    o->recompute = o->activations == HD_ACTIVATIONS_RECOMPUTE ||
                   o->activations == HD_ACTIVATIONS_RECOMPUTE_HOST;
    if (o->activation_blocks < 0 || o->activation_blocks > o->layers)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: activations of %d blocks are not to be kept, want 0 to %d, as "
                         "many as there are",
                         o->activation_blocks, o->layers);
    if (o->activation_blocks && o->activations == HD_ACTIVATIONS_KEEP)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: activations of %d blocks are not to be kept, and those of all "
                         "are; want another kind of them",
                         o->activation_blocks);
    return HD_OK;
}

static hd_status check_options(hd_trainer *trainer, const hd_trainer_options *given)
{
    hd_trainer_options *o = &trainer->options;
    *o = *given;
    if (!o->build || o->layers < 1)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: wants a build function and layers >= 1; seen %s, %d",
                         o->build ? "one" : "NULL", o->layers);
    if (!(o->ema_decay >= 0 && o->ema_decay < 1))
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: ema_decay is %g, want 0 <= decay < 1",
                         (double)o->ema_decay);
    if (o->shard_state < 0 || o->shard_state > 3)
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: shard_state is %d, want 0 to 3",
                         o->shard_state);
    if (hd_mesh_size(o->mesh, HD_AXIS_COPY) > 1 && o->shard_state < 2)
        return hdi_error(
            HD_ERROR_UNSUPPORTED,
            "layout.shard_group makes %d groups, layout.shard_state is %d: groups share "
            "gradients, want layout.shard_state 2 or 3",
            hd_mesh_size(o->mesh, HD_AXIS_COPY), o->shard_state);
    if (o->chunks < 1) o->chunks = 1;
    if (o->slices < 1) o->slices = 1;
    if (o->mlp_slices < 1) o->mlp_slices = 1;
    HD_RETURN_IF_ERROR(check_activations(o));
    if (o->chunk_elements == 0) o->chunk_elements = 4 << 20;
    if (o->chunk_elements < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: chunks of %lld elements, want >= 1",
                         (long long)o->chunk_elements);
    o->chunk_elements = hdi_round_up(o->chunk_elements, HDI_FLAT_ALIGNMENT);
    if (o->adamw.beta1 == 0) o->adamw.beta1 = 0.9F;
    if (o->adamw.beta2 == 0) o->adamw.beta2 = 0.999F;
    if (o->adamw.epsilon == 0) o->adamw.epsilon = 1e-8F;
    HD_RETURN_IF_ERROR(check_dtype(trainer));
    HD_RETURN_IF_ERROR(check_gradient_residency(o));
    HD_RETURN_IF_ERROR(check_residency(o));
    HD_RETURN_IF_ERROR(take_shapes(trainer));
    trainer->pipeline = hd_mesh_size(o->mesh, HD_AXIS_PIPELINE);
    trainer->stage = hd_mesh_index(o->mesh, HD_AXIS_PIPELINE);
    trainer->chunks = o->chunks;
    return HD_OK;
}

static hd_status make_schedules(hd_trainer *trainer)
{
    const hd_trainer_options *o = &trainer->options;
    hdi_schedule_options options = {
        .stages = trainer->pipeline, .stage = trainer->stage, .chunks = trainer->chunks};
    options.kind = o->chunks > 1 ? HDI_SCHEDULE_INTERLEAVED : HDI_SCHEDULE_ONE_F_ONE_B;
    if (o->schedule) HD_RETURN_IF_ERROR(hdi_schedule_kind_parse(o->schedule, &options.kind));
    for (int s = 0; s < trainer->shape_count; s++) {
        options.micro_batches = trainer->shapes[s].is.accumulate;
        HD_RETURN_IF_ERROR(hdi_schedule_create(&options, &trainer->shapes[s].schedule));
    }
    if (!o->validate_batches) return HD_OK;
    options.kind = HDI_SCHEDULE_FORWARD_ONLY;
    options.micro_batches = o->validate_batches;
    return hdi_schedule_create(&options, &trainer->validate_schedule);
}

static bool is_tied(void *user, const char *name)
{
    const hdi_global_parameter *parameter = hdi_census_find(&((hd_trainer *)user)->census, name);
    return parameter && parameter->stage_count > 1;
}

static int most_micro_batches(const hd_trainer *trainer)
{
    int most = 1;
    for (int s = 0; s < trainer->shape_count; s++)
        if (trainer->shapes[s].is.accumulate > most) most = trainer->shapes[s].is.accumulate;
    return most;
}

static int host_blocks(const hd_trainer_options *o)
{
    if (o->residency != HD_RESIDENCY_HOST) return 0;
    return o->host_blocks ? o->host_blocks : INT_MAX;
}

/* Of partial sums of gradients. */
static int levels(const hd_trainer *trainer)
{
    const hd_trainer_options *o = &trainer->options;
    const int most = most_micro_batches(trainer), shards = hd_mesh_size(o->mesh, HD_AXIS_SHARD);
    if (!o->exact) return 1;
    return hdi_gradient_levels(most *
                               (o->shard_state >= 2 ? hdi_shard_leaves(shards, most > 1) : 1));
}

/* Laid out for the first shape; programs of the others write the same gradients. Training programs
 * are the plan's first, shape by shape. */
static hd_status make_layout(hd_trainer *trainer, hdi_layout **out)
{
    *out = NULL;
    const hdi_trainer_shape *first = &trainer->shapes[0];
    hd_program **programs = hdi_alloc_array((size_t)trainer->chunks, sizeof(hd_program *));
    if (!programs) return out_of_memory();
    const hd_trainer_options *o = &trainer->options;
    const hd_mesh *mesh = o->mesh;
    hd_axis axis = hd_mesh_size(mesh, HD_AXIS_SEQUENCE) > 1 ? HD_AXIS_REPLICA : HD_AXIS_DATA;
    if (hd_mesh_size(mesh, HD_AXIS_COPY) > 1) axis = HD_AXIS_SHARD;
    for (int c = 0; c < trainer->chunks; c++)
        programs[c] = first->train[c].program;
    hd_status status = hdi_layout_create(
        programs, trainer->chunks,
        &(hdi_layout_options){.bucket_elements = o->bucket_elements,
                              .axis = axis,
                              .shards = hd_mesh_size(mesh, HD_AXIS_SHARD),
                              .shard = hd_mesh_index(mesh, HD_AXIS_SHARD),
                              .copies = hd_mesh_size(mesh, HD_AXIS_COPY),
                              .copy = hd_mesh_index(mesh, HD_AXIS_COPY),
                              .sharding = o->shard_state,
                              .host_blocks = host_blocks(o),
                              .cuts_blocks = trainer->cuts_blocks,
                              .accumulates = most_micro_batches(trainer) > 1,
                              .levels = levels(trainer),
                              .shards_alone = o->exact && hdi_trainer_gradients_on_host(trainer),
                              .sums_alike = hd_mesh_size(mesh, HD_AXIS_TENSOR) > 1,
                              .is_tied = is_tied,
                              .user = trainer},
        out);
    hdi_free(programs);
    for (int s = 1; s < trainer->shape_count; s++)
        for (int c = 0; c < trainer->chunks && status == HD_OK; c++)
            status = hdi_layout_alias(*out, first->train[c].program, c,
                                      trainer->shapes[s].train[c].program, s * trainer->chunks + c);
    return status;
}

static hd_status build_shape(hd_trainer *trainer, int index)
{
    size_t chunks = (size_t)trainer->chunks;
    hdi_trainer_shape *shape = &trainer->shapes[index];
    shape->train = hdi_alloc_array(chunks, sizeof *shape->train);
    shape->validate = hdi_alloc_array(chunks, sizeof *shape->validate);
    if (!shape->train || !shape->validate) return out_of_memory();
    for (int c = 0; c < trainer->chunks; c++) {
        HD_RETURN_IF_ERROR(
            hdi_trainer_build_chunk(trainer, index, c, HD_PURPOSE_TRAIN, &shape->train[c]));
        hdi_pipeline_set_slots(shape->schedule, c, &shape->train[c]);
        if (!trainer->validate_schedule) continue;
        HD_RETURN_IF_ERROR(
            hdi_trainer_build_chunk(trainer, index, c, HD_PURPOSE_EVALUATE, &shape->validate[c]));
        hdi_pipeline_set_slots(trainer->validate_schedule, c, &shape->validate[c]);
        HD_RETURN_IF_ERROR(hd_program_finish(shape->validate[c].program));
    }
    return HD_OK;
}

/* Training and validation of each shape live over the same bytes, a group each; the programs that
 * end a step are in that of shape 0: gradients lie at one place for all, and what else a shape had
 * is dead by then. */
static hd_status add_training(hd_trainer *trainer, const hdi_layout *layout)
{
    for (int s = 0; s < trainer->shape_count; s++) {
        const hdi_trainer_shape *shape = &trainer->shapes[s];
        for (int c = 0; c < trainer->chunks; c++) {
            hd_program *program = shape->train[c].program;
            const hdi_host_gradients host = {.accumulates = shape->is.accumulate > 1,
                                             .pieces = trainer->square_pieces,
                                             .count = trainer->square_count,
                                             .blocks = trainer->census.blocks};
            hdi_data_reduce(program, s * trainer->chunks + c, layout,
                            hdi_trainer_gradients_on_host(trainer) ? &host : NULL);
            HD_RETURN_IF_ERROR(hd_program_finish(program));
            hdi_trainer_set_staged(trainer, program);
            hd_plan_program_options use = {
                .group = 2 * s,
                .saved_slots = hdi_schedule_slots(shape->schedule, c, HDI_BUFFER_ACTIVATIONS),
                .io_slots = shape->is.accumulate};
            HD_RETURN_IF_ERROR(hd_plan_add(trainer->plan, program, &use));
        }
    }
    return HD_OK;
}

static hd_status add_validation(hd_trainer *trainer)
{
    for (int s = 0; s < trainer->shape_count; s++)
        for (int c = 0; c < trainer->chunks && trainer->validate_schedule; c++) {
            hd_program *program = trainer->shapes[s].validate[c].program;
            hdi_trainer_set_staged(trainer, program);
            HD_RETURN_IF_ERROR(hd_plan_add(
                trainer->plan, program,
                &(hd_plan_program_options){.group = 2 * s + 1,
                                           .io_slots = trainer->options.validate_batches}));
        }
    return HD_OK;
}

static hd_status make_plan(hd_trainer *trainer)
{
    const hd_trainer_options *o = &trainer->options;
    hdi_layout *layout;
    hd_status status = make_layout(trainer, &layout);
    if (status == HD_OK)
        status = hd_plan_create(
            &(hd_plan_options){.budget = o->budget,
                               .foreign = o->foreign,
                               .transport = o->transport,
                               .mailboxes = o->mailboxes,
                               .pinned_share = o->backend ? o->backend->pinned_share : 0,
                               .rates = o->rates,
                               .gradient_levels = layout->gradients_sharded ? 1 : levels(trainer)},
            &trainer->plan);
    if (status != HD_OK) {
        hdi_layout_destroy(layout);
        return status;
    }
    hdi_plan_set_layout(trainer->plan, layout);
    HD_RETURN_IF_ERROR(hdi_trainer_cut_pieces(trainer, layout));
    HD_RETURN_IF_ERROR(add_training(trainer, layout));
    HD_RETURN_IF_ERROR(hdi_trainer_build_update(trainer, layout));
    hdi_trainer_set_staged(trainer, trainer->norm);
    hdi_trainer_set_staged(trainer, trainer->update);
    HD_RETURN_IF_ERROR(hd_plan_add(trainer->plan, trainer->norm, NULL));
    HD_RETURN_IF_ERROR(
        hd_plan_add(trainer->plan, trainer->update,
                    &(hd_plan_program_options){.beside = hdi_trainer_updates_beside(o)}));
    HD_RETURN_IF_ERROR(add_validation(trainer));
    return hd_plan_finish(trainer->plan);
}

hd_status hdi_trainer_create_as(const hd_trainer_options *options, bool cuts_blocks,
                                hd_trainer **out)
{
    hd_trainer *trainer = hdi_alloc(sizeof *trainer);
    if (!trainer) return out_of_memory();
    trainer->cuts_blocks = cuts_blocks;
    hd_status status = check_options(trainer, options);
    if (status == HD_OK) status = make_schedules(trainer);
    if (status == HD_OK) status = hdi_census_take(trainer);
    for (int s = 0; s < trainer->shape_count && status == HD_OK; s++)
        status = build_shape(trainer, s);
    if (status == HD_OK) status = make_plan(trainer);
    if (status != HD_OK) {
        hd_trainer_destroy(trainer);
        return status;
    }
    *out = trainer;
    return HD_OK;
}

static void release_shape(const hd_trainer *trainer, hdi_trainer_shape *shape)
{
    hdi_pipeline_destroy(shape->train_run);
    hdi_pipeline_destroy(shape->validate_run);
    for (int c = 0; c < trainer->chunks; c++) {
        if (shape->train) hd_program_destroy(shape->train[c].program);
        if (shape->validate) hd_program_destroy(shape->validate[c].program);
    }
    hdi_free(shape->train);
    hdi_free(shape->validate);
    hdi_schedule_destroy(shape->schedule);
}

void hd_trainer_destroy(hd_trainer *trainer)
{
    if (!trainer) return;
    hdi_spans_destroy(trainer->spans);
    hd_session_destroy(trainer->session);
    hd_plan_destroy(trainer->plan);
    for (int s = 0; s < trainer->shape_count && trainer->shapes; s++)
        release_shape(trainer, &trainer->shapes[s]);
    hdi_free(trainer->shapes);
    hd_program_destroy(trainer->norm);
    hd_program_destroy(trainer->update);
    for (int i = 0; i < trainer->tie_count; i++)
        hdi_free(trainer->ties[i].send_counts);
    hdi_free(trainer->ties);
    hdi_free(trainer->alike_counts);
    hdi_free(trainer->square_pieces);
    hdi_free(trainer->update_pieces);
    hdi_free(trainer->update_chunks);
    hdi_schedule_destroy(trainer->validate_schedule);
    hdi_census_release(&trainer->census);
    hdi_free(trainer->losses);
    hdi_free(trainer->square_sums);
    hdi_free(trainer);
}

const hd_plan *hd_trainer_plan(const hd_trainer *trainer)
{
    return trainer->plan;
}

hd_session *hd_trainer_session(hd_trainer *trainer)
{
    return trainer->session;
}

static hd_status prepare_run(hdi_pipeline *run, hd_session *session)
{
    HD_RETURN_IF_ERROR(hdi_pipeline_share(run, session));
    return hdi_pipeline_rehearse(run, session);
}

hd_status hd_trainer_start(hd_trainer *trainer, hd_context *context, uint64_t seed)
{
    const hd_trainer_options *o = &trainer->options;
    const hd_backend *planned = o->backend ? o->backend : &hdi_backend_cpu;
    if (planned != context->backend)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: planned for %s, started on %s; give hd_trainer_options.backend "
                         "what hd_context_backend says",
                         planned->name, context->backend->name);
    const hd_status created = hd_session_create(context, trainer->plan, o->mesh, &trainer->session);
    HD_RETURN_IF_ERROR(hdi_session_share(trainer->session, context, o->mesh, created));
    hdi_gradient_sum sum = o->exact ? HDI_GRADIENT_TREE : HDI_GRADIENT_ADDED;
    if (trainer->plan->layout->gradients_sharded) sum = HDI_GRADIENT_LEAVES;
    for (int s = 0; s < trainer->shape_count; s++) {
        hdi_trainer_shape *shape = &trainer->shapes[s];
        HD_RETURN_IF_ERROR(
            hdi_pipeline_create(shape->schedule, shape->train, o->mesh, sum, &shape->train_run));
        if (trainer->validate_schedule)
            HD_RETURN_IF_ERROR(hdi_pipeline_create(trainer->validate_schedule, shape->validate,
                                                   o->mesh, HDI_GRADIENT_ADDED,
                                                   &shape->validate_run));
        HD_RETURN_IF_ERROR(prepare_run(shape->train_run, trainer->session));
        if (shape->validate_run)
            HD_RETURN_IF_ERROR(prepare_run(shape->validate_run, trainer->session));
    }
    const int most = most_micro_batches(trainer);
    const size_t batches = (size_t)(most > o->validate_batches ? most : o->validate_batches);
    const size_t replicas = (size_t)hd_mesh_size(o->mesh, HD_AXIS_REPLICA);
    trainer->losses = hdi_alloc_array(2 * batches * replicas, sizeof(double));
    trainer->square_sums = hdi_alloc_array((size_t)trainer->census.blocks, sizeof(double));
    if (!trainer->losses || !trainer->square_sums) return out_of_memory();
    HD_RETURN_IF_ERROR(hdi_trainer_initialize(trainer, seed));
    return hdi_trainer_reset_average(trainer);
}
