/* The gradient of modulation: one pass over the rows gives the rows' gradients and sums over strips of
 * rows, a second kernel adds the strips of each group. A strip lies within one group of either kind;
 * how rows are cut follows from the shape alone, so sums have one order. */
#include "backend/cuda/modulate.cuh"

namespace
{

constexpr int kStrips = 528;       /* about as many as devices run in one or two goes */
constexpr int kShortestStrip = 16; /* rows: partial sums cost as much as two of them */
constexpr int kSumWarps = 8;       /* of a block that adds strips */

/* Registers for three blocks of up to 256 or, with two vectors, 192 threads; more would spill. */
constexpr int kBoundThreads[] = {0, 768, 576, 0, kWidestRow};

enum { SHIFT, SCALE, GATE, KINDS };

struct row_cut {
    int64_t chunk;      /* rows that share both groups */
    int64_t per_chunk;  /* strips of a chunk */
    int64_t strip_rows; /* of all but the last of a chunk */
    int64_t strips;
};

int64_t common_divisor(int64_t a, int64_t b)
{
    while (b != 0) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

row_cut cut_rows(const hdi_modulate_gradient_args *args)
{
    row_cut cut;
    cut.chunk = common_divisor(args->rows_per_group, args->gate_rows_per_group);
    if (cut.chunk <= 0 || cut.chunk > args->rows) cut.chunk = args->rows;
    const int64_t chunks = hdi_ceil_div(args->rows, cut.chunk);
    const int64_t wanted = hdi_ceil_div(kStrips, chunks);
    const int64_t most = hdi_ceil_div(cut.chunk, kShortestStrip);
    cut.per_chunk = wanted < most ? wanted : most;
    cut.strip_rows = hdi_ceil_div(cut.chunk, cut.per_chunk);
    cut.strips = chunks * cut.per_chunk;
    return cut;
}

/* Block s does strip s. Its sums go to partials[kind][s]. */
template <typename T, int kVectors, bool kAligned, bool kGated>
__global__ void __launch_bounds__(kGated ? kWidestRow : kBoundThreads[kVectors])
    differentiate_strip(hdi_modulate_gradient_args a, row_cut cut, float *partials,
                        hdi_cuda_fault *fault)
{
    constexpr int L = kLanes<T>;
    __shared__ float parts[2][2][kWarp];
    const int64_t first = blockIdx.x / cut.per_chunk * cut.chunk;
    const int64_t chunk_end = first + cut.chunk < a.rows ? first + cut.chunk : a.rows;
    const int64_t begin = first + blockIdx.x % cut.per_chunk * cut.strip_rows;
    const int64_t end = begin + cut.strip_rows < chunk_end ? begin + cut.strip_rows : chunk_end;
    const T *scale = NULL, *gate = NULL;
    if (begin < end && a.gradient && a.scale)
        scale = (const T *)a.scale +
                entry_of(a.index, begin, a.rows_per_group, a.entries, fault) * a.stride;
    if (begin < end && a.delta_gradient)
        gate = (const T *)a.gate +
               entry_of(a.gate_index, begin, a.gate_rows_per_group, a.gate_entries, fault) *
                   a.gate_stride;
    float shift_sum[kVectors][L] = {}, scale_sum[kVectors][L] = {};
    float gate_sum[kGated ? kVectors : 1][L] = {};
    for (int64_t row = begin; row < end; row++) {
        const int64_t offset = row * a.columns;
        uint4 g_bits[kVectors], x_bits[kVectors], carry_bits[kVectors];
        uint4 delta_bits[kGated ? kVectors : 1];
        if (a.gradient) {
            stream_row<T, kVectors, kAligned>(a.gradient, offset, a.columns, g_bits);
            stream_row<T, kVectors, kAligned>(a.x, offset, a.columns, x_bits);
        }
        if (a.carry) stream_row<T, kVectors, kAligned>(a.carry, offset, a.columns, carry_bits);
        if constexpr (kGated)
            if (a.gate_sums)
                stream_row<T, kVectors, kAligned>(a.delta, offset, a.columns, delta_bits);
        const float mean = a.gradient ? a.mean[row] : 0.0f, rstd = a.gradient ? a.rstd[row] : 0.0f;
        float sums[2] = {};
        if (a.gradient) {
#pragma unroll
            for (int v = 0; v < kVectors; v++) {
                const int64_t column = column_of<T>(v);
                if (column >= a.columns) continue;
                const int64_t left = kAligned ? L : a.columns - column;
                float g[L], x[L], by[L] = {};
                unpack<T>(g_bits[v], g);
                unpack<T>(x_bits[v], x);
                if (scale) load_part(scale + column, left, kAligned, by);
#pragma unroll
                for (int i = 0; i < L; i++) {
                    const float normed = (x[i] - mean) * rstd, through = g[i] * (1.0f + by[i]);
                    shift_sum[v][i] += g[i];
                    scale_sum[v][i] += g[i] * normed;
                    sums[0] += through;
                    sums[1] += through * normed;
                }
                forget(g_bits[v]);
                forget(x_bits[v]);
            }
            block_sums(sums, parts[row % 2]); /* of the row before last, all have read theirs */
        }
        const float center = sums[0] / (float)a.columns, slope = sums[1] / (float)a.columns;
#pragma unroll
        for (int v = 0; v < kVectors; v++) {
            const int64_t column = column_of<T>(v);
            if (column >= a.columns) continue;
            const int64_t left = kAligned ? L : a.columns - column;
            float ds[L] = {}; /* rounded as often as by ops apart */
            if (a.carry) unpack<T>(carry_bits[v], ds);
            if (a.gradient) {
                float g[L], x[L], by[L] = {};
                unpack<T>(g_bits[v], g);
                unpack<T>(x_bits[v], x);
                if (scale) load_part(scale + column, left, kAligned, by);
#pragma unroll
                for (int i = 0; i < L; i++) {
                    const float normed = (x[i] - mean) * rstd;
                    const float through = rstd * (g[i] * (1.0f + by[i]) - center - normed * slope);
                    ds[i] = rounded<T>(__fadd_rn(rounded<T>(through), ds[i]));
                }
            }
            if (a.x_gradient) store_part((T *)a.x_gradient + offset + column, left, kAligned, ds);
            if constexpr (kGated) {
                if (a.gate_sums) {
                    float delta[L];
                    unpack<T>(delta_bits[v], delta);
#pragma unroll
                    for (int i = 0; i < L; i++)
                        gate_sum[v][i] += delta[i] * ds[i];
                }
                if (a.delta_gradient) {
                    float by[L];
                    load_part(gate + column, left, kAligned, by);
#pragma unroll
                    for (int i = 0; i < L; i++)
                        ds[i] *= by[i];
                    store_part((T *)a.delta_gradient + offset + column, left, kAligned, ds);
                }
            }
        }
    }
#pragma unroll
    for (int v = 0; v < kVectors; v++)
#pragma unroll
        for (int i = 0; i < L; i++) {
            const int64_t column = column_of<T>(v) + i;
            if (column >= a.columns) continue;
            float *out = partials + (int64_t)blockIdx.x * a.columns + column;
            const int64_t kind = cut.strips * a.columns;
            if (a.sums) {
                out[SHIFT * kind] = shift_sum[v][i];
                out[SCALE * kind] = scale_sum[v][i];
            }
            if constexpr (kGated)
                if (a.gate_sums) out[GATE * kind] = gate_sum[v][i];
        }
}

/* out[group] = sum of the group's strips: block (x, y) has 32 columns of group y. */
__global__ void add_strips(const float *partials, int64_t per_group, int64_t strips,
                           int64_t columns, float *out, int64_t out_stride)
{
    __shared__ float parts[kSumWarps][kWarp];
    const int64_t column = (int64_t)blockIdx.x * kWarp + threadIdx.x;
    const int64_t begin = (int64_t)blockIdx.y * per_group;
    const int64_t end = begin + per_group < strips ? begin + per_group : strips;
    float sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (int64_t s = begin + threadIdx.y; s < end; s += kSumWarps)
            sum += partials[s * columns + column];
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= columns) return;
    for (int warp = 1; warp < kSumWarps; warp++)
        sum += parts[warp][threadIdx.x];
    out[blockIdx.y * out_stride + column] = sum;
}

/* The kind's sums over groups of rows_per_group rows. */
hd_status sum_groups(hd_stream *stream, const hdi_modulate_gradient_args *args, const row_cut &cut,
                     const float *partials, int64_t rows_per_group, float *out, int64_t stride)
{
    constexpr int64_t kMostGroups = 65535; /* of a launch */
    const int64_t groups = hdi_ceil_div(args->rows, rows_per_group);
    const int64_t per_group = hdi_ceil_div(rows_per_group, cut.chunk) * cut.per_chunk;
    for (int64_t first = 0; first < groups; first += kMostGroups) {
        const int64_t count = groups - first < kMostGroups ? groups - first : kMostGroups;
        const dim3 grid(block_count(args->columns, kWarp), (unsigned)count);
        add_strips<<<grid, dim3(kWarp, kSumWarps), 0, stream->handle>>>(
            partials + first * per_group * args->columns, per_group, cut.strips - first * per_group,
            args->columns, out + first * stride, stride);
    }
    return launched("modulate gradient: sums");
}

template <typename T> bool rows_are_aligned(const hdi_modulate_gradient_args &a)
{
    constexpr int L = kLanes<T>;
    return a.columns % L == 0 &&
           are_aligned(a.gradient, a.carry, a.x, a.delta, a.x_gradient, a.delta_gradient) &&
           (!a.scale || (is_aligned(a.scale) && a.stride % L == 0)) &&
           (!a.delta_gradient || (is_aligned(a.gate) && a.gate_stride % L == 0));
}

template <typename T>
hd_status run_strips(hd_stream *stream, const hdi_modulate_gradient_args &a, const row_cut &cut)
{
    row_split row;
    HD_RETURN_IF_ERROR(split_row<T>("modulate gradient", a.columns, &row));
    return with_row(row, rows_are_aligned<T>(a), [&](auto vectors, auto whole) {
        constexpr int kVectors = decltype(vectors)::value;
        constexpr bool kAligned = decltype(whole)::value != 0;
        float *partials = (float *)a.workspace;
        const unsigned blocks = (unsigned)cut.strips;
        hdi_cuda_fault *fault = stream->device->fault;
        if (a.gate_sums || a.delta_gradient)
            differentiate_strip<T, kVectors, kAligned, true>
                <<<blocks, row.threads, 0, stream->handle>>>(a, cut, partials, fault);
        else
            differentiate_strip<T, kVectors, kAligned, false>
                <<<blocks, row.threads, 0, stream->handle>>>(a, cut, partials, fault);
        return launched("modulate gradient");
    });
}

/* Entries of the table's gradient: a thread adds the groups that used its entry. */
template <typename T> __global__ void gather_groups(hdi_modulation_gradient_args a)
{
    const int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t source = column - a.first;
    if (column >= a.table_columns) return;
    for (int64_t entry = blockIdx.y; entry < a.entries; entry += gridDim.y) {
        float sum = 0;
        if (source >= 0 && source < a.columns) {
            if (!a.index && entry < a.groups) sum = a.sums[entry * a.sums_stride + source];
            for (int64_t g = 0; a.index && g < a.groups; g++)
                if (a.index[g] == entry) sum += a.sums[g * a.sums_stride + source];
        }
        ((T *)a.table_gradient)[entry * a.table_columns + column] = from_float<T>(sum);
    }
}

} // namespace

extern "C" size_t hdi_cuda_modulate_gradient_workspace(const hdi_modulate_gradient_args *args)
{
    if (args->rows <= 0) return 0;
    return (size_t)(KINDS * cut_rows(args).strips * args->columns) * sizeof(float);
}

extern "C" hd_status hdi_cuda_modulate_gradient(hd_stream *stream,
                                                const hdi_modulate_gradient_args *args)
{
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    hdi_modulate_gradient_args a = *args;
    if (!a.gradient) a.sums = NULL;
    if (!a.delta) a.gate_sums = NULL;
    const row_cut cut = cut_rows(args);
    HD_RETURN_IF_ERROR(with_type(a.dtype, "modulate gradient", [&](auto tag) {
        return run_strips<typename decltype(tag)::type>(stream, a, cut);
    }));
    const float *partials = (const float *)a.workspace;
    const int64_t kind = cut.strips * a.columns;
    for (int i = SHIFT; i <= SCALE && a.sums; i++)
        HD_RETURN_IF_ERROR(sum_groups(stream, &a, cut, partials + i * kind, a.rows_per_group,
                                      a.sums + i * a.columns, 2 * a.columns));
    if (!a.gate_sums) return HD_OK;
    return sum_groups(stream, &a, cut, partials + GATE * kind, a.gate_rows_per_group, a.gate_sums,
                      a.columns);
}

extern "C" hd_status hdi_cuda_modulation_gradient(hd_stream *stream,
                                                  const hdi_modulation_gradient_args *args)
{
    constexpr int kThreads = 256;
    if (args->entries <= 0 || args->table_columns <= 0) return HD_OK;
    return with_type(args->dtype, "modulation gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const dim3 grid(block_count(args->table_columns, kThreads),
                        (unsigned)(args->entries < 65535 ? args->entries : 65535));
        gather_groups<T><<<grid, kThreads, 0, stream->handle>>>(*args);
        return launched("modulation gradient");
    });
}
