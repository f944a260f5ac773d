/* The speed of blocks of HunyuanVideo's shape. */
#include "tests/support/hdt_video_speed.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <heddle/comm.h>
#include <heddle/model.h>

#include "core/clock.h"
#include "core/half.h"
#include "program/program.h"
#include "runtime/session.h"

enum { RUNS = 5 };

void hdt_must(hd_status status)
{
    if (status == HD_OK) return;
    printf("%s\n", hd_last_error());
    exit(EXIT_FAILURE);
}

static hd_model *make_model(const hdt_video_speed *s)
{
    char config[512];
    hd_model *model;
    snprintf(config, sizeof config,
             "{\"model_type\": \"hunyuan_video\", \"num_attention_heads\": %" PRId64
             ", \"num_layers\": %d, \"num_single_layers\": %d, \"num_refiner_layers\": 1, "
             "\"text_embed_dim\": 64, \"pooled_projection_dim\": 64, \"text_len\": %" PRId64 "}",
             s->heads, s->double_blocks, s->single_blocks, s->text);
    hdt_must(hd_model_create_json(config, &model));
    return model;
}

/* Small numbers for weights and inputs, so that the clocks are those of real work: the same ones again
 * and again. */
static void fill(hd_session *session, const hd_program *program)
{
    size_t largest = 0;
    for (int i = 1; i < program->tensor_count; i++) {
        const hd_tensor_info *info = hd_tensor_get(program, (hd_tensor){i});
        if ((info->role == HD_ROLE_PARAMETER || info->role == HD_ROLE_INPUT) &&
            info->bytes > largest)
            largest = info->bytes;
    }
    char *values = malloc(largest), *zeros = calloc(1, largest);
    if (!values || !zeros) hdt_must(HD_ERROR_MEMORY);
    uint32_t state = 1;
    for (int kind = 0; kind < 2; kind++) {
        const size_t bytes = kind ? sizeof(float) : sizeof(uint16_t);
        for (size_t i = 0; i < largest / bytes; i++) {
            state = state * 1664525 + 1013904223;
            const float x = ((float)(state >> 8) / 8388608 - 1) / 32;
            const uint16_t half = hdi_bf16_from_float(x);
            memcpy(values + i * bytes, kind ? (const void *)&x : &half, bytes);
        }
        for (int i = 1; i < program->tensor_count; i++) {
            const hd_tensor_info *info = hd_tensor_get(program, (hd_tensor){i});
            if (info->role != HD_ROLE_PARAMETER && info->role != HD_ROLE_INPUT) continue;
            if (hd_dtype_bytes(info->dtype) != bytes) continue;
            hdt_must(hd_session_write(session, program, (hd_tensor){i}, 0,
                                      info->dtype == HD_DTYPE_I32 ? zeros : values));
        }
    }
    free(values);
    free(zeros);
}

static void run(hd_session *session, const hd_program *program)
{
    hdt_must(hd_session_run(session, program,
                            &(hd_session_run_options){.phase = HD_PHASE_FORWARD, .last = true}));
    if (program->training)
        hdt_must(hd_session_run(
            session, program, &(hd_session_run_options){.phase = HD_PHASE_BACKWARD, .last = true}));
}

/* Until all ranks are done. */
static double now(hd_session *session, hd_comm *world)
{
    hdt_must(hd_session_drain(session));
    if (world) hdt_must(hd_comm_barrier(world));
    return hdi_clock_seconds();
}

double hdt_video_seconds(const hdt_video_speed *what)
{
    hd_comm *world = what->mesh ? hd_mesh_comm(what->mesh, HD_AXIS_NONE) : NULL;
    hd_model *model = make_model(what);
    hd_program *program;
    hd_plan *plan;
    hd_session *session;
    const hd_stage stage = {.purpose = what->training ? HD_PURPOSE_TRAIN : HD_PURPOSE_DENOISE,
                            .layers = hd_model_layers(model),
                            .first = true,
                            .last = true,
                            .sequences = 1,
                            .video = {.frames = what->frames,
                                      .height = what->height,
                                      .width = what->width,
                                      .text = what->text}};
    hdt_must(hd_program_create(&(hd_program_options){.name = "blocks",
                                                     .dtype = HD_DTYPE_BF16,
                                                     .mesh = what->mesh,
                                                     .training = what->training,
                                                     .sequence_groups = what->sequence_groups,
                                                     .tensor_groups = what->tensor_groups,
                                                     .backend = hd_context_backend(what->context)},
                               &program));
    const hd_tensor loss = hd_model_build(model, program, &stage, (hd_tensor){0});
    if (what->training) hd_program_backward(program, loss, (hd_tensor){0});
    hdt_must(hd_program_finish(program));
    hdt_must(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_must(hd_plan_add(plan, program, NULL));
    hdt_must(hd_plan_finish(plan));
    hdt_must(hd_session_create(what->context, plan, what->mesh, &session));
    hdt_must(hdi_session_share(session, what->context, what->mesh, HD_OK));
    fill(session, program);
    run(session, program); /* finds kernels, loads libraries */
    const double begin = now(session, world);
    for (int i = 0; i < RUNS; i++)
        run(session, program);
    const double seconds = (now(session, world) - begin) / RUNS;
    if (hd_comm_rank(world) == 0)
        printf("  %d double and %d single blocks, %s: %.2f ms, planned %.2f GiB\n",
               what->double_blocks, what->single_blocks,
               what->training ? "forward and backward" : "forward", seconds * 1e3,
               (double)hd_plan_total_bytes(plan) / 1073741824);
    fflush(stdout);
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_program_destroy(program);
    hd_model_destroy(model);
    return seconds;
}
