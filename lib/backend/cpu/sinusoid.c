/* Sinusoids of scalars, angles in fp64. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "core/error.h"

#include <math.h>

static void sinusoid_row(void *context, int64_t r, int lane)
{
    const hdi_sinusoid_args *args = context;
    (void)lane;
    const int64_t half = args->columns / 2;
    float *out = (float *)args->out + r * args->columns;
    for (int64_t i = 0; i < half; i++) {
        const double frequency = pow(args->period, -2.0 * (double)i / (double)args->columns);
        const double angle = args->scale * (double)args->x[r] * frequency;
        out[i] = (float)cos(angle);
        out[half + i] = (float)sin(angle);
    }
}

hd_status hdi_cpu_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("sinusoid", args->dtype));
    hdi_sinusoid_args work = *args;
    hdi_cpu_parallel(args->rows, sinusoid_row, &work);
    return HD_OK;
}
