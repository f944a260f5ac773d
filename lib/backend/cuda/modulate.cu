/* Gated add and modulated layer norm in one pass: a block holds a row in registers. Sums are fp32 in
 * an order that the shape fixes. */
#include "backend/cuda/modulate.cuh"

namespace
{

template <typename T, int kVectors, bool kAligned>
__global__ void __launch_bounds__(kWidestRow)
    modulate_row(hdi_modulate_args a, hdi_cuda_fault *fault)
{
    constexpr int L = kLanes<T>;
    __shared__ float parts[2][1][kWarp];
    const int64_t row = blockIdx.x, offset = row * a.columns;
    uint4 x_bits[kVectors], delta_bits[kVectors], shift_bits[kVectors], scale_bits[kVectors];
    stream_row<T, kVectors, kAligned>(a.x, offset, a.columns, x_bits);
    if (a.delta) stream_row<T, kVectors, kAligned>(a.delta, offset, a.columns, delta_bits);
    uint4 gate_bits[kVectors];
    if (a.delta) {
        const int64_t entry =
            entry_of(a.gate_index, row, a.gate_rows_per_group, a.gate_entries, fault);
        stream_row<T, kVectors, kAligned, false>(a.gate, entry * a.gate_stride, a.columns,
                                                 gate_bits);
    }
    if (a.out && (a.shift || a.scale)) { /* needed last, but asked for before the barriers */
        const int64_t entry = entry_of(a.index, row, a.rows_per_group, a.entries, fault);
        const int64_t first = entry * a.stride;
        if (a.shift)
            stream_row<T, kVectors, kAligned, false>(a.shift, first, a.columns, shift_bits);
        if (a.scale)
            stream_row<T, kVectors, kAligned, false>(a.scale, first, a.columns, scale_bits);
    }
    float s[kVectors][L], total[1] = {};
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        const int64_t column = column_of<T>(v), left = a.columns - column;
        unpack<T>(x_bits[v], s[v]);
        if (a.delta) {
            float delta[L], gate[L];
            unpack<T>(delta_bits[v], delta);
            unpack<T>(gate_bits[v], gate);
#pragma unroll
            for (int i = 0; i < L; i++)
                s[v][i] = rounded<T>(s[v][i] + gate[i] * delta[i]);
        }
        if (a.sum && left > 0)
            store_part((T *)a.sum + offset + column, kAligned ? L : left, kAligned, s[v]);
#pragma unroll
        for (int i = 0; i < L; i++)
            total[0] += s[v][i];
    }
    if (!a.out) return;

    block_sums(total, parts[0]);
    const float mean = total[0] / (float)a.columns;
    float squares[1] = {};
#pragma unroll
    for (int v = 0; v < kVectors; v++)
#pragma unroll
        for (int i = 0; i < L; i++) {
            const float x = s[v][i] - mean;
            squares[0] += column_of<T>(v) + i < a.columns ? x * x : 0.0f;
        }
    block_sums(squares, parts[1]);
    const float rstd = 1.0f / sqrtf(squares[0] / (float)a.columns + a.epsilon);
    if (threadIdx.x == 0) {
        if (a.mean) a.mean[row] = mean;
        if (a.rstd) a.rstd[row] = rstd;
    }
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        const int64_t column = column_of<T>(v);
        if (column >= a.columns) continue;
        const int64_t left = kAligned ? L : a.columns - column;
        float scale[L] = {}, shift[L] = {};
        if (a.scale) unpack<T>(scale_bits[v], scale);
        if (a.shift) unpack<T>(shift_bits[v], shift);
#pragma unroll
        for (int i = 0; i < L; i++)
            s[v][i] = (s[v][i] - mean) * rstd * (1.0f + scale[i]) + shift[i];
        store_part((T *)a.out + offset + column, left, kAligned, s[v]);
    }
}

} // namespace

extern "C" hd_status hdi_cuda_modulate(hd_stream *stream, const hdi_modulate_args *args)
{
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    return with_type(args->dtype, "modulate", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const hdi_modulate_args a = *args;
        const bool aligned = are_aligned(a.x, a.delta, a.sum, a.out) &&
                             a.columns % kLanes<T> == 0 &&
                             (!a.delta || (is_aligned(a.gate) && a.gate_stride % kLanes<T> == 0)) &&
                             ((!a.scale && !a.shift) ||
                              (are_aligned(a.shift, a.scale) && a.stride % kLanes<T> == 0));
        row_split row;
        HD_RETURN_IF_ERROR(split_row<T>("modulate", a.columns, &row));
        return with_row(row, aligned, [&](auto vectors, auto whole) {
            modulate_row<T, decltype(vectors)::value, decltype(whole)::value != 0>
                <<<(unsigned)a.rows, row.threads, 0, stream->handle>>>(a, stream->device->fault);
            return launched("modulate");
        });
    });
}
