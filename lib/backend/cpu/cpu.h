/* The functions of the CPU backend's table, one file per family of ops. */
#ifndef HDI_BACKEND_CPU_CPU_H
#define HDI_BACKEND_CPU_CPU_H

#include "backend/backend.h"
#include "core/checked.h"

/* Elements of one item of work of an element-wise op: below it a call stays on its own thread. */
enum { HDI_CPU_CHUNK = 16384 };

/* Rows that make up about one chunk: fixed by the shape. */
static inline int64_t hdi_cpu_chunk_rows(int64_t columns)
{
    return columns >= HDI_CPU_CHUNK ? 1 : HDI_CPU_CHUNK / (columns > 0 ? columns : 1);
}

/* What the gradient of a row through its norm needs: sums of g * (more + weight), and of that times
 * (x - mean) * rstd, or of g without weight (norm.c). */
void hdi_cpu_norm_sums(const float *gradient, const float *x, const float *weight, float more,
                       float mean, float rstd, int64_t columns, float out[2]);

static inline int64_t hdi_cpu_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Buffers that 16-bit calls compute in; see half.c. */
enum { HDI_CPU_SCRATCH = 8 };

struct hd_stream {
    hdi_device *device;
};

struct hdi_device {
    hd_stream stream, side;
    float *scratch[HDI_CPU_SCRATCH]; /* owned */
    int64_t scratch_elements[HDI_CPU_SCRATCH];
};

/* HD_OK for F32, else an error that names `what`. */
hd_status hdi_cpu_check_dtype(const char *what, hd_dtype dtype);

/* The kernels compute on F32. The table holds hdi_cpu_any_* where activations or weights may be
 * F16 or BF16: they widen, call the kernel and round (half.c). */

hd_status hdi_cpu_gemm(hd_stream *stream, const hdi_gemm_args *args);
hd_status hdi_cpu_column_sum(hd_stream *stream, const hdi_column_sum_args *args);
size_t hdi_cpu_column_sum_workspace(int64_t rows, int64_t columns);
hd_status hdi_cpu_embedding(hd_stream *stream, const hdi_embedding_args *args);
hd_status hdi_cpu_embedding_gradient(hd_stream *stream, const hdi_embedding_gradient_args *args);
size_t hdi_cpu_embedding_gradient_workspace(int64_t rows, int64_t entries);
hd_status hdi_cpu_positions(hd_stream *stream, const hdi_positions_args *args);
hd_status hdi_cpu_select_row(hd_stream *stream, const hdi_select_row_args *args);
hd_status hdi_cpu_norm(hd_stream *stream, const hdi_norm_args *args);
hd_status hdi_cpu_norm_gradient(hd_stream *stream, const hdi_norm_gradient_args *args);
hd_status hdi_cpu_activation(hd_stream *stream, const hdi_activation_args *args);
hd_status hdi_cpu_activation_gradient(hd_stream *stream, const hdi_activation_args *args);
hd_status hdi_cpu_gated(hd_stream *stream, const hdi_gated_args *args);
hd_status hdi_cpu_gated_gradient(hd_stream *stream, const hdi_gated_args *args);
hd_status hdi_cpu_rope(hd_stream *stream, const hdi_rope_args *args);
hd_status hdi_cpu_attention(hd_stream *stream, const hdi_attention_args *args);
size_t hdi_cpu_attention_workspace(const hdi_attention_args *args);
hd_status hdi_cpu_attention_gradient(hd_stream *stream, const hdi_attention_args *args);
size_t hdi_cpu_attention_gradient_workspace(const hdi_attention_args *args);
hd_status hdi_cpu_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args);
hd_status hdi_cpu_joint_qkv_gradient(hd_stream *stream, const hdi_joint_qkv_gradient_args *args);
hd_status hdi_cpu_cross_attention(hd_stream *stream, const hdi_cross_attention_args *args);
hd_status hdi_cpu_cross_attention_gradient(hd_stream *stream, const hdi_cross_attention_args *args);
size_t hdi_cpu_cross_attention_workspace(const hdi_cross_attention_args *args);
size_t hdi_cpu_cross_attention_gradient_workspace(const hdi_cross_attention_args *args);
hd_status hdi_cpu_attention_cached(hd_stream *stream, const hdi_attention_cached_args *args);
size_t hdi_cpu_attention_cached_workspace(const hdi_attention_cached_args *args);
hd_status hdi_cpu_cross_entropy(hd_stream *stream, const hdi_cross_entropy_args *args);
hd_status hdi_cpu_cross_entropy_part(hd_stream *stream, const hdi_cross_entropy_args *args);
hd_status hdi_cpu_quantize(hd_stream *stream, const hdi_quantize_args *args);
hd_status hdi_cpu_dequantize(hd_stream *stream, const hdi_quantize_args *args);
hd_status hdi_cpu_loss_sum(hd_stream *stream, const float *loss, const int32_t *targets,
                           int64_t rows, double out[2]);
hd_status hdi_cpu_add(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                      const void *y, void *out);
hd_status hdi_cpu_convert(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to, void *out,
                          int64_t elements);
hd_status hdi_cpu_sum_of_squares(hd_stream *stream, hd_dtype dtype, const void *x, int64_t elements,
                                 double *out);
hd_status hdi_cpu_adamw(hd_stream *stream, const hdi_adamw_args *args);
hd_status hdi_cpu_average(hd_stream *stream, const hdi_average_args *args);
hd_status hdi_cpu_fill_normal(hd_stream *stream, hd_dtype dtype, void *out, int64_t elements,
                              uint64_t seed, uint64_t stream_number, int64_t first, float std);

hd_status hdi_cpu_split_weights(hd_stream *stream, hd_dtype dtype, int64_t elements,
                                const float *values, void *weights, int16_t *remainder);
hd_status hdi_cpu_join_weights(hd_stream *stream, int64_t elements, const void *weights,
                               const int16_t *remainder, float *values);
hd_status hdi_cpu_tree_sum(hd_stream *stream, hd_dtype dtype, const void *x, int64_t stride,
                           int parts, int64_t elements, void *out);
hd_status hdi_cpu_round_sum(hd_stream *stream, hd_dtype dtype, int64_t elements, const float *x,
                            bool accumulate, void *out);

hd_status hdi_cpu_any_gemm(hd_stream *stream, const hdi_gemm_args *args);
hd_status hdi_cpu_any_column_sum(hd_stream *stream, const hdi_column_sum_args *args);
hd_status hdi_cpu_any_embedding(hd_stream *stream, const hdi_embedding_args *args);
hd_status hdi_cpu_any_embedding_gradient(hd_stream *stream,
                                         const hdi_embedding_gradient_args *args);
hd_status hdi_cpu_any_norm(hd_stream *stream, const hdi_norm_args *args);
hd_status hdi_cpu_any_norm_gradient(hd_stream *stream, const hdi_norm_gradient_args *args);
hd_status hdi_cpu_any_activation(hd_stream *stream, const hdi_activation_args *args);
hd_status hdi_cpu_any_activation_gradient(hd_stream *stream, const hdi_activation_args *args);
hd_status hdi_cpu_any_gated(hd_stream *stream, const hdi_gated_args *args);
hd_status hdi_cpu_any_gated_gradient(hd_stream *stream, const hdi_gated_args *args);
hd_status hdi_cpu_any_rope(hd_stream *stream, const hdi_rope_args *args);
hd_status hdi_cpu_any_attention(hd_stream *stream, const hdi_attention_args *args);
hd_status hdi_cpu_any_attention_gradient(hd_stream *stream, const hdi_attention_args *args);
hd_status hdi_cpu_any_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args);
hd_status hdi_cpu_any_joint_qkv_gradient(hd_stream *stream,
                                         const hdi_joint_qkv_gradient_args *args);
hd_status hdi_cpu_any_cross_attention(hd_stream *stream, const hdi_cross_attention_args *args);
hd_status hdi_cpu_any_cross_attention_gradient(hd_stream *stream,
                                               const hdi_cross_attention_args *args);
hd_status hdi_cpu_merge_attention(hd_stream *stream, const hdi_merge_attention_args *args);
hd_status hdi_cpu_add_blocks(hd_stream *stream, const hdi_add_blocks_args *args);
hd_status hdi_cpu_any_attention_cached(hd_stream *stream, const hdi_attention_cached_args *args);
hd_status hdi_cpu_any_cross_entropy(hd_stream *stream, const hdi_cross_entropy_args *args);
hd_status hdi_cpu_any_cross_entropy_part(hd_stream *stream, const hdi_cross_entropy_args *args);
hd_status hdi_cpu_any_add(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                          const void *y, void *out);
hd_status hdi_cpu_any_convert(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to,
                              void *out, int64_t elements);
hd_status hdi_cpu_any_fill_normal(hd_stream *stream, hd_dtype dtype, void *out, int64_t elements,
                                  uint64_t seed, uint64_t stream_number, int64_t first, float std);

/* Diffusion transformers. */
hd_status hdi_cpu_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args);
hd_status hdi_cpu_modulate(hd_stream *stream, const hdi_modulate_args *args);
hd_status hdi_cpu_modulate_gradient(hd_stream *stream, const hdi_modulate_gradient_args *args);
hd_status hdi_cpu_modulation_gradient(hd_stream *stream, const hdi_modulation_gradient_args *args);
hd_status hdi_cpu_add_rows(hd_stream *stream, const hdi_add_rows_args *args);
hd_status hdi_cpu_add_rows_gradient(hd_stream *stream, const hdi_add_rows_gradient_args *args);
hd_status hdi_cpu_mean_rows(hd_stream *stream, const hdi_mean_rows_args *args);
hd_status hdi_cpu_raise_counts(hd_stream *stream, const hdi_raise_counts_args *args);
hd_status hdi_cpu_patchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdi_cpu_unpatchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdi_cpu_squared_error(hd_stream *stream, const hdi_squared_error_args *args);
hd_status hdi_cpu_copy_blocks(hd_stream *stream, const hdi_copy_blocks_args *args);
hd_status hdi_cpu_copy_grid(hd_stream *stream, const hdi_copy_grid_args *args);
size_t hdi_cpu_modulate_gradient_workspace(const hdi_modulate_gradient_args *args);
size_t hdi_cpu_squared_error_workspace(int64_t rows, int64_t columns);

/* The indexes stay within their tables. */
hd_status hdi_cpu_check_modulate(const hdi_modulate_args *args);

hd_status hdi_cpu_any_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args);
hd_status hdi_cpu_any_modulate(hd_stream *stream, const hdi_modulate_args *args);
hd_status hdi_cpu_any_modulate_gradient(hd_stream *stream, const hdi_modulate_gradient_args *args);
hd_status hdi_cpu_any_modulation_gradient(hd_stream *stream,
                                          const hdi_modulation_gradient_args *args);
hd_status hdi_cpu_any_add_rows(hd_stream *stream, const hdi_add_rows_args *args);
hd_status hdi_cpu_any_add_rows_gradient(hd_stream *stream, const hdi_add_rows_gradient_args *args);
hd_status hdi_cpu_any_patchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdi_cpu_any_unpatchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdi_cpu_any_squared_error(hd_stream *stream, const hdi_squared_error_args *args);

#endif
