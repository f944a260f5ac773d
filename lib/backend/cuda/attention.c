/* Attention: cuDNN for the shapes that it takes, own kernels for the rest. The workspace follows from
 * the arguments and the architecture alone, so a plan made without a GPU is the plan that runs. */
#include "backend/cuda/attention.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t workspace_of(const hdi_attention_args *args, bool gradient)
{
    const int architecture = hdi_cuda_architecture();
    const size_t own = gradient ? hdi_cuda_tiled_attention_gradient_workspace(args) : 0;
    if (!hdi_cuda_cudnn_takes(args, gradient, architecture)) return own;
    return larger(own, hdi_cuda_cudnn_workspace(args, gradient, architecture));
}

size_t hdi_cuda_attention_workspace(const hdi_attention_args *args)
{
    return workspace_of(args, false);
}

size_t hdi_cuda_attention_gradient_workspace(const hdi_attention_args *args)
{
    return workspace_of(args, true);
}

static hd_status run(hd_stream *stream, const hdi_attention_args *args, bool gradient)
{
    bool done = false;
    if (args->batch <= 0 || args->tokens <= 0) return HD_OK;
    if (hdi_cuda_cudnn_takes(args, gradient, stream->device->architecture))
        HD_RETURN_IF_ERROR(hdi_cuda_cudnn_attention(stream, args, gradient, &done));
    if (done) return HD_OK;
    return gradient ? hdi_cuda_tiled_attention_gradient(stream, args)
                    : hdi_cuda_tiled_attention(stream, args);
}

hd_status hdi_cuda_attention(hd_stream *stream, const hdi_attention_args *args)
{
    return run(stream, args, false);
}

hd_status hdi_cuda_attention_gradient(hd_stream *stream, const hdi_attention_args *args)
{
    return run(stream, args, true);
}
