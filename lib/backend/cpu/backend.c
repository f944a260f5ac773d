/* The CPU backend's table, device and memory. Work is done when a call returns. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/cpu/cpu.h"
#include "core/error.h"
#include "core/memory.h"
#include "report/format.h"

hd_status hdi_cpu_check_dtype(const char *what, hd_dtype dtype)
{
    if (dtype == HD_DTYPE_F32) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED, "%s: dtype is %s, the CPU backend has F32, F16 and BF16",
                     what, hd_dtype_name(dtype));
}

static hd_status open_device(int ordinal, hdi_device **out)
{
    (void)ordinal; /* all ranks of a host share its processor and memory */
    *out = hdi_alloc(sizeof **out);
    if (!*out) return hdi_error(HD_ERROR_MEMORY, "cpu: out of host memory for a device");
    (*out)->stream.device = *out;
    return HD_OK;
}

static void close_device(hdi_device *device)
{
    if (!device) return;
    for (int i = 0; i < HDI_CPU_SCRATCH; i++)
        hdi_free(device->scratch[i]);
    hdi_free(device);
}

static hd_stream *stream_of(hdi_device *device)
{
    return &device->stream;
}

/* What the kernel thinks can be used without swapping; free pages alone leave out the caches. */
static uint64_t available_bytes(void)
{
    unsigned long long kilobytes = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1) break;
    if (file) fclose(file);
    if (kilobytes) return (uint64_t)kilobytes * 1024;
    return (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static hd_status memory_info(hdi_device *device, hdi_memory_info *out)
{
    (void)device;
    out->total_bytes = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    out->free_bytes = (size_t)available_bytes();
    return HD_OK;
}

static hd_status reserve(hdi_device *device, size_t bytes, void **out)
{
    (void)device;
    *out = hdi_map(bytes);
    if (*out) return HD_OK;
    return hdi_error(HD_ERROR_MEMORY, "cpu: the system refused %s for what is planned",
                     hdi_bytes(bytes).text);
}

static void release(hdi_device *device, void *arena, size_t bytes)
{
    (void)device;
    hdi_unmap(arena, bytes);
}

static hd_status register_host(hdi_device *device, void *memory, size_t bytes)
{
    (void)device, (void)memory, (void)bytes;
    return HD_OK;
}

static void unregister_host(hdi_device *device, void *memory, size_t bytes)
{
    (void)device, (void)memory, (void)bytes;
}

static hd_status copy(hd_stream *stream, void *out, const void *x, size_t bytes)
{
    (void)stream;
    if (bytes && out != x) memmove(out, x, bytes);
    return HD_OK;
}

static hd_status fetch(hd_stream *stream, int slot, void *device_memory, const void *host,
                       size_t bytes)
{
    (void)slot;
    return copy(stream, device_memory, host, bytes);
}

static hd_status await(hd_stream *stream, int slot)
{
    (void)stream, (void)slot;
    return HD_OK;
}

static hd_status store(hd_stream *stream, int slot, void *host, const void *device_memory,
                       size_t bytes)
{
    (void)slot;
    return copy(stream, host, device_memory, bytes);
}

static hd_status zero(hd_stream *stream, void *out, size_t bytes)
{
    (void)stream;
    if (bytes) memset(out, 0, bytes);
    return HD_OK;
}

static hd_status synchronize(hd_stream *stream)
{
    (void)stream;
    return HD_OK;
}

const hd_backend hdi_backend_cpu = {
    .name = "cpu",
    .open = open_device,
    .close = close_device,
    .memory_info = memory_info,
    .reserve = reserve,
    .release = release,
    .reserve_host = reserve,
    .release_host = release,
    .register_host = register_host,
    .unregister_host = unregister_host,
    .stream = stream_of,
    .copy_in = copy,
    .copy_out = copy,
    .copy = copy,
    .zero = zero,
    .synchronize = synchronize,
    .fetch = fetch,
    .await = await,
    .store = store,
    .await_store = await,
    .gemm = hdi_cpu_any_gemm,
    .column_sum = hdi_cpu_any_column_sum,
    .column_sum_workspace = hdi_cpu_column_sum_workspace,
    .embedding = hdi_cpu_any_embedding,
    .embedding_gradient = hdi_cpu_any_embedding_gradient,
    .embedding_gradient_workspace = hdi_cpu_embedding_gradient_workspace,
    .positions = hdi_cpu_positions,
    .select_row = hdi_cpu_select_row,
    .norm = hdi_cpu_any_norm,
    .norm_gradient = hdi_cpu_any_norm_gradient,
    .activation = hdi_cpu_any_activation,
    .activation_gradient = hdi_cpu_any_activation_gradient,
    .gated = hdi_cpu_any_gated,
    .gated_gradient = hdi_cpu_any_gated_gradient,
    .rope = hdi_cpu_any_rope,
    .attention = hdi_cpu_any_attention,
    .attention_workspace = hdi_cpu_attention_workspace,
    .attention_gradient = hdi_cpu_any_attention_gradient,
    .attention_gradient_workspace = hdi_cpu_attention_gradient_workspace,
    .merge_attention = hdi_cpu_merge_attention,
    .add_blocks = hdi_cpu_add_blocks,
    .attention_cached = hdi_cpu_any_attention_cached,
    .attention_cached_workspace = hdi_cpu_attention_cached_workspace,
    .cross_entropy = hdi_cpu_any_cross_entropy,
    .cross_entropy_part = hdi_cpu_any_cross_entropy_part,
    .sinusoid = hdi_cpu_any_sinusoid,
    .modulate = hdi_cpu_any_modulate,
    .modulate_gradient = hdi_cpu_any_modulate_gradient,
    .modulation_gradient = hdi_cpu_any_modulation_gradient,
    .add_rows = hdi_cpu_any_add_rows,
    .add_rows_gradient = hdi_cpu_any_add_rows_gradient,
    .mean_rows = hdi_cpu_mean_rows,
    .raise_counts = hdi_cpu_raise_counts,
    .patchify = hdi_cpu_any_patchify,
    .unpatchify = hdi_cpu_any_unpatchify,
    .squared_error = hdi_cpu_any_squared_error,
    .modulate_gradient_workspace = hdi_cpu_modulate_gradient_workspace,
    .copy_blocks = hdi_cpu_copy_blocks,
    .copy_grid = hdi_cpu_copy_grid,
    .squared_error_workspace = hdi_cpu_squared_error_workspace,
    .joint_qkv = hdi_cpu_any_joint_qkv,
    .joint_qkv_gradient = hdi_cpu_any_joint_qkv_gradient,
    .cross_attention = hdi_cpu_any_cross_attention,
    .cross_attention_workspace = hdi_cpu_cross_attention_workspace,
    .cross_attention_gradient = hdi_cpu_any_cross_attention_gradient,
    .cross_attention_gradient_workspace = hdi_cpu_cross_attention_gradient_workspace,
    .add = hdi_cpu_any_add,
    .convert = hdi_cpu_any_convert,
    .quantize = hdi_cpu_quantize,
    .dequantize = hdi_cpu_dequantize,
    .loss_sum = hdi_cpu_loss_sum,
    .sum_of_squares = hdi_cpu_sum_of_squares,
    .tree_sum = hdi_cpu_tree_sum,
    .round_sum = hdi_cpu_round_sum,
    .adamw = hdi_cpu_adamw,
    .average = hdi_cpu_average,
    .split_weights = hdi_cpu_split_weights,
    .join_weights = hdi_cpu_join_weights,
    .fill_normal = hdi_cpu_any_fill_normal,
};
