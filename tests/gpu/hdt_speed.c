/* Measuring the CUDA backend. */
#include "tests/gpu/hdt_speed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <heddle/log.h>

static const hd_backend *const backend = &hdi_backend_cuda;
static const char *wanted_pattern;
static hdi_device *device;
static hd_stream *stream;
static char *arena;
static size_t used, room;

bool hdt_wanted(const char *name)
{
    used = 0;
    return !wanted_pattern || strstr(name, wanted_pattern) != NULL;
}

void *hdt_take(size_t bytes)
{
    void *out = arena + used;
    used += (bytes + 255) / 256 * 256;
    if (used > room) {
        printf("the arena has %zu bytes, want %zu\n", room, used);
        exit(EXIT_FAILURE);
    }
    return out;
}

void *hdt_numbers(hd_dtype dtype, int64_t count)
{
    void *out = hdt_take((size_t)count * hd_dtype_bytes(dtype));
    hdt_must(backend->fill_normal(stream, dtype, out, count, 1, used, 0, 0.5f));
    return out;
}

void hdt_measure(const char *name, hdt_call run, const void *args, double bytes, double flops)
{
    enum { WARM = 3, RUNS = 20 };
    float milliseconds = 0;
    for (int i = 0; i < WARM; i++)
        hdt_must(run(args));
    hdt_must(hdi_cuda_status(cudaEventRecord(device->begin, stream->handle), "cudaEventRecord"));
    for (int i = 0; i < RUNS; i++)
        hdt_must(run(args));
    hdt_must(hdi_cuda_status(cudaEventRecord(device->end, stream->handle), "cudaEventRecord"));
    hdt_must(backend->synchronize(stream));
    hdt_must(hdi_cuda_status(cudaEventElapsedTime(&milliseconds, device->begin, device->end),
                             "cudaEventElapsedTime"));
    const double time = (double)milliseconds / RUNS;
    printf("%-44s %9.3f ms", name, time);
    if (bytes > 0) printf(" %8.0f GB/s", bytes / time * 1e-6);
    if (flops > 0) printf(" %8.1f TFLOP/s", flops / time * 1e-9);
    printf("\n");
    fflush(stdout);
}

static void print_line(void *user, hd_log_level level, const char *line)
{
    (void)user;
    (void)level;
    printf("  %s\n", line);
}

hd_stream *hdt_speed_open(const char *pattern, size_t bytes)
{
    hdi_memory_info memory;
    wanted_pattern = pattern;
    hd_log_set_sink(print_line, NULL, HD_LOG_DEBUG);
    if (hdi_cuda_device_count() == 0) {
        printf("no CUDA device\n");
        exit(EXIT_FAILURE);
    }
    hdt_must(backend->open(0, &device));
    stream = backend->stream(device);
    hdt_must(backend->memory_info(device, &memory));
    room = memory.free_bytes / 10 * 9;
    if (room > bytes) room = bytes;
    hdt_must(backend->reserve(device, room, (void **)&arena));
    printf("sm_%d, %d processors, %.1f of %.1f GiB free\n", device->architecture,
           device->processors, (double)memory.free_bytes / 1073741824,
           (double)memory.total_bytes / 1073741824);
    return stream;
}

void hdt_speed_close(void)
{
    backend->release(device, arena, room);
    backend->close(device);
}
