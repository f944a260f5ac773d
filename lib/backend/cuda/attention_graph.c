/* Attention forward and backward as cuDNN graphs. The engines recognise the operations by their
 * order, so the order here is part of the interface. */
#include "backend/cuda/attention_graph.h"

#include "backend/cuda/cudnn_builder.h"
#include "core/memory.h"

typedef hdi_cudnn_builder builder;
typedef hdi_cudnn_layout layout;
typedef hdi_descriptor descriptor;

enum { VIRTUAL = -1 };

/* The layouts of a shape. Transposes swap the last two axes: memory stays as it is. */
typedef struct layouts {
    layout q, k, v, out;
    layout k_transposed, v_transposed;
    layout scores, scores_transposed, row; /* row: one number per query */
    cudnnDataType_t type;
} layouts;

static layout of_rows(const hdi_cudnn_shape *s, int64_t heads, int64_t tokens, int64_t stride)
{
    const bool between = s->interleave > 1;
    return (layout){{s->batch, heads, tokens, s->head_dim},
                    {between ? stride : tokens * stride, s->head_dim,
                     between ? s->interleave * stride : stride, 1}};
}

static layout packed(int64_t batch, int64_t heads, int64_t rows, int64_t columns)
{
    return (layout){{batch, heads, rows, columns},
                    {heads * rows * columns, rows * columns, columns, 1}};
}

static layout transposed(layout from)
{
    layout out = from;
    out.dims[2] = from.dims[3], out.dims[3] = from.dims[2];
    out.strides[2] = from.strides[3], out.strides[3] = from.strides[2];
    return out;
}

static layouts layouts_of(const hdi_cudnn_shape *s)
{
    layouts out;
    out.q = of_rows(s, s->heads, s->tokens, s->q_stride);
    out.k = of_rows(s, s->kv_heads, s->kv_tokens, s->k_stride);
    out.v = of_rows(s, s->kv_heads, s->kv_tokens, s->v_stride);
    out.out = of_rows(s, s->heads, s->tokens, s->out_stride);
    out.k_transposed = transposed(out.k);
    out.v_transposed = transposed(out.v);
    out.scores = packed(s->batch, s->heads, s->tokens, s->kv_tokens);
    out.scores_transposed = transposed(out.scores);
    out.row = packed(s->batch, s->heads, s->tokens, 1);
    out.type = s->half ? CUDNN_DATA_HALF : CUDNN_DATA_BFLOAT16;
    return out;
}

static descriptor number(builder *b, layout l)
{
    return hdi_cudnn_tensor(b, VIRTUAL, CUDNN_DATA_FLOAT, l);
}

/* Valid queries and keys of each sequence; NULL where all are. */
typedef struct valid_tokens {
    descriptor queries, keys;
} valid_tokens;

static valid_tokens counts_of(builder *b, const hdi_cudnn_shape *s)
{
    const layout each = {{s->batch, 1, 1, 1}, {1, 1, 1, 1}};
    if (!s->counted) return (valid_tokens){0};
    return (valid_tokens){hdi_cudnn_tensor(b, HDI_CUDNN_QUERY_COUNTS, CUDNN_DATA_INT32, each),
                          hdi_cudnn_tensor(b, HDI_CUDNN_KEY_COUNTS, CUDNN_DATA_INT32, each)};
}

/* Scores before softmax, those of tokens that are not valid masked. */
static descriptor scaled_scores(builder *b, const hdi_cudnn_shape *s, const layouts *l,
                                descriptor q, descriptor k_transposed, descriptor scale,
                                valid_tokens valid)
{
    const hdi_cudnn_sizes sizes = {valid.queries, valid.keys, NULL, valid.queries && !s->gradient};
    descriptor scores = hdi_cudnn_matmul(b, q, k_transposed, sizes, number(b, l->scores));
    scores = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_MUL, scores, scale, number(b, l->scores));
    if (!valid.queries) return scores;
    return hdi_cudnn_mask_counts(b, scores, valid.queries, valid.keys, l->scores);
}

/* The statistics are always written: no engine takes the graph without them. */
static void build_forward(builder *b, const hdi_cudnn_shape *shape, const layouts *l)
{
    descriptor out = hdi_cudnn_tensor(b, HDI_CUDNN_OUT, l->type, l->out);
    descriptor q = hdi_cudnn_tensor(b, HDI_CUDNN_Q, l->type, l->q);
    descriptor v = hdi_cudnn_tensor(b, HDI_CUDNN_V, l->type, l->v);
    descriptor k = hdi_cudnn_tensor(b, HDI_CUDNN_K, l->type, l->k_transposed);
    const valid_tokens valid = counts_of(b, shape);
    descriptor x = scaled_scores(b, shape, l, q, k, hdi_cudnn_scalar(b, HDI_CUDNN_SCALE), valid);
    if (shape->causal) x = hdi_cudnn_mask_causal(b, x, l->scores);
    descriptor max = hdi_cudnn_reduce(b, CUDNN_REDUCE_TENSOR_MAX, x, number(b, l->row));
    descriptor shifted = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_SUB, x, max, number(b, l->scores));
    descriptor powers =
        hdi_cudnn_pointwise(b, CUDNN_POINTWISE_EXP, shifted, NULL, number(b, l->scores));
    descriptor sum = hdi_cudnn_reduce(b, CUDNN_REDUCE_TENSOR_ADD, powers, number(b, l->row));
    descriptor logarithm =
        hdi_cudnn_pointwise(b, CUDNN_POINTWISE_LOG, sum, NULL, number(b, l->row));
    hdi_cudnn_pointwise(b, CUDNN_POINTWISE_ADD, max, logarithm,
                        hdi_cudnn_tensor(b, HDI_CUDNN_STATISTICS, CUDNN_DATA_FLOAT, l->row));
    descriptor weights = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_DIV, powers, sum,
                                             hdi_cudnn_tensor(b, VIRTUAL, l->type, l->scores));
    hdi_cudnn_matmul(b, weights, v, (hdi_cudnn_sizes){valid.queries, NULL, valid.keys, false}, out);
}

/* weights' x rows, into a gradient of keys or values; query heads that share one are summed. */
static void sum_over_queries(builder *b, const hdi_cudnn_shape *s, const layouts *l,
                             descriptor weights, descriptor rows, valid_tokens valid,
                             descriptor out)
{
    const bool shared = s->heads != s->kv_heads;
    descriptor turned =
        hdi_cudnn_reshape(b, weights, hdi_cudnn_tensor(b, VIRTUAL, l->type, l->scores_transposed));
    const layout all_heads = packed(s->batch, s->heads, s->kv_tokens, s->head_dim);
    descriptor full = shared ? hdi_cudnn_tensor(b, VIRTUAL, l->type, all_heads) : out;
    hdi_cudnn_matmul(b, turned, rows, (hdi_cudnn_sizes){valid.keys, NULL, valid.queries, false},
                     full);
    if (shared) hdi_cudnn_reduce(b, CUDNN_REDUCE_TENSOR_ADD, full, out);
}

static void build_backward(builder *b, const hdi_cudnn_shape *s, const layouts *l)
{
    descriptor q = hdi_cudnn_tensor(b, HDI_CUDNN_Q, l->type, l->q);
    descriptor out = hdi_cudnn_tensor(b, HDI_CUDNN_OUT, l->type, l->out);
    descriptor out_gradient = hdi_cudnn_tensor(b, HDI_CUDNN_OUT_GRADIENT, l->type, l->out);
    descriptor statistics = hdi_cudnn_tensor(b, HDI_CUDNN_STATISTICS, CUDNN_DATA_FLOAT, l->row);
    descriptor q_gradient = hdi_cudnn_tensor(b, HDI_CUDNN_Q_GRADIENT, l->type, l->q);
    descriptor k_gradient = hdi_cudnn_tensor(b, HDI_CUDNN_K_GRADIENT, l->type, l->k);
    descriptor v_gradient = hdi_cudnn_tensor(b, HDI_CUDNN_V_GRADIENT, l->type, l->v);
    descriptor scale = hdi_cudnn_scalar(b, HDI_CUDNN_SCALE);
    descriptor k = hdi_cudnn_tensor(b, HDI_CUDNN_K, l->type, l->k_transposed);
    descriptor v = hdi_cudnn_tensor(b, HDI_CUDNN_V, l->type, l->v_transposed);
    descriptor center = hdi_cudnn_tensor(b, HDI_CUDNN_CENTER, CUDNN_DATA_FLOAT, l->row);

    /* center = sum of out * out_gradient; the product with 1 makes it a tensor of its own. */
    const layout plain = {
        {s->batch, s->heads, s->tokens, s->head_dim},
        {s->heads * s->tokens * s->head_dim, s->tokens * s->head_dim, s->heads * s->head_dim, 1}};
    descriptor x = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_MUL, out_gradient, out, number(b, plain));
    x = hdi_cudnn_reduce(b, CUDNN_REDUCE_TENSOR_ADD, x, number(b, l->row));
    hdi_cudnn_pointwise(b, CUDNN_POINTWISE_MUL, x, hdi_cudnn_scalar(b, HDI_CUDNN_ONE), center);

    const valid_tokens valid = counts_of(b, s);
    x = scaled_scores(b, s, l, q, k, scale, valid);
    x = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_SUB, x, statistics, number(b, l->scores));
    if (s->causal) x = hdi_cudnn_mask_causal(b, x, l->scores);
    descriptor weights = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_EXP, x, NULL, number(b, l->scores));
    sum_over_queries(b, s, l, weights, out_gradient, valid, v_gradient);

    x = hdi_cudnn_matmul(b, out_gradient, v,
                         (hdi_cudnn_sizes){valid.queries, valid.keys, NULL, false},
                         number(b, l->scores));
    x = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_SUB, x, center, number(b, l->scores));
    x = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_MUL, x, weights, number(b, l->scores));
    descriptor slopes = hdi_cudnn_pointwise(b, CUDNN_POINTWISE_MUL, x, scale, number(b, l->scores));
    sum_over_queries(b, s, l, slopes, q, valid, k_gradient);

    descriptor keys = hdi_cudnn_reshape(b, k, number(b, l->k));
    const hdi_cudnn_sizes sizes = {valid.queries, NULL, valid.keys, false};
    if (s->exact) {
        hdi_cudnn_matmul(b, slopes, keys, sizes, q_gradient);
        return;
    }
    const layout q_sum = packed(s->batch, s->heads, s->tokens, s->head_dim);
    descriptor sums = hdi_cudnn_matmul(
        b, slopes, keys, sizes, hdi_cudnn_tensor(b, HDI_CUDNN_Q_SUM, CUDNN_DATA_FLOAT, q_sum));
    hdi_cudnn_pointwise(b, CUDNN_POINTWISE_IDENTITY, sums, NULL, q_gradient);
}

hd_status hdi_cudnn_build(const hdi_cudnn *cudnn, cudnnHandle_t handle,
                          cudnnBackendDescriptor_t device, const hdi_cudnn_shape *shape,
                          int64_t workspace_limit, hdi_cudnn_plan *out)
{
    *out = (hdi_cudnn_plan){0};
    builder *b = hdi_alloc(sizeof *b);
    if (!b) return hdi_error(HD_ERROR_MEMORY, "cuDNN: out of host memory for a graph");
    b->cudnn = cudnn;
    b->next_virtual = HDI_CUDNN_VIRTUAL;
    const layouts l = layouts_of(shape);
    if (shape->gradient)
        build_backward(b, shape, &l);
    else
        build_forward(b, shape, &l);
    const hd_status status = hdi_cudnn_finish(b, handle, device, workspace_limit, out);
    hdi_cudnn_clear(b);
    hdi_free(b);
    return status;
}

void hdi_cudnn_destroy_plan(const hdi_cudnn *cudnn, hdi_cudnn_plan *plan)
{
    if (plan->plan) (void)cudnn->destroy_descriptor(plan->plan);
    plan->plan = NULL;
}

hd_status hdi_cudnn_run(const hdi_cudnn *cudnn, cudnnHandle_t handle, const hdi_cudnn_plan *plan,
                        void *const pointers[HDI_CUDNN_TENSORS], void *workspace)
{
    int64_t ids[HDI_CUDNN_TENSORS], count = 0;
    void *given[HDI_CUDNN_TENSORS];
    for (int i = 1; i < HDI_CUDNN_TENSORS; i++) {
        if (!pointers[i]) continue;
        ids[count] = i;
        given[count++] = pointers[i];
    }
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t status = cudnn->create_descriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnn->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnn->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count,
                            given);
    if (status == CUDNN_STATUS_SUCCESS)
        status =
            cudnn->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnn->finalize(pack);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnn->execute(handle, plan->plan, pack);
    if (pack) (void)cudnn->destroy_descriptor(pack);
    if (status == CUDNN_STATUS_SUCCESS) return HD_OK;
    char text[256] = "";
    cudnn->last_error(text, sizeof text);
    return hdi_error(HD_ERROR_DEVICE, "cuDNN: attention: %s; %s", cudnn->status_string(status),
                     text);
}
