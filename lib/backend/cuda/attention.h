/* The two ways of attention: cuDNN's engines, and kernels of our own for what they do not do. */
#ifndef HDI_BACKEND_CUDA_ATTENTION_H
#define HDI_BACKEND_CUDA_ATTENTION_H

#include "backend/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Own kernels: every head size and dtype, deterministic. The forward needs no workspace. */
hd_status hdi_cuda_tiled_attention(hd_stream *stream, const hdi_attention_args *args);
hd_status hdi_cuda_tiled_attention_gradient(hd_stream *stream, const hdi_attention_args *args);
size_t hdi_cuda_tiled_attention_gradient_workspace(const hdi_attention_args *args);

/* Rows of x [.., columns] that are behind the counts of their sequences become zero. */
hd_status hdi_cuda_zero_uncounted(hd_stream *stream, const hdi_attention_args *args, void *x,
                                  int64_t stride, int64_t columns);

/* Whether cuDNN's engines take the shape on this architecture (0: on any): from the shape alone. */
bool hdi_cuda_cudnn_takes(const hdi_attention_args *args, bool gradient, int architecture);

/* What the plan sets aside for cuDNN: enough on the architecture (0: on all). */
size_t hdi_cuda_cudnn_workspace(const hdi_attention_args *args, bool gradient, int architecture);

/* Runs on cuDNN and sets *done; or leaves *done false if cuDNN is not there, is too old, or has no
 * engine that fits the workspace (said once in the log). */
hd_status hdi_cuda_cudnn_attention(hd_stream *stream, const hdi_attention_args *args, bool gradient,
                                   bool *done);

/* Cross attention to packed keys as cuDNN is given it: each sequence's keys copied to places of their
 * own in the workspace, and counted. */
hdi_attention_args hdi_cuda_padded_attention(const hdi_cross_attention_args *args);

#ifdef __cplusplus
}
#endif
#endif
