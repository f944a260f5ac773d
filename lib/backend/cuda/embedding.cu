/* Embedding: rows of a table by id, and the sum of gradients back into the table. For the sum, rows
 * are sorted by id (a stable radix sort, so equal ids stay in the order of rows) and each id's rows
 * are added by one warp, or one block per strip of columns if there are many. Ids with a period need
 * no sort. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kWarps = 8;    /* of a block: rows, or ids, at a time */
constexpr int kDigits = 256; /* of the radix sort, one thread each */
constexpr int kTile = 512;   /* rows that a block of the sort orders */
constexpr int kScanThreads = 1024;
constexpr int kFewRows = 32; /* of one id that a warp adds alone */

template <typename T>
__device__ void add_entry(const void *table, int32_t id, int64_t entries, int64_t columns,
                          int64_t column, bool aligned, float (&sum)[kLanes<T>])
{
    if (id < 0 || id >= entries) return;
    float value[kLanes<T>];
    load_part((const T *)table + id * columns + column, columns - column, aligned, value);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++)
        sum[i] += value[i];
}

template <typename T>
__global__ void look_up_row_per_warp(hdi_embedding_args a, bool aligned, hdi_cuda_fault *fault)
{
    constexpr int L = kLanes<T>;
    const int64_t row = (int64_t)blockIdx.x * kWarps + threadIdx.y;
    if (row >= a.rows) return;
    const int32_t id = a.ids[row], second = a.second_table ? a.second_ids[row] : 0;
    const int64_t limit = a.limit ? a.limit : a.entries;
    if (threadIdx.x == 0 && (id < 0 || id >= limit))
        report_fault(fault, HDI_FAULT_EMBEDDING, id, row, limit);
    if (threadIdx.x == 0 && a.second_table && (second < 0 || second >= a.second_entries))
        report_fault(fault, HDI_FAULT_SECOND_EMBEDDING, second, row, a.second_entries);
    for (int64_t c = threadIdx.x * L; c < a.columns; c += kWarp * L) {
        float sum[L] = {};
        add_entry<T>(a.table, id - (int32_t)a.first, a.entries, a.columns, c, aligned, sum);
        if (a.second_table)
            add_entry<T>(a.second_table, second, a.second_entries, a.columns, c, aligned, sum);
        store_part((T *)a.out + row * a.columns + c, a.columns - c, aligned, sum);
    }
}

/* One pass of the sort orders `keys` and `rows` by eight bits of the key. */
struct sort_arrays {
    int32_t *keys, *rows;
};

struct sort_workspace {
    sort_arrays front, back;
    int32_t *counts; /* [kDigits, tiles], then where each count's elements begin */
    int64_t tiles;
};

int64_t tile_count(int64_t rows)
{
    return hdi_ceil_div(rows > 0 ? rows : 1, kTile);
}

sort_workspace lay_out(void *workspace, int64_t rows)
{
    int32_t *words = (int32_t *)workspace;
    sort_workspace out;
    out.front = {words, words + rows};
    out.back = {words + 2 * rows, words + 3 * rows};
    out.counts = words + 4 * rows;
    out.tiles = tile_count(rows);
    return out;
}

/* Bad ids, and those of other parts of the table, become `entries`, which sorts behind all others. */
__global__ void make_keys(hdi_embedding_gradient_args a, sort_arrays out, hdi_cuda_fault *fault)
{
    const int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= a.rows) return;
    const int64_t limit = a.limit ? a.limit : a.entries, entry = a.ids[row] - a.first;
    if (a.ids[row] < 0 || a.ids[row] >= limit)
        report_fault(fault, HDI_FAULT_EMBEDDING_GRADIENT, a.ids[row], row, limit);
    out.keys[row] = (int32_t)(entry >= 0 && entry < a.entries ? entry : a.entries);
    out.rows[row] = (int32_t)row;
}

/* The tile's digits into shared memory, one byte each. Returns how many there are. */
__device__ int load_digits(const int32_t *keys, int64_t rows, int shift, uint8_t *digits)
{
    const int64_t begin = (int64_t)blockIdx.x * kTile;
    const int count = (int)(rows - begin < kTile ? rows - begin : kTile);
    for (int i = (int)threadIdx.x; i < count; i += kDigits)
        digits[i] = (uint8_t)(keys[begin + i] >> shift);
    __syncthreads();
    return count;
}

/* Thread d counts the elements with digit d. */
__global__ void count_digits(const int32_t *keys, int64_t rows, int shift, sort_workspace sort)
{
    __shared__ uint8_t digits[kTile];
    const int count = load_digits(keys, rows, shift, digits);
    int same = 0;
    for (int i = 0; i < count; i++)
        same += digits[i] == threadIdx.x;
    sort.counts[threadIdx.x * sort.tiles + blockIdx.x] = same;
}

/* One block: counts become the sums of all counts before them. */
__global__ void scan_counts(int32_t *counts, int64_t length)
{
    __shared__ int32_t sums[kScanThreads];
    const int thread = (int)threadIdx.x;
    const int64_t share = (length + kScanThreads - 1) / kScanThreads;
    const int64_t begin = thread * share;
    const int64_t end = begin + share < length ? begin + share : length;
    int32_t sum = 0;
    for (int64_t i = begin; i < end; i++)
        sum += counts[i];
    sums[thread] = sum;
    __syncthreads();
    for (int step = 1; step < kScanThreads; step *= 2) {
        const int32_t before = thread >= step ? sums[thread - step] : 0;
        __syncthreads();
        sums[thread] += before;
        __syncthreads();
    }
    int32_t running = thread > 0 ? sums[thread - 1] : 0;
    for (int64_t i = begin; i < end; i++) {
        const int32_t count = counts[i];
        counts[i] = running;
        running += count;
    }
}

/* Thread d finds where the elements with digit d go, in their order; then all are moved at once. */
__global__ void move_by_digit(sort_arrays from, sort_arrays to, int64_t rows, int shift,
                              sort_workspace sort)
{
    __shared__ uint8_t digits[kTile];
    __shared__ int32_t targets[kTile];
    const int count = load_digits(from.keys, rows, shift, digits);
    const int64_t begin = (int64_t)blockIdx.x * kTile;
    int32_t target = sort.counts[threadIdx.x * sort.tiles + blockIdx.x];
    for (int i = 0; i < count; i++)
        if (digits[i] == threadIdx.x) targets[i] = target++;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < count; i += kDigits) {
        to.keys[targets[i]] = from.keys[begin + i];
        to.rows[targets[i]] = from.rows[begin + i];
    }
}

/* The first position whose key is not below `key`. */
__device__ int64_t first_at_least(const int32_t *keys, int64_t rows, int32_t key)
{
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Adds the rows rows[i], or i if there are none, for every step-th i. */
template <typename T>
__device__ inline void add_rows(const hdi_embedding_gradient_args &a, const int32_t *rows,
                                int64_t begin, int64_t end, int64_t step, int64_t column,
                                bool aligned, float (&sum)[kLanes<T>])
{
    const auto part = [&](int64_t i) {
        return (const T *)a.gradient + (rows ? rows[i] : i) * a.columns + column;
    };
    if (aligned)
        add_parts<T, true>(begin, end, step, a.columns - column, part, sum);
    else
        add_parts<T, false>(begin, end, step, a.columns - column, part, sum);
}

/* `aligned` says it of the table: 16-byte accesses, each lane's next to its neighbour's. */
template <typename T>
__device__ void add_to_entry(const hdi_embedding_gradient_args &a, int64_t entry, int64_t column,
                             bool aligned, const float (&sum)[kLanes<T>])
{
#pragma unroll
    for (int first = 0; first < kLanes<T>; first += 4) {
        const int64_t left = a.columns - column - first;
        float *out = a.table_gradient + entry * a.columns + column + first, values[4] = {};
        if (a.accumulate) load_part(out, left, aligned, values);
#pragma unroll
        for (int i = 0; i < 4; i++)
            values[i] = a.accumulate ? values[i] + sum[first + i] : sum[first + i];
        store_part(out, left, aligned, values);
    }
}

/* Each thread has a part of one entry, and adds the rows that lie a period apart. */
template <typename T>
__global__ void add_periodic_rows(hdi_embedding_gradient_args a, int64_t parts, bool aligned)
{
    constexpr int L = kLanes<T>;
    const int64_t index = (int64_t)blockIdx.x * kDigits + threadIdx.x;
    const int64_t entry = index / parts, column = index % parts * L;
    if (entry >= a.period) return;
    float sum[L] = {};
    add_rows<T>(a, NULL, entry, a.rows, a.period, column, aligned, sum);
    add_to_entry<T>(a, entry, column, aligned, sum);
}

/* The warp at the first position of an id adds its rows, if they are few. */
template <typename T>
__global__ void add_few_rows(hdi_embedding_gradient_args a, sort_arrays sorted, bool aligned)
{
    constexpr int L = kLanes<T>;
    const int64_t begin = (int64_t)blockIdx.x * kWarps + threadIdx.y;
    if (begin >= a.rows) return;
    const int32_t key = sorted.keys[begin];
    if (key >= a.entries || (begin > 0 && sorted.keys[begin - 1] == key)) return;
    int count = 0;
    while (count <= kFewRows && begin + count < a.rows && sorted.keys[begin + count] == key)
        count++;
    if (count > kFewRows) return; /* add_many_rows does it */
    for (int64_t c = threadIdx.x * L; c < a.columns; c += kWarp * L) {
        float sum[L] = {};
        add_rows<T>(a, sorted.rows, begin, begin + count, 1, c, aligned, sum);
        add_to_entry<T>(a, key, c, aligned, sum);
    }
}

/* An id with more than kFewRows rows has a position that is a multiple of kFewRows: the block of the
 * first of them adds the rows, every lane of 32 each 32nd row, then the lanes' sums in order. */
template <typename T>
__global__ void add_many_rows(hdi_embedding_gradient_args a, sort_arrays sorted, bool aligned)
{
    constexpr int L = kLanes<T>, kAcross = 8, kDown = 32;
    __shared__ float parts[kDown][kAcross * L];
    const int64_t position = (int64_t)blockIdx.x * kFewRows;
    const int32_t key = sorted.keys[position];
    if (key >= a.entries) return;
    if (position >= kFewRows && sorted.keys[position - kFewRows] == key) return;
    const int64_t begin = first_at_least(sorted.keys, a.rows, key);
    const int64_t end = first_at_least(sorted.keys, a.rows, key + 1);
    if (end - begin <= kFewRows) return;

    const int across = (int)threadIdx.x, down = (int)threadIdx.y;
    const int64_t strip = (int64_t)blockIdx.y * kAcross * L, column = strip + across * L;
    float sum[L] = {};
    if (column < a.columns)
        add_rows<T>(a, sorted.rows, begin + down, end, kDown, column, aligned, sum);
#pragma unroll
    for (int i = 0; i < L; i++)
        parts[down][across * L + i] = sum[i];
    __syncthreads();
    const int index = down * kAcross + across;
    if (index >= kAcross * L || strip + index >= a.columns) return;
    float total = 0;
    for (int part = 0; part < kDown; part++)
        total += parts[part][index];
    float *out = a.table_gradient + (int64_t)key * a.columns + strip + index;
    *out = a.accumulate ? *out + total : total;
}

/* Order the rows by id; *out is where the order came to lie. */
hd_status sort_rows(hd_stream *stream, const hdi_embedding_gradient_args *args, sort_arrays *out)
{
    const sort_workspace sort = lay_out(args->workspace, args->rows);
    sort_arrays from = sort.front, to = sort.back;
    make_keys<<<block_count(args->rows, kDigits), kDigits, 0, stream->handle>>>(
        *args, from, stream->device->fault);
    for (int shift = 0; shift < 32 && args->entries >> shift > 0; shift += 8) {
        const unsigned tiles = (unsigned)sort.tiles;
        count_digits<<<tiles, kDigits, 0, stream->handle>>>(from.keys, args->rows, shift, sort);
        scan_counts<<<1, kScanThreads, 0, stream->handle>>>(sort.counts, kDigits * sort.tiles);
        move_by_digit<<<tiles, kDigits, 0, stream->handle>>>(from, to, args->rows, shift, sort);
        const sort_arrays ordered = to;
        to = from;
        from = ordered;
    }
    *out = from;
    return launched("embedding gradient: sort");
}

hd_status add_periodic(hd_stream *stream, const hdi_embedding_gradient_args *args)
{
    return with_type(args->dtype, "embedding gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned =
            are_aligned(args->gradient, args->table_gradient) && args->columns % kLanes<T> == 0;
        const int64_t parts = hdi_ceil_div(args->columns, kLanes<T>);
        add_periodic_rows<T>
            <<<block_count(args->period * parts, kDigits), kDigits, 0, stream->handle>>>(
                *args, parts, aligned);
        return launched("embedding gradient");
    });
}

} // namespace

extern "C" hd_status hdi_cuda_embedding(hd_stream *stream, const hdi_embedding_args *args)
{
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    return with_type(args->dtype, "embedding", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned = are_aligned(args->table, args->second_table, args->out) &&
                             args->columns % kLanes<T> == 0;
        look_up_row_per_warp<T>
            <<<block_count(args->rows, kWarps), dim3(kWarp, kWarps), 0, stream->handle>>>(
                *args, aligned, stream->device->fault);
        return launched("embedding");
    });
}

extern "C" size_t hdi_cuda_embedding_gradient_workspace(int64_t rows, int64_t entries)
{
    (void)entries;
    return sizeof(int32_t) * (size_t)(4 * rows + kDigits * tile_count(rows));
}

extern "C" hd_status hdi_cuda_embedding_gradient(hd_stream *stream,
                                                 const hdi_embedding_gradient_args *args)
{
    if (args->columns <= 0) return HD_OK;
    if (!args->accumulate)
        HD_RETURN_IF_ERROR(hdi_cuda_zero(stream, args->table_gradient,
                                         (size_t)args->entries * (size_t)args->columns *
                                             sizeof *args->table_gradient));
    if (args->rows <= 0) return HD_OK;
    if (args->period > 0) return add_periodic(stream, args);
    if (args->rows > INT32_MAX / 8)
        return hdi_error(HD_ERROR_UNSUPPORTED, "embedding gradient: %lld rows, want at most %d",
                         (long long)args->rows, INT32_MAX / 8);
    sort_arrays sorted;
    HD_RETURN_IF_ERROR(sort_rows(stream, args, &sorted));
    return with_type(args->dtype, "embedding gradient", [&](auto tag) {
        using T = typename decltype(tag)::type;
        const bool aligned =
            are_aligned(args->gradient, args->table_gradient) && args->columns % kLanes<T> == 0;
        add_few_rows<T>
            <<<block_count(args->rows, kWarps), dim3(kWarp, kWarps), 0, stream->handle>>>(
                *args, sorted, aligned);
        const dim3 grid(block_count(args->rows, kFewRows),
                        block_count(args->columns, 8 * kLanes<T>));
        add_many_rows<T><<<grid, dim3(8, 32), 0, stream->handle>>>(*args, sorted, aligned);
        return launched("embedding gradient");
    });
}
