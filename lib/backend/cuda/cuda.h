/* What the files of the CUDA backend share: the device, its stream, error texts, and the functions
 * of the table. For C and, in the kernel files, C++. */
#ifndef HDI_BACKEND_CUDA_CUDA_H
#define HDI_BACKEND_CUDA_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "backend/backend.h"
#include "core/checked.h"
#include "core/error.h"

/* Data that no check on the host has seen: where a kernel met a bad value. */
typedef enum hdi_cuda_fault_kind {
    HDI_FAULT_NONE,
    HDI_FAULT_EMBEDDING,
    HDI_FAULT_SECOND_EMBEDDING,
    HDI_FAULT_EMBEDDING_GRADIENT,
    HDI_FAULT_TARGET,
    HDI_FAULT_POSITION,
    HDI_FAULT_FIRST_POSITION,
    HDI_FAULT_MODULATION,
    HDI_FAULT_OFFSET,
    HDI_FAULT_KEYS,
    HDI_FAULT_CACHE
} hdi_cuda_fault_kind;

/* The first bad value since the last synchronize. A kernel cannot fail, so it leaves the value here,
 * in pinned host memory, reads nothing out of bounds and goes on; synchronize reports it. */
typedef struct hdi_cuda_fault {
    int32_t kind;  /* hdi_cuda_fault_kind */
    int32_t value; /* what was seen */
    int64_t row;   /* where */
    int64_t limit; /* it should have been below */
} hdi_cuda_fault;

struct hd_stream {
    cudaStream_t handle;
    hdi_device *device;
    cudaStream_t fetches, stores; /* copies beside it, in and out */
    cudaEvent_t queued, fetched[HDI_FETCH_SLOTS], stored[HDI_STORE_SLOTS];
};

typedef struct hdi_cuda_gemms hdi_cuda_gemms;           /* gemm.c's */
typedef struct hdi_cuda_attentions hdi_cuda_attentions; /* attention_cudnn.c's */

struct hdi_device {
    hd_stream stream, side; /* the second: once it has been asked for */
    int ordinal;
    int architecture; /* 10 * major + minor, 90 for an H100 */
    int processors;
    bool virtual_memory;    /* the arena is mapped in pieces, not one cudaMalloc */
    void *blas;             /* cublasLtHandle_t */
    void *blas_workspace;   /* for GEMMs of `stream` */
    cudaEvent_t begin, end; /* time candidates */
    cudaEvent_t marked;
    cudaEvent_t *stamps; /* [stamp_count], owned */
    int stamp_count;
    cudaEvent_t flags[HDI_FLAGS]; /* with `side` */
    hdi_cuda_fault *fault;
    hdi_cuda_gemms *gemms; /* these two are made when first needed */
    hdi_cuda_attentions *attentions;
};

enum { HDI_CUDA_BLAS_WORKSPACE = 32 << 20 };

/* What the timing of a product that adds to its result may take beside it. */
enum { HDI_CUDA_TRIAL_BYTES = 16 << 20 };

extern const hd_backend hdi_backend_cuda;

/* HD_OK, or an error with the text of `error` behind `what`: HD_ERROR_MEMORY when memory was
 * refused, else HD_ERROR_DEVICE. */
hd_status hdi_cuda_status(cudaError_t error, const char *what);

/* Devices that can be opened; 0 without a driver. */
int hdi_cuda_device_count(void);

/* Device memory that open took outside any arena: library workspaces. What the driver takes for the
 * context comes on top. */
size_t hdi_cuda_foreign_bytes(const hdi_device *device);

/* The architecture that workspaces are planned for: that of the device opened last, else what was
 * set here, else 0: large enough for all. */
int hdi_cuda_architecture(void);
void hdi_cuda_set_architecture(int architecture);

hd_status hdi_cuda_open(int ordinal, hdi_device **out);
void hdi_cuda_close(hdi_device *device);
hd_status hdi_cuda_memory_info(hdi_device *device, hdi_memory_info *out);
hd_status hdi_cuda_reserve(hdi_device *device, size_t bytes, void **out);
void hdi_cuda_release(hdi_device *device, void *arena, size_t bytes);
hd_status hdi_cuda_reserve_host(hdi_device *device, size_t bytes, void **out);
void hdi_cuda_release_host(hdi_device *device, void *memory, size_t bytes);
hd_status hdi_cuda_register_host(hdi_device *device, void *memory, size_t bytes);
void hdi_cuda_unregister_host(hdi_device *device, void *memory, size_t bytes);
hd_stream *hdi_cuda_stream(hdi_device *device);

hd_status hdi_cuda_copy_in(hd_stream *stream, void *device_memory, const void *host, size_t bytes);
hd_status hdi_cuda_copy_out(hd_stream *stream, void *host, const void *device_memory, size_t bytes);
hd_status hdi_cuda_copy(hd_stream *stream, void *out, const void *x, size_t bytes);
hd_status hdi_cuda_zero(hd_stream *stream, void *out, size_t bytes);
hd_status hdi_cuda_synchronize(hd_stream *stream);
hd_status hdi_cuda_is_idle(hd_stream *stream, bool *idle);
hd_status hdi_cuda_mark(hd_stream *stream);
hd_status hdi_cuda_is_past(hd_stream *stream, bool *past);

hd_status hdi_cuda_open_stamps(hdi_device *device, int count);
void hdi_cuda_close_stamps(hdi_device *device); /* of a device that is half open, too */
hd_status hdi_cuda_stamp(hd_stream *stream, int stamp);
hd_status hdi_cuda_elapsed(hd_stream *stream, int from, int to, double *seconds);

hd_status hdi_cuda_open_fetches(hd_stream *stream);
void hdi_cuda_wait_for_fetches(hdi_device *device); /* of a device that is half open, too */
void hdi_cuda_close_fetches(hdi_device *device);
hd_status hdi_cuda_side_stream(hdi_device *device, hd_stream **out);
hd_status hdi_cuda_raise_flag(hd_stream *stream, int flag);
hd_status hdi_cuda_await_flag(hd_stream *stream, int flag);
hd_status hdi_cuda_fetch(hd_stream *stream, int slot, void *device_memory, const void *host,
                         size_t bytes);
hd_status hdi_cuda_await(hd_stream *stream, int slot);
hd_status hdi_cuda_store(hd_stream *stream, int slot, void *host, const void *device_memory,
                         size_t bytes);
hd_status hdi_cuda_await_store(hd_stream *stream, int slot);

hd_status hdi_cuda_begin_record(hd_stream *stream);
hd_status hdi_cuda_end_record(hd_stream *stream, hdi_graph *out);
hd_status hdi_cuda_load_graph(hd_stream *stream, hdi_graph *graph, size_t most_bytes,
                              size_t *bytes);
hd_status hdi_cuda_run_graph(hd_stream *stream, const hdi_graph *graph);
void hdi_cuda_forget_graph(hdi_graph *graph);

hd_status hdi_cuda_gemm(hd_stream *stream, const hdi_gemm_args *args);
hd_status hdi_cuda_gemm_gelu(hd_stream *stream, const hdi_gemm_args *args);
hd_status hdi_cuda_column_sum(hd_stream *stream, const hdi_column_sum_args *args);
size_t hdi_cuda_column_sum_workspace(int64_t rows, int64_t columns);
hd_status hdi_cuda_embedding(hd_stream *stream, const hdi_embedding_args *args);
hd_status hdi_cuda_embedding_gradient(hd_stream *stream, const hdi_embedding_gradient_args *args);
size_t hdi_cuda_embedding_gradient_workspace(int64_t rows, int64_t entries);
hd_status hdi_cuda_mean_rows(hd_stream *stream, const hdi_mean_rows_args *args);
hd_status hdi_cuda_raise_counts(hd_stream *stream, const hdi_raise_counts_args *args);
hd_status hdi_cuda_positions(hd_stream *stream, const hdi_positions_args *args);
hd_status hdi_cuda_select_row(hd_stream *stream, const hdi_select_row_args *args);
hd_status hdi_cuda_norm(hd_stream *stream, const hdi_norm_args *args);
hd_status hdi_cuda_norm_gradient(hd_stream *stream, const hdi_norm_gradient_args *args);
hd_status hdi_cuda_activation(hd_stream *stream, const hdi_activation_args *args);
hd_status hdi_cuda_activation_gradient(hd_stream *stream, const hdi_activation_args *args);
hd_status hdi_cuda_gated(hd_stream *stream, const hdi_gated_args *args);
hd_status hdi_cuda_gated_gradient(hd_stream *stream, const hdi_gated_args *args);
hd_status hdi_cuda_rope(hd_stream *stream, const hdi_rope_args *args);
hd_status hdi_cuda_attention(hd_stream *stream, const hdi_attention_args *args);
hd_status hdi_cuda_attention_gradient(hd_stream *stream, const hdi_attention_args *args);
size_t hdi_cuda_attention_workspace(const hdi_attention_args *args);
size_t hdi_cuda_attention_gradient_workspace(const hdi_attention_args *args);
hd_status hdi_cuda_merge_attention(hd_stream *stream, const hdi_merge_attention_args *args);
hd_status hdi_cuda_add_blocks(hd_stream *stream, const hdi_add_blocks_args *args);
hd_status hdi_cuda_attention_cached(hd_stream *stream, const hdi_attention_cached_args *args);
size_t hdi_cuda_attention_cached_workspace(const hdi_attention_cached_args *args);
hd_status hdi_cuda_cross_entropy(hd_stream *stream, const hdi_cross_entropy_args *args);
hd_status hdi_cuda_cross_entropy_part(hd_stream *stream, const hdi_cross_entropy_args *args);
hd_status hdi_cuda_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args);
hd_status hdi_cuda_modulate(hd_stream *stream, const hdi_modulate_args *args);
hd_status hdi_cuda_modulate_gradient(hd_stream *stream, const hdi_modulate_gradient_args *args);
size_t hdi_cuda_modulate_gradient_workspace(const hdi_modulate_gradient_args *args);
hd_status hdi_cuda_modulation_gradient(hd_stream *stream, const hdi_modulation_gradient_args *args);
hd_status hdi_cuda_add_rows(hd_stream *stream, const hdi_add_rows_args *args);
hd_status hdi_cuda_add_rows_gradient(hd_stream *stream, const hdi_add_rows_gradient_args *args);
hd_status hdi_cuda_copy_blocks(hd_stream *stream, const hdi_copy_blocks_args *args);
hd_status hdi_cuda_copy_grid(hd_stream *stream, const hdi_copy_grid_args *args);
hd_status hdi_cuda_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args);
hd_status hdi_cuda_joint_qkv_gradient(hd_stream *stream, const hdi_joint_qkv_gradient_args *args);
hd_status hdi_cuda_cross_attention(hd_stream *stream, const hdi_cross_attention_args *args);
hd_status hdi_cuda_cross_attention_gradient(hd_stream *stream,
                                            const hdi_cross_attention_args *args);
size_t hdi_cuda_cross_attention_workspace(const hdi_cross_attention_args *args);
size_t hdi_cuda_cross_attention_gradient_workspace(const hdi_cross_attention_args *args);
hd_status hdi_cuda_patchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdi_cuda_unpatchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdi_cuda_squared_error(hd_stream *stream, const hdi_squared_error_args *args);
size_t hdi_cuda_squared_error_workspace(int64_t rows, int64_t columns);
hd_status hdi_cuda_add(hd_stream *stream, hd_dtype dtype, int64_t elements, const void *x,
                       const void *y, void *out);
hd_status hdi_cuda_convert(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to, void *out,
                           int64_t elements);
hd_status hdi_cuda_quantize(hd_stream *stream, const hdi_quantize_args *args);
hd_status hdi_cuda_dequantize(hd_stream *stream, const hdi_quantize_args *args);
hd_status hdi_cuda_loss_sum(hd_stream *stream, const float *loss, const int32_t *targets,
                            int64_t rows, double out[2]);
hd_status hdi_cuda_sum_of_squares(hd_stream *stream, hd_dtype dtype, const void *x,
                                  int64_t elements, double *out);
hd_status hdi_cuda_tree_sum(hd_stream *stream, hd_dtype dtype, const void *x, int64_t stride,
                            int parts, int64_t elements, void *out);
hd_status hdi_cuda_round_sum(hd_stream *stream, hd_dtype dtype, int64_t elements, const float *x,
                             bool accumulate, void *out);
hd_status hdi_cuda_adamw(hd_stream *stream, const hdi_adamw_args *args);
hd_status hdi_cuda_average(hd_stream *stream, const hdi_average_args *args);
hd_status hdi_cuda_split_weights(hd_stream *stream, hd_dtype dtype, int64_t elements,
                                 const float *values, void *weights, int16_t *remainder);
hd_status hdi_cuda_join_weights(hd_stream *stream, int64_t elements, const void *weights,
                                const int16_t *remainder, float *values);
hd_status hdi_cuda_fill_normal(hd_stream *stream, hd_dtype dtype, void *out, int64_t elements,
                               uint64_t seed, uint64_t stream_number, int64_t first, float std);

/* Free what these files hold for a device; take a device that has none. */
void hdi_cuda_close_gemms(hdi_device *device);
void hdi_cuda_close_attentions(hdi_device *device);

#ifdef __cplusplus
}
#endif
#endif
