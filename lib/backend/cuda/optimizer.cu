/* AdamW over a flat run of elements, and the sums that clipping and accumulation need. Products and
 * sums of AdamW are written so that the compiler may not contract them: the bits of an update do not
 * depend on how a loop was unrolled. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;

struct adamw_step {
    float gradient_scale, kept, rate, root_scale;
    float beta2, rest1, rest2, epsilon;
};

/* The scalars are on the device, so each thread derives what follows from them. */
__device__ adamw_step step_of(const hdi_adamw_args &a)
{
    adamw_step step;
    step.gradient_scale = a.scalars[1];
    step.kept = 1.0f - __fmul_rn(a.scalars[0], a.weight_decay);
    step.rate = a.scalars[0] / a.scalars[2];
    step.root_scale = 1.0f / sqrtf(a.scalars[3]);
    step.beta2 = a.beta2;
    step.rest1 = 1.0f - a.beta1;
    step.rest2 = 1.0f - a.beta2;
    step.epsilon = a.epsilon;
    return step;
}

__device__ void update(const adamw_step &step, float gradient, float &weight, float &m, float &v)
{
    const float g = __fmul_rn(gradient, step.gradient_scale);
    m = __fadd_rn(m, __fmul_rn(g - m, step.rest1));
    v = __fadd_rn(__fmul_rn(v, step.beta2), __fmul_rn(__fmul_rn(g, g), step.rest2));
    const float root = __fadd_rn(__fmul_rn(sqrtf(v), step.root_scale), step.epsilon);
    weight = __fsub_rn(__fmul_rn(weight, step.kept), __fmul_rn(step.rate, m) / root);
}

__device__ inline void store_four(hdi_bfloat *out, float4 x)
{
    __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
    *reinterpret_cast<uint2 *>(out) = *reinterpret_cast<uint2 *>(pairs);
}
__device__ inline void store_four(hdi_half *out, float4 x)
{
    __half2 pairs[2] = {__floats2half2_rn(x.x, x.y), __floats2half2_rn(x.z, x.w)};
    *reinterpret_cast<uint2 *>(out) = *reinterpret_cast<uint2 *>(pairs);
}
__device__ inline void store_four(float *out, float4 x)
{
    *reinterpret_cast<float4 *>(out) = x;
}

/* Four elements a thread, one at a time where 16 bytes cannot be had. */
template <typename T> __global__ void adamw_four(hdi_adamw_args a, bool aligned)
{
    if (a.scalars[4] == 0.0f) return;
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * 4;
    const int64_t left = a.elements - first;
    if (left <= 0) return;
    const adamw_step step = step_of(a);
    float *master = (a.master ? a.master : (float *)a.weights) + first;
    T *weights = a.master ? (T *)a.weights + first : NULL;
    float *m = a.m + first, *v = a.v + first;
    const float *gradient = a.gradient + first;
    if (aligned && left >= 4) {
        const float4 g = __ldcs((const float4 *)gradient);
        float4 w = __ldcs((const float4 *)master), m4 = __ldcs((const float4 *)m);
        float4 v4 = __ldcs((const float4 *)v);
        update(step, g.x, w.x, m4.x, v4.x);
        update(step, g.y, w.y, m4.y, v4.y);
        update(step, g.z, w.z, m4.z, v4.z);
        update(step, g.w, w.w, m4.w, v4.w);
        __stcs((float4 *)master, w);
        __stcs((float4 *)m, m4);
        __stcs((float4 *)v, v4);
        if (weights) store_four(weights, w);
        return;
    }
    for (int i = 0; i < 4 && i < left; i++) {
        float weight = master[i];
        update(step, gradient[i], weight, m[i], v[i]);
        master[i] = weight;
        if (weights) weights[i] = from_float<T>(weight);
    }
}

/* One block of threads per block of elements: 16 squares a thread in fp32, then a tree in fp64. */
__global__ void square_block(const float *x, int64_t elements, bool aligned, double *out)
{
    constexpr int kSteps = HDI_BLOCK_ELEMENTS / (4 * kThreads);
    const int64_t base = (int64_t)blockIdx.x * HDI_BLOCK_ELEMENTS;
    float sum = 0;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
        const int64_t first = base + (s * kThreads + (int)threadIdx.x) * 4;
        float four[4];
        load_part(x + first, elements - first, aligned, four);
        sum += (four[0] * four[0] + four[1] * four[1]) + (four[2] * four[2] + four[3] * four[3]);
    }
    const double total = block_sum((double)sum);
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}

constexpr int kDeepest = 32; /* levels of a tree over at most 2^31 parts */

/* The stack of partial sums is joined as the bits of the part's index say. */
__global__ void add_tree(const float *x, int64_t stride, int parts, int64_t elements, float *out)
{
    const int64_t element = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (element >= elements) return;
    float levels[kDeepest];
    int depth = 0;
    for (int part = 0; part < parts; part++) {
        levels[depth++] = x[part * stride + element];
        for (int index = part; index & 1; index >>= 1, depth--)
            levels[depth - 2] += levels[depth - 1];
    }
    for (; depth > 1; depth--)
        levels[depth - 2] += levels[depth - 1];
    out[element] = levels[0];
}

/* The common case: one level joins the next. */
__global__ void add_two(const float *x, const float *y, int64_t elements, bool aligned, float *out)
{
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * 4;
    const int64_t left = elements - first;
    if (left <= 0) return;
    float a[4], b[4];
    stream_part(x + first, left, aligned, a);
    stream_part(y + first, left, aligned, b);
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] += b[i];
    store_part(out + first, left, aligned, a);
}

} // namespace

extern "C" hd_status hdi_cuda_adamw(hd_stream *stream, const hdi_adamw_args *args)
{
    if (args->elements <= 0) return HD_OK;
    if (!args->master && args->dtype != HD_DTYPE_F32)
        return hdi_error(HD_ERROR_ARGUMENT, "adamw: weights are %s and there is no fp32 master copy",
                         hd_dtype_name(args->dtype));
    return with_type(args->dtype, "adamw", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned =
            are_aligned(args->weights, args->master, args->m, args->v, args->gradient);
        adamw_four<T><<<block_count(args->elements, 4 * kThreads), kThreads, 0, stream->handle>>>(
            *args, aligned);
        return launched("adamw");
    });
}

extern "C" hd_status hdi_cuda_sum_of_squares(hd_stream *stream, const float *x, int64_t elements,
                                             double *out)
{
    if (elements <= 0) return HD_OK;
    square_block<<<block_count(elements, HDI_BLOCK_ELEMENTS), kThreads, 0, stream->handle>>>(
        x, elements, is_aligned(x), out);
    return launched("sum_of_squares");
}

extern "C" hd_status hdi_cuda_tree_sum(hd_stream *stream, const float *x, int64_t stride,
                                       int parts, int64_t elements, float *out)
{
    if (elements <= 0 || parts <= 0) return HD_OK;
    if (parts == 1) return hdi_cuda_copy(stream, out, x, (size_t)elements * sizeof *out);
    if (parts == 2)
        add_two<<<block_count(elements, 4 * kThreads), kThreads, 0, stream->handle>>>(
            x, x + stride, elements, are_aligned(x, x + stride, out), out);
    else
        add_tree<<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(
            x, stride, parts, elements, out);
    return launched("tree_sum");
}
