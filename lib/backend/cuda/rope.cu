/* Rotary position embedding: a thread owns one or more pairs of columns of one head of one row and
 * reads them before it writes, so it works in place. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;

__device__ int64_t position_of(const hdi_rope_args &a, int64_t row, int64_t limit,
                               hdi_cuda_fault *fault)
{
    if (!a.positions) return row % a.period;
    const int32_t position = a.positions[row];
    if (position >= 0 && position < limit) return position;
    report_fault(fault, HDI_FAULT_POSITION, position, row, limit);
    return 0;
}

/* Halves: kLanes columns of the first half and their partners in the second. */
template <typename T>
__global__ void rotate_halves(hdi_rope_args a, int64_t parts, bool aligned, hdi_cuda_fault *fault)
{
    constexpr int L = kLanes<T>;
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t half = a.head_dim / 2, first = index % parts * L, left = half - first;
    const int64_t head = index / parts % a.heads, row = index / (parts * a.heads);
    if (row >= a.rows) return;
    const float2 *angles = (const float2 *)a.table + position_of(a, row, INT32_MAX, fault) * half;
    const int64_t offset = row * a.x_stride + head * a.head_dim + first;
    float x[L], y[L];
    load_part((const T *)a.x + offset, left, aligned, x);
    load_part((const T *)a.x + offset + half, left, aligned, y);
#pragma unroll
    for (int i = 0; i < L; i++) {
        if (i >= left) break;
        const float2 angle = angles[first + i];
        const float sine = a.inverse ? -angle.y : angle.y, before = x[i];
        x[i] = before * angle.x - y[i] * sine;
        y[i] = y[i] * angle.x + before * sine;
    }
    store_part((T *)a.out + offset, left, aligned, x);
    store_part((T *)a.out + offset + half, left, aligned, y);
}

/* Interleaved: kLanes columns are pairs of neighbours. */
template <typename T>
__global__ void rotate_neighbours(hdi_rope_args a, int64_t parts, bool aligned,
                                  hdi_cuda_fault *fault)
{
    constexpr int L = kLanes<T>;
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t first = index % parts * L, left = a.head_dim - first;
    const int64_t head = index / parts % a.heads, row = index / (parts * a.heads);
    if (row >= a.rows) return;
    const float2 *angles =
        (const float2 *)a.table + position_of(a, row, INT32_MAX, fault) * (a.head_dim / 2);
    const int64_t offset = row * a.x_stride + head * a.head_dim + first;
    float x[L];
    load_part((const T *)a.x + offset, left, aligned, x);
#pragma unroll
    for (int i = 0; i < L; i += 2) {
        if (i >= left) break;
        const float2 angle = angles[(first + i) / 2];
        const float sine = a.inverse ? -angle.y : angle.y, before = x[i];
        x[i] = before * angle.x - x[i + 1] * sine;
        x[i + 1] = x[i + 1] * angle.x + before * sine;
    }
    store_part((T *)a.out + offset, left, aligned, x);
}

} // namespace

extern "C" hd_status hdi_cuda_rope(hd_stream *stream, const hdi_rope_args *args)
{
    if (args->rows <= 0 || args->heads <= 0 || args->head_dim < 2) return HD_OK;
    return with_type(args->dtype, "rope", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool halves = args->pairing == HDI_ROPE_HALVES;
        const int64_t width = halves ? args->head_dim / 2 : args->head_dim;
        const int64_t parts = hdi_ceil_div(width, kLanes<T>);
        const bool aligned = are_aligned(args->x, args->out) && width % kLanes<T> == 0 &&
                             args->x_stride % kLanes<T> == 0;
        const unsigned blocks = block_count(args->rows * args->heads * parts, kThreads);
        hdi_cuda_fault *fault = stream->device->fault;
        if (halves)
            rotate_halves<T><<<blocks, kThreads, 0, stream->handle>>>(*args, parts, aligned, fault);
        else
            rotate_neighbours<T>
                <<<blocks, kThreads, 0, stream->handle>>>(*args, parts, aligned, fault);
        return launched("rope");
    });
}
