/* GEMM by cuBLASLt. Row-major matrices are column-major ones transposed, so out' = b' a'. For each
 * shape the library's candidates are timed once; the fastest is kept in a file and taken from then
 * on, so that reruns are equal bit for bit. A product with GELU is timed as one kernel and as two. */
#include "backend/cuda/cuda.h"

#include <cublasLt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "backend/cuda/gemm_cache.h"
#include "core/log.h"
#include "core/memory.h"

enum { CANDIDATES = 8, ROUNDS = 3, MOST_RUNS = 20 };

static const float longest_round = 2.0f; /* ms */

typedef struct gemm {
    int64_t key[HDI_GEMM_KEY_WORDS];
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t first, second, out; /* b, a, out of the call */
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace_bytes;
    bool separate; /* a product with GELU: two kernels were faster */
} gemm;

struct hdi_cuda_gemms {
    gemm *items;
    int count, capacity;
    hdi_gemm_cache cache;
};

static hd_status blas_status(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) return HD_OK;
    return hdi_error(HD_ERROR_DEVICE, "gemm: %s: %s", what, cublasLtGetStatusString(status));
}

static hd_status data_type(hd_dtype dtype, cudaDataType_t *out)
{
    switch (dtype) {
    case HD_DTYPE_F32: *out = CUDA_R_32F; return HD_OK;
    case HD_DTYPE_F16: *out = CUDA_R_16F; return HD_OK;
    case HD_DTYPE_BF16: *out = CUDA_R_16BF; return HD_OK;
    default:
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "gemm: dtype is %s, the CUDA backend has F32, F16, BF16",
                         hd_dtype_name(dtype));
    }
}

/* Kernels care for alignments up to 16 bytes. */
static int64_t alignment_of(const void *pointer)
{
    const uintptr_t address = (uintptr_t)pointer;
    return address % 16 == 0 ? 16 : (int64_t)(address & (~address + 1));
}

static void make_key(const hdi_gemm_args *args, int64_t *key)
{
    const int64_t words[HDI_GEMM_KEY_WORDS] = {
        args->dtype,
        args->out_dtype,
        args->rows,
        args->columns,
        args->inner,
        args->a_stride,
        args->b_stride,
        args->out_stride,
        args->transpose_a,
        args->transpose_b,
        args->accumulate,
        args->bias != NULL,
        alignment_of(args->a),
        alignment_of(args->b),
        alignment_of(args->out),
        args->bias ? alignment_of(args->bias) : 0,
        args->gelu,
        args->gelu ? alignment_of(args->pre) : 0,
    };
    memcpy(key, words, sizeof words);
}

static void destroy_gemm(gemm *item)
{
    if (item->operation) (void)cublasLtMatmulDescDestroy(item->operation);
    if (item->first) (void)cublasLtMatrixLayoutDestroy(item->first);
    if (item->second) (void)cublasLtMatrixLayoutDestroy(item->second);
    if (item->out) (void)cublasLtMatrixLayoutDestroy(item->out);
}

void hdi_cuda_close_gemms(hdi_device *device)
{
    hdi_cuda_gemms *gemms = device->gemms;
    if (!gemms) return;
    for (int i = 0; i < gemms->count; i++)
        destroy_gemm(&gemms->items[i]);
    hdi_gemm_cache_close(&gemms->cache);
    hdi_free(gemms->items);
    hdi_free(gemms);
    device->gemms = NULL;
}

static hd_status open_gemms(hdi_device *device)
{
    if (device->gemms) return HD_OK;
    struct cudaDeviceProp properties;
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaGetDeviceProperties(&properties, device->ordinal),
                                       "cudaGetDeviceProperties"));
    device->gemms = hdi_alloc(sizeof *device->gemms);
    if (!device->gemms) return hdi_error(HD_ERROR_MEMORY, "gemm: out of host memory");
    hdi_gemm_cache_open(&device->gemms->cache, properties.name, cublasLtGetVersion());
    hdi_gemm_cache_load(&device->gemms->cache);
    return HD_OK;
}

static hd_status set(gemm *item, cublasLtMatmulDescAttributes_t attribute, const void *value,
                     size_t bytes)
{
    return blas_status(cublasLtMatmulDescSetAttribute(item->operation, attribute, value, bytes),
                       "cublasLtMatmulDescSetAttribute");
}

/* What a call's epilogue reads or writes besides `out`. */
static hd_status set_pointers(gemm *item, const hdi_gemm_args *args)
{
    if (args->bias)
        HD_RETURN_IF_ERROR(
            set(item, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &args->bias, sizeof args->bias));
    if (!args->gelu) return HD_OK;
    return set(item, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &args->pre, sizeof args->pre);
}

static cublasLtEpilogue_t epilogue_of(const hdi_gemm_args *args)
{
    switch (args->gelu) {
    case HDI_GEMM_GELU:
        return args->bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case HDI_GEMM_GELU_GRADIENT: return CUBLASLT_EPILOGUE_DGELU;
    default: return args->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    }
}

static hd_status make_layout(cublasLtMatrixLayout_t *out, cudaDataType_t type, int64_t rows,
                             int64_t columns, int64_t stride)
{
    return blas_status(
        cublasLtMatrixLayoutCreate(out, type, (uint64_t)rows, (uint64_t)columns, stride),
        "cublasLtMatrixLayoutCreate");
}

/* The descriptors of a call. fp32 is true fp32: no TF32. */
static hd_status describe(const hdi_gemm_args *args, gemm *item)
{
    cudaDataType_t type = CUDA_R_32F, out_type = CUDA_R_32F;
    HD_RETURN_IF_ERROR(data_type(args->dtype, &type));
    HD_RETURN_IF_ERROR(data_type(args->out_dtype, &out_type));
    if (args->bias && args->dtype != args->out_dtype)
        return hdi_error(HD_ERROR_UNSUPPORTED, "gemm: a bias of %s onto %s, want the same dtype",
                         hd_dtype_name(args->dtype), hd_dtype_name(args->out_dtype));
    HD_RETURN_IF_ERROR(
        blas_status(cublasLtMatmulDescCreate(&item->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                    "cublasLtMatmulDescCreate"));
    const cublasOperation_t first = args->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = args->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    HD_RETURN_IF_ERROR(set(item, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    HD_RETURN_IF_ERROR(set(item, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    const cublasLtEpilogue_t epilogue = epilogue_of(args);
    HD_RETURN_IF_ERROR(set(item, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (args->bias)
        HD_RETURN_IF_ERROR(set(item, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
    if (args->gelu)
        HD_RETURN_IF_ERROR(set(item, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &args->out_stride,
                               sizeof args->out_stride));
    HD_RETURN_IF_ERROR(set_pointers(item, args));
    const int64_t m = args->columns, n = args->rows, k = args->inner;
    HD_RETURN_IF_ERROR(make_layout(&item->first, type, args->transpose_b ? k : m,
                                   args->transpose_b ? m : k, args->b_stride));
    HD_RETURN_IF_ERROR(make_layout(&item->second, type, args->transpose_a ? n : k,
                                   args->transpose_a ? k : n, args->a_stride));
    return make_layout(&item->out, out_type, m, n, args->out_stride);
}

static cublasStatus_t multiply(const hd_stream *stream, const hdi_gemm_args *args, const gemm *item)
{
    const float one = 1, beta = args->accumulate ? 1 : 0;
    return cublasLtMatmul(stream->device->blas, item->operation, &one, args->b, item->first,
                          args->a, item->second, &beta, args->out, item->out, args->out, item->out,
                          &item->algorithm, stream->device->blas_workspace, item->workspace_bytes,
                          stream->handle);
}

static hd_status find_candidates(const hdi_device *device, const gemm *item,
                                 cublasLtMatmulHeuristicResult_t *results, int *count)
{
    static const cublasLtMatmulPreferenceAttributes_t attributes[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const int64_t *key = item->key;
    const uint32_t alignments[] = {(uint32_t)key[13], (uint32_t)key[12], (uint32_t)key[14],
                                   (uint32_t)key[14]};
    const size_t workspace = HDI_CUDA_BLAS_WORKSPACE;
    /* Parts of a split sum meet in fp32, never in a 16-bit output. */
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreference_t preference = NULL;
    HD_RETURN_IF_ERROR(
        blas_status(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
    cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulPreferenceSetAttribute(
            preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
    for (int i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++)
        status = cublasLtMatmulPreferenceSetAttribute(preference, attributes[i], &alignments[i],
                                                      sizeof alignments[i]);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoGetHeuristic(device->blas, item->operation, item->first,
                                                item->second, item->out, item->out, preference,
                                                CANDIDATES, results, count);
    (void)cublasLtMatmulPreferenceDestroy(preference);
    HD_RETURN_IF_ERROR(blas_status(status, "cublasLtMatmulAlgoGetHeuristic"));
    if (*count > 0) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED,
                     "gemm: cuBLASLt has no algorithm for %" PRId64 " x %" PRId64 " x %" PRId64,
                     key[2], key[3], key[4]);
}

static hd_status run_item(hd_stream *stream, const hdi_gemm_args *args, const gemm *item)
{
    if (item->separate) return hdi_gemm_then_gelu(&hdi_backend_cuda, stream, args);
    return blas_status(multiply(stream, args, item), "cublasLtMatmul");
}

/* Milliseconds of `runs` runs; negative if the candidate does not run. */
static float time_runs(hd_stream *stream, const hdi_gemm_args *args, const gemm *item, int runs)
{
    const hdi_device *device = stream->device;
    float milliseconds = -1;
    bool done = cudaEventRecord(device->begin, stream->handle) == cudaSuccess;
    for (int i = 0; i < runs && done; i++)
        done = run_item(stream, args, item) == HD_OK;
    done = done && cudaEventRecord(device->end, stream->handle) == cudaSuccess &&
           cudaEventSynchronize(device->end) == cudaSuccess &&
           cudaEventElapsedTime(&milliseconds, device->begin, device->end) == cudaSuccess;
    return done ? milliseconds : -1;
}

/* The shortest of a few rounds; negative if the candidate does not run. */
static float time_candidate(hd_stream *stream, const hdi_gemm_args *args, const gemm *item)
{
    if (time_runs(stream, args, item, 1) < 0) return -1;
    const float once = time_runs(stream, args, item, 1);
    if (once < 0) return -1;
    const float wanted = once > 0 ? longest_round / once : MOST_RUNS;
    const int runs = wanted < 1 ? 1 : wanted > MOST_RUNS ? MOST_RUNS : (int)wanted;
    float best = -1;
    for (int round = 0; round < ROUNDS; round++) {
        const float total = time_runs(stream, args, item, runs);
        if (total >= 0 && (best < 0 || total / (float)runs < best)) best = total / (float)runs;
    }
    return best;
}

/* The candidates for `item`, timed by running `args` with the descriptors of `timed`, which may be item.
 * *best is the time. */
static hd_status choose_by(hd_stream *stream, const hdi_gemm_args *args, gemm *timed, gemm *item,
                           float *best)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int count = 0, chosen = -1;
    HD_RETURN_IF_ERROR(find_candidates(stream->device, item, results, &count));
    for (int i = 0; i < count; i++) {
        if (results[i].state != CUBLAS_STATUS_SUCCESS ||
            results[i].workspaceSize > HDI_CUDA_BLAS_WORKSPACE)
            continue;
        timed->algorithm = results[i].algo;
        timed->workspace_bytes = results[i].workspaceSize;
        const float time = time_candidate(stream, args, timed);
        if (time < 0 || (chosen >= 0 && time >= *best)) continue;
        *best = time;
        chosen = i;
    }
    (void)cudaGetLastError(); /* of candidates that did not run */
    if (chosen < 0)
        return hdi_error(HD_ERROR_DEVICE,
                         "gemm: none of %d algorithms runs for %" PRId64 " x %" PRId64
                         " x %" PRId64,
                         count, args->rows, args->columns, args->inner);
    item->algorithm = results[chosen].algo;
    item->workspace_bytes = results[chosen].workspaceSize;
    hdi_log(HD_LOG_DEBUG, "gemm %" PRId64 " x %" PRId64 " x %" PRId64 ": candidate %d, %.3f ms",
            args->rows, args->columns, args->inner, chosen, (double)*best);
    return HD_OK;
}

static hd_status choose_fastest(hd_stream *stream, const hdi_gemm_args *args, gemm *item,
                                float *best)
{
    return choose_by(stream, args, item, item, best);
}

static hd_status choose_for_gelu(hd_stream *stream, const hdi_gemm_args *args, gemm *item)
{
    float together = 0;
    const bool runs = choose_fastest(stream, args, item, &together) == HD_OK;
    const float apart = time_candidate(stream, args, &(gemm){.separate = true});
    if (apart < 0 && !runs)
        return hdi_error(HD_ERROR_DEVICE,
                         "gemm with GELU: nothing runs for %" PRId64 " x %" PRId64 " x %" PRId64,
                         args->rows, args->columns, args->inner);
    item->separate = !runs || (apart >= 0 && apart < together);
    if (item->separate) memset(&item->algorithm, 0, sizeof item->algorithm);
    hdi_log(HD_LOG_DEBUG, "GELU %s: %.3f ms in one kernel (0: none), %.3f ms in two",
            args->gelu == HDI_GEMM_GELU ? "forward" : "gradient", (double)together, (double)apart);
    return HD_OK;
}

/* A sum is timed on a copy of its first rows, so that it is added to once and no plan is overstepped by
 * much; where there is no room for them, the library's first choice is taken. */
static hd_status choose_for_sum(hd_stream *stream, const hdi_gemm_args *args, gemm *item)
{
    const size_t size = hd_dtype_bytes(args->out_dtype);
    const int64_t most = (int64_t)(HDI_CUDA_TRIAL_BYTES / ((size_t)args->out_stride * size));
    hdi_gemm_args trial = *args;
    if (trial.rows > most) trial.rows = most > 0 ? most : 1;
    const size_t bytes = (size_t)((trial.rows - 1) * trial.out_stride + trial.columns) * size;
    hd_status status = HD_ERROR_MEMORY;
    if (cudaMalloc(&trial.out, bytes) == cudaSuccess) {
        gemm timed = {0};
        float best = 0;
        status = hdi_cuda_copy(stream, trial.out, args->out, bytes);
        if (status == HD_OK) status = describe(&trial, &timed);
        if (status == HD_OK) status = choose_by(stream, &trial, &timed, item, &best);
        (void)cudaStreamSynchronize(stream->handle);
        (void)cudaFree(trial.out);
        destroy_gemm(&timed);
    }
    (void)cudaGetLastError();
    if (status == HD_OK) return HD_OK;
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int count = 0;
    HD_RETURN_IF_ERROR(find_candidates(stream->device, item, results, &count));
    item->algorithm = results[0].algo;
    item->workspace_bytes = results[0].workspaceSize;
    return HD_OK;
}

/* Take what the file says, if the library still agrees. */
static bool recall(const hdi_device *device, gemm *item)
{
    const hdi_gemm_record *record = hdi_gemm_cache_find(&device->gemms->cache, item->key);
    const uint64_t zeros[HDI_GEMM_ALGORITHM_WORDS] = {0};
    cublasLtMatmulHeuristicResult_t result;
    if (!record) return false;
    memcpy(&item->algorithm, record->algorithm, sizeof item->algorithm);
    item->separate = item->key[16] && memcmp(record->algorithm, zeros, sizeof zeros) == 0;
    if (item->separate) return true;
    if (cublasLtMatmulAlgoCheck(device->blas, item->operation, item->first, item->second, item->out,
                                item->out, &item->algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > HDI_CUDA_BLAS_WORKSPACE)
        return false;
    item->workspace_bytes = result.workspaceSize;
    return true;
}

static hd_status time_all(hd_stream *stream, const hdi_gemm_args *args, gemm *item)
{
    float best = 0;
    if (args->gelu) return choose_for_gelu(stream, args, item);
    if (args->accumulate) return choose_for_sum(stream, args, item);
    return choose_fastest(stream, args, item, &best);
}

static hd_status find_gemm(hd_stream *stream, const hdi_gemm_args *args, gemm **out);

static hd_status choose(hd_stream *stream, const hdi_gemm_args *args, gemm *item)
{
    hdi_gemm_cache *cache = &stream->device->gemms->cache;
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (recall(stream->device, item)) return HD_OK;
    HD_RETURN_IF_ERROR(
        hdi_cuda_status(cudaStreamIsCapturing(stream->handle, &capture), "cudaStreamIsCapturing"));
    if (capture != cudaStreamCaptureStatusNone)
        return hdi_error(HD_ERROR_INTERNAL,
                         "gemm: %" PRId64 " x %" PRId64 " x %" PRId64
                         " is first seen while a graph is captured; run it once before",
                         args->rows, args->columns, args->inner);
    if (args->gelu) { /* its product alone is timed too, and takes the lock for that */
        const hdi_gemm_args product = hdi_gemm_before_gelu(args);
        gemm *plain;
        HD_RETURN_IF_ERROR(find_gemm(stream, &product, &plain));
    }
    hdi_gemm_cache_lock(cache);
    hdi_gemm_cache_load(cache); /* another rank may have timed it meanwhile */
    hd_status status = HD_OK;
    if (!recall(stream->device, item)) {
        hdi_gemm_record record;
        status = time_all(stream, args, item);
        memcpy(record.key, item->key, sizeof record.key);
        memcpy(record.algorithm, &item->algorithm, sizeof record.algorithm);
        if (status == HD_OK) status = hdi_gemm_cache_add(cache, &record);
    }
    hdi_gemm_cache_unlock(cache);
    return status;
}

/* The shape's descriptors and algorithm, made when it is first seen. */
static hd_status find_gemm(hd_stream *stream, const hdi_gemm_args *args, gemm **out)
{
    HD_RETURN_IF_ERROR(open_gemms(stream->device));
    hdi_cuda_gemms *gemms = stream->device->gemms;
    gemm item = {0};
    make_key(args, item.key);
    for (int i = 0; i < gemms->count; i++) {
        *out = &gemms->items[i];
        if (memcmp((*out)->key, item.key, sizeof item.key) == 0) return HD_OK;
    }
    hd_status status = describe(args, &item);
    if (status == HD_OK) status = choose(stream, args, &item);
    if (status == HD_OK && !HDI_GROW(gemms->items, gemms->count, gemms->capacity))
        status = hdi_error(HD_ERROR_MEMORY, "gemm: out of host memory");
    if (status != HD_OK) {
        destroy_gemm(&item);
        return status;
    }
    gemms->items[gemms->count] = item;
    *out = &gemms->items[gemms->count++];
    return HD_OK;
}

hd_status hdi_cuda_gemm(hd_stream *stream, const hdi_gemm_args *args)
{
    gemm *item = NULL;
    if (args->rows <= 0 || args->columns <= 0) return HD_OK;
    if (args->inner <= 0)
        return hdi_error(HD_ERROR_UNSUPPORTED, "gemm: inner is %" PRId64 ", want > 0", args->inner);
    HD_RETURN_IF_ERROR(find_gemm(stream, args, &item));
    HD_RETURN_IF_ERROR(set_pointers(item, args));
    return run_item(stream, args, item);
}

/* cuBLASLt wants rows of `pre` to be whole vectors; in fp32 there is little to win. */
hd_status hdi_cuda_gemm_gelu(hd_stream *stream, const hdi_gemm_args *args)
{
    const bool fits =
        args->dtype != HD_DTYPE_F32 && args->out_stride % 8 == 0 && alignment_of(args->pre) == 16;
    return fits ? hdi_cuda_gemm(stream, args) : hdi_gemm_then_gelu(&hdi_backend_cuda, stream, args);
}
