/* Trainers: creation, planning and start. */
#include "jobs/trainer.h"
#include "core/error.h"
#include "core/memory.h"
#include "parallel/data.h"

#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
}

static hd_status check_dtype(hd_trainer *trainer)
{
    hd_trainer_options *o = &trainer->options;
    if (!o->dtype) o->dtype = HD_DTYPE_F32;
    if (o->dtype != HD_DTYPE_F32 && o->dtype != HD_DTYPE_BF16 && o->dtype != HD_DTYPE_F16)
        return hdi_error(HD_ERROR_ARGUMENT, "trainer: dtype is %s, want F32, BF16 or F16",
                         hd_dtype_name(o->dtype));
    if (o->master == HD_MASTER_REMAINDER && o->dtype != HD_DTYPE_BF16)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "trainer: masters as remainders want weights of BF16, seen %s",
                         hd_dtype_name(o->dtype));
    if (o->loss_scale == 0) o->loss_scale = 32768;
    if (o->loss_scale_steps == 0) o->loss_scale_steps = 1000;
    if (!(o->loss_scale >= 1) || o->loss_scale_steps < 1)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "trainer: loss scale is %g, doubled after %d steps; want both >= 1",
                         (double)o->loss_scale, o->loss_scale_steps);
    trainer->loss_scale = o->dtype == HD_DTYPE_F16 ? (double)o->loss_scale : 1;
    return HD_OK;
}

static hd_status check_options(hd_trainer *trainer, const hd_trainer_options *given)
{
    hd_trainer_options *o = &trainer->options;
    *o = *given;
    if (!o->build || o->layers < 1 || o->sequences < 1 || o->tokens < 1)
        return hdi_error(
            HD_ERROR_ARGUMENT,
            "trainer: wants a build function, layers, sequences and tokens >= 1; seen %s, "
            "%d, %lld, %lld",
            o->build ? "one" : "NULL", o->layers, (long long)o->sequences, (long long)o->tokens);
    if (o->accumulate < 1) o->accumulate = 1;
    if (o->chunks < 1) o->chunks = 1;
    if (o->adamw.beta1 == 0) o->adamw.beta1 = 0.9F;
    if (o->adamw.beta2 == 0) o->adamw.beta2 = 0.999F;
    if (o->adamw.epsilon == 0) o->adamw.epsilon = 1e-8F;
    HD_RETURN_IF_ERROR(check_dtype(trainer));
    trainer->pipeline = hd_mesh_size(o->mesh, HD_AXIS_PIPELINE);
    trainer->stage = hd_mesh_index(o->mesh, HD_AXIS_PIPELINE);
    trainer->chunks = o->chunks;
    int data = hd_mesh_size(o->mesh, HD_AXIS_DATA);
    if (o->exact && data > 1 && (o->accumulate & (o->accumulate - 1)))
        return hdi_error(
            HD_ERROR_UNSUPPORTED,
            "reduction exact with data %d: accumulate is %d, want a power of two (the tree "
            "over micro-batches must cut evenly between ranks)",
            data, o->accumulate);
    if (hd_mesh_size(o->mesh, HD_AXIS_TENSOR) > 1 || hd_mesh_size(o->mesh, HD_AXIS_SEQUENCE) > 1)
        return hdi_error(
            HD_ERROR_UNSUPPORTED,
            "layout: tensor %d x sequence %d: training splits over data and pipeline only",
            hd_mesh_size(o->mesh, HD_AXIS_TENSOR), hd_mesh_size(o->mesh, HD_AXIS_SEQUENCE));
    return HD_OK;
}

static hd_status make_schedules(hd_trainer *trainer)
{
    const hd_trainer_options *o = &trainer->options;
    hdi_schedule_options options = {.stages = trainer->pipeline,
                                    .stage = trainer->stage,
                                    .micro_batches = o->accumulate,
                                    .chunks = trainer->chunks};
    options.kind = o->chunks > 1 ? HDI_SCHEDULE_INTERLEAVED : HDI_SCHEDULE_ONE_F_ONE_B;
    if (o->schedule) HD_RETURN_IF_ERROR(hdi_schedule_kind_parse(o->schedule, &options.kind));
    HD_RETURN_IF_ERROR(hdi_schedule_create(&options, &trainer->schedule));
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

static hd_status make_layout(hd_trainer *trainer, hdi_layout **out)
{
    hd_program **programs = hdi_alloc_array((size_t)trainer->chunks, sizeof(hd_program *));
    if (!programs) return out_of_memory();
    for (int c = 0; c < trainer->chunks; c++)
        programs[c] = trainer->train[c].program;
    hd_status status = hdi_layout_create(
        programs, trainer->chunks,
        &(hdi_layout_options){.bucket_elements = trainer->options.bucket_elements,
                              .shards = hd_mesh_size(trainer->options.mesh, HD_AXIS_DATA),
                              .shard = hd_mesh_index(trainer->options.mesh, HD_AXIS_DATA),
                              .state_sharded = trainer->options.shard_state,
                              .is_tied = is_tied,
                              .user = trainer},
        out);
    hdi_free(programs);
    return status;
}

static hd_status build_programs(hd_trainer *trainer)
{
    size_t chunks = (size_t)trainer->chunks;
    trainer->train = hdi_alloc_array(chunks, sizeof *trainer->train);
    trainer->validate = hdi_alloc_array(chunks, sizeof *trainer->validate);
    if (!trainer->train || !trainer->validate) return out_of_memory();
    for (int c = 0; c < trainer->chunks; c++) {
        HD_RETURN_IF_ERROR(
            hdi_trainer_build_chunk(trainer, c, HD_PURPOSE_TRAIN, &trainer->train[c]));
        hdi_pipeline_set_slots(trainer->schedule, c, &trainer->train[c]);
        if (!trainer->validate_schedule) continue;
        HD_RETURN_IF_ERROR(
            hdi_trainer_build_chunk(trainer, c, HD_PURPOSE_EVALUATE, &trainer->validate[c]));
        hdi_pipeline_set_slots(trainer->validate_schedule, c, &trainer->validate[c]);
        HD_RETURN_IF_ERROR(hd_program_finish(trainer->validate[c].program));
    }
    return HD_OK;
}

/* Programs of a training step share group 0; validation lives in group 1 over the same bytes. */
static hd_status make_plan(hd_trainer *trainer)
{
    const hd_trainer_options *o = &trainer->options;
    hd_plan_options options = {.budget = o->budget,
                               .foreign = o->foreign,
                               .gradient_levels =
                                   o->exact ? hdi_gradient_levels(o->accumulate) : 1};
    HD_RETURN_IF_ERROR(hd_plan_create(&options, &trainer->plan));
    hdi_layout *layout;
    HD_RETURN_IF_ERROR(make_layout(trainer, &layout));
    hdi_plan_set_layout(trainer->plan, layout);
    for (int c = 0; c < trainer->chunks; c++) {
        hd_program *program = trainer->train[c].program;
        hdi_data_reduce(program, c, layout);
        HD_RETURN_IF_ERROR(hd_program_finish(program));
        hd_plan_program_options use = {
            .saved_slots = hdi_schedule_slots(trainer->schedule, c, HDI_BUFFER_ACTIVATIONS),
            .io_slots = o->accumulate};
        HD_RETURN_IF_ERROR(hd_plan_add(trainer->plan, program, &use));
    }
    HD_RETURN_IF_ERROR(hdi_trainer_build_update(trainer, layout));
    HD_RETURN_IF_ERROR(hd_plan_add(trainer->plan, trainer->norm, NULL));
    HD_RETURN_IF_ERROR(hd_plan_add(trainer->plan, trainer->update, NULL));
    for (int c = 0; c < trainer->chunks && trainer->validate_schedule; c++)
        HD_RETURN_IF_ERROR(
            hd_plan_add(trainer->plan, trainer->validate[c].program,
                        &(hd_plan_program_options){.group = 1, .io_slots = o->validate_batches}));
    return hd_plan_finish(trainer->plan);
}

hd_status hd_trainer_create(const hd_trainer_options *options, hd_trainer **out)
{
    *out = NULL;
    hd_trainer *trainer = hdi_alloc(sizeof *trainer);
    if (!trainer) return out_of_memory();
    hd_status status = check_options(trainer, options);
    if (status == HD_OK) status = make_schedules(trainer);
    if (status == HD_OK) status = hdi_census_take(trainer);
    if (status == HD_OK) status = build_programs(trainer);
    if (status == HD_OK) status = make_plan(trainer);
    if (status != HD_OK) {
        hd_trainer_destroy(trainer);
        return status;
    }
    *out = trainer;
    return HD_OK;
}

void hd_trainer_destroy(hd_trainer *trainer)
{
    if (!trainer) return;
    hdi_pipeline_destroy(trainer->train_run);
    hdi_pipeline_destroy(trainer->validate_run);
    hd_session_destroy(trainer->session);
    hd_plan_destroy(trainer->plan);
    for (int c = 0; c < trainer->chunks; c++) {
        if (trainer->train) hd_program_destroy(trainer->train[c].program);
        if (trainer->validate) hd_program_destroy(trainer->validate[c].program);
    }
    hd_program_destroy(trainer->norm);
    hd_program_destroy(trainer->update);
    for (int i = 0; i < trainer->tie_count; i++)
        hdi_free(trainer->ties[i].send_counts);
    hdi_free(trainer->ties);
    hdi_free(trainer->train);
    hdi_free(trainer->validate);
    hdi_free(trainer->square_pieces);
    hdi_free(trainer->update_pieces);
    hdi_schedule_destroy(trainer->schedule);
    hdi_schedule_destroy(trainer->validate_schedule);
    hdi_census_release(&trainer->census);
    hdi_free(trainer->losses);
    hdi_free(trainer->square_sums);
    hdi_free(trainer->staging);
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

static size_t largest_input(const hdi_pipeline_chunk *chunks, int count)
{
    size_t largest = 0;
    for (int c = 0; c < count; c++) {
        const hd_program *program = chunks[c].program;
        for (int i = 1; program && i < program->tensor_count; i++) {
            const hd_tensor_info *info = &program->tensors[i]->info;
            if (info->role == HD_ROLE_INPUT && info->bytes > largest) largest = info->bytes;
        }
    }
    return largest;
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
    HD_RETURN_IF_ERROR(hd_session_create(context, trainer->plan, o->mesh, &trainer->session));
    HD_RETURN_IF_ERROR(hdi_pipeline_create(trainer->schedule, trainer->train, o->mesh, o->exact,
                                           &trainer->train_run));
    if (trainer->validate_schedule)
        HD_RETURN_IF_ERROR(hdi_pipeline_create(trainer->validate_schedule, trainer->validate,
                                               o->mesh, false, &trainer->validate_run));
    size_t batches =
        (size_t)(o->accumulate > o->validate_batches ? o->accumulate : o->validate_batches);
    size_t data = (size_t)hd_mesh_size(o->mesh, HD_AXIS_DATA);
    size_t train = largest_input(trainer->train, trainer->chunks);
    size_t validate = largest_input(trainer->validate, trainer->chunks);
    trainer->losses = hdi_alloc_array(2 * batches * data, sizeof(double));
    trainer->square_sums = hdi_alloc_array((size_t)trainer->census.blocks, sizeof(double));
    trainer->staging = hdi_alloc(train > validate ? train : validate);
    if (!trainer->losses || !trainer->square_sums || !trainer->staging) return out_of_memory();
    return hdi_trainer_initialize(trainer, seed);
}
