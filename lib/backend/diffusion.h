/* Arguments of the backend's functions for diffusion transformers; the table is in backend.h. */
#ifndef HDI_BACKEND_DIFFUSION_H
#define HDI_BACKEND_DIFFUSION_H

#include <heddle/op.h>

/* out[r, i] = cos(scale * x[r] * f_i), out[r, columns / 2 + i] = sin(...), f_i =
 * period^(-2i / columns), angles in fp64. */
typedef struct hdi_sinusoid_args {
    hd_dtype dtype; /* of out */
    int64_t rows, columns;
    double scale, period;
    const float *x;
    void *out;
} hdi_sinusoid_args;

/* s = x + gate * delta (delta NULL: s = x), rounded to the dtype; sum = s;
 * out = layer_norm(s) * (1 + scale) + shift, unless out is NULL. gate, scale and shift are rows of
 * tables, `*_stride` elements apart: group g = r / rows_per_group uses row index[g], or g where
 * the index is NULL. The pointers are at the vectors' first column. The gate has an index of its own.
 * scale and shift may be NULL: 0. sum may be x, out delta; without out, sum may be delta. */
typedef struct hdi_modulate_args {
    hd_dtype dtype;
    int64_t rows, columns, rows_per_group, gate_rows_per_group;
    float epsilon;
    const void *x, *delta, *gate, *shift, *scale;
    int64_t gate_stride, stride;   /* of the gate's table; of shift's and scale's */
    int64_t gate_entries, entries; /* rows of those tables: what an index stays below */
    const int32_t *gate_index, *index;
    void *sum, *out;
    float *mean, *rstd; /* [rows] or NULL */
} hdi_modulate_args;

/* The gradient of the above. ds = gradient through modulation and norm at s (if gradient) + carry
 * (if carry); x_gradient = ds; delta_gradient = gate * ds. Sums over the rows of each group, fp32:
 * sums[g, 0:columns] of the shift's gradient, then of the scale's; gate_sums[g] of the gate's
 * (delta * ds). What is NULL is not made; x_gradient is given wherever gradient is. As in
 * norm_gradient, what comes through the norm is rounded to the dtype before carry is added, and
 * what follows sees ds rounded. x is s of the forward; `workspace` has
 * modulate_gradient_workspace bytes. Deterministic; independent of threads. */
typedef struct hdi_modulate_gradient_args {
    hd_dtype dtype;
    int64_t rows, columns, rows_per_group, gate_rows_per_group;
    const void *gradient, *carry, *x, *delta, *gate, *scale;
    int64_t gate_stride, stride, gate_entries, entries;
    const int32_t *gate_index, *index;
    const float *mean, *rstd;
    void *x_gradient, *delta_gradient; /* x_gradient may alias gradient or carry */
    float *sums;                       /* [groups, 2 * columns] */
    float *gate_sums;                  /* [gate groups, columns] */
    void *workspace;
} hdi_modulate_gradient_args;

/* table_gradient [entries, table_columns] = 0 but for columns first .. first + columns - 1, where
 * entry e gets the sum, in the order of g, of sums[g] over the groups g with index[g] == e (g ==
 * e where index is NULL). */
typedef struct hdi_modulation_gradient_args {
    hd_dtype dtype; /* of table_gradient */
    int64_t groups, columns, entries, table_columns, first;
    const float *sums;
    int64_t sums_stride;
    const int32_t *index;
    void *table_gradient;
} hdi_modulation_gradient_args;

/* out[r, :] = x[r, :] + table[r % period, :]. */
typedef struct hdi_add_rows_args {
    hd_dtype dtype;
    int64_t rows, columns, period;
    const void *x, *table;
    void *out;
} hdi_add_rows_args;

/* table_gradient[p, :] (+)= sum over rows r with r % period == p of gradient[r, :], in the order of r. */
typedef struct hdi_add_rows_gradient_args {
    hd_dtype dtype, out_dtype; /* out_dtype F32 for weights */
    int64_t rows, columns, period;
    const void *gradient;
    void *table_gradient;
    bool accumulate;
} hdi_add_rows_gradient_args;

/* Copy `blocks` blocks of block_bytes that are *_stride bytes apart. */
typedef struct hdi_copy_blocks_args {
    int64_t blocks;
    size_t block_bytes, x_stride, out_stride;
    const void *x;
    void *out;
} hdi_copy_blocks_args;

/* Copy blocks of block_bytes that lie on a grid: the one at (i_0, ..), i_d below count[d], is at the
 * sum of i_d * *_stride[d] bytes. No two of `out` overlap. */
enum { HDI_GRID_DIMS = 5 };
typedef struct hdi_copy_grid_args {
    int64_t count[HDI_GRID_DIMS]; /* the last dim varies fastest */
    size_t x_stride[HDI_GRID_DIMS], out_stride[HDI_GRID_DIMS];
    size_t block_bytes;
    const void *x;
    void *out;
} hdi_copy_grid_args;

/* Rotation on axes: row r of a sequence is at position (r / stride[a]) % length[a] of axis a. table
 * holds, axis after axis, [length[a], dims[a] / 2, 2] (cos, sin). */
typedef struct hdi_rope_axes {
    int axes; /* 0: none */
    bool halves;
    int64_t dims[3], length[3], stride[3];
    int64_t first, count; /* rows of a sequence that turn: first is at r = start; count 0: all */
    int64_t start;
    const float *table;
} hdi_rope_axes;

/* One stream into the joint qkv: rows [sequences * tokens, 3 * heads * head_dim] at qkv go to rows
 * first .. first + tokens - 1 of each sequence of out [sequences * out_tokens, same columns].
 * Queries and keys: RMS norm over a head (fp32, rounded to the dtype, times the weight, rounded)
 * unless the norms are NULL, then rotation; values are copied. */
typedef struct hdi_joint_qkv_args {
    hd_dtype dtype;
    int64_t sequences, tokens, first, out_tokens, heads, head_dim;
    float epsilon;
    const void *qkv, *query_norm, *key_norm; /* norms [head_dim] of dtype */
    hdi_rope_axes rope;
    void *out;
} hdi_joint_qkv_args;

/* The gradient: gradient is of `out` of the forward, qkv_gradient [sequences * tokens, ...] is
 * written; the 1 / deviation is computed again. partials [partial_rows, 2 * head_dim] fp32 receive
 * sums over rows and heads of the gradients of query_norm and key_norm, to be summed by column_sum;
 * NULL if not wanted. partial_rows is fixed by the shape. */
typedef struct hdi_joint_qkv_gradient_args {
    hdi_joint_qkv_args forward; /* `out` is not read */
    int64_t partial_rows;
    const void *gradient;
    void *qkv_gradient;
    float *partials;
} hdi_joint_qkv_gradient_args;

/* Attention of `sequences` x `tokens` queries to the keys of their sequence: rows offsets[s] ..
 * offsets[s + 1] - 1, or kv_rows / sequences each where offsets is NULL. */
typedef struct hdi_cross_attention_args {
    hd_dtype dtype;
    int64_t sequences, tokens, kv_rows, heads, head_dim;
    int64_t q_stride, k_stride, v_stride, out_stride;
    float scale;
    bool exact;
    int64_t most_keys; /* of a sequence by offsets, more are an error; 0: not said, any number */
    const int32_t *offsets; /* [sequences + 1] on the device */
    const void *q, *k, *v;
    void *out;
    float *lse; /* [sequences, heads, tokens], without keys any number; NULL if not wanted */
    /* gradient only; rows of k and v that no sequence reads get zeros */
    const void *out_gradient;
    void *q_gradient, *k_gradient, *v_gradient; /* strides as q, k, v */
    void *workspace;
} hdi_cross_attention_args;

/* video F32 [sequences, channels, frames, height, width]; rows [sequences * patches, row_columns],
 * of which the first channels * patch volume (channels first), or the first `channels` of each
 * row_columns / patch volume (channels last) are used; what patchify leaves over is zero. */
typedef struct hdi_patch_args {
    hd_dtype dtype; /* of rows */
    int64_t sequences, channels, frames, height, width, patch[3], row_columns;
    bool channels_last;
    const void *x;
    void *out;
} hdi_patch_args;

/* out[s, :] = mean, formed in fp64, of rows 0 .. counts[s] - 1 of the sequence's `tokens` rows of x;
 * counts [sequences] on the device or NULL: all rows. No rows: 0. */
typedef struct hdi_mean_rows_args {
    int64_t sequences, tokens, columns;
    const int32_t *counts;
    const float *x;
    float *out;
} hdi_mean_rows_args;

/* out[i] = more + min(max(counts[i] - first, 0), most): of tokens behind `more` others, those that are
 * valid if the first counts[i] of a longer run are and these are `most` of it from `first` on. */
typedef struct hdi_raise_counts_args {
    int64_t elements, first, most, more;
    const int32_t *counts;
    int32_t *out;
} hdi_raise_counts_args;

/* loss[0] = sum of weight[r] * (prediction - target)^2, loss[1] = sum of weight[r] * columns, fp64 in
 * a fixed order; gradient (may be NULL) = 2 * weight[r] * (prediction - target) * (*scale). */
typedef struct hdi_squared_error_args {
    hd_dtype dtype;
    int64_t rows, columns;
    const void *prediction;
    const float *target, *weight; /* weight [rows] or NULL: 1 */
    const float *scale;           /* one element on the device; NULL: 1 */
    double *loss;                 /* [2] on the device, or NULL */
    void *gradient;
    void *workspace; /* squared_error_workspace bytes */
} hdi_squared_error_args;

#endif
