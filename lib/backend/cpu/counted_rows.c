/* Rows of which each sequence has a counted number: their mean, and counts of joined sequences. */
#include "backend/cpu/cpu.h"

hd_status hdi_cpu_mean_rows(hd_stream *stream, const hdi_mean_rows_args *args)
{
    (void)stream;
    for (int64_t s = 0; s < args->sequences; s++) {
        const int64_t count = args->counts ? args->counts[s] : args->tokens;
        const float *x = args->x + s * args->tokens * args->columns;
        for (int64_t c = 0; c < args->columns; c++) {
            double sum = 0;
            for (int64_t r = 0; r < count && r < args->tokens; r++)
                sum += (double)x[r * args->columns + c];
            args->out[s * args->columns + c] = (float)(count > 0 ? sum / (double)count : 0);
        }
    }
    return HD_OK;
}

hd_status hdi_cpu_raise_counts(hd_stream *stream, const hdi_raise_counts_args *args)
{
    (void)stream;
    for (int64_t i = 0; i < args->elements; i++) {
        const int64_t behind = args->counts[i] - args->first;
        args->out[i] = (int32_t)(args->more + (behind < 0 ? 0 : hdi_cpu_min(behind, args->most)));
    }
    return HD_OK;
}
