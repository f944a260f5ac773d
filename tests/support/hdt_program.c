/* Ops of tests' own. */
#include "tests/support/hdt_program.h"

#include "core/error.h"
#include "core/random.h"
#include "program/program.h"

hd_program *hdt_program(void)
{
    hd_program *program;
    hdt_assert_ok(
        hd_program_create(&(hd_program_options){.name = "p", .training = true}, &program));
    return program;
}

hd_tensor hdt_vector(hd_program *program, const char *name, int64_t count)
{
    return hd_input(program, name, HD_DTYPE_F32, 1, &count);
}

hd_tensor hdt_weight(hd_program *program, const char *name, int64_t count)
{
    return hd_parameter(
        program,
        &(hd_parameter_options){.name = name, .rank = 1, .dims = {count}, .init = HD_INIT_ONES});
}

static hd_status like_first(hd_program *program, const hd_op *op)
{
    const hd_tensor_info *x = op->in_info[0];
    if (!x) return hdi_error(HD_ERROR_ARGUMENT, "x is missing");
    for (int i = 1; i < op->inputs; i++)
        if (op->in_info[i] && op->in_info[i]->elements != x->elements)
            return hdi_error(HD_ERROR_ARGUMENT, "input %d has %lld elements, want %lld", i,
                             (long long)op->in_info[i]->elements, (long long)x->elements);
    hd_op_output(program, x->dtype, x->rank, x->dims);
    return HD_OK;
}

static hd_status nothing_new(hd_program *program, const hd_op *op)
{
    (void)program;
    (void)op;
    return HD_OK;
}

static int64_t length(const hd_run *run)
{
    return run->op->in_info[0]->elements;
}

static hd_status run_double(const hd_run *run)
{
    for (int64_t i = 0; i < length(run); i++)
        ((float *)run->out[0])[i] = 2 * ((const float *)run->in[0])[i];
    return HD_OK;
}

static void back_double(hd_backward *context, const hd_op *op)
{
    (void)op;
    hd_backward_give(
        context, 0,
        hdt_double(hd_backward_program(context), hd_backward_output_gradient(context, 0)));
}

static void cost_double(const hd_op *op, hd_cost *out)
{
    (void)op;
    *out = (hd_cost){.flops = 3, .bytes = 5};
}

const hd_op_kind hdt_op_double = {.name = "double",
                                  .shape = like_first,
                                  .backward = back_double,
                                  .cost = cost_double,
                                  .in_place = 1,
                                  .run = run_double};

hd_tensor hdt_double(hd_program *program, hd_tensor x)
{
    return hd_custom_op(program, &hdt_op_double, NULL, 1, &x);
}

static hd_status run_mul(const hd_run *run)
{
    for (int64_t i = 0; i < length(run); i++)
        ((float *)run->out[0])[i] = ((const float *)run->in[0])[i] * ((const float *)run->in[1])[i];
    return HD_OK;
}

static hd_status run_mul_weight(const hd_run *run)
{
    float *out = run->out[0];
    for (int64_t i = 0; i < length(run); i++) {
        float product = ((const float *)run->in[0])[i] * ((const float *)run->in[1])[i];
        out[i] = run->accumulate ? out[i] + product : product;
    }
    return HD_OK;
}

static const hd_op_kind mul_data = {.name = "mul_data", .shape = like_first, .run = run_mul};
static const hd_op_kind mul_weight = {.name = "mul_weight",
                                      .flags = HD_OP_WEIGHT_GRADIENT,
                                      .shape = nothing_new,
                                      .run = run_mul_weight};

static void back_mul(hd_backward *context, const hd_op *op)
{
    hd_tensor gradient = hd_backward_output_gradient(context, 0);
    for (int k = 0; k < 2; k++) {
        const hd_tensor in[] = {gradient, op->in[1 - k]};
        if (!hd_backward_wants(context, k)) continue;
        if (op->in_info[k]->role == HD_ROLE_PARAMETER)
            hd_backward_weight(context, k, &mul_weight, NULL, 2, in);
        else
            hd_backward_give(context, k,
                             hd_custom_op(hd_backward_program(context), &mul_data, NULL, 2, in));
    }
}

static const hd_op_kind mul = {
    .name = "mul", .shape = like_first, .backward = back_mul, .run = run_mul};

hd_tensor hdt_mul(hd_program *program, hd_tensor x, hd_tensor w)
{
    const hd_tensor in[] = {x, w};
    return hd_custom_op(program, &mul, NULL, 2, in);
}

static hd_status two_like_first(hd_program *program, const hd_op *op)
{
    HD_RETURN_IF_ERROR(like_first(program, op));
    return like_first(program, op);
}

static hd_status run_both_signs(const hd_run *run)
{
    for (int64_t i = 0; i < length(run); i++) {
        ((float *)run->out[0])[i] = ((const float *)run->in[0])[i];
        ((float *)run->out[1])[i] = -((const float *)run->in[0])[i];
    }
    return HD_OK;
}

static hd_status one_output(hd_program *program, const hd_op *op)
{
    const hd_tensor_info *any = op->in_info[0] ? op->in_info[0] : op->in_info[1];
    if (!any) return hdi_error(HD_ERROR_ARGUMENT, "no gradient");
    hd_op_output(program, any->dtype, any->rank, any->dims);
    return HD_OK;
}

static hd_status run_difference(const hd_run *run)
{
    const float *a = run->in[0], *b = run->in[1];
    for (int64_t i = 0; i < run->op->out_info[0]->elements; i++)
        ((float *)run->out[0])[i] = (a ? a[i] : 0) - (b ? b[i] : 0);
    return HD_OK;
}

static const hd_op_kind difference = {
    .name = "difference", .shape = one_output, .run = run_difference};

static void back_both_signs(hd_backward *context, const hd_op *op)
{
    (void)op;
    const hd_tensor in[] = {hd_backward_output_gradient(context, 0),
                            hd_backward_output_gradient(context, 1)};
    hd_backward_give(context, 0,
                     hd_custom_op(hd_backward_program(context), &difference, NULL, 2, in));
}

static const hd_op_kind both_signs = {.name = "both_signs",
                                      .shape = two_like_first,
                                      .backward = back_both_signs,
                                      .run = run_both_signs};

hd_tensor hdt_both_signs(hd_program *program, hd_tensor x)
{
    return hd_custom_op(program, &both_signs, NULL, 1, &x);
}

static size_t through_workspace(const hd_op *op)
{
    return *(const size_t *)op->options;
}

static hd_status run_through(const hd_run *run)
{
    memset(run->workspace, 0xff, *(const size_t *)run->op->options);
    memcpy(run->out[0], run->in[0], run->op->in_info[0]->bytes);
    return HD_OK;
}

static const hd_op_kind through = {.name = "through",
                                   .options_bytes = sizeof(size_t),
                                   .shape = like_first,
                                   .workspace = through_workspace,
                                   .run = run_through};

hd_tensor hdt_through(hd_program *program, hd_tensor x, size_t bytes)
{
    return hd_custom_op(program, &through, &bytes, 1, &x);
}

hd_program *hdt_random_program(uint64_t seed)
{
    hd_program *program = hdt_program();
    hd_tensor x = hdt_vector(program, "x", 100);
    hd_input_needs_gradient(program, x);
    hd_tensor pool[64] = {x};
    int count = 1, weights = 0;
    for (int block = 0; block < 6; block++) {
        uint32_t words[4];
        hdi_random_words(seed, 0, (uint64_t)block, words);
        hd_scope_begin(program, "block.%d", block);
        if (words[0] & 1) hd_scope_recompute(program);
        for (uint64_t i = 0; i < 5; i++) {
            hdi_random_words(seed, 1 + (uint64_t)block, i, words);
            hd_tensor a = pool[words[1] % (uint32_t)count], b = pool[words[2] % (uint32_t)count];
            char name[] = {'w', (char)('a' + weights % 5), 0};
            switch (words[0] % 5) {
            case 0: pool[count++] = hdt_double(program, a); break;
            case 1: pool[count++] = hdt_mul(program, a, b); break;
            case 2: pool[count++] = hdt_mul(program, a, hdt_weight(program, name, 100)); break;
            case 3:
                pool[count++] = hd_custom_op(program, &hdi_op_add, NULL, 2, (hd_tensor[]){a, b});
                break;
            case 4:
                pool[count++] = hdt_both_signs(program, a);
                pool[count++] = hd_op_result(program, 1);
                break;
            }
            weights++;
        }
        hd_scope_end(program);
        if (block % 2 == 0) (void)hdt_through(program, pool[count - 1], 1000 * (size_t)(block + 1));
        if (count > 50) count = 50;
    }
    hd_tensor y = pool[count - 1];
    for (int i = 0; i < count - 1; i++) /* nothing is left without a reader */
        y = hd_custom_op(program, &hdi_op_add, NULL, 2, (hd_tensor[]){y, pool[i]});
    y = hd_output(program, hdt_double(program, y), "y");
    hd_program_backward(program, y, hdt_vector(program, "seed", 100));
    hdt_assert_ok(hd_program_finish(program));
    return program;
}

int hdt_count_ops(const hd_program *program, const char *name)
{
    int count = 0;
    for (int i = 0; i < program->op_count; i++)
        count += strcmp(program->ops[i]->op.kind->name, name) == 0;
    return count;
}

bool hdt_collect(void *user, const char *text)
{
    hdt_text *collected = user;
    for (; *text && collected->used + 1 < sizeof collected->text; text++)
        collected->text[collected->used++] = *text;
    collected->text[collected->used] = '\0';
    return true;
}

bool hdt_drop(void *user, const char *text)
{
    (void)user, (void)text;
    return true;
}
