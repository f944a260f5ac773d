/* Descriptors of a cuDNN graph while it is built. Errors are sticky: the first one is kept, later
 * calls do nothing, and only the end is checked. */
#ifndef HDI_BACKEND_CUDA_CUDNN_BUILDER_H
#define HDI_BACKEND_CUDA_CUDNN_BUILDER_H

#include "backend/cuda/attention_graph.h"

typedef cudnnBackendDescriptor_t hdi_descriptor;

enum { HDI_CUDNN_DESCRIPTORS = 224, HDI_CUDNN_OPERATIONS = 48, HDI_CUDNN_VIRTUAL = 100 };

typedef struct hdi_cudnn_builder {
    const hdi_cudnn *cudnn;
    hdi_descriptor all[HDI_CUDNN_DESCRIPTORS]; /* owned */
    hdi_descriptor operations[HDI_CUDNN_OPERATIONS];
    int count, operation_count;
    int64_t next_virtual;
    cudnnStatus_t status;
    const char *what; /* failed first */
} hdi_cudnn_builder;

/* Logical order batch, heads, tokens, head_dim; the layout is only strides. */
typedef struct hdi_cudnn_layout {
    int64_t dims[4], strides[4];
} hdi_cudnn_layout;

/* `number` below 0: a virtual tensor, which no one but the graph sees. */
hdi_descriptor hdi_cudnn_tensor(hdi_cudnn_builder *builder, int64_t number, cudnnDataType_t type,
                                hdi_cudnn_layout layout);
hdi_descriptor hdi_cudnn_scalar(hdi_cudnn_builder *builder, int64_t number);

/* The sizes of a product where they are tensors, not those of the layouts; zeroed: none is. */
typedef struct hdi_cudnn_sizes {
    hdi_descriptor rows, columns, inner;
    bool padded; /* what is beyond them reads as 0 */
} hdi_cudnn_sizes;

/* Each appends an operation and returns its output. */
hdi_descriptor hdi_cudnn_matmul(hdi_cudnn_builder *builder, hdi_descriptor a, hdi_descriptor b,
                                hdi_cudnn_sizes sizes, hdi_descriptor out);
hdi_descriptor hdi_cudnn_pointwise(hdi_cudnn_builder *builder, cudnnPointwiseMode_t mode,
                                   hdi_descriptor x, hdi_descriptor y, hdi_descriptor out);
hdi_descriptor hdi_cudnn_reduce(hdi_cudnn_builder *builder, cudnnReduceTensorOp_t operator,
                                hdi_descriptor x, hdi_descriptor out);
hdi_descriptor hdi_cudnn_reshape(hdi_cudnn_builder *builder, hdi_descriptor x, hdi_descriptor out);

/* x where query >= key, else minus infinity; `scores` is x's layout. */
hdi_descriptor hdi_cudnn_mask_causal(hdi_cudnn_builder *builder, hdi_descriptor x,
                                     hdi_cudnn_layout scores);

/* x where the query is below `queries` and the key below `keys`, tensors of a number for each
 * sequence, else minus infinity. */
hdi_descriptor hdi_cudnn_mask_counts(hdi_cudnn_builder *builder, hdi_descriptor x,
                                     hdi_descriptor queries, hdi_descriptor keys,
                                     hdi_cudnn_layout scores);

/* The operations as a plan, by the library's order of preference. */
hd_status hdi_cudnn_finish(hdi_cudnn_builder *builder, cudnnHandle_t handle, hdi_descriptor device,
                           int64_t workspace_limit, hdi_cudnn_plan *out);

/* All descriptors but the plan's. */
void hdi_cudnn_clear(hdi_cudnn_builder *builder);

#endif
