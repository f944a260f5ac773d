/* Records and options of the built-in ops, and what their rules share. */
#ifndef HDI_OPS_OPS_H
#define HDI_OPS_OPS_H

#include <heddle/ops.h>

#include "backend/backend.h"
#include "program/program.h"

/* The backend that a rule asks for workspace sizes. */
const hd_backend *hdi_op_backend(const hd_op *op);

/* Product of all dims but the last, and the last. */
int64_t hdi_rows(const hd_tensor_info *info);
int64_t hdi_columns(const hd_tensor_info *info);

/* HD_OK if input `index`, called `what` in messages, is there, has the dtype (HD_DTYPE_NONE: F32,
 * F16 or BF16) and at least one dim. */
hd_status hdi_check_input(const hd_op *op, int index, const char *what, hd_dtype dtype);

/* The same, and exactly these dims. A dim of -1 may be any. */
hd_status hdi_check_dims(const hd_op *op, int index, const char *what, hd_dtype dtype, int rank,
                         const int64_t *dims);

/* "F32 [4, 8]" in a caller's buffer. */
enum { HDI_SHAPE_TEXT = 192 };
const char *hdi_shape_text(const hd_tensor_info *info, char out[HDI_SHAPE_TEXT]);

/* Declare an output like `info` whose last dim is `columns`. */
void hdi_output_like(hd_program *program, const hd_tensor_info *info, int64_t columns);

/* The shape rule of weight-gradient records: the gradient exists already. */
hd_status hdi_no_outputs(hd_program *program, const hd_op *op);

/* Sum of the bytes of all inputs and outputs of an op. */
double hdi_tensor_bytes(const hd_op *op);

/* Mutable memory behind an input that an op updates (caches). */
static inline void *hdi_updated(const void *input)
{
    return (void *)(uintptr_t)input;
}

typedef struct hdi_activation_options {
    hdi_activation kind;
} hdi_activation_options;

typedef struct hdi_norm_options {
    hdi_norm_kind kind;
    float epsilon;
    int64_t columns;
    bool residual, saves; /* a second data input; statistics are kept for the backward */
} hdi_norm_options;

/* Norm of x, or of x + delta, which is then also a result (*sum, may be NULL). delta, weight
 * [columns] and bias [columns] may be invalid: none. */
hd_tensor hdi_norm(hd_program *program, hdi_norm_kind kind, float epsilon, hd_tensor x,
                   hd_tensor delta, hd_tensor weight, hd_tensor bias, hd_tensor *sum);

/* Rows of partial sums for the gradients of norm weights over `rows` rows: fixed by the shape, so
 * that sums do not depend on the device. */
static inline int64_t hdi_partial_rows(int64_t rows)
{
    return rows < 512 ? rows : 512;
}

/* In a backward rule: the gradient of parameter input `input`, from columns first .. first +
 * columns - 1 of the partial sums [partial rows, 2 * columns]. */
void hdi_norm_weight_gradient(hd_backward *context, int input, hd_tensor partials, int64_t first,
                              int64_t columns);

/* Rows of each part, of an op that joins its inputs, or splits into its outputs, the rows of one sequence;
 * NULL of other ops, and where a part is missing. */
const int64_t *hdi_joined_rows(const hd_op *op);
const int64_t *hdi_split_rows(const hd_op *op);

/* A linear map plus `add`, of its result's shape. bias may be invalid. */
hd_tensor hdi_linear_add(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor bias,
                         hd_tensor add);

/* gelu_tanh of a linear map, *pre the map itself; and the linear map of that. Their backward makes
 * the gradient of pre at once, so `activated` must have no other reader. bias may be invalid. */
hd_tensor hdi_linear_gelu(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor bias,
                          hd_tensor *pre);
hd_tensor hdi_linear_after_gelu(hd_program *program, hd_tensor activated, hd_tensor pre,
                                hd_tensor weight, hd_tensor bias);

/* The gradient of pre itself, of some rows; and a product with GELU, as one pass where the device can. */
hd_tensor hdi_linear_gelu_gradient(hd_program *program, hd_tensor gradient, hd_tensor weight,
                                   hd_tensor pre);
hd_status hdi_linear_run_gelu(const hd_run *run, hdi_gemm_args args, hdi_gemm_gelu gelu, void *pre);

/* Gradients of what activations take, by that and the gradient of what they give. */
hd_tensor hdi_activation_gradient(hd_program *program, hdi_activation kind, hd_tensor x,
                                  hd_tensor gradient);
hd_tensor hdi_swiglu_gradient(hd_program *program, hd_tensor x, hd_tensor gradient);

/* Rules of linear maps, in: x, weight, bias; of their data gradients, in: gradient, weight. */
hd_status hdi_linear_shape(hd_program *program, const hd_op *op);
void hdi_linear_cost(const hd_op *op, hd_cost *out);
hdi_gemm_args hdi_linear_args(const hd_run *run);
hd_status hdi_linear_run(const hd_run *run);
void hdi_linear_data_gradient(hd_backward *context, const hd_op *op, hd_tensor gradient);
void hdi_linear_weight_gradients(hd_backward *context, const hd_op *op, hd_tensor gradient);

/* The data gradient itself; and what a weight or bias, input `input` of the op whose rule runs, gets of some
 * rows. */
hd_tensor hdi_linear_gradient(hd_program *program, hd_tensor gradient, hd_tensor weight);
void hdi_linear_weight_gradient(hd_backward *context, int input, hd_tensor gradient, hd_tensor x);
void hdi_linear_bias_gradient(hd_backward *context, int input, hd_tensor gradient);

/* Whether these come before the data gradient: what is wider than the result is then free for its own
 * gradient. On a tensor axis the data gradient's rows travel under them. */
bool hdi_linear_weights_first(hd_backward *context, const hd_op *op);
hd_status hdi_linear_gradient_shape(hd_program *program, const hd_op *op);
hdi_gemm_args hdi_linear_gradient_args(const hd_run *run);

/* Embedding where the table is a part: entries from `first` on of `limit`. Rows of the others are zeros. */
hd_tensor hdi_embedding_part(hd_program *program, hd_tensor ids, hd_tensor table, int64_t first,
                             int64_t limit);

/* Cross-entropy of rows that all ranks of the tensor axis have, of logits [rows, own classes] from `first`
 * on of `limit`: the loss of all classes, on every rank, and the gradient of the own. Collective. */
hd_tensor hdi_cross_entropy_part(hd_program *program, hd_tensor logits, hd_tensor targets,
                                 int64_t first, int64_t limit);

/* Logits [rows, classes], of all classes or, with limit > 0, those from `first` on of `limit` that this rank
 * of the tensor axis has; targets I32 [rows]; scale: what hdi_loss_scale says. */
typedef struct hdi_logits {
    hd_tensor logits, targets, scale;
    int64_t first, limit;
} hdi_logits;

/* The losses of the rows, F32 [rows], 0 where a target is ignored; with `gradient` not NULL also the logits'
 * gradient. With limit > 0 collective. */
hd_tensor hdi_cross_entropy_rows(hd_program *program, const hdi_logits *of, hd_tensor *gradient);

/* in: losses of rows, targets. out: F64 [2], what hd_cross_entropy makes of them. */
extern const hd_op_kind hdi_op_loss_sum;

/* The input, F32 [1], that multiplies the gradient of F16 logits; and it, where such a program needs it. */
#define HDI_LOSS_SCALE "loss_scale"
hd_tensor hdi_loss_scale(hd_program *program, hd_dtype logits);

extern const hd_op_kind hdi_op_linear, hdi_op_embedding, hdi_op_positions, hdi_op_norm,
    hdi_op_activation, hdi_op_swiglu, hdi_op_rope, hdi_op_attention, hdi_op_attention_cached,
    hdi_op_cross_entropy, hdi_op_select_last;

#endif
