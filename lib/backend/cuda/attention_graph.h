/* Attention as graphs of cuDNN's primitive operations: built once for a shape, run many times. */
#ifndef HDI_BACKEND_CUDA_ATTENTION_GRAPH_H
#define HDI_BACKEND_CUDA_ATTENTION_GRAPH_H

#include "backend/backend.h"
#include "backend/cuda/cudnn_library.h"

/* What decides a plan. Token t of sequence b is row b * tokens + t, or t * interleave + b if
 * interleave is above 1; strides are elements between rows. Causal: top-left, so tokens equals
 * kv_tokens. Plain words, which are compared as bytes. */
typedef struct hdi_cudnn_shape {
    int64_t batch, heads, kv_heads, tokens, kv_tokens, head_dim, interleave;
    int64_t q_stride, k_stride, v_stride, out_stride;
    int64_t half; /* F16, else BF16 */
    int64_t causal;
    int64_t gradient; /* the backward; else the forward */
    int64_t exact;    /* the backward is bit-equal from run to run */
    int64_t counted;  /* sequences have fewer valid tokens than places */
} hdi_cudnn_shape;

typedef struct hdi_cudnn_plan {
    cudnnBackendDescriptor_t plan; /* owned */
    int64_t workspace;             /* bytes */
    int64_t engine;
    bool only_compiled; /* for a described device: compiled, but there was no device to load it */
} hdi_cudnn_plan;

/* Numbers of the tensors that a run is given. */
enum {
    HDI_CUDNN_Q = 1,
    HDI_CUDNN_K,
    HDI_CUDNN_V,
    HDI_CUDNN_OUT,
    HDI_CUDNN_STATISTICS,
    HDI_CUDNN_OUT_GRADIENT,
    HDI_CUDNN_Q_GRADIENT,
    HDI_CUDNN_K_GRADIENT,
    HDI_CUDNN_V_GRADIENT,
    HDI_CUDNN_SCALE, /* these three are scalars on the host */
    HDI_CUDNN_MINUS_INFINITY,
    HDI_CUDNN_ONE,
    HDI_CUDNN_Q_SUM,        /* fp32 [batch, heads, tokens, head_dim]; not if exact */
    HDI_CUDNN_CENTER,       /* fp32 [batch, heads, tokens] */
    HDI_CUDNN_QUERY_COUNTS, /* int32 [batch], if counted */
    HDI_CUDNN_KEY_COUNTS,
    HDI_CUDNN_TENSORS
};

/* The shape of one run for a call, which may go in slices of its sequences and heads, and the bytes
 * that the call's workspace has for the engine. */
hdi_cudnn_shape hdi_cuda_cudnn_shape(const hdi_attention_args *args, bool gradient);
int64_t hdi_cuda_cudnn_engine_bytes(const hdi_attention_args *args, bool gradient,
                                    int architecture);

/* Build the first plan whose workspace is at most `workspace_limit`. `device` describes a device that
 * is not there, or is NULL with a handle. HD_ERROR_UNSUPPORTED: no engine takes the shape. */
hd_status hdi_cudnn_build(const hdi_cudnn *cudnn, cudnnHandle_t handle,
                          cudnnBackendDescriptor_t device, const hdi_cudnn_shape *shape,
                          int64_t workspace_limit, hdi_cudnn_plan *out);
void hdi_cudnn_destroy_plan(const hdi_cudnn *cudnn, hdi_cudnn_plan *plan);

/* Queue the plan; pointers[n] belongs to tensor n and is NULL for those that the plan lacks. */
hd_status hdi_cudnn_run(const hdi_cudnn *cudnn, cudnnHandle_t handle, const hdi_cudnn_plan *plan,
                        void *const pointers[HDI_CUDNN_TENSORS], void *workspace);

#endif
