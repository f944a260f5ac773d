/* Built-in ops: functions that append one op to a program and return its first output.
 *
 * "rows" are all dims but the last together; matrices are row-major. Bad shapes are sticky errors of
 * the program, with the shapes seen and wanted. All calls are Local. */
#ifndef HEDDLE_OPS_H
#define HEDDLE_OPS_H

#include <heddle/op.h>

#ifdef __cplusplus
extern "C" {
#endif

/* x + y, equal shapes and dtypes. */
HD_API hd_tensor hd_add(hd_program *program, hd_tensor x, hd_tensor y);

/* x [..., inputs] by weight [outputs, inputs], transposed, plus bias [outputs] (may be invalid):
 * [..., outputs]. hd_linear (heddle/nn.h) declares the parameters too. */
HD_API hd_tensor hd_linear_op(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor bias);

/* Rows of `table` [entries, columns] by `ids` I32 [...]: [..., columns]. An id outside 0..entries-1
 * fails the run. */
HD_API hd_tensor hd_embedding_op(hd_program *program, hd_tensor ids, hd_tensor table);

/* I32 [rows]: min(first + row % period, limit - 1). `first` I32 [1] may be invalid: 0. */
HD_API hd_tensor hd_positions(hd_program *program, hd_tensor first, int64_t rows, int64_t period,
                              int64_t limit);

/* Elementwise, shape of x. hd_gelu is x * Phi(x); hd_gelu_tanh its tanh approximation ("gelu_new");
 * hd_silu is x * sigmoid(x). */
HD_API hd_tensor hd_gelu(hd_program *program, hd_tensor x);
HD_API hd_tensor hd_gelu_tanh(hd_program *program, hd_tensor x);
HD_API hd_tensor hd_silu(hd_program *program, hd_tensor x);

/* x [..., 2 * columns] = gate | up: silu(gate) * up, [..., columns]. */
HD_API hd_tensor hd_swiglu(hd_program *program, hd_tensor x);

typedef enum hd_rope_pairing {
    HD_ROPE_HALVES,     /* column i turns with i + head_dim / 2: Llama in Hugging Face files */
    HD_ROPE_INTERLEAVED /* column 2i turns with 2i + 1 */
} hd_rope_pairing;

typedef struct hd_rope_options {
    hd_rope_pairing pairing;
    int64_t heads;     /* turned ones, from column 0 on: query and key heads of a packed qkv */
    int64_t head_dim;  /* even */
    int64_t tokens;    /* of a sequence: row r has position (*first) + r % tokens */
    int64_t positions; /* length of the table; zero means `tokens` */
    double theta;      /* zero means 10000 */
    hd_tensor first;   /* I32 [1], position of the first row; invalid: 0 */
    hd_tensor places; /* I32 [rows]: the rows' positions, where they do not count up from `first` */
} hd_rope_options;

/* Rotary position embedding of the first heads * head_dim columns of x [rows, columns]; further
 * columns pass unchanged. Shape of x. */
HD_API hd_tensor hd_rope(hd_program *program, hd_tensor x, const hd_rope_options *options);

typedef struct hd_attention_options {
    int64_t heads;
    int64_t kv_heads; /* zero means `heads`; divides it */
    int64_t head_dim; /* zero: from the columns of qkv */
    int64_t tokens;   /* of a sequence; rows are whole sequences one after another */
    bool causal;
    double scale; /* zero means 1 / sqrt(head_dim) */

    /* hd_attention only. Sequences may lie token by token between one another (frames of each
     * place of a video): of each run of tokens * interleave rows, row r is token r / interleave of
     * sequence r % interleave. Zero means 1: one after another. */
    int64_t interleave;
    hd_tensor counts; /* I32 [sequences]: valid first tokens of each sequence, not causal only; the
                         others' results are zero and nobody sees them. Invalid: all */

    /* Cached attention only. */
    int64_t capacity;          /* positions of the caches */
    hd_tensor position, count; /* I32 [1]: of the first row, and of valid rows */
} hd_attention_options;

/* Scaled dot-product attention. qkv [rows, (heads + 2 * kv_heads) * head_dim] holds query, key and
 * value heads side by side; the result is [rows, heads * head_dim]. Query head h reads key head
 * h * kv_heads / heads. */
HD_API hd_tensor hd_attention(hd_program *program, hd_tensor qkv,
                              const hd_attention_options *options);

/* Causal attention of the `tokens` rows of one sequence, which start at *position, to themselves
 * and what the cache holds; only the first *count rows are valid, the others are undefined. Keys
 * and values go to the states "<scope>.k_cache" and "<scope>.v_cache" [capacity, kv_heads *
 * head_dim], one copy for each sequence in flight. No gradient. */
HD_API hd_tensor hd_attention_cached(hd_program *program, hd_tensor qkv,
                                     const hd_attention_options *options);

/* Cross-entropy of logits [rows, classes] against targets I32 [rows]; negative targets are ignored.
 * Returns the output "loss" F64 [2]: the sum over rows and the number of targets that count. To be
 * given to hd_program_backward; the gradient is that of the sum. In a program for training, F16
 * logits' gradient is multiplied by the input "loss_scale" F32 [1], which is then declared, so that
 * small gradients stay above what F16 can hold. */
HD_API hd_tensor hd_cross_entropy(hd_program *program, hd_tensor logits, hd_tensor targets);

/* Row *count - 1 of x [rows, columns]: [1, columns]. `count` is I32 [1]. No gradient. */
HD_API hd_tensor hd_select_last(hd_program *program, hd_tensor x, hd_tensor count);

/* The elements of x, in their order, under other dims. */
HD_API hd_tensor hd_reshape(hd_program *program, hd_tensor x, int rank, const int64_t *dims);

#ifdef __cplusplus
}
#endif
#endif
