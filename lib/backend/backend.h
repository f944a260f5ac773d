/* The backend table: what a device can compute. ops/ has checked shapes and dtypes, a backend only
 * computes. Matrices are row-major; `_stride` counts elements between rows. `dtype` is that of the
 * activations and weights of a call: F32, F16 or BF16; sums and statistics are fp32, and so are weight
 * gradients unless their own dtype says otherwise. What is stored as 16 bits is rounded to the nearest,
 * ties to even. Results do not depend on how many threads or blocks computed them. */
#ifndef HDI_BACKEND_BACKEND_H
#define HDI_BACKEND_BACKEND_H

#include <heddle/dtype.h>
#include <heddle/op.h>

#include "backend/diffusion.h"

/* One device of this process, made by a backend's open. */
typedef struct hdi_device hdi_device;

typedef enum hdi_activation { HDI_GELU_ERF, HDI_GELU_TANH, HDI_SILU } hdi_activation;

/* What gemm_gelu does to a product, in the tanh form. */
typedef enum hdi_gemm_gelu {
    HDI_GEMM_PLAIN,
    HDI_GEMM_GELU,         /* pre = product, out = gelu(product) */
    HDI_GEMM_GELU_GRADIENT /* out = product * gelu'(pre) */
} hdi_gemm_gelu;

/* out[rows, columns] = a * b (+ bias over rows) (+ out, if accumulate). a is [rows, inner], or
 * [inner, rows] if transpose_a; b is [inner, columns], or [columns, inner] if transpose_b. */
typedef struct hdi_gemm_args {
    hd_dtype dtype, out_dtype; /* out_dtype F32 for weight gradients */
    int64_t rows, columns, inner;
    const void *a, *b;
    int64_t a_stride, b_stride, out_stride;
    bool transpose_a, transpose_b, accumulate;
    const void *bias; /* [columns] of dtype, or NULL */
    void *out;
    hdi_gemm_gelu gelu; /* gemm_gelu only, as is `pre` [rows, columns], of dtype */
    void *pre;
} hdi_gemm_args;

/* out[columns] (+)= sum over rows of x. Deterministic. */
typedef struct hdi_column_sum_args {
    hd_dtype dtype, out_dtype;
    int64_t rows, columns, x_stride;
    const void *x;
    void *out;
    bool accumulate;
    void *workspace; /* column_sum_workspace bytes */
} hdi_column_sum_args;

/* out[r, :] = table[ids[r], :] (+ second_table[second_ids[r], :], if there is one). With a limit the
 * table is a part: entries from `first` on of `limit`; rows of the others are zeros. */
typedef struct hdi_embedding_args {
    hd_dtype dtype;
    int64_t rows, columns, entries, second_entries;
    int64_t first, limit;
    const int32_t *ids, *second_ids;
    const void *table, *second_table;
    void *out;
} hdi_embedding_args;

/* out[r] = min(*first + r % period, limit - 1): the positions of rows of sequences. */
typedef struct hdi_positions_args {
    int64_t rows, period, limit;
    const int32_t *first; /* one element on the device; NULL: 0 */
    int32_t *out;
} hdi_positions_args;

/* out[columns] = row *count - 1 of x [rows, columns]; *count is held to 1..rows. */
typedef struct hdi_select_row_args {
    hd_dtype dtype;
    int64_t rows, columns;
    const void *x;
    const int32_t *count; /* one element on the device */
    void *out;
} hdi_select_row_args;

/* table_gradient[e, :] (+)= sum of the rows r of gradient with ids[r] == e, in the order of r.
 * Without accumulate, entries that no row names become zero. A period, at most `entries`, says that
 * ids[r] is r % period; 0: anything. With a limit, and then without a period, the table is a part, as
 * above: rows of other entries are passed over. */
typedef struct hdi_embedding_gradient_args {
    hd_dtype dtype;
    int64_t rows, columns, entries, period;
    int64_t first, limit;
    const int32_t *ids;
    const void *gradient;
    float *table_gradient;
    bool accumulate;
    void *workspace; /* embedding_gradient_workspace bytes */
} hdi_embedding_gradient_args;

typedef enum hdi_norm_kind { HDI_LAYER_NORM, HDI_RMS_NORM } hdi_norm_kind;

/* s = x (+ residual); out = norm(s) * weight (+ bias). Saves mean (layer norm) and rstd. If `sum`
 * is given it receives s. weight and bias may be NULL: 1 and 0. Bits are those of `add` followed by
 * the norm of its result: s is rounded to the dtype before statistics and scaling see it. */
typedef struct hdi_norm_args {
    hdi_norm_kind kind;
    hd_dtype dtype;
    int64_t rows, columns;
    float epsilon;
    const void *x, *residual, *weight, *bias;
    void *sum, *out;
    float *mean, *rstd; /* [rows]; mean is NULL for RMS */
} hdi_norm_args;

/* x_gradient = gradient through norm at s (+ carry); partials[p, 0:columns] and
 * partials[p, columns:2*columns] are partial sums over rows of the gradients of weight and bias,
 * for partial_rows rows p; the caller sums them with column_sum. `x` is s of the forward. carry may
 * alias x_gradient. Bits are those of the call without carry followed by `add`: the gradient is
 * rounded to the dtype before carry is added. */
typedef struct hdi_norm_gradient_args {
    hdi_norm_kind kind;
    hd_dtype dtype;
    int64_t rows, columns, partial_rows;
    const void *gradient, *x, *weight, *carry;
    const float *mean, *rstd;
    void *x_gradient;
    float *partials; /* [partial_rows, 2 * columns]; NULL if no weight gradient is wanted */
} hdi_norm_gradient_args;

/* out = f(x); gradient: out = gradient * f'(x). In place allowed (out == x or out == gradient). */
typedef struct hdi_activation_args {
    hdi_activation kind;
    hd_dtype dtype;
    int64_t elements;
    const void *x, *gradient;
    void *out;
} hdi_activation_args;

/* SwiGLU: x is [rows, 2 * columns] = gate | up; out[rows, columns] = silu(gate) * up.
 * The gradient writes x_gradient [rows, 2 * columns]. */
typedef struct hdi_gated_args {
    hdi_activation kind; /* of the gate */
    hd_dtype dtype;
    int64_t rows, columns;
    const void *x, *gradient;
    void *out, *x_gradient;
} hdi_gated_args;

typedef enum hdi_rope_pairing { HDI_ROPE_HALVES, HDI_ROPE_INTERLEAVED } hdi_rope_pairing;

/* Rotate `heads` heads of head_dim columns that start at x, in place or to out (same strides).
 * table [positions, head_dim / 2, 2] holds (cos, sin); row r uses position
 * positions[r], or r % period when positions is NULL. `inverse` rotates back (the
 * gradient). Columns outside the heads are not touched. */
typedef struct hdi_rope_args {
    hdi_rope_pairing pairing;
    hd_dtype dtype;
    int64_t rows, heads, head_dim, x_stride, period;
    const float *table;
    const int32_t *positions;
    const void *x;
    void *out;
    bool inverse;
} hdi_rope_args;

/* Scaled dot-product attention of `batch` sequences. Token t of sequence b is row
 * b * tokens + t; head h is at column h * head_dim of q, k, v, out. Query head h reads key head
 * h * kv_heads / heads. Causal: query t sees keys <= t + (kv_tokens - tokens). */
typedef struct hdi_attention_args {
    hd_dtype dtype;
    int64_t batch, tokens, kv_tokens, heads, kv_heads, head_dim;
    int64_t q_stride, k_stride, v_stride, out_stride;
    float scale;
    bool causal, exact; /* exact: the gradient is bit-equal from run to run */
    /* Sequences that lie token by token between one another (0 or 1: one after another): token t of
     * sequence b is row (b / interleave) * tokens * interleave + t * interleave + b % interleave. */
    int64_t interleave;
    const int32_t *counts; /* [batch] on the device: valid first tokens of each sequence, as queries
                              and as keys; the others' out and gradients are zero. NULL: all */
    const int32_t *kv_counts; /* [batch]: of the keys, where they are not the queries' rows; only
                                 beside `counts`. NULL: the same */
    const void *q, *k, *v;
    void *out;
    float *lse; /* [batch, heads, tokens] natural log-sum-exp; NULL if not wanted */
    /* gradient only; `out` and `lse` may be those of more keys than are given */
    const void *out_gradient;                   /* strides as out */
    void *q_gradient, *k_gradient, *v_gradient; /* strides as q, k, v */
    void *workspace; /* attention_workspace or attention_gradient_workspace bytes */
} hdi_attention_args;

/* Attention of the same queries to further keys joins what is in `out` and `lse`: with m = max(lse,
 * x_lse), a = exp(lse - m) and b = exp(x_lse - m), out becomes (a * out + b * x) / (a + b) and lse m +
 * log(a + b), which no score can make overflow. x is of tokens first .. first + count - 1 of each
 * sequence; the others stay. Where neither has seen a key out is 0 and lse -infinity; of tokens that
 * are not valid out is 0 and lse infinity, which leaves no probability in a gradient. */
typedef struct hdi_merge_attention_args {
    hd_dtype dtype; /* of x */
    int64_t sequences, tokens, heads, head_dim, first, count;
    bool begins;           /* nothing is in out and lse yet; all tokens are given */
    const int32_t *counts; /* [sequences] on the device: valid first tokens. NULL: all */
    const void *x;         /* [sequences * count, heads * head_dim] */
    const float *x_lse;    /* [sequences, heads, count] */
    float *out;            /* [sequences * tokens, heads * head_dim] */
    float *lse;            /* [sequences, heads, tokens] */
} hdi_merge_attention_args;

/* out[b * stride + i] += x[b * elements + i] for i < elements, for `blocks` blocks b. */
typedef struct hdi_add_blocks_args {
    hd_dtype dtype; /* of x */
    int64_t blocks, elements, stride;
    const void *x;
    float *out;
} hdi_add_blocks_args;

/* Attention of `tokens` new tokens of one sequence against a cache: first writes k and v of the
 * new tokens (only the first *count of them) at *position.. of the caches, then attends causally
 * over positions 0..*position + t. Rows from *count on are left undefined. */
typedef struct hdi_attention_cached_args {
    hd_dtype dtype;
    int64_t tokens, capacity, heads, kv_heads, head_dim;
    int64_t q_stride, k_stride, v_stride, out_stride;
    float scale;
    const void *q, *k, *v;
    void *k_cache, *v_cache;         /* [capacity, kv_heads * head_dim] */
    const int32_t *position, *count; /* one element each, on the device */
    void *out;
    void *workspace; /* attention_cached_workspace bytes */
} hdi_attention_cached_args;

/* loss[r] = -log softmax(logits[r])[targets[r]], 0 where targets[r] < 0. If gradient is given it
 * receives (softmax - one-hot) * (*scale), 0 for ignored rows; it may alias logits.
 *
 * Classes may be cut into parts: logits are then those from `first` on of `limit`, and `statistics`,
 * [parts, rows, 3], has of each part the largest logit, the sum of exp(logit - largest) and the
 * target's logit, 0 if that is in another part; the loss is that of all classes. */
typedef struct hdi_cross_entropy_args {
    hd_dtype dtype;
    int64_t rows, classes, logits_stride;
    int64_t first, limit; /* limit 0: all classes */
    int parts;
    float *statistics;
    const void *logits;
    const int32_t *targets;
    const float *scale; /* one element on the device; NULL: 1 */
    float *loss;        /* [rows] */
    void *gradient;     /* strides as logits, or NULL */
} hdi_cross_entropy_args;

/* AdamW (Loshchilov and Hutter, arXiv 1711.05101; eps outside the root, as torch.optim.AdamW):
 * g = gradient * scalars[1]; decoupled decay first. Nothing changes if scalars[4] is 0.
 * scalars (device): [0] learning rate, [1] gradient scale, [2] 1 - beta1^t, [3] 1 - beta2^t,
 * [4] 1 to apply, 0 to skip.
 *
 * F32 weights are updated themselves (a master, if given, is updated and copied to them). 16-bit weights are what the
 * updated fp32 value rounds to: F16 with ties to even, BF16 with ties away from zero (why:
 * core/half.h): NaN -> 0x7fc0, else (bits + 0x8000) >> 16. The value is `master`, or, for BF16 with
 * a remainder instead, it is put together from the two and taken apart again:
 *     bits = (weight << 16) + remainder (sign-extended, modulo 2^32)
 *     remainder = (int16_t)(bits & 0xffff), 0 for NaN
 * The two kinds give the same weights bit for bit. For 16 bits one of them is given. */
typedef struct hdi_adamw_args {
    hd_dtype dtype;
    int64_t elements;
    void *weights;
    float *master;
    int16_t *remainder;
    float *m, *v;
    hd_dtype gradient_dtype; /* F32 (zero means it) or BF16 */
    const void *gradient;
    const float *scalars;
    float beta1, beta2, epsilon, weight_decay;
} hdi_adamw_args;

/* average += share[0] * (value - average), element by element; the values are fp32, or put together
 * from BF16 weights and remainders as hdi_adamw_args has them. */
typedef struct hdi_average_args {
    int64_t elements;
    const float *values; /* or */
    const void *weights;
    const int16_t *remainder;
    const float *share; /* one element on the device */
    float *average;
} hdi_average_args;

enum { HDI_QUANTIZE_ELEMENTS = 128 };

/* Eight bits for an activation: of each run of 128 elements (the last may be short) a scale, its largest
 * magnitude / 127, and codes, the elements in scales, rounded to the nearest, ties to even. What comes
 * back is off by at most half a scale: 1/254 of the run's largest magnitude, and by the rounding of
 * `dtype`. Runs with nothing from 2^-119 on become zeros; a run that is not finite, NaN. */
typedef struct hdi_quantize_args {
    hd_dtype dtype;
    int64_t elements;
    void *x; /* quantize reads it, dequantize writes it */
    int8_t *codes;
    float *scales; /* [elements / 128, rounded up] */
} hdi_quantize_args;

/* Elements in a block of sum_of_squares: shards and norms are cut at multiples of it. */
enum { HDI_BLOCK_ELEMENTS = 4096 };

typedef struct hdi_memory_info {
    size_t free_bytes, total_bytes;
} hdi_memory_info;

/* Copies beside the compute stream are told apart by slots: of weights that stream, and of the copies that
 * programs make, which take turns. What waits for a slot waits for all earlier copies of its kind. */
enum { HDI_STREAM_FETCHES = 8, HDI_OP_FETCHES = 56, HDI_FETCH_SLOTS = 64, HDI_STORE_SLOTS = 64 };

/* Queued work that a device keeps, to queue it again. Zeroed: none. */
typedef struct hdi_graph {
    void *recorded; /* until it is loaded; host memory of the driver's */
    void *loaded;   /* ready to run */
} hdi_graph;

struct hd_backend {
    const char *name; /* "cpu" or "cuda" */

    size_t pinned_share; /* hd_plan_options.pinned_share of this device */

    /* The device and its memory. */
    hd_status (*open)(int ordinal, hdi_device **out);
    void (*close)(hdi_device *device);
    hd_status (*memory_info)(hdi_device *device, hdi_memory_info *out);
    hd_status (*reserve)(hdi_device *device, size_t bytes, void **out); /* the arena, zeroed */
    void (*release)(hdi_device *device, void *arena, size_t bytes);
    hd_status (*reserve_host)(hdi_device *device, size_t bytes, void **out); /* pinned on GPUs */
    void (*release_host)(hdi_device *device, void *memory, size_t bytes);
    /* Host memory from elsewhere, whole pages: pinned on GPUs until unregister, which waits for fetches. */
    hd_status (*register_host)(hdi_device *device, void *memory, size_t bytes);
    void (*unregister_host)(hdi_device *device, void *memory, size_t bytes);
    hd_stream *(*stream)(hdi_device *device); /* the compute stream, borrowed */

    /* Queued on `stream`; host memory is borrowed until synchronize. What reserve_host made may be
     * given to `copy` and to kernels too, slowly. */
    hd_status (*copy_in)(hd_stream *stream, void *device_memory, const void *host, size_t bytes);
    hd_status (*copy_out)(hd_stream *stream, void *host, const void *device_memory, size_t bytes);
    hd_status (*copy)(hd_stream *stream, void *out, const void *x, size_t bytes);
    hd_status (*zero)(hd_stream *stream, void *out, size_t bytes);
    hd_status (*synchronize)(hd_stream *stream);
    /* Whether all that was queued on `stream` is done. NULL: nothing is ever left. */
    hd_status (*is_idle)(hd_stream *stream, bool *idle);
    /* Leave a mark behind what was queued on `stream`, in place of the one before; whether all before the
     * mark is done and, once it is, what synchronize would say. NULL where is_idle is. */
    hd_status (*mark)(hd_stream *stream);
    hd_status (*is_past)(hd_stream *stream, bool *past);

    /* Stamps: points in the order of `stream` that keep their time. open_stamps: there are `count` of them,
     * 0 .., in place of those before. stamp: this one's time is when all that was queued before is done.
     * elapsed: seconds from one that has been passed to another. All NULL: what is called is done when it
     * returns, so the host's clock tells. */
    hd_status (*open_stamps)(hdi_device *device, int count);
    hd_status (*stamp)(hd_stream *stream, int stamp);
    hd_status (*elapsed)(hd_stream *stream, int from, int to, double *seconds);

    /* Copies from and to pinned host memory beside `stream`, those of one direction one after another.
     * They begin when all that was queued on `stream` before them is done; what is queued after await
     * begins when the last fetch of that slot (of HDI_FETCH_SLOTS) is done, after await_store the last
     * store of that slot (of HDI_STORE_SLOTS). release of the arena waits for them. */
    hd_status (*fetch)(hd_stream *stream, int slot, void *device_memory, const void *host,
                       size_t bytes);
    hd_status (*await)(hd_stream *stream, int slot);
    hd_status (*store)(hd_stream *stream, int slot, void *host, const void *device_memory,
                       size_t bytes);
    hd_status (*await_store)(hd_stream *stream, int slot);

    /* Graphs; NULL, all of them: the device keeps none. What is queued on `stream` from begin_record to
     * end_record does not run but is kept, with its addresses and arguments; nothing else is asked of the
     * device meanwhile. What cannot be kept fails in between or at the end, which leaves no graph and the
     * stream as it was. */
    hd_status (*begin_record)(hd_stream *stream);
    hd_status (*end_record)(hd_stream *stream, hdi_graph *out);
    /* Make it ready to run. Takes memory of the device, *bytes of it, and may wait for all that runs there;
     * where it could be more than most_bytes nothing is loaded, and the graph is forgotten. */
    hd_status (*load_graph)(hd_stream *stream, hdi_graph *graph, size_t most_bytes, size_t *bytes);
    hd_status (*run_graph)(hd_stream *stream, const hdi_graph *graph); /* queue all of it */
    void (*forget_graph)(hdi_graph *graph);                            /* takes a zeroed one */

    /* Computation, queued on `stream`. */
    hd_status (*gemm)(hd_stream *stream, const hdi_gemm_args *args);
    /* The product and GELU in one pass, perhaps with the product rounded once less; NULL: call
     * hdi_gemm_then_gelu. No accumulate, out_dtype is dtype, out_stride is columns; no bias to a
     * gradient; out and pre do not overlap. */
    hd_status (*gemm_gelu)(hd_stream *stream, const hdi_gemm_args *args);
    hd_status (*column_sum)(hd_stream *stream, const hdi_column_sum_args *args);
    size_t (*column_sum_workspace)(int64_t rows, int64_t columns);
    hd_status (*embedding)(hd_stream *stream, const hdi_embedding_args *args);
    hd_status (*embedding_gradient)(hd_stream *stream, const hdi_embedding_gradient_args *args);
    size_t (*embedding_gradient_workspace)(int64_t rows, int64_t entries);
    hd_status (*positions)(hd_stream *stream, const hdi_positions_args *args);
    hd_status (*select_row)(hd_stream *stream, const hdi_select_row_args *args);
    hd_status (*norm)(hd_stream *stream, const hdi_norm_args *args);
    hd_status (*norm_gradient)(hd_stream *stream, const hdi_norm_gradient_args *args);
    hd_status (*activation)(hd_stream *stream, const hdi_activation_args *args);
    hd_status (*activation_gradient)(hd_stream *stream, const hdi_activation_args *args);
    hd_status (*gated)(hd_stream *stream, const hdi_gated_args *args);
    hd_status (*gated_gradient)(hd_stream *stream, const hdi_gated_args *args);
    hd_status (*rope)(hd_stream *stream, const hdi_rope_args *args);
    hd_status (*attention)(hd_stream *stream, const hdi_attention_args *args);
    hd_status (*attention_gradient)(hd_stream *stream, const hdi_attention_args *args);
    size_t (*attention_workspace)(const hdi_attention_args *args);          /* pointers ignored */
    size_t (*attention_gradient_workspace)(const hdi_attention_args *args); /* pointers ignored */
    hd_status (*merge_attention)(hd_stream *stream, const hdi_merge_attention_args *args);
    hd_status (*add_blocks)(hd_stream *stream, const hdi_add_blocks_args *args);
    hd_status (*attention_cached)(hd_stream *stream, const hdi_attention_cached_args *args);
    size_t (*attention_cached_workspace)(const hdi_attention_cached_args *args);
    hd_status (*cross_entropy)(hd_stream *stream, const hdi_cross_entropy_args *args);
    /* statistics [rows, 3] of this part; neither loss nor gradient. */
    hd_status (*cross_entropy_part)(hd_stream *stream, const hdi_cross_entropy_args *args);

    /* Diffusion transformers. */
    hd_status (*sinusoid)(hd_stream *stream, const hdi_sinusoid_args *args);
    hd_status (*modulate)(hd_stream *stream, const hdi_modulate_args *args);
    hd_status (*modulate_gradient)(hd_stream *stream, const hdi_modulate_gradient_args *args);
    size_t (*modulate_gradient_workspace)(const hdi_modulate_gradient_args *args); /* shape only */
    hd_status (*modulation_gradient)(hd_stream *stream, const hdi_modulation_gradient_args *args);
    hd_status (*add_rows)(hd_stream *stream, const hdi_add_rows_args *args);
    hd_status (*add_rows_gradient)(hd_stream *stream, const hdi_add_rows_gradient_args *args);
    hd_status (*copy_blocks)(hd_stream *stream, const hdi_copy_blocks_args *args);
    hd_status (*copy_grid)(hd_stream *stream, const hdi_copy_grid_args *args);
    hd_status (*joint_qkv)(hd_stream *stream, const hdi_joint_qkv_args *args);
    hd_status (*joint_qkv_gradient)(hd_stream *stream, const hdi_joint_qkv_gradient_args *args);
    hd_status (*cross_attention)(hd_stream *stream, const hdi_cross_attention_args *args);
    hd_status (*cross_attention_gradient)(hd_stream *stream, const hdi_cross_attention_args *args);
    size_t (*cross_attention_workspace)(const hdi_cross_attention_args *args); /* shape only */
    size_t (*cross_attention_gradient_workspace)(const hdi_cross_attention_args *args);
    hd_status (*patchify)(hd_stream *stream, const hdi_patch_args *args);   /* video to rows */
    hd_status (*unpatchify)(hd_stream *stream, const hdi_patch_args *args); /* rows to video */
    hd_status (*squared_error)(hd_stream *stream, const hdi_squared_error_args *args);
    size_t (*squared_error_workspace)(int64_t rows, int64_t columns);
    hd_status (*mean_rows)(hd_stream *stream, const hdi_mean_rows_args *args);
    /* out = more + how many of `most` tokens from `first` on are among the first counts. */
    hd_status (*raise_counts)(hd_stream *stream, const hdi_raise_counts_args *args);

    /* out = x + y; out may alias either. */
    hd_status (*add)(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                     const void *y, void *out);
    /* out = x converted. */
    hd_status (*convert)(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to, void *out,
                         int64_t elements);
    hd_status (*quantize)(hd_stream *stream, const hdi_quantize_args *args);
    hd_status (*dequantize)(hd_stream *stream, const hdi_quantize_args *args);
    /* out[0] = sum of losses in a fixed order, out[1] = count of targets >= 0. */
    hd_status (*loss_sum)(hd_stream *stream, const float *loss, const int32_t *targets,
                          int64_t rows, double out[2]);
    /* Gradients are F32 or BF16; what is made of them is made in fp32 and rounded once. */
    /* out[i] = sum of squares of block i (HDI_BLOCK_ELEMENTS elements, the last may be short). */
    hd_status (*sum_of_squares)(hd_stream *stream, hd_dtype dtype, const void *x, int64_t elements,
                                double *out);
    /* out = sum of `parts` runs of `elements` at x + part * stride elements, joined as a binary tree
     * over the part's index: (0+1)+(2+3), ...; what is left over joins from the right. out may be
     * part 0. */
    hd_status (*tree_sum)(hd_stream *stream, hd_dtype dtype, const void *x, int64_t stride,
                          int parts, int64_t elements, void *out);
    /* out = x, or out + x if accumulate, of 16 bits. */
    hd_status (*round_sum)(hd_stream *stream, hd_dtype dtype, int64_t elements, const float *x,
                           bool accumulate, void *out);
    hd_status (*adamw)(hd_stream *stream, const hdi_adamw_args *args);
    hd_status (*average)(hd_stream *stream, const hdi_average_args *args);
    /* 16-bit weights of fp32 values, rounded as adamw does; BF16: the remainder, if not NULL. */
    hd_status (*split_weights)(hd_stream *stream, hd_dtype dtype, int64_t elements,
                               const float *values, void *weights, int16_t *remainder);
    /* The fp32 values of BF16 weights and their remainders. */
    hd_status (*join_weights)(hd_stream *stream, int64_t elements, const void *weights,
                              const int16_t *remainder, float *values);
    /* out[i] = std * normal(seed, stream_number, first + i), bits equal to hdi_random_normal; 16
     * bits: rounded to the nearest, ties to even. */
    hd_status (*fill_normal)(hd_stream *stream, hd_dtype dtype, void *out, int64_t elements,
                             uint64_t seed, uint64_t stream_number, int64_t first, float std);
};

/* What gemm_gelu does, by gemm and activation; and the arguments of that gemm. */
hd_status hdi_gemm_then_gelu(const hd_backend *backend, hd_stream *stream,
                             const hdi_gemm_args *args);
hdi_gemm_args hdi_gemm_before_gelu(const hdi_gemm_args *args);

extern const hd_backend hdi_backend_cpu;

/* Threads that one call of the CPU backend may use; set once before the first call. */
void hdi_cpu_set_threads(int threads);

#endif
