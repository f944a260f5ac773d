/* Query, key and value rows into a joint matrix: RMS norm of each query and key head, rotation on up
 * to three axes, values copied; and the way back. A warp takes several heads at once, `lanes` threads
 * each, which hold the head in registers; it works on one row at a time, whose angles it keeps. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kWarps = 4;      /* of a block */
constexpr int kMostParts = 16; /* warps that share the heads of one row, at most */

/* How a head lies on the threads of a warp. */
struct head_split {
    int lanes, heads; /* threads of a head, a power of two; heads of a warp */
};

template <typename T> head_split split_head(int64_t head_dim, int vectors)
{
    const int64_t wanted = hdi_ceil_div(head_dim, kLanes<T> * vectors);
    head_split split = {1, kWarp};
    while (split.lanes < wanted)
        split.lanes *= 2;
    split.heads = kWarp / split.lanes;
    return split;
}

/* Every lane of the head gets the sum. */
__device__ inline float head_sum(float x, int lanes)
{
    for (int lane = lanes / 2; lane > 0; lane /= 2)
        x += __shfl_xor_sync(kAllLanes, x, lane);
    return x;
}

/* The angle of a pair of columns at a token; without axes, or behind them, nothing turns. */
__device__ inline float2 angle_of(const hdi_rope_axes &rope, int64_t token, int64_t pair)
{
    const float2 *table = (const float2 *)rope.table;
    token -= rope.first;
    if (rope.count && (token < 0 || token >= rope.count)) return make_float2(1.0f, 0.0f);
    token += rope.start;
    for (int axis = 0; axis < rope.axes; axis++) {
        const int64_t pairs = rope.dims[axis] / 2;
        const uint32_t place =
            (uint32_t)token / (uint32_t)rope.stride[axis] % (uint32_t)rope.length[axis];
        if (pair < pairs) return table[place * pairs + pair];
        pair -= pairs;
        table += rope.length[axis] * pairs;
    }
    return make_float2(1.0f, 0.0f);
}

/* A thread's columns of a head. Turned by halves, they need the columns half a head away as well. */
template <typename T, int kVectors, bool kAligned, bool kHalves> struct head_part {
    static constexpr int L = kLanes<T>;
    static constexpr int kAngles = kHalves ? L : L / 2;
    int64_t head_dim;
    int lane, lanes;

    __device__ int64_t column(int v) const
    {
        return ((int64_t)v * lanes + lane) * L;
    }

    __device__ int64_t partner(int64_t c) const
    {
        return c < head_dim / 2 ? c + head_dim / 2 : c - head_dim / 2;
    }

    __device__ void load(const T *head, uint4 (&bits)[kVectors]) const
    {
#pragma unroll
        for (int v = 0; v < kVectors; v++)
            bits[v] = load_bits<T, kAligned>(head + column(v), head_dim - column(v));
    }

    /* The partners of the thread's columns; whole halves are whole vectors if kAligned. */
    __device__ void load_partners(const T *head, uint4 (&bits)[kVectors]) const
    {
#pragma unroll
        for (int v = 0; v < kVectors; v++) {
            const int64_t c = column(v);
            if (kAligned) {
                bits[v] = load_bits<T, true>(head + partner(c), head_dim - c);
                continue;
            }
            bits[v] = make_uint4(0, 0, 0, 0);
            T *elements = reinterpret_cast<T *>(&bits[v]);
#pragma unroll
            for (int i = 0; i < L; i++)
                if (c + i < head_dim) elements[i] = head[partner(c + i)];
        }
    }

    __device__ void store(T *head, const float (&x)[kVectors][L]) const
    {
#pragma unroll
        for (int v = 0; v < kVectors; v++)
            if (column(v) < head_dim)
                store_part(head + column(v), kAligned ? L : head_dim - column(v), kAligned, x[v]);
    }

    /* Sines of the second half are negated, so that x * cos - partner * sin turns either. */
    __device__ void angles(const hdi_rope_axes &rope, int64_t token,
                           float2 (&out)[kVectors][kAngles]) const
    {
#pragma unroll
        for (int v = 0; v < kVectors; v++)
#pragma unroll
            for (int i = 0; i < kAngles; i++) {
                const int64_t c = column(v) + i, half = head_dim / 2;
                if (!kHalves) {
                    out[v][i] = angle_of(rope, token, column(v) / 2 + i);
                    continue;
                }
                out[v][i] = angle_of(rope, token, c < half ? c : c - half);
                if (c >= half) out[v][i].y = -out[v][i].y;
            }
    }

    /* Sign -1 turns back. */
    __device__ void turn(const float2 (&angle)[kVectors][kAngles], float sign,
                         const float (&partners)[kVectors][L], float (&x)[kVectors][L]) const
    {
#pragma unroll
        for (int v = 0; v < kVectors; v++)
#pragma unroll
            for (int i = 0; i < L; i += kHalves ? 1 : 2) {
                const float2 by = angle[v][kHalves ? i : i / 2];
                const float sine = sign * by.y, before = x[v][i];
                if (kHalves) {
                    x[v][i] = before * by.x - partners[v][i] * sine;
                } else {
                    x[v][i] = before * by.x - x[v][i + 1] * sine;
                    x[v][i + 1] = x[v][i + 1] * by.x + before * sine;
                }
            }
    }
};

template <typename T, int kVectors>
__device__ inline void unpack_all(const uint4 (&bits)[kVectors], float (&x)[kVectors][kLanes<T>])
{
#pragma unroll
    for (int v = 0; v < kVectors; v++)
        unpack<T>(bits[v], x[v]);
}

template <int kVectors, int L>
__device__ inline float inverse_deviation(const float (&x)[kVectors][L], int lanes, int64_t columns,
                                          float epsilon)
{
    float sum = 0;
#pragma unroll
    for (int v = 0; v < kVectors; v++)
#pragma unroll
        for (int i = 0; i < L; i++)
            sum += x[v][i] * x[v][i];
    return 1.0f / sqrtf(head_sum(sum, lanes) / (float)columns + epsilon);
}

/* Rounded after the division and after the product, as the ops apart would be. */
template <typename T, int kVectors>
__device__ inline void scale_head(const uint4 (&weight_bits)[kVectors], float rstd,
                                  float (&x)[kVectors][kLanes<T>])
{
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        float weight[kLanes<T>];
        unpack<T>(weight_bits[v], weight);
#pragma unroll
        for (int i = 0; i < kLanes<T>; i++)
            x[v][i] = rounded<T>(rounded<T>(x[v][i] * rstd) * weight[i]);
    }
}

/* Norm and rotation of the head in `bits`. */
template <typename T, int kVectors, bool kAligned, bool kHalves, typename Part, typename Angles>
__device__ inline void make_head(const Part &part, const hdi_joint_qkv_args &a, const T *head,
                                 const T *weight, const uint4 (&weight_bits)[kVectors],
                                 const Angles &angle, const uint4 (&bits)[kVectors], bool there,
                                 T *out)
{
    float x[kVectors][kLanes<T>], partners[kVectors][kLanes<T>] = {};
    uint4 partner_bits[kVectors] = {};
    if (kHalves && there) part.load_partners(head, partner_bits);
    unpack_all<T>(bits, x);
    if (kHalves) unpack_all<T>(partner_bits, partners);
    if (weight) {
        const float rstd = inverse_deviation(x, part.lanes, part.head_dim, a.epsilon);
        scale_head<T>(weight_bits, rstd, x);
        if (kHalves) {
            uint4 partner_weights[kVectors];
            part.load_partners(weight, partner_weights);
            scale_head<T>(partner_weights, rstd, partners);
        }
    }
    part.turn(angle, 1.0f, partners, x);
    if (kHalves) __syncwarp(); /* out may be where partners were read */
    if (there) part.store(out, x);
}

/* Warp w of the grid: row w / parts, every parts-th run of heads. */
template <typename T, int kVectors, bool kAligned, bool kHalves>
__global__ void __launch_bounds__(kWarp *kWarps)
    join_rows(hdi_joint_qkv_args a, head_split split, int parts)
{
    const int64_t warp = (int64_t)blockIdx.x * kWarps + threadIdx.y, row = warp / parts;
    if (row >= a.sequences * a.tokens) return;
    const head_part<T, kVectors, kAligned, kHalves> part = {
        a.head_dim, (int)threadIdx.x % split.lanes, split.lanes};
    const int64_t sequence = row / a.tokens, token = row - sequence * a.tokens;
    const int64_t width = a.heads * a.head_dim;
    const T *x = (const T *)a.qkv + row * 3 * width;
    T *out = (T *)a.out + (sequence * a.out_tokens + a.first + token) * 3 * width;
    const T *query_norm = (const T *)a.query_norm, *key_norm = (const T *)a.key_norm;
    uint4 query_weight[kVectors], key_weight[kVectors];
    if (query_norm) part.load(query_norm, query_weight);
    if (key_norm) part.load(key_norm, key_weight);
    float2 angle[kVectors][decltype(part)::kAngles];
    part.angles(a.rope, token, angle);
    for (int64_t first = warp % parts * split.heads; first < a.heads;
         first += (int64_t)parts * split.heads) {
        const int64_t head = first + threadIdx.x / split.lanes;
        const bool there = head < a.heads; /* all lanes stay for the sums */
        const int64_t q = (there ? head : 0) * a.head_dim, k = q + width, v = k + width;
        uint4 q_bits[kVectors], k_bits[kVectors], v_bits[kVectors];
        part.load(x + q, q_bits);
        part.load(x + k, k_bits);
        part.load(x + v, v_bits);
        make_head<T, kVectors, kAligned, kHalves>(part, a, x + q, query_norm, query_weight, angle,
                                                  q_bits, there, out + q);
        make_head<T, kVectors, kAligned, kHalves>(part, a, x + k, key_norm, key_weight, angle,
                                                  k_bits, there, out + k);
        float value[kVectors][kLanes<T>];
        unpack_all<T>(v_bits, value);
        if (there) part.store(out + v, value);
    }
}

/* The gradient of the head at x from that at `gradient`; the weight's is added to weight_sum. */
template <typename T, int kVectors, bool kHalves, typename Part, typename Angles>
__device__ inline void
differentiate_head(const Part &part, const hdi_joint_qkv_args &a, const T *gradient,
                   const T *weight, const uint4 (&weight_bits)[kVectors], const Angles &angle,
                   const uint4 (&g_bits)[kVectors], const uint4 (&x_bits)[kVectors], bool there,
                   float (&weight_sum)[kVectors][kLanes<T>], T *out)
{
    constexpr int L = kLanes<T>;
    float g[kVectors][L], partners[kVectors][L] = {};
    unpack_all<T>(g_bits, g);
    if (kHalves) {
        uint4 partner_bits[kVectors];
        part.load_partners(gradient, partner_bits);
        unpack_all<T>(partner_bits, partners);
    }
    part.turn(angle, -1.0f, partners, g);
    if (kHalves) __syncwarp(); /* out may be where partners were read */
    if (weight) {
        float x[kVectors][L], slope = 0;
        unpack_all<T>(x_bits, x);
        const float rstd = inverse_deviation(x, part.lanes, part.head_dim, a.epsilon);
#pragma unroll
        for (int v = 0; v < kVectors; v++) {
            float by[L];
            unpack<T>(weight_bits[v], by);
#pragma unroll
            for (int i = 0; i < L; i++) {
                x[v][i] *= rstd;
                if (there) weight_sum[v][i] += g[v][i] * x[v][i];
                g[v][i] *= by[i];
                slope += g[v][i] * x[v][i];
            }
        }
        slope = head_sum(slope, part.lanes) / (float)part.head_dim;
#pragma unroll
        for (int v = 0; v < kVectors; v++)
#pragma unroll
            for (int i = 0; i < L; i++)
                g[v][i] = rstd * (g[v][i] - x[v][i] * slope);
    }
    if (there) part.store(out, g);
}

/* The block's sums of one norm's gradient: those of its threads that have the same columns, in turn. */
template <typename T, int kVectors, typename Part>
__device__ void join_sums(const Part &part, const float (&sum)[kVectors][kLanes<T>], float *out)
{
    __shared__ float sums[kWarps * kWarp][kLanes<T> + 1];
    const int thread = (int)(threadIdx.y * kWarp + threadIdx.x);
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        __syncthreads(); /* what was there has been read */
#pragma unroll
        for (int i = 0; i < kLanes<T>; i++)
            sums[thread][i] = sum[v][i];
        __syncthreads();
        for (int at = thread; at < part.lanes * kLanes<T>; at += kWarps * kWarp) {
            const int lane = at / kLanes<T>, i = at % kLanes<T>;
            const int64_t column = ((int64_t)v * part.lanes + lane) * kLanes<T> + i;
            float total = 0;
            for (int other = lane; other < kWarps * kWarp; other += part.lanes)
                total += sums[other][i];
            if (column < part.head_dim) out[column] = total;
        }
    }
}

/* Block p does rows [p * chunk, (p + 1) * chunk), a warp each. */
template <typename T, int kVectors, bool kAligned, bool kHalves>
__global__ void __launch_bounds__(kWarp *kWarps)
    split_rows(hdi_joint_qkv_gradient_args args, head_split split, int64_t chunk)
{
    const hdi_joint_qkv_args &a = args.forward;
    const head_part<T, kVectors, kAligned, kHalves> part = {
        a.head_dim, (int)threadIdx.x % split.lanes, split.lanes};
    const int64_t rows = a.sequences * a.tokens, begin = blockIdx.x * chunk;
    const int64_t end = begin + chunk < rows ? begin + chunk : rows, width = a.heads * a.head_dim;
    const T *query_norm = (const T *)a.query_norm, *key_norm = (const T *)a.key_norm;
    uint4 query_weight[kVectors], key_weight[kVectors];
    if (query_norm) part.load(query_norm, query_weight);
    if (key_norm) part.load(key_norm, key_weight);
    float query_sum[kVectors][kLanes<T>] = {}, key_sum[kVectors][kLanes<T>] = {};
    for (int64_t row = begin + threadIdx.y; row < end; row += kWarps) {
        const int64_t sequence = row / a.tokens, token = row - sequence * a.tokens;
        const T *x = (const T *)a.qkv + row * 3 * width;
        const T *gradient =
            (const T *)args.gradient + (sequence * a.out_tokens + a.first + token) * 3 * width;
        T *out = (T *)args.qkv_gradient + row * 3 * width;
        float2 angle[kVectors][decltype(part)::kAngles];
        part.angles(a.rope, token, angle);
        for (int64_t first = 0; first < a.heads; first += split.heads) {
            const int64_t head = first + threadIdx.x / split.lanes;
            const bool there = head < a.heads;
            const int64_t q = (there ? head : 0) * a.head_dim, k = q + width, v = k + width;
            uint4 gq_bits[kVectors], gk_bits[kVectors], gv_bits[kVectors];
            uint4 q_bits[kVectors], k_bits[kVectors];
            part.load(gradient + q, gq_bits);
            part.load(gradient + k, gk_bits);
            part.load(gradient + v, gv_bits);
            if (query_norm) part.load(x + q, q_bits);
            if (key_norm) part.load(x + k, k_bits);
            differentiate_head<T, kVectors, kHalves>(part, a, gradient + q, query_norm,
                                                     query_weight, angle, gq_bits, q_bits, there,
                                                     query_sum, out + q);
            differentiate_head<T, kVectors, kHalves>(part, a, gradient + k, key_norm, key_weight,
                                                     angle, gk_bits, k_bits, there, key_sum,
                                                     out + k);
            float value[kVectors][kLanes<T>];
            unpack_all<T>(gv_bits, value);
            if (there) part.store(out + v, value);
        }
    }
    if (!args.partials) return;
    float *partials = args.partials + (int64_t)blockIdx.x * 2 * a.head_dim;
    join_sums<T, kVectors>(part, query_sum, partials);
    join_sums<T, kVectors>(part, key_sum, partials + a.head_dim);
}

template <int kValue> struct number {
    static constexpr int value = kValue;
};

/* call(vectors, aligned, halves), as types. Only what is aligned and fits one vector a thread is
 * fast; the rest is read element by element. */
template <typename T, typename Call>
hd_status with_head(const char *what, const hdi_joint_qkv_args *args, bool aligned, Call &&call)
{
    constexpr int L = kLanes<T>;
    const bool halves = args->rope.axes > 0 && args->rope.halves;
    aligned = aligned && args->head_dim % (halves ? 2 * L : L) == 0 && args->head_dim <= kWarp * L;
    if (args->head_dim > 2 * kWarp * L)
        return hdi_error(HD_ERROR_UNSUPPORTED, "%s: heads have %lld columns, want at most %d", what,
                         (long long)args->head_dim, 2 * kWarp * L);
    if (aligned && halves) return call(number<1>(), number<1>(), number<1>());
    if (aligned) return call(number<1>(), number<1>(), number<0>());
    if (halves) return call(number<2>(), number<0>(), number<1>());
    return call(number<2>(), number<0>(), number<0>());
}

/* Enough warps for devices to be busy to the end. */
int parts_of(const hdi_joint_qkv_args *args, head_split split)
{
    const int64_t runs = hdi_ceil_div(args->heads, split.heads), wanted = hdi_ceil_div(runs, 3);
    return (int)(wanted < kMostParts ? wanted : kMostParts);
}

} // namespace

extern "C" hd_status hdi_cuda_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args)
{
    const int64_t rows = args->sequences * args->tokens;
    if (rows <= 0 || args->heads <= 0 || args->head_dim <= 0) return HD_OK;
    return with_type(args->dtype, "joint_qkv", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned = are_aligned(args->qkv, args->out, args->query_norm, args->key_norm);
        return with_head<T>("joint_qkv", args, aligned, [&](auto vectors, auto whole, auto halves) {
            constexpr int kVectors = decltype(vectors)::value;
            const head_split split = split_head<T>(args->head_dim, kVectors);
            const int parts = parts_of(args, split);
            join_rows<T, kVectors, decltype(whole)::value != 0, decltype(halves)::value != 0>
                <<<block_count(rows * parts, kWarps), dim3(kWarp, kWarps), 0, stream->handle>>>(
                    *args, split, parts);
            return launched("joint_qkv");
        });
    });
}

extern "C" hd_status hdi_cuda_joint_qkv_gradient(hd_stream *stream,
                                                 const hdi_joint_qkv_gradient_args *args)
{
    const hdi_joint_qkv_args *forward = &args->forward;
    const int64_t rows = forward->sequences * forward->tokens;
    if (forward->heads <= 0 || forward->head_dim <= 0 || (rows <= 0 && !args->partials))
        return HD_OK;
    return with_type(forward->dtype, "joint_qkv gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned = are_aligned(forward->qkv, args->gradient, args->qkv_gradient,
                                         forward->query_norm, forward->key_norm);
        return with_head<T>(
            "joint_qkv gradient", forward, aligned, [&](auto vectors, auto whole, auto halves) {
                constexpr int kVectors = decltype(vectors)::value;
                const head_split split = split_head<T>(forward->head_dim, kVectors);
                const int64_t parts =
                    args->partials ? args->partial_rows : hdi_ceil_div(rows, kWarps);
                split_rows<T, kVectors, decltype(whole)::value != 0, decltype(halves)::value != 0>
                    <<<block_count(parts, 1), dim3(kWarp, kWarps), 0, stream->handle>>>(
                        *args, split, hdi_ceil_div(rows, parts));
                return launched("joint_qkv gradient");
            });
    });
}
