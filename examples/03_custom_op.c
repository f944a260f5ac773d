/* A custom op with its own backward: squared ReLU, checked against finite differences. */
#include <heddle/op.h>
#include <heddle/session.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { COUNT = 32 };

static void check(hd_status status)
{
    if (status == HD_OK) return;
    fprintf(stderr, "%s\n", hd_last_error());
    exit(1);
}

static hd_status same_shape(hd_program *program, const hd_op *op)
{
    hd_op_output(program, HD_DTYPE_F32, op->in_info[0]->rank, op->in_info[0]->dims);
    return HD_OK;
}

static hd_status run_square(const hd_run *run)
{
    const float *x = run->in[0];
    float *y = run->out[0];
    for (int64_t i = 0; i < run->op->in_info[0]->elements; i++)
        y[i] = x[i] > 0 ? x[i] * x[i] : 0;
    return HD_OK;
}

/* in: x and the gradient of y. */
static hd_status run_square_gradient(const hd_run *run)
{
    const float *x = run->in[0], *gradient = run->in[1];
    float *out = run->out[0];
    for (int64_t i = 0; i < run->op->in_info[0]->elements; i++)
        out[i] = x[i] > 0 ? 2 * x[i] * gradient[i] : 0;
    return HD_OK;
}

static const hd_op_kind square_gradient = {
    .name = "square_relu_gradient", .shape = same_shape, .run = run_square_gradient};

/* A backward rule emits ops; what they need of the forward is kept for them. */
static void square_backward(hd_backward *context, const hd_op *op)
{
    const hd_tensor in[] = {op->in[0], hd_backward_output_gradient(context, 0)};
    hd_program *program = hd_backward_program(context);
    hd_backward_give(context, 0, hd_custom_op(program, &square_gradient, NULL, 2, in));
}

static const hd_op_kind square = {
    .name = "square_relu", .shape = same_shape, .backward = square_backward, .run = run_square};

int main(void)
{
    const int64_t dims[] = {COUNT};
    hd_program *p;
    check(hd_program_create(&(hd_program_options){.name = "square", .training = true}, &p));
    hd_tensor x = hd_input(p, "x", HD_DTYPE_F32, 1, dims);
    hd_tensor seed = hd_input(p, "seed", HD_DTYPE_F32, 1, dims);
    hd_input_needs_gradient(p, x);
    hd_tensor y = hd_output(p, hd_custom_op(p, &square, NULL, 1, &x), "y");
    hd_program_backward(p, y, seed);
    check(hd_program_finish(p));
    hd_plan *plan;
    hd_context *context;
    hd_session *session;
    check(hd_plan_create(&(hd_plan_options){0}, &plan));
    check(hd_plan_add(plan, p, &(hd_plan_program_options){0}));
    check(hd_plan_finish(plan));
    check(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    check(hd_session_create(context, plan, NULL, &session));
    /* Runs at x, x + step and x - step: y[i] depends on x[i] alone. */
    const float step = 1.0F / 1024, offsets[] = {0, step, -step};
    float ones[COUNT], values[COUNT], result[3][COUNT], gradient[COUNT], worst = 0;
    for (int run = 2; run >= 0; run--) {
        for (int i = 0; i < COUNT; i++) {
            ones[i] = 1;
            values[i] = (float)(2 * i - COUNT + 1) / 16 + offsets[run];
        }
        check(hd_session_write(session, p, x, 0, values));
        check(hd_session_write(session, p, seed, 0, ones));
        check(hd_session_run(session, p, &(hd_session_run_options){.phase = HD_PHASE_FORWARD}));
        check(hd_session_run(session, p, &(hd_session_run_options){.phase = HD_PHASE_BACKWARD}));
        check(hd_session_drain(session));
        check(hd_session_read(session, p, y, 0, result[run]));
    }
    check(hd_session_read(session, p, hd_gradient(p, x), 0, gradient));
    for (int i = 0; i < COUNT; i++)
        worst = fmaxf(worst, fabsf(gradient[i] - (result[1][i] - result[2][i]) / (2 * step)));
    printf("plan: %zu bytes; gradients differ by %.1e at most\n", hd_plan_arena_bytes(plan), worst);
    hd_session_destroy(session);
    hd_context_destroy(context);
    hd_plan_destroy(plan);
    hd_program_destroy(p);
    return worst > 1e-3F;
}
