/* One double-stream block of HunyuanVideo as the executor runs it, in bf16: milliseconds and TFLOP/s of a
 * forward and of forward and backward. Models of one and of three blocks are timed; half of the
 * difference is a block, so that what stands before and after the blocks cancels out.
 * Usage: speed_block [DEVICE [HEADS FRAMES HEIGHT WIDTH TEXT]], sizes of latents. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <heddle/model.h>
#include <heddle/session.h>

#include "core/clock.h"
#include "core/half.h"
#include "program/program.h"
#include "runtime/session.h"

enum { HEAD_DIM = 128, RUNS = 5 };

typedef struct size {
    const char *device;
    int64_t heads, frames, height, width, text;
} size;

static void must(hd_status status)
{
    if (status == HD_OK) return;
    printf("%s\n", hd_last_error());
    exit(EXIT_FAILURE);
}

static hd_model *make_model(const size *s, int blocks)
{
    char config[512];
    hd_model *model;
    snprintf(config, sizeof config,
             "{\"model_type\": \"hunyuan_video\", \"num_attention_heads\": %" PRId64
             ", \"num_layers\": %d, \"num_single_layers\": 1, \"num_refiner_layers\": 1, "
             "\"text_embed_dim\": 64, \"pooled_projection_dim\": 64, \"text_len\": %" PRId64 "}",
             s->heads, blocks, s->text);
    must(hd_model_create_json(config, &model));
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
    if (!values || !zeros) must(HD_ERROR_MEMORY);
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
            must(hd_session_write(session, program, (hd_tensor){i}, 0,
                                  info->dtype == HD_DTYPE_I32 ? zeros : values));
        }
    }
    free(values);
    free(zeros);
}

static void run(hd_session *session, const hd_program *program)
{
    must(hd_session_run(session, program,
                        &(hd_session_run_options){.phase = HD_PHASE_FORWARD, .last = true}));
    if (program->training)
        must(hd_session_run(session, program,
                            &(hd_session_run_options){.phase = HD_PHASE_BACKWARD, .last = true}));
}

/* Seconds of a run of the whole model. */
static double measure(hd_context *context, const size *s, int blocks, bool training)
{
    hd_model *model = make_model(s, blocks);
    hd_program *program;
    hd_plan *plan;
    hd_session *session;
    const hd_stage stage = {
        .purpose = training ? HD_PURPOSE_TRAIN : HD_PURPOSE_DENOISE,
        .layers = hd_model_layers(model),
        .first = true,
        .last = true,
        .sequences = 1,
        .video = {.frames = s->frames, .height = s->height, .width = s->width, .text = s->text}};
    must(hd_program_create(&(hd_program_options){.name = "block",
                                                 .dtype = HD_DTYPE_BF16,
                                                 .training = training,
                                                 .backend = hd_context_backend(context)},
                           &program));
    const hd_tensor loss = hd_model_build(model, program, &stage, (hd_tensor){0});
    if (training) hd_program_backward(program, loss, (hd_tensor){0});
    must(hd_program_finish(program));
    must(hd_plan_create(&(hd_plan_options){0}, &plan));
    must(hd_plan_add(plan, program, NULL));
    must(hd_plan_finish(plan));
    must(hd_session_create(context, plan, NULL, &session));
    fill(session, program);
    run(session, program); /* finds kernels, loads libraries */
    must(hd_session_drain(session));
    const double begin = hdi_clock_seconds();
    for (int i = 0; i < RUNS; i++)
        run(session, program);
    must(hd_session_drain(session));
    const double seconds = (hdi_clock_seconds() - begin) / RUNS;
    printf("  %d block%s, %s: %.2f ms, planned %.2f GiB\n", blocks, blocks > 1 ? "s" : "",
           training ? "forward and backward" : "forward", seconds * 1e3,
           (double)hd_plan_total_bytes(plan) / 1073741824);
    fflush(stdout);
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_program_destroy(program);
    hd_model_destroy(model);
    return seconds;
}

int main(int argc, char **argv)
{
    size s = {"cuda", 24, 33, 64, 48, 256};
    int64_t *const sizes[] = {&s.heads, &s.frames, &s.height, &s.width, &s.text};
    if (argc > 1) s.device = argv[1];
    for (int i = 2; i < argc && i < 7; i++)
        *sizes[i - 2] = strtoll(argv[i], NULL, 10);
    hd_context *context;
    must(hd_context_create(&(hd_context_options){.device = s.device}, &context));
    const double width = (double)(s.heads * HEAD_DIM);
    const double tokens = (double)(s.frames * (s.height / 2) * (s.width / 2) + s.text);
    const double flops = 2 * tokens * 12 * width * width + 4 * tokens * tokens * width;
    for (int training = 0; training < 2; training++) {
        const double one = measure(context, &s, 1, training);
        const double block = (measure(context, &s, 3, training) - one) / 2;
        printf("heddle block of %.0f columns, %.0f tokens, %s %.2f ms/block %.0f TFLOP/s\n", width,
               tokens, training ? "fwd+bwd" : "fwd", block * 1e3,
               (training ? 3 : 1) * flops / block / 1e12);
        fflush(stdout);
    }
    hd_context_destroy(context);
    return EXIT_SUCCESS;
}
