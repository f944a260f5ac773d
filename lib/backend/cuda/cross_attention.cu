/* Attention to packed keys. Where all sequences have as many keys as each other, it is plain
 * attention. Where offsets say how many, cuDNN gets each sequence's keys in places of their own, with
 * their number; what it does not take goes to the tile kernels. */
#include "backend/cuda/attention.h"
#include "backend/cuda/attention_tile.cuh"

namespace
{

constexpr int64_t kAlignment = 256;
constexpr int64_t kKeyTile = 128; /* places are a multiple: cuDNN's tiles are then full */
constexpr int kCopyThreads = 256;

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

/* With offsets. */
attention_problem packed_problem(const hd_stream *stream, const hdi_cross_attention_args *args)
{
    const hdi_attention_args plain = plain_args(args);
    attention_problem problem = problem_of(&plain);
    problem.kv_tokens = args->kv_rows;
    problem.offsets = args->offsets;
    problem.most_keys = args->most_keys > 0 ? args->most_keys : args->kv_rows;
    problem.fault = stream->device->fault;
    return problem;
}

/* The workspace of padded attention: counts of queries, counts of keys; keys and values side by side
 * in places [sequences * places, 2 * columns]; their gradients alike; what cuDNN wants. */
struct padded_parts {
    int64_t columns, places;
    int64_t counts, rows; /* bytes */
};

padded_parts parts_of(const hdi_cross_attention_args *args)
{
    padded_parts parts = {};
    parts.columns = args->heads * args->head_dim;
    parts.places = hdi_round_up(args->most_keys, kKeyTile);
    parts.counts = hdi_round_up(args->sequences * (int64_t)sizeof(int32_t), kAlignment);
    parts.rows = hdi_round_up(args->sequences * parts.places * 2 * parts.columns *
                                  (int64_t)hd_dtype_bytes(args->dtype),
                              kAlignment);
    return parts;
}

size_t padded_workspace(const hdi_cross_attention_args *args, bool gradient)
{
    const int architecture = hdi_cuda_architecture();
    const hdi_attention_args padded = hdi_cuda_padded_attention(args);
    if (args->most_keys <= 0 || !hdi_cuda_cudnn_takes(&padded, gradient, architecture)) return 0;
    const padded_parts parts = parts_of(args);
    return (size_t)(2 * parts.counts + (gradient ? 2 : 1) * parts.rows) +
           hdi_cuda_cudnn_workspace(&padded, gradient, architecture);
}

/* Keys and values to their places, zeros behind them. A sequence without keys gets one of zeros, which
 * gives zeros and no gradient: engines need not know an empty sum. */
template <typename T>
__global__ void pad_keys(attention_problem a, padded_parts parts, T *padded, int32_t *query_counts,
                         int32_t *key_counts)
{
    const int64_t row = blockIdx.x, sequence = row / parts.places, place = row % parts.places;
    const int64_t keys = extent_of(a, sequence).keys, from = key_rows(a, sequence).first + place;
    const T *k = (const T *)a.k + from * a.k_stride;
    const T *v = (const T *)a.v + from * a.v_stride;
    T *out = padded + row * 2 * parts.columns;
    const bool there = place < keys;
    for (int64_t c = threadIdx.x; c < parts.columns; c += kCopyThreads) {
        out[c] = there ? k[c] : from_float<T>(0.0f);
        out[parts.columns + c] = there ? v[c] : from_float<T>(0.0f);
    }
    if (place > 0 || threadIdx.x > 0) return;
    query_counts[sequence] = (int32_t)a.tokens;
    key_counts[sequence] = keys > 0 ? (int32_t)keys : 1;
}

/* The gradients back to the rows. */
template <typename T>
__global__ void unpad_keys(attention_problem a, padded_parts parts, const T *padded)
{
    const int64_t row = blockIdx.x, sequence = row / parts.places, place = row % parts.places;
    const int64_t keys = extent_of(a, sequence).keys, from = key_rows(a, sequence).first + place;
    if (place >= keys) return;
    const T *x = padded + row * 2 * parts.columns;
    T *k = (T *)a.k_gradient + from * a.k_stride;
    T *v = (T *)a.v_gradient + from * a.v_stride;
    for (int64_t c = threadIdx.x; c < parts.columns; c += kCopyThreads) {
        k[c] = x[c];
        v[c] = x[parts.columns + c];
    }
}

hd_status attend_padded(hd_stream *stream, const hdi_cross_attention_args *args, bool gradient,
                        bool *done)
{
    hdi_attention_args padded = hdi_cuda_padded_attention(args);
    *done = false;
    if (args->most_keys <= 0 ||
        !hdi_cuda_cudnn_takes(&padded, gradient, stream->device->architecture))
        return HD_OK;
    const padded_parts parts = parts_of(args);
    const size_t values = (size_t)parts.columns * hd_dtype_bytes(args->dtype);
    char *const counts = (char *)args->workspace;
    char *const rows = counts + 2 * parts.counts, *const back = rows + parts.rows;
    int32_t *const key_counts = (int32_t *)(counts + parts.counts);
    padded.counts = (const int32_t *)counts;
    padded.kv_counts = key_counts;
    padded.k = rows;
    padded.v = rows + values;
    padded.k_gradient = back;
    padded.v_gradient = back + values;
    padded.workspace = gradient ? back + parts.rows : back;
    const attention_problem problem = packed_problem(stream, args);
    const unsigned blocks = (unsigned)(args->sequences * parts.places);
    return with_type(args->dtype, "cross attention", [&](auto tag) {
        using T = typename decltype(tag)::type;
        pad_keys<T><<<blocks, kCopyThreads, 0, stream->handle>>>(problem, parts, (T *)rows,
                                                                 (int32_t *)counts, key_counts);
        HD_RETURN_IF_ERROR(launched("cross attention: keys to their places"));
        HD_RETURN_IF_ERROR(hdi_cuda_cudnn_attention(stream, &padded, gradient, done));
        if (!*done || !gradient) return HD_OK;
        unpad_keys<T><<<blocks, kCopyThreads, 0, stream->handle>>>(problem, parts, (const T *)back);
        return launched("cross attention: gradients of keys");
    });
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

hd_status attend_packed(hd_stream *stream, const hdi_cross_attention_args *args, bool gradient)
{
    bool done = false;
    HD_RETURN_IF_ERROR(attend_padded(stream, args, gradient, &done));
    if (done) return HD_OK;
    const attention_problem problem = packed_problem(stream, args);
    return gradient ? hdi_cuda_attend_tiles_back(stream, args->dtype, args->sequences, problem)
                    : hdi_cuda_attend_tiles(stream, args->dtype, args->sequences, problem);
}

} // namespace

extern "C" hdi_attention_args hdi_cuda_padded_attention(const hdi_cross_attention_args *args)
{
    hdi_attention_args padded = plain_args(args);
    const padded_parts parts = parts_of(args);
    padded.kv_tokens = parts.places;
    padded.k_stride = padded.v_stride = 2 * parts.columns;
    return padded;
}

extern "C" size_t hdi_cuda_cross_attention_workspace(const hdi_cross_attention_args *args)
{
    if (args->most_keys > 0) return padded_workspace(args, false);
    const hdi_attention_args plain = plain_args(args);
    return hdi_cuda_attention_workspace(&plain);
}

extern "C" size_t hdi_cuda_cross_attention_gradient_workspace(const hdi_cross_attention_args *args)
{
    const hdi_attention_args plain = plain_args(args);
    if (args->most_keys <= 0) /* that of the tile kernels, or more */
        return hdi_cuda_attention_gradient_workspace(&plain);
    const size_t tiles = hdi_cuda_tiled_attention_gradient_workspace(&plain);
    const size_t padded = padded_workspace(args, true);
    return tiles > padded ? tiles : padded;
}

extern "C" hd_status hdi_cuda_cross_attention(hd_stream *stream,
                                              const hdi_cross_attention_args *args)
{
    if (is_empty(args)) return HD_OK;
    if (args->offsets) return attend_packed(stream, args, false);
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
    if (args->offsets) return attend_packed(stream, args, true);
    return hdi_cuda_attention_gradient(stream, &plain);
}
