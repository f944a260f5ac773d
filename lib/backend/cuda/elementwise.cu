/* Element-wise ops without a family, and copies that take an index from the device. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;

/* x and y may be the memory of out: a thread reads its part before it writes. */
template <typename T>
__global__ void add_part(const T *x, const T *y, T *out, int64_t elements, bool aligned)
{
    constexpr int L = kLanes<T>;
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * L;
    const int64_t left = elements - first;
    if (left <= 0) return;
    float a[L], b[L];
    stream_part(x + first, left, aligned, a);
    stream_part(y + first, left, aligned, b);
#pragma unroll
    for (int i = 0; i < L; i++)
        a[i] += b[i];
    store_part(out + first, left, aligned, a);
}

/* Four elements a thread: 16 or 8 bytes on either side. */
template <typename From, typename To>
__global__ void convert_part(const From *x, To *out, int64_t elements)
{
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (first + i < elements) out[first + i] = from_float<To>(to_float(x[first + i]));
}

template <typename T> __device__ void load_four(const T *x, float (&out)[4])
{
    if (sizeof(T) == 4) {
        const float4 four = __ldcs(reinterpret_cast<const float4 *>(x));
        out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
        return;
    }
    const uint2 bits = __ldcs(reinterpret_cast<const uint2 *>(x));
    const T *elements = reinterpret_cast<const T *>(&bits);
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = to_float(elements[i]);
}

template <typename T> __device__ void store_four(T *out, const float (&x)[4])
{
    if (sizeof(T) == 4) {
        *reinterpret_cast<float4 *>(out) = make_float4(x[0], x[1], x[2], x[3]);
        return;
    }
    uint2 bits;
    T *elements = reinterpret_cast<T *>(&bits);
#pragma unroll
    for (int i = 0; i < 4; i++)
        elements[i] = from_float<T>(x[i]);
    *reinterpret_cast<uint2 *>(out) = bits;
}

template <typename From, typename To>
__global__ void convert_fours(const From *x, To *out, int64_t fours)
{
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (index >= fours) return;
    float values[4];
    load_four(x + 4 * index, values);
    store_four(out + 4 * index, values);
}

/* Four elements a thread. */
template <typename T>
__global__ void round_four(const float *x, T *out, int64_t elements, bool accumulate, bool aligned)
{
    const int64_t first = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * 4;
    const int64_t left = elements - first;
    float sum[4] = {0, 0, 0, 0}, more[4];
    if (aligned && left >= 4) {
        load_four(x + first, more);
        if (accumulate) load_four(out + first, sum);
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[i] = accumulate ? sum[i] + more[i] : more[i];
        store_four(out + first, sum);
        return;
    }
    for (int i = 0; i < 4 && i < left; i++)
        out[first + i] =
            from_float<T>(accumulate ? to_float(out[first + i]) + x[first + i] : x[first + i]);
}

__global__ void write_positions(hdi_positions_args a, hdi_cuda_fault *fault)
{
    const int64_t row = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (row >= a.rows) return;
    int64_t first = a.first ? *a.first : 0;
    if (first < 0) {
        report_fault(fault, HDI_FAULT_FIRST_POSITION, (int32_t)first, row, a.limit);
        first = 0;
    }
    const int64_t position = first + row % a.period;
    a.out[row] = (int32_t)(position < a.limit ? position : a.limit - 1);
}

template <typename T> __global__ void copy_row(hdi_select_row_args a)
{
    const int64_t column = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (column >= a.columns) return;
    int64_t count = *a.count;
    count = count < 1 ? 1 : count > a.rows ? a.rows : count;
    ((T *)a.out)[column] = ((const T *)a.x)[(count - 1) * a.columns + column];
}

template <typename From, typename To>
hd_status run_convert(hd_stream *stream, const From *x, To *out, int64_t elements)
{
    const int64_t fours = are_aligned(x, out) ? elements / 4 : 0, rest = elements - 4 * fours;
    if (fours > 0)
        convert_fours<<<block_count(fours, kThreads), kThreads, 0, stream->handle>>>(x, out, fours);
    if (rest > 0)
        convert_part<<<block_count(rest, 4 * kThreads), kThreads, 0, stream->handle>>>(
            x + 4 * fours, out + 4 * fours, rest);
    return launched("convert");
}

} // namespace

extern "C" hd_status hdi_cuda_add(hd_stream *stream, hd_dtype dtype, int64_t elements,
                                  const void *x, const void *y, void *out)
{
    if (elements <= 0) return HD_OK;
    return with_type(dtype, "add", [&](auto tag) {
        using T = typename decltype(tag)::type;
        add_part<<<block_count(elements, kThreads * kLanes<T>), kThreads, 0, stream->handle>>>(
            (const T *)x, (const T *)y, (T *)out, elements, are_aligned(x, y, out));
        return launched("add");
    });
}

extern "C" hd_status hdi_cuda_convert(hd_stream *stream, hd_dtype from, const void *x, hd_dtype to,
                                      void *out, int64_t elements)
{
    if (elements <= 0) return HD_OK;
    return with_type(from, "convert from", [&](auto from_tag) {
        using From = typename decltype(from_tag)::type;
        return with_type(to, "convert to", [&](auto to_tag) {
            using To = typename decltype(to_tag)::type;
            if constexpr (sizeof(From) == sizeof(To) && sizeof(From) == sizeof(float))
                return hdi_cuda_copy(stream, out, x, (size_t)elements * sizeof(float));
            else
                return run_convert(stream, (const From *)x, (To *)out, elements);
        });
    });
}

extern "C" hd_status hdi_cuda_round_sum(hd_stream *stream, hd_dtype dtype, int64_t elements,
                                        const float *x, bool accumulate, void *out)
{
    if (elements <= 0) return HD_OK;
    return with_type(dtype, "round_sum", [&](auto tag) {
        using T = typename decltype(tag)::type;
        round_four<<<block_count(elements, 4 * kThreads), kThreads, 0, stream->handle>>>(
            x, (T *)out, elements, accumulate, are_aligned(x, out));
        return launched("round_sum");
    });
}

extern "C" hd_status hdi_cuda_positions(hd_stream *stream, const hdi_positions_args *args)
{
    if (args->rows <= 0) return HD_OK;
    write_positions<<<block_count(args->rows, kThreads), kThreads, 0, stream->handle>>>(
        *args, stream->device->fault);
    return launched("positions");
}

extern "C" hd_status hdi_cuda_select_row(hd_stream *stream, const hdi_select_row_args *args)
{
    if (args->columns <= 0) return HD_OK;
    return with_type(args->dtype, "select_row", [&](auto tag) {
        using T = typename decltype(tag)::type;
        copy_row<T><<<block_count(args->columns, kThreads), kThreads, 0, stream->handle>>>(*args);
        return launched("select_row");
    });
}
