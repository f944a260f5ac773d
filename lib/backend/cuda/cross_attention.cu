/* Attention to packed keys. Where all sequences have as many keys as each other, it is plain
 * attention; where offsets say how many, the tile kernels. */
#include "backend/cuda/attention.h"
#include "backend/cuda/attention_tile.cuh"

namespace
{

/* Without offsets. */
hdi_attention_args plain_args(const hdi_cross_attention_args *args)
{
    hdi_attention_args plain = {};
    plain.dtype = args->dtype;
    plain.batch = args->sequences;
    plain.tokens = args->tokens;
    plain.kv_tokens = args->sequences > 0 ? args->kv_rows / args->sequences : 0;
    plain.heads = args->heads;
    plain.kv_heads = args->heads;
    plain.head_dim = args->head_dim;
    plain.q_stride = args->q_stride;
    plain.k_stride = args->k_stride;
    plain.v_stride = args->v_stride;
    plain.out_stride = args->out_stride;
    plain.scale = args->scale;
    plain.exact = args->exact;
    plain.q = args->q;
    plain.k = args->k;
    plain.v = args->v;
    plain.out = args->out;
    plain.lse = args->lse;
    plain.out_gradient = args->out_gradient;
    plain.q_gradient = args->q_gradient;
    plain.k_gradient = args->k_gradient;
    plain.v_gradient = args->v_gradient;
    plain.workspace = args->workspace;
    return plain;
}

/* With offsets: any sequence may have all the keys. */
attention_problem packed_problem(const hd_stream *stream, const hdi_cross_attention_args *args)
{
    const hdi_attention_args plain = plain_args(args);
    attention_problem problem = problem_of(&plain);
    problem.kv_tokens = args->kv_rows;
    problem.offsets = args->offsets;
    problem.fault = stream->device->fault;
    return problem;
}

/* Rows [first, kv_rows) of a gradient of keys or values. */
hd_status zero_rows(hd_stream *stream, const hdi_cross_attention_args *args, void *x,
                    int64_t stride, int64_t first)
{
    const size_t size = hd_dtype_bytes(args->dtype);
    if (first >= args->kv_rows) return HD_OK;
    return hdi_cuda_status(cudaMemset2DAsync((char *)x + (size_t)(first * stride) * size,
                                             (size_t)stride * size, 0,
                                             (size_t)(args->heads * args->head_dim) * size,
                                             (size_t)(args->kv_rows - first), stream->handle),
                           "cross attention: cudaMemset2DAsync");
}

bool is_empty(const hdi_cross_attention_args *args)
{
    return args->sequences <= 0 || args->tokens <= 0 || args->head_dim <= 0;
}

} // namespace

extern "C" size_t hdi_cuda_cross_attention_workspace(const hdi_cross_attention_args *args)
{
    const hdi_attention_args plain = plain_args(args);
    return hdi_cuda_attention_workspace(&plain);
}

extern "C" size_t hdi_cuda_cross_attention_gradient_workspace(const hdi_cross_attention_args *args)
{
    const hdi_attention_args plain = plain_args(args);
    return hdi_cuda_attention_gradient_workspace(&plain); /* that of the tile kernels, or more */
}

extern "C" hd_status hdi_cuda_cross_attention(hd_stream *stream,
                                              const hdi_cross_attention_args *args)
{
    if (is_empty(args)) return HD_OK;
    if (args->offsets)
        return hdi_cuda_attend_tiles(stream, args->dtype, args->sequences,
                                     packed_problem(stream, args));
    const hdi_attention_args plain = plain_args(args);
    return hdi_cuda_attention(stream, &plain);
}

extern "C" hd_status hdi_cuda_cross_attention_gradient(hd_stream *stream,
                                                       const hdi_cross_attention_args *args)
{
    const hdi_attention_args plain = plain_args(args);
    const int64_t read = args->offsets || is_empty(args) ? 0 : args->sequences * plain.kv_tokens;
    HD_RETURN_IF_ERROR(zero_rows(stream, args, args->k_gradient, args->k_stride, read));
    HD_RETURN_IF_ERROR(zero_rows(stream, args, args->v_gradient, args->v_stride, read));
    if (is_empty(args)) return HD_OK;
    if (args->offsets)
        return hdi_cuda_attend_tiles_back(stream, args->dtype, args->sequences,
                                          packed_problem(stream, args));
    return hdi_cuda_attention_gradient(stream, &plain);
}
