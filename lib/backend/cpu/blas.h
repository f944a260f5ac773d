/* Single-threaded row-major GEMM from oneDNN or a CBLAS. */
#ifndef HDI_BACKEND_CPU_BLAS_H
#define HDI_BACKEND_CPU_BLAS_H

#include <stdbool.h>
#include <stdint.h>

/* Keep the BLAS on the calling thread: returns what hdi_cpu_blas_leave puts back, so that the host
 * program's own OpenMP regions keep their threads. */
int hdi_cpu_blas_enter(void);
void hdi_cpu_blas_leave(int saved);

/* out[rows, columns] = alpha * a * b (+ out, if accumulate). Call between enter and leave. */
bool hdi_cpu_sgemm(bool transpose_a, bool transpose_b, int64_t rows, int64_t columns, int64_t inner,
                   float alpha, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                   bool accumulate, float *out, int64_t out_stride);

#endif
