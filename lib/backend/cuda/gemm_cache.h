/* The file that keeps which GEMM algorithm was fastest for a shape, so that only the first run on a
 * machine has to time them, and so that all runs take the same one. */
#ifndef HDI_BACKEND_CUDA_GEMM_CACHE_H
#define HDI_BACKEND_CUDA_GEMM_CACHE_H

#include "backend/cuda/cuda.h"

enum { HDI_GEMM_KEY_WORDS = 18, HDI_GEMM_ALGORITHM_WORDS = 8 };

typedef struct hdi_gemm_record {
    int64_t key[HDI_GEMM_KEY_WORDS];
    /* A cublasLtMatmulAlgo_t; zeros: a product, then GELU. */
    uint64_t algorithm[HDI_GEMM_ALGORITHM_WORDS];
} hdi_gemm_record;

typedef struct hdi_gemm_cache {
    char path[4096]; /* "" where no file can be kept */
    hdi_gemm_record *records;
    int count, capacity;
    int lock; /* descriptor while locked, else -1 */
    bool warned;
} hdi_gemm_cache;

/* Names the file after the device and the library's version, in $HEDDLE_CACHE or ~/.cache/heddle. */
void hdi_gemm_cache_open(hdi_gemm_cache *cache, const char *device, size_t version);
void hdi_gemm_cache_close(hdi_gemm_cache *cache);

/* Read the file. One that is not there is empty; one that is damaged counts as empty and is said in
 * the log. */
void hdi_gemm_cache_load(hdi_gemm_cache *cache);

/* NULL if there is none. Borrowed until the next load or add. */
const hdi_gemm_record *hdi_gemm_cache_find(const hdi_gemm_cache *cache, const int64_t *key);

/* Keep the record and write the file. A file that cannot be written is said once in the log. */
hd_status hdi_gemm_cache_add(hdi_gemm_cache *cache, const hdi_gemm_record *record);

/* Between these no other process times candidates: ranks that start together agree on one choice,
 * and do not disturb each other's timing. */
void hdi_gemm_cache_lock(hdi_gemm_cache *cache);
void hdi_gemm_cache_unlock(hdi_gemm_cache *cache);

#endif
