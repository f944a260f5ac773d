/* The clock of made-up time. */
#include "tests/support/hdt_clock.h"

#include "core/error.h"

enum { STAMPS = 1 << 15 };

static hd_backend clocked;
static double now, stamped[STAMPS];
static bool passed[STAMPS];
static int stamps;
static int64_t taken;

static hd_status gemm(hd_stream *stream, const hdi_gemm_args *args)
{
    now += 1e-3;
    return hdi_backend_cpu.gemm(stream, args);
}

static hd_status open_stamps(hdi_device *device, int count)
{
    (void)device;
    stamps = count;
    return count <= STAMPS ? HD_OK : hdi_error(HD_ERROR_INTERNAL, "%d stamps", count);
}

static hd_status stamp(hd_stream *stream, int index)
{
    (void)stream;
    if (index < 0 || index >= stamps) return hdi_error(HD_ERROR_INTERNAL, "stamp %d", index);
    stamped[index] = now;
    passed[index] = false;
    taken++;
    return HD_OK;
}

static hd_status synchronize(hd_stream *stream)
{
    for (int i = 0; i < stamps; i++)
        passed[i] = true;
    return hdi_backend_cpu.synchronize(stream);
}

static hd_status elapsed(hd_stream *stream, int from, int to, double *seconds)
{
    (void)stream;
    *seconds = stamped[to] - stamped[from];
    return passed[from] && passed[to] ? HD_OK : hdi_error(HD_ERROR_INTERNAL, "read before a wait");
}

hd_backend *hdt_clock_backend(void)
{
    clocked = hdi_backend_cpu;
    clocked.gemm = gemm;
    clocked.gemm_gelu = NULL;
    clocked.synchronize = synchronize;
    clocked.open_stamps = open_stamps;
    clocked.stamp = stamp;
    clocked.elapsed = elapsed;
    now = 0;
    taken = 0;
    return &clocked;
}

double hdt_clock_seconds(void)
{
    return now;
}

void hdt_clock_pass(double seconds)
{
    now += seconds;
}

int64_t hdt_clock_stamps(void)
{
    return taken;
}
