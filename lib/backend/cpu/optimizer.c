/* AdamW on fp32 weights. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/threads.h"
#include "backend/cpu/vector.h"
#include "core/error.h"

static void update_chunk(void *context, int64_t index, int lane)
{
    const hdi_adamw_args *args = context;
    (void)lane;
    const int64_t first = index * HDI_CPU_CHUNK;
    const int64_t count = hdi_cpu_min(HDI_CPU_CHUNK, args->elements - first);
    const float *gradient = args->gradient + first;
    float *m = args->m + first, *v = args->v + first;
    float *weights = (float *)args->weights + first;
    float *master = args->master ? args->master + first : weights;

    const float rate = args->scalars[0], gradient_scale = args->scalars[1];
    const float kept = 1.0f - rate * args->weight_decay;
    const float beta1 = args->beta1, beta2 = args->beta2, epsilon = args->epsilon;
    const float step = rate / args->scalars[2];
    const float root_scale = 1.0f / sqrtf(args->scalars[3]);
    HDI_INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * gradient_scale;
        const float mean = m[i] + (g - m[i]) * (1.0f - beta1);
        const float square = v[i] * beta2 + g * g * (1.0f - beta2);
        const float root = sqrtf(square) * root_scale + epsilon;
        m[i] = mean;
        v[i] = square;
        master[i] = master[i] * kept - step * mean / root;
    }
    if (master != weights) memcpy(weights, master, (size_t)count * sizeof *weights);
}

hd_status hdi_cpu_adamw(hd_stream *stream, const hdi_adamw_args *args)
{
    (void)stream;
    HD_RETURN_IF_ERROR(hdi_cpu_check_dtype("adamw", args->dtype));
    if (args->scalars[4] == 0.0f) return HD_OK;
    hdi_adamw_args work = *args;
    hdi_cpu_parallel(hdi_ceil_div(args->elements, HDI_CPU_CHUNK), update_chunk, &work);
    return HD_OK;
}
