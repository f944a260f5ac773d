/* The one file that knows which BLAS there is. Its threads are kept out: with more than one, oneDNN
 * may split the inner dimension, and the bits of a sum would depend on the machine. */
#include "backend/cpu/blas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#ifdef HDI_GEMM_DNNL
#include <dnnl.h>
#else
#include <cblas.h>
#endif

typedef int (*get_threads)(void);
typedef void (*set_threads)(int);

/* Looked up at run time: which OpenMP library the BLAS brings is its own choice, and there may be
 * none. */
static get_threads omp_get;
static set_threads omp_set;
static pthread_once_t looked_up = PTHREAD_ONCE_INIT;

static void look_up(void)
{
    void *get = dlsym(RTLD_DEFAULT, "omp_get_max_threads");
    void *set = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    if (get && set) {
        memcpy(&omp_get, &get, sizeof omp_get); /* ISO C has no cast from object to function */
        memcpy(&omp_set, &set, sizeof omp_set);
    }
#ifndef HDI_GEMM_DNNL
    /* OpenBLAS with its own threads has one setting for the process. */
    void *blas = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
    if (blas) {
        set_threads set_blas;
        memcpy(&set_blas, &blas, sizeof set_blas);
        set_blas(1);
    }
#endif
}

int hdi_cpu_blas_enter(void)
{
    pthread_once(&looked_up, look_up);
    if (!omp_get) return 1;
    int saved = omp_get();
    if (saved != 1) omp_set(1); /* a setting of this thread, not of the process */
    return saved;
}

void hdi_cpu_blas_leave(int saved)
{
    if (saved != 1) omp_set(saved);
}

bool hdi_cpu_sgemm(bool transpose_a, bool transpose_b, int64_t rows, int64_t columns, int64_t inner,
                   float alpha, const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                   bool accumulate, float *out, int64_t out_stride)
{
    if (rows <= 0 || columns <= 0) return true;
    if (inner <= 0) { /* an empty sum; BLAS libraries disagree on what they do with it */
        for (int64_t r = 0; r < rows && !accumulate; r++)
            memset(out + r * out_stride, 0, (size_t)columns * sizeof *out);
        return true;
    }
    const float beta = accumulate ? 1.0f : 0.0f;
#ifdef HDI_GEMM_DNNL
    return dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', rows, columns, inner, alpha,
                      a, a_stride, b, b_stride, beta, out, out_stride) == dnnl_success;
#else
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
                transpose_b ? CblasTrans : CblasNoTrans, (int)rows, (int)columns, (int)inner, alpha,
                a, (int)a_stride, b, (int)b_stride, beta, out, (int)out_stride);
    return true;
#endif
}
