/* Patches of videos as rows, and the way back: a thread for each element of the result, which finds
 * its element of the other side. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;

/* Patches along each axis, elements of one, and columns from one element to the next if channels are
 * last. */
struct patch_grid {
    int64_t frames, height, width, volume, step;
};

patch_grid grid_of(const hdi_patch_args *args)
{
    const int64_t volume = args->patch[0] * args->patch[1] * args->patch[2];
    return {hdi_ceil_div(args->frames, args->patch[0]), hdi_ceil_div(args->height, args->patch[1]),
            hdi_ceil_div(args->width, args->patch[2]), volume, args->row_columns / volume};
}

int64_t row_count(const hdi_patch_args *args, const patch_grid &grid)
{
    return args->sequences * grid.frames * grid.height * grid.width;
}

template <typename T>
__global__ void fill_row_element(hdi_patch_args a, patch_grid grid, int64_t rows)
{
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    const int64_t row = index / a.row_columns, column = index - row * a.row_columns;
    if (row >= rows) return;
    const int64_t channel = a.channels_last ? column % grid.step : column / grid.volume;
    const int64_t within = a.channels_last ? column / grid.step : column % grid.volume;
    const int64_t f = row / (grid.width * grid.height) % grid.frames * a.patch[0] +
                      within / (a.patch[1] * a.patch[2]);
    const int64_t y =
        row / grid.width % grid.height * a.patch[1] + within / a.patch[2] % a.patch[1];
    const int64_t x = row % grid.width * a.patch[2] + within % a.patch[2];
    const int64_t sequence = row / (grid.width * grid.height * grid.frames);
    const bool there =
        channel < a.channels && within < grid.volume && f < a.frames && y < a.height && x < a.width;
    const int64_t source =
        (((sequence * a.channels + channel) * a.frames + f) * a.height + y) * a.width + x;
    ((T *)a.out)[index] = from_float<T>(there ? ((const float *)a.x)[source] : 0.0f);
}

template <typename T>
__global__ void fill_video_element(hdi_patch_args a, patch_grid grid, int64_t elements)
{
    const int64_t index = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (index >= elements) return;
    const int64_t x = index % a.width, y = index / a.width % a.height;
    const int64_t f = index / (a.width * a.height) % a.frames;
    const int64_t channel = index / (a.width * a.height * a.frames) % a.channels;
    const int64_t sequence = index / (a.width * a.height * a.frames * a.channels);
    const int64_t row =
        ((sequence * grid.frames + f / a.patch[0]) * grid.height + y / a.patch[1]) * grid.width +
        x / a.patch[2];
    const int64_t within =
        (f % a.patch[0] * a.patch[1] + y % a.patch[1]) * a.patch[2] + x % a.patch[2];
    const int64_t column =
        a.channels_last ? within * grid.step + channel : channel * grid.volume + within;
    ((float *)a.out)[index] = to_float(((const T *)a.x)[row * a.row_columns + column]);
}

} // namespace

extern "C" hd_status hdi_cuda_patchify(hd_stream *stream, const hdi_patch_args *args)
{
    const patch_grid grid = grid_of(args);
    const int64_t rows = row_count(args, grid), elements = rows * args->row_columns;
    if (elements <= 0) return HD_OK;
    return with_type(args->dtype, "patchify", [&](auto tag) {
        using T = typename decltype(tag)::type;
        fill_row_element<T>
            <<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(*args, grid, rows);
        return launched("patchify");
    });
}

extern "C" hd_status hdi_cuda_unpatchify(hd_stream *stream, const hdi_patch_args *args)
{
    const patch_grid grid = grid_of(args);
    const int64_t elements =
        args->sequences * args->channels * args->frames * args->height * args->width;
    if (elements <= 0) return HD_OK;
    return with_type(args->dtype, "unpatchify", [&](auto tag) {
        using T = typename decltype(tag)::type;
        fill_video_element<T><<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(
            *args, grid, elements);
        return launched("unpatchify");
    });
}
