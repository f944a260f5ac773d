/* Golden models on a device. */
#include "tests/support/hdt_planned.h"

#include <stdlib.h>

#include "core/half.h"
#include "program/program.h"

static void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

void hdt_narrow(hd_dtype dtype, float *values, int64_t count)
{
    uint16_t *halves = (uint16_t *)(void *)values; /* front to back */
    for (int64_t i = 0; i < count && hdi_is_half(dtype); i++) {
        const uint16_t half = hdi_half_from_float(dtype, values[i]);
        memcpy(&halves[i], &half, sizeof half);
    }
}

static void write(const hdt_planned *p, hd_tensor tensor, float *values)
{
    const hd_tensor_info *info = hd_tensor_get(p->program, tensor);
    hdt_narrow(info->dtype, values, info->elements);
    hdt_assert_ok(hd_session_write(p->session, p->program, tensor, 0, values));
}

static void load(const hdt_planned *p, const hdi_weights *weights)
{
    for (int u = 0; u < p->program->use_count; u++) {
        const hdi_use *use = &p->program->uses[u];
        const int64_t elements = hd_tensor_get(p->program, use->tensor)->elements;
        float *values = take(elements, sizeof *values);
        hdt_assert_ok(hdi_model_read_parameter(weights, &use->options, 0, elements, values));
        write(p, use->tensor, values);
        free(values);
    }
}

hdt_planned hdt_planned_start(hd_context *context, hd_model *model, const hd_stage *stage,
                              hd_dtype dtype, const char *loss_op, const hdi_weights *weights)
{
    hdt_planned p = {0};
    const bool training = stage->purpose == HD_PURPOSE_TRAIN;
    const hd_program_options options = {.name = "golden",
                                        .dtype = dtype,
                                        .training = training,
                                        .backend = hd_context_backend(context)};
    hdt_assert_ok(hd_program_create(&options, &p.program));
    p.result = hd_model_build(model, p.program, stage, (hd_tensor){0});
    for (int i = 0; i < p.program->op_count; i++)
        if (strcmp(p.program->ops[i]->op.kind->name, loss_op) == 0)
            p.prediction = hd_output(p.program, p.program->ops[i]->op.in[0], "prediction");
    if (training) hd_program_backward(p.program, p.result, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(p.program));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &p.plan));
    hdt_assert_ok(hd_plan_add(p.plan, p.program, NULL));
    hdt_assert_ok(hd_plan_finish(p.plan));
    hdt_assert_ok(hd_session_create(context, p.plan, NULL, &p.session));
    load(&p, weights);
    return p;
}

void hdt_planned_stop(hdt_planned *p)
{
    hd_session_destroy(p->session);
    hd_plan_destroy(p->plan);
    hd_program_destroy(p->program);
}

void hdt_planned_feed(const hdt_planned *p, const hd_program *from, const hdt_machine *machine)
{
    for (int i = 1; i < from->tensor_count; i++) {
        const hd_tensor_info *info = hd_tensor_get(from, (hd_tensor){i});
        if (info->role != HD_ROLE_INPUT) continue;
        const hd_tensor input = hd_tensor_find(p->program, info->name);
        const hd_tensor_info *same = hd_tensor_get(p->program, input);
        ck_assert_ptr_nonnull(same);
        ck_assert_int_eq(same->elements, info->elements);
        float *values = take(info->elements, sizeof *values); /* I32 has as many bytes */
        memcpy(values, hdt_machine_data(machine, (hd_tensor){i}), info->bytes);
        write(p, input, values);
        free(values);
    }
}

void hdt_planned_run(const hdt_planned *p, hd_phase phase)
{
    hdt_assert_ok(hd_session_run(p->session, p->program,
                                 &(hd_session_run_options){.phase = phase, .last = true}));
    hdt_assert_ok(hd_session_drain(p->session));
}

float *hdt_planned_read(const hdt_planned *p, hd_tensor tensor)
{
    const hd_tensor_info *info = hd_tensor_get(p->program, tensor);
    float *out = take(info->elements, sizeof *out);
    hdt_assert_ok(hd_session_read(p->session, p->program, tensor, 0, out));
    for (int64_t i = info->elements - 1; i >= 0 && hdi_is_half(info->dtype); i--) {
        uint16_t half;
        memcpy(&half, (const char *)out + (size_t)i * sizeof half, sizeof half);
        out[i] = hdi_half_to_float(info->dtype, half);
    }
    return out;
}

int hdt_planned_depth(const hdt_planned *p, hd_tensor tensor)
{
    int *depth = take(p->program->tensor_count, sizeof *depth);
    for (int i = 0; i < p->program->op_count; i++) {
        const hd_op *op = &p->program->ops[i]->op;
        int longest = 0;
        for (int k = 0; k < op->inputs; k++)
            if (depth[op->in[k].id] > longest) longest = depth[op->in[k].id];
        for (int k = 0; k < op->outputs; k++)
            if (depth[op->out[k].id] <= longest) depth[op->out[k].id] = longest + 1;
    }
    const int out = depth[tensor.id];
    free(depth);
    return out;
}
