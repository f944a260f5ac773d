/* Attention on cuDNN: which shapes it takes, its plans (kept by shape) and its workspace. */
#include "backend/cuda/attention.h"

#include <math.h>
#include <string.h>

#include "backend/cuda/attention_graph.h"
#include "core/log.h"
#include "core/memory.h"

/* Workspaces begin with what the graph needs from its caller, at multiples of this. */
enum { ALIGNMENT = 256, ENGINE_EXTRA = 1024, TOKEN_TILE = 128 };

/* The backward goes in slices, for what it holds beside its result: if exact, the gradient of all
 * scores of the slice, else a sum in fp32 of the gradient of queries. */
static const int64_t exact_slice_bytes = 256 << 20, slice_bytes = 1 << 30;

/* Sequences and heads are axes of a launch, which are that long at most. */
enum { LONGEST_AXIS = 65535 };

typedef struct attention_plan {
    hdi_cudnn_shape shape;
    hdi_cudnn_plan plan;
    bool refused;
} attention_plan;

struct hdi_cuda_attentions {
    const hdi_cudnn *cudnn; /* NULL: not there */
    cudnnHandle_t handle;
    attention_plan *plans;
    int count, capacity;
};

void hdi_cuda_close_attentions(hdi_device *device)
{
    hdi_cuda_attentions *own = device->attentions;
    if (!own) return;
    for (int i = 0; i < own->count; i++)
        hdi_cudnn_destroy_plan(own->cudnn, &own->plans[i].plan);
    if (own->handle) (void)own->cudnn->destroy(own->handle);
    hdi_free(own->plans);
    hdi_free(own);
    device->attentions = NULL;
}

/* Without the library there is no error: the log says once why attention will be slow. */
static hd_status open_attentions(hdi_device *device)
{
    if (device->attentions) return HD_OK;
    hdi_cuda_attentions *own = device->attentions = hdi_alloc(sizeof *own);
    if (!own) return hdi_error(HD_ERROR_MEMORY, "attention: out of host memory");
    if (hdi_cudnn_load(&own->cudnn) != HD_OK) {
        hdi_log(HD_LOG_WARN, "attention takes slower kernels: %s", hd_last_error());
        return HD_OK;
    }
    cudnnStatus_t status = own->cudnn->create(&own->handle);
    if (status == CUDNN_STATUS_SUCCESS)
        status = own->cudnn->set_stream(own->handle, device->stream.handle);
    if (status == CUDNN_STATUS_SUCCESS) return HD_OK;
    hdi_log(HD_LOG_WARN, "attention takes slower kernels: cudnnCreate: %s",
            own->cudnn->status_string(status));
    own->cudnn = NULL;
    return HD_OK;
}

bool hdi_cuda_cudnn_takes(const hdi_attention_args *args, bool gradient, int architecture)
{
    const bool hopper = architecture == 0 || architecture == 90;
    const int64_t widest = gradient && !hopper ? 128 : 256;
    return (args->dtype == HD_DTYPE_F16 || args->dtype == HD_DTYPE_BF16) && args->tokens > 1 &&
           args->kv_tokens > 1 && args->head_dim % 8 == 0 && args->head_dim <= widest &&
           args->heads % args->kv_heads == 0 && args->q_stride % 8 == 0 &&
           args->k_stride % 8 == 0 && args->v_stride % 8 == 0 && args->out_stride % 8 == 0 &&
           (!args->causal || args->tokens == args->kv_tokens);
}

/* What one run does. */
typedef struct attention_slice {
    int64_t sequences, heads;
} attention_slice;

/* The most, up to `most`, that divide `all`. */
static int64_t divisor_of(int64_t all, int64_t most)
{
    if (most > all) most = all;
    while (most > 1 && all % most != 0)
        most--;
    return most < 1 ? 1 : most;
}

/* Heads are only divided where a sequence alone is too much. */
static attention_slice slice_of(const hdi_attention_args *args, bool gradient)
{
    const int64_t sequences = args->interleave > 1 ? args->interleave : args->batch;
    attention_slice slice = {divisor_of(sequences, LONGEST_AXIS), args->heads};
    if (!gradient) return slice;
    const int64_t tokens = hdi_round_up(args->tokens, TOKEN_TILE);
    const int64_t kv_tokens = hdi_round_up(args->kv_tokens, TOKEN_TILE);
    const int64_t bytes = args->exact ? 2 * tokens * kv_tokens : 4 * tokens * args->head_dim;
    const int64_t room = (args->exact ? exact_slice_bytes : slice_bytes) / bytes;
    slice.sequences = divisor_of(slice.sequences, room / args->heads);
    if (args->exact && slice.sequences == 1 && args->heads == args->kv_heads)
        slice.heads = divisor_of(args->heads, room);
    return slice;
}

/* Parts of the workspace: what the caller of a graph provides, then the engine's own. */
typedef struct workspace_parts {
    int64_t statistics, q_sum, engine;
} workspace_parts;

/* The engine's part as cuDNN 9.19 asks it: on Hopper only for shared key heads, elsewhere q_sum
 * again; exact, all of the scores' gradient. Tokens are rounded up to the engines' tiles. */
static workspace_parts parts_of(const hdi_attention_args *args, bool gradient, int architecture)
{
    const attention_slice slice = slice_of(args, gradient);
    const int64_t tokens = hdi_round_up(args->tokens, TOKEN_TILE);
    const int64_t kv_tokens = hdi_round_up(args->kv_tokens, TOKEN_TILE);
    const int64_t rows = slice.sequences * slice.heads * tokens;
    const int64_t keys = slice.sequences * slice.heads * kv_tokens;
    workspace_parts parts = {.statistics = hdi_round_up(rows * 4, ALIGNMENT),
                             .engine = ENGINE_EXTRA};
    if (!gradient) return parts;
    if (args->heads != args->kv_heads) parts.engine += 2 * keys * args->head_dim * 2;
    if (args->exact) {
        parts.engine += 2 * rows * kv_tokens;
        return parts;
    }
    parts.q_sum = hdi_round_up(rows * args->head_dim * 4, ALIGNMENT);
    if (architecture != 90) parts.engine += rows * args->head_dim * 4;
    return parts;
}

int64_t hdi_cuda_cudnn_engine_bytes(const hdi_attention_args *args, bool gradient, int architecture)
{
    return parts_of(args, gradient, architecture).engine;
}

size_t hdi_cuda_cudnn_workspace(const hdi_attention_args *args, bool gradient, int architecture)
{
    const workspace_parts parts = parts_of(args, gradient, architecture);
    return (size_t)(parts.statistics + parts.q_sum + parts.engine);
}

hdi_cudnn_shape hdi_cuda_cudnn_shape(const hdi_attention_args *args, bool gradient)
{
    const attention_slice slice = slice_of(args, gradient);
    return (hdi_cudnn_shape){
        .batch = slice.sequences,
        .heads = slice.heads,
        .kv_heads = slice.heads < args->heads ? slice.heads : args->kv_heads,
        .tokens = args->tokens,
        .kv_tokens = args->kv_tokens,
        .head_dim = args->head_dim,
        .interleave = args->interleave > 1 ? args->interleave : 1,
        .q_stride = args->q_stride,
        .k_stride = args->k_stride,
        .v_stride = args->v_stride,
        .out_stride = args->out_stride,
        .half = args->dtype == HD_DTYPE_F16,
        .causal = args->causal,
        .gradient = gradient,
        .exact = gradient && args->exact,
        .counted = args->counts != NULL,
    };
}

/* Up to 9.15.0 the backward is wrong in captured graphs if keys do not fill tiles. */
static bool version_takes(const hdi_cudnn *cudnn, const hdi_cudnn_shape *shape)
{
    return cudnn->version >= HDI_CUDNN_WANTED || !shape->gradient ||
           shape->kv_tokens % TOKEN_TILE == 0;
}

static hd_status find_plan(hdi_cuda_attentions *own, const hdi_cudnn_shape *shape,
                           int64_t workspace_limit, const attention_plan **out)
{
    for (int i = 0; i < own->count; i++) {
        *out = &own->plans[i];
        if (memcmp(&(*out)->shape, shape, sizeof *shape) == 0) return HD_OK;
    }
    if (!HDI_GROW(own->plans, own->count, own->capacity))
        return hdi_error(HD_ERROR_MEMORY, "attention: out of host memory for a plan");
    attention_plan *plan = &own->plans[own->count++];
    *plan = (attention_plan){.shape = *shape};
    plan->refused =
        !version_takes(own->cudnn, shape) || hdi_cudnn_build(own->cudnn, own->handle, NULL, shape,
                                                             workspace_limit, &plan->plan) != HD_OK;
    if (plan->refused)
        hdi_log(HD_LOG_WARN, "attention takes slower kernels for %lld tokens, heads of %lld: %s",
                (long long)shape->tokens, (long long)shape->head_dim,
                version_takes(own->cudnn, shape) ? hd_last_error() : "cuDNN is too old");
    *out = plan;
    return HD_OK;
}

static bool is_aligned(const void *pointer)
{
    return (uintptr_t)pointer % 16 == 0;
}

static bool pointers_fit(const hdi_attention_args *args, bool gradient)
{
    const bool forward = is_aligned(args->q) && is_aligned(args->k) && is_aligned(args->v) &&
                         is_aligned(args->out) && is_aligned(args->workspace);
    return forward &&
           (!gradient || (is_aligned(args->out_gradient) && is_aligned(args->q_gradient) &&
                          is_aligned(args->k_gradient) && is_aligned(args->v_gradient)));
}

static const int32_t *key_counts(const hdi_attention_args *args)
{
    return args->kv_counts ? args->kv_counts : args->counts;
}

static void *counts_from(const int32_t *counts, int64_t first)
{
    return counts ? (char *)(uintptr_t)(counts + first) : NULL;
}

/* The slice's sequences from `first` and heads from `head` on. */
static hd_status run_slice(const hdi_cuda_attentions *own, const hdi_attention_args *args,
                           const attention_plan *plan, const workspace_parts *parts, int64_t first,
                           int64_t head)
{
    float scale = args->scale, minus_infinity = -INFINITY, one = 1;
    char *const workspace = args->workspace;
    const int64_t size = (int64_t)hd_dtype_bytes(args->dtype), between = plan->shape.interleave;
    const int64_t group = first / between, lane = first % between;
    const int64_t query = group * args->tokens * between + lane, column = head * args->head_dim;
    const int64_t key = group * args->kv_tokens * between + lane;
    const int64_t q = (query * args->q_stride + column) * size;
    const int64_t k = (key * args->k_stride + column) * size;
    const int64_t v = (key * args->v_stride + column) * size;
    const int64_t out = (query * args->out_stride + column) * size;
    const int64_t row = (first * args->heads + head) * args->tokens;
    const bool gradient = plan->shape.gradient;
    void *const statistics = args->lse ? (void *)(args->lse + row) : (void *)workspace;
    void *const pointers[HDI_CUDNN_TENSORS] = {
        [HDI_CUDNN_Q] = (char *)(uintptr_t)args->q + q,
        [HDI_CUDNN_K] = (char *)(uintptr_t)args->k + k,
        [HDI_CUDNN_V] = (char *)(uintptr_t)args->v + v,
        [HDI_CUDNN_OUT] = (char *)args->out + out,
        [HDI_CUDNN_STATISTICS] = statistics,
        [HDI_CUDNN_OUT_GRADIENT] = gradient ? (char *)(uintptr_t)args->out_gradient + out : NULL,
        [HDI_CUDNN_Q_GRADIENT] = gradient ? (char *)args->q_gradient + q : NULL,
        [HDI_CUDNN_K_GRADIENT] = gradient ? (char *)args->k_gradient + k : NULL,
        [HDI_CUDNN_V_GRADIENT] = gradient ? (char *)args->v_gradient + v : NULL,
        [HDI_CUDNN_SCALE] = &scale,
        [HDI_CUDNN_MINUS_INFINITY] =
            plan->shape.causal || plan->shape.counted ? &minus_infinity : NULL,
        [HDI_CUDNN_ONE] = gradient ? &one : NULL,
        [HDI_CUDNN_Q_SUM] = parts->q_sum > 0 ? workspace + parts->statistics : NULL,
        [HDI_CUDNN_CENTER] = gradient ? workspace : NULL,
        [HDI_CUDNN_QUERY_COUNTS] = counts_from(args->counts, first),
        [HDI_CUDNN_KEY_COUNTS] = counts_from(key_counts(args), first),
    };
    return hdi_cudnn_run(own->cudnn, own->handle, &plan->plan, pointers,
                         workspace + parts->statistics + parts->q_sum);
}

/* What the engines leave in rows that no count reaches is not said. */
static hd_status zero_uncounted(hd_stream *stream, const hdi_attention_args *args, bool gradient)
{
    const int64_t q = args->heads * args->head_dim, kv = args->kv_heads * args->head_dim;
    hdi_attention_args keys = *args;
    keys.tokens = args->kv_tokens;
    keys.counts = key_counts(args);
    if (!gradient) return hdi_cuda_zero_uncounted(stream, args, args->out, args->out_stride, q);
    HD_RETURN_IF_ERROR(hdi_cuda_zero_uncounted(stream, args, args->q_gradient, args->q_stride, q));
    HD_RETURN_IF_ERROR(
        hdi_cuda_zero_uncounted(stream, &keys, args->k_gradient, args->k_stride, kv));
    return hdi_cuda_zero_uncounted(stream, &keys, args->v_gradient, args->v_stride, kv);
}

hd_status hdi_cuda_cudnn_attention(hd_stream *stream, const hdi_attention_args *args, bool gradient,
                                   bool *done)
{
    hdi_device *device = stream->device;
    const attention_plan *plan = NULL;
    *done = false;
    if (!pointers_fit(args, gradient)) return HD_OK;
    HD_RETURN_IF_ERROR(open_attentions(device));
    if (!device->attentions->cudnn) return HD_OK;
    const workspace_parts parts = parts_of(args, gradient, device->architecture);
    const hdi_cudnn_shape shape = hdi_cuda_cudnn_shape(args, gradient);
    HD_RETURN_IF_ERROR(find_plan(device->attentions, &shape, parts.engine, &plan));
    if (plan->refused) return HD_OK;
    for (int64_t first = 0; first < args->batch; first += shape.batch)
        for (int64_t head = 0; head < args->heads; head += shape.heads)
            HD_RETURN_IF_ERROR(run_slice(device->attentions, args, plan, &parts, first, head));
    *done = true;
    return args->counts ? zero_uncounted(stream, args, gradient) : HD_OK;
}
