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

/* A weight as backend.h defines it: BF16 takes ties away from zero, see core/half.h. */
template <typename T> __device__ inline T weight_of(float x)
{
    return from_float<T>(x);
}
template <> __device__ inline hdi_bfloat weight_of<hdi_bfloat>(float x)
{
    const uint32_t bits = x != x ? 0x7fc00000u : __float_as_uint(x) + 0x8000u;
    return __ushort_as_bfloat16((unsigned short)(bits >> 16));
}

__device__ inline int16_t remainder_of(float x)
{
    return x != x ? (int16_t)0 : (int16_t)(uint16_t)__float_as_uint(x);
}

__device__ inline float join(hdi_bfloat weight, int16_t remainder)
{
    return __uint_as_float(((uint32_t)__bfloat16_as_ushort(weight) << 16) +
                           (uint32_t)(int32_t)remainder);
}

__device__ inline void store_four(hdi_bfloat *out, float4 x)
{
    hdi_bfloat four[4] = {weight_of<hdi_bfloat>(x.x), weight_of<hdi_bfloat>(x.y),
                          weight_of<hdi_bfloat>(x.z), weight_of<hdi_bfloat>(x.w)};
    *reinterpret_cast<uint2 *>(out) = *reinterpret_cast<uint2 *>(four);
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

__device__ inline float4 stream_four(const float *x)
{
    return __ldcs((const float4 *)x);
}
__device__ inline float4 stream_four(const hdi_bfloat *x)
{
    const uint2 bits = __ldcs((const uint2 *)x);
    const hdi_bfloat *four = (const hdi_bfloat *)&bits;
    return make_float4(to_float(four[0]), to_float(four[1]), to_float(four[2]), to_float(four[3]));
}

/* The fp32 values that weights are rounded from: kept as they are, or as weights and remainders. */
struct whole_values {
    float *values;
    __device__ whole_values(const hdi_adamw_args &a, int64_t first)
        : values((a.master ? a.master : (float *)a.weights) + first)
    {
    }
    __device__ float4 load_four() const
    {
        return __ldcs((const float4 *)values);
    }
    __device__ void store_four(float4 x) const
    {
        __stcs((float4 *)values, x);
    }
    __device__ float load(int i) const
    {
        return values[i];
    }
    __device__ void store(int i, float x) const
    {
        values[i] = x;
    }
};

struct joined_values {
    const hdi_bfloat *weights;
    int16_t *remainder;
    __device__ joined_values(const hdi_adamw_args &a, int64_t first)
        : weights((const hdi_bfloat *)a.weights + first), remainder(a.remainder + first)
    {
    }
    __device__ float4 load_four() const
    {
        const uint2 w = *(const uint2 *)weights, r = *(const uint2 *)remainder;
        const hdi_bfloat *weight = (const hdi_bfloat *)&w;
        const int16_t *rest = (const int16_t *)&r;
        return make_float4(join(weight[0], rest[0]), join(weight[1], rest[1]),
                           join(weight[2], rest[2]), join(weight[3], rest[3]));
    }
    __device__ void store_four(float4 x) const
    {
        const int16_t four[4] = {remainder_of(x.x), remainder_of(x.y), remainder_of(x.z),
                                 remainder_of(x.w)};
        uint2 bits;
        memcpy(&bits, four, sizeof bits);
        *(uint2 *)remainder = bits;
    }
    __device__ float load(int i) const
    {
        return join(weights[i], remainder[i]);
    }
    __device__ void store(int i, float x) const
    {
        remainder[i] = remainder_of(x);
    }
};

/* Four elements a thread, one at a time where 16 bytes cannot be had. */
template <typename T, typename Values, typename Gradient>
__global__ void adamw_four(hdi_adamw_args a, bool aligned)
{
    if (a.scalars[4] == 0.0f) return;
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * 4;
    const int64_t left = a.elements - first;
    if (left <= 0) return;
    const adamw_step step = step_of(a);
    const Values values(a, first);
    T *weights = a.master || a.remainder ? (T *)a.weights + first : NULL;
    float *m = a.m + first, *v = a.v + first;
    const Gradient *gradient = (const Gradient *)a.gradient + first;
    if (aligned && left >= 4) {
        const float4 g = stream_four(gradient);
        float4 w = values.load_four(), m4 = __ldcs((const float4 *)m);
        float4 v4 = __ldcs((const float4 *)v);
        update(step, g.x, w.x, m4.x, v4.x);
        update(step, g.y, w.y, m4.y, v4.y);
        update(step, g.z, w.z, m4.z, v4.z);
        update(step, g.w, w.w, m4.w, v4.w);
        values.store_four(w);
        __stcs((float4 *)m, m4);
        __stcs((float4 *)v, v4);
        if (weights) store_four(weights, w);
        return;
    }
    for (int i = 0; i < 4 && i < left; i++) {
        float weight = values.load(i);
        update(step, to_float(gradient[i]), weight, m[i], v[i]);
        values.store(i, weight);
        if (weights) weights[i] = weight_of<T>(weight);
    }
}

/* One element a thread: once at start, and at saves. */
template <typename T>
__global__ void split_values(const float *values, int64_t elements, T *weights, int16_t *remainder)
{
    const int64_t element = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (element >= elements) return;
    const float x = values[element];
    weights[element] = weight_of<T>(x);
    if (remainder) remainder[element] = remainder_of(x);
}

__global__ void join_values(const hdi_bfloat *weights, const int16_t *remainder, int64_t elements,
                            float *values)
{
    const int64_t element = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (element < elements) values[element] = join(weights[element], remainder[element]);
}

__global__ void move_average(hdi_average_args a)
{
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= a.elements) return;
    const float value =
        a.values ? a.values[i] : join(((const hdi_bfloat *)a.weights)[i], a.remainder[i]);
    a.average[i] += a.share[0] * (value - a.average[i]);
}

/* One block of threads per block of elements: 16 squares a thread in fp32, then a tree in fp64. */
template <typename T>
__global__ void square_block(const T *x, int64_t elements, bool aligned, double *out)
{
    constexpr int kSteps = HDI_BLOCK_ELEMENTS / (kLanes<T> * kThreads);
    const int64_t base = (int64_t)blockIdx.x * HDI_BLOCK_ELEMENTS;
    float sum = 0;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
        const int64_t first = base + (s * kThreads + (int)threadIdx.x) * kLanes<T>;
        float part[kLanes<T>];
        load_part(x + first, elements - first, aligned, part);
#pragma unroll
        for (int i = 0; i < kLanes<T>; i += 4)
            sum += (part[i] * part[i] + part[i + 1] * part[i + 1]) +
                   (part[i + 2] * part[i + 2] + part[i + 3] * part[i + 3]);
    }
    const double total = block_sum((double)sum);
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}

constexpr int kDeepest = 32; /* levels of a tree over at most 2^31 parts */

/* The stack of partial sums is joined as the bits of the part's index say. */
template <typename T>
__global__ void add_tree(const T *x, int64_t stride, int parts, int64_t elements, T *out)
{
    const int64_t element = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (element >= elements) return;
    float levels[kDeepest];
    int depth = 0;
    for (int part = 0; part < parts; part++) {
        levels[depth++] = to_float(x[part * stride + element]);
        for (int index = part; index & 1; index >>= 1, depth--)
            levels[depth - 2] += levels[depth - 1];
    }
    for (; depth > 1; depth--)
        levels[depth - 2] += levels[depth - 1];
    out[element] = from_float<T>(levels[0]);
}

/* The common case: one level joins the next. */
template <typename T>
__global__ void add_two(const T *x, const T *y, int64_t elements, bool aligned, T *out)
{
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * kLanes<T>;
    const int64_t left = elements - first;
    if (left <= 0) return;
    float a[kLanes<T>], b[kLanes<T>];
    stream_part(x + first, left, aligned, a);
    stream_part(y + first, left, aligned, b);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        a[i] += b[i];
    store_part(out + first, left, aligned, a);
}

template <typename T, typename Values>
void launch_adamw(hd_stream *stream, const hdi_adamw_args &a, bool aligned)
{
    const unsigned blocks = block_count(a.elements, 4 * kThreads);
    if (a.gradient_dtype == HD_DTYPE_BF16)
        adamw_four<T, Values, hdi_bfloat><<<blocks, kThreads, 0, stream->handle>>>(a, aligned);
    else
        adamw_four<T, Values, float><<<blocks, kThreads, 0, stream->handle>>>(a, aligned);
}

/* call(type_tag<T>()) for the type that stores gradients of `dtype`. */
template <typename Call> hd_status with_gradient_type(hd_dtype dtype, const char *what, Call &&call)
{
    if (dtype == HD_DTYPE_F32) return call(type_tag<float>());
    if (dtype == HD_DTYPE_BF16) return call(type_tag<hdi_bfloat>());
    return hdi_error(HD_ERROR_UNSUPPORTED, "%s: gradients are %s, want F32 or BF16", what,
                     hd_dtype_name(dtype));
}

} // namespace

extern "C" hd_status hdi_cuda_adamw(hd_stream *stream, const hdi_adamw_args *args)
{
    if (args->elements <= 0) return HD_OK;
    const bool joined = args->remainder && !args->master && args->dtype == HD_DTYPE_BF16;
    if (!args->master && !joined && args->dtype != HD_DTYPE_F32)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "adamw: weights are %s, want an fp32 master or, for BF16, remainders",
                         hd_dtype_name(args->dtype));
    const bool aligned =
        are_aligned(args->weights, args->master, args->remainder, args->m, args->v, args->gradient);
    if (joined) {
        launch_adamw<hdi_bfloat, joined_values>(stream, *args, aligned);
        return launched("adamw");
    }
    return with_type(args->dtype, "adamw", [&](auto tag) {
        using T = typename decltype(tag)::type;
        launch_adamw<T, whole_values>(stream, *args, aligned);
        return launched("adamw");
    });
}

extern "C" hd_status hdi_cuda_split_weights(hd_stream *stream, hd_dtype dtype, int64_t elements,
                                            const float *values, void *weights, int16_t *remainder)
{
    if (elements <= 0) return HD_OK;
    return with_type(dtype, "split_weights", [&](auto tag) {
        using T = typename decltype(tag)::type;
        split_values<T><<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(
            values, elements, (T *)weights, remainder);
        return launched("split_weights");
    });
}

extern "C" hd_status hdi_cuda_join_weights(hd_stream *stream, int64_t elements, const void *weights,
                                           const int16_t *remainder, float *values)
{
    if (elements <= 0) return HD_OK;
    join_values<<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(
        (const hdi_bfloat *)weights, remainder, elements, values);
    return launched("join_weights");
}

extern "C" hd_status hdi_cuda_average(hd_stream *stream, const hdi_average_args *args)
{
    if (args->elements <= 0) return HD_OK;
    move_average<<<block_count(args->elements, kThreads), kThreads, 0, stream->handle>>>(*args);
    return launched("average");
}

extern "C" hd_status hdi_cuda_sum_of_squares(hd_stream *stream, hd_dtype dtype, const void *x,
                                             int64_t elements, double *out)
{
    if (elements <= 0) return HD_OK;
    return with_gradient_type(dtype, "sum_of_squares", [&](auto tag) {
        using T = typename decltype(tag)::type;
        square_block<<<block_count(elements, HDI_BLOCK_ELEMENTS), kThreads, 0, stream->handle>>>(
            (const T *)x, elements, is_aligned(x), out);
        return launched("sum_of_squares");
    });
}

extern "C" hd_status hdi_cuda_tree_sum(hd_stream *stream, hd_dtype dtype, const void *x,
                                       int64_t stride, int parts, int64_t elements, void *out)
{
    if (elements <= 0 || parts <= 0) return HD_OK;
    if (parts == 1) return hdi_cuda_copy(stream, out, x, (size_t)elements * hd_dtype_bytes(dtype));
    return with_type(dtype, "tree_sum", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const T *first = (const T *)x, *second = first + stride;
        if (parts == 2)
            add_two<<<block_count(elements, kLanes<T> * kThreads), kThreads, 0, stream->handle>>>(
                first, second, elements, are_aligned(first, second, out), (T *)out);
        else
            add_tree<<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(
                first, stride, parts, elements, (T *)out);
        return launched("tree_sum");
    });
}
