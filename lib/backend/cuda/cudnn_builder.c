/* Building cuDNN graphs from tensors and operations. */
#include "backend/cuda/cudnn_builder.h"

static void check(hdi_cudnn_builder *builder, cudnnStatus_t status, const char *what)
{
    if (status == CUDNN_STATUS_SUCCESS || builder->status != CUDNN_STATUS_SUCCESS) return;
    builder->status = status;
    builder->what = what;
}

static hdi_descriptor create(hdi_cudnn_builder *builder, cudnnBackendDescriptorType_t type)
{
    hdi_descriptor descriptor = NULL;
    if (builder->status != CUDNN_STATUS_SUCCESS) return NULL;
    if (builder->count == HDI_CUDNN_DESCRIPTORS) {
        check(builder, CUDNN_STATUS_INTERNAL_ERROR, "the builder's table");
        return NULL;
    }
    check(builder, builder->cudnn->create_descriptor(type, &descriptor), "create");
    if (descriptor) builder->all[builder->count++] = descriptor;
    return descriptor;
}

static void set(hdi_cudnn_builder *builder, hdi_descriptor descriptor,
                cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                const void *values)
{
    if (builder->status != CUDNN_STATUS_SUCCESS) return;
    check(builder, builder->cudnn->set(descriptor, name, type, count, values), "set attribute");
}

/* NULL: the attribute stays unset. */
static void link_to(hdi_cudnn_builder *builder, hdi_descriptor descriptor,
                    cudnnBackendAttributeName_t name, hdi_descriptor value)
{
    if (value) set(builder, descriptor, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finalize(hdi_cudnn_builder *builder, hdi_descriptor descriptor, const char *what)
{
    if (builder->status != CUDNN_STATUS_SUCCESS) return;
    check(builder, builder->cudnn->finalize(descriptor), what);
}

static hdi_descriptor make_tensor(hdi_cudnn_builder *builder, int64_t number, cudnnDataType_t type,
                                  hdi_cudnn_layout layout, bool by_value)
{
    hdi_descriptor tensor = create(builder, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const bool is_virtual = number < 0, yes = true;
    const int64_t alignment = 16, id = is_virtual ? builder->next_virtual++ : number;
    set(builder, tensor, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(builder, tensor, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, layout.dims);
    set(builder, tensor, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, layout.strides);
    set(builder, tensor, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(builder, tensor, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (is_virtual) set(builder, tensor, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes);
    if (by_value) set(builder, tensor, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    finalize(builder, tensor, "tensor");
    return tensor;
}

hdi_descriptor hdi_cudnn_tensor(hdi_cudnn_builder *builder, int64_t number, cudnnDataType_t type,
                                hdi_cudnn_layout layout)
{
    return make_tensor(builder, number, type, layout, false);
}

hdi_descriptor hdi_cudnn_scalar(hdi_cudnn_builder *builder, int64_t number)
{
    const hdi_cudnn_layout one = {{1, 1, 1, 1}, {1, 1, 1, 1}};
    return make_tensor(builder, number, CUDNN_DATA_FLOAT, one, true);
}

static hdi_descriptor append(hdi_cudnn_builder *builder, hdi_descriptor operation,
                             hdi_descriptor out, const char *what)
{
    finalize(builder, operation, what);
    if (builder->operation_count == HDI_CUDNN_OPERATIONS)
        check(builder, CUDNN_STATUS_INTERNAL_ERROR, "the builder's table");
    else
        builder->operations[builder->operation_count++] = operation;
    return out;
}

hdi_descriptor hdi_cudnn_matmul(hdi_cudnn_builder *builder, hdi_descriptor a, hdi_descriptor b,
                                hdi_cudnn_sizes sizes, hdi_descriptor out)
{
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    const double padding = 0;
    hdi_descriptor matmul = create(builder, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(builder, matmul, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    if (sizes.padded)
        set(builder, matmul, CUDNN_ATTR_MATMUL_PADDING_VALUE, CUDNN_TYPE_DOUBLE, 1, &padding);
    finalize(builder, matmul, "matmul");
    hdi_descriptor operation = create(builder, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, out);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, matmul);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, sizes.rows);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, sizes.columns);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, sizes.inner);
    return append(builder, operation, out, "matmul operation");
}

/* axis below 0: none. `mask` picks x or y. */
static hdi_descriptor pointwise(hdi_cudnn_builder *builder, cudnnPointwiseMode_t mode,
                                cudnnDataType_t type, int64_t axis, hdi_descriptor x,
                                hdi_descriptor y, hdi_descriptor mask, hdi_descriptor out)
{
    hdi_descriptor description = create(builder, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(builder, description, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(builder, description, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &type);
    if (axis >= 0) set(builder, description, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    finalize(builder, description, "pointwise");
    hdi_descriptor operation = create(builder, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, description);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, y);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, mask);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
    return append(builder, operation, out, "pointwise operation");
}

hdi_descriptor hdi_cudnn_pointwise(hdi_cudnn_builder *builder, cudnnPointwiseMode_t mode,
                                   hdi_descriptor x, hdi_descriptor y, hdi_descriptor out)
{
    return pointwise(builder, mode, CUDNN_DATA_FLOAT, -1, x, y, NULL, out);
}

hdi_descriptor hdi_cudnn_reduce(hdi_cudnn_builder *builder, cudnnReduceTensorOp_t operator,
                                hdi_descriptor x, hdi_descriptor out)
{
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    hdi_descriptor reduction = create(builder, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(builder, reduction, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1,
        &operator);
    set(builder, reduction, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    finalize(builder, reduction, "reduction");
    hdi_descriptor operation = create(builder, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
    return append(builder, operation, out, "reduction operation");
}

hdi_descriptor hdi_cudnn_reshape(hdi_cudnn_builder *builder, hdi_descriptor x, hdi_descriptor out)
{
    hdi_descriptor operation = create(builder, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    link_to(builder, operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, out);
    return append(builder, operation, out, "reshape operation");
}

hdi_descriptor hdi_cudnn_mask_causal(hdi_cudnn_builder *builder, hdi_descriptor x,
                                     hdi_cudnn_layout scores)
{
    const cudnnDataType_t number = CUDNN_DATA_INT32, truth = CUDNN_DATA_BOOLEAN;
    hdi_descriptor query = pointwise(builder, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, 2, x,
                                     NULL, NULL, hdi_cudnn_tensor(builder, -1, number, scores));
    hdi_descriptor key = pointwise(builder, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, 3, x, NULL,
                                   NULL, hdi_cudnn_tensor(builder, -1, number, scores));
    hdi_descriptor seen = pointwise(builder, CUDNN_POINTWISE_CMP_GE, truth, -1, query, key, NULL,
                                    hdi_cudnn_tensor(builder, -1, truth, scores));
    return pointwise(builder, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, -1, x,
                     hdi_cudnn_scalar(builder, HDI_CUDNN_MINUS_INFINITY), seen,
                     hdi_cudnn_tensor(builder, -1, CUDNN_DATA_FLOAT, scores));
}

hdi_descriptor hdi_cudnn_mask_counts(hdi_cudnn_builder *builder, hdi_descriptor x,
                                     hdi_descriptor queries, hdi_descriptor keys,
                                     hdi_cudnn_layout scores)
{
    const cudnnDataType_t number = CUDNN_DATA_INT32, truth = CUDNN_DATA_BOOLEAN;
    hdi_descriptor query = pointwise(builder, CUDNN_POINTWISE_GEN_INDEX, number, 2, x, NULL, NULL,
                                     hdi_cudnn_tensor(builder, -1, number, scores));
    hdi_descriptor key = pointwise(builder, CUDNN_POINTWISE_GEN_INDEX, number, 3, x, NULL, NULL,
                                   hdi_cudnn_tensor(builder, -1, number, scores));
    hdi_descriptor query_there =
        pointwise(builder, CUDNN_POINTWISE_CMP_LT, truth, -1, query, queries, NULL,
                  hdi_cudnn_tensor(builder, -1, truth, scores));
    hdi_descriptor key_there = pointwise(builder, CUDNN_POINTWISE_CMP_LT, truth, -1, key, keys,
                                         NULL, hdi_cudnn_tensor(builder, -1, truth, scores));
    hdi_descriptor both = pointwise(builder, CUDNN_POINTWISE_LOGICAL_AND, truth, -1, query_there,
                                    key_there, NULL, hdi_cudnn_tensor(builder, -1, truth, scores));
    return pointwise(builder, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, -1, x,
                     hdi_cudnn_scalar(builder, HDI_CUDNN_MINUS_INFINITY), both,
                     hdi_cudnn_tensor(builder, -1, CUDNN_DATA_FLOAT, scores));
}

enum { CONFIGURATIONS = 16 };

/* The engine configurations for the graph, best first. */
static int64_t find_configurations(hdi_cudnn_builder *builder, cudnnHandle_t handle,
                                   hdi_descriptor device, hdi_descriptor *out)
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    hdi_descriptor graph = create(builder, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(builder, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        builder->operation_count, builder->operations);
    if (handle)
        set(builder, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    finalize(builder, graph, "operation graph");
    hdi_descriptor heuristics = create(builder, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    link_to(builder, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(builder, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    link_to(builder, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device);
    finalize(builder, heuristics, "engine heuristics");
    int64_t count = 0;
    if (builder->status == CUDNN_STATUS_SUCCESS)
        check(builder,
              builder->cudnn->get(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                  CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, NULL),
              "engine count");
    if (count > CONFIGURATIONS) count = CONFIGURATIONS;
    for (int64_t i = 0; i < count; i++)
        out[i] = create(builder, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (builder->status != CUDNN_STATUS_SUCCESS || count == 0) return 0;
    check(builder,
          builder->cudnn->get(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                              CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &count, out),
          "engine configurations");
    return builder->status == CUDNN_STATUS_SUCCESS ? count : 0;
}

static int64_t engine_of(hdi_cudnn_builder *builder, hdi_descriptor configuration)
{
    const hdi_cudnn *cudnn = builder->cudnn;
    hdi_descriptor engine = create(builder, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    int64_t count = 0, index = -1;
    if (cudnn->get(configuration, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                   &count, &engine) == CUDNN_STATUS_SUCCESS)
        (void)cudnn->get(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count,
                         &index);
    return index;
}

/* Whether the configuration becomes a plan. On a machine without the described device the engine is
 * compiled and only its loading fails. */
static bool try_configuration(hdi_cudnn_builder *builder, cudnnHandle_t handle,
                              hdi_descriptor device, hdi_descriptor configuration,
                              hdi_cudnn_plan *out)
{
    const hdi_cudnn *cudnn = builder->cudnn;
    hdi_descriptor plan = NULL;
    int64_t count = 0;
    if (cudnn->create_descriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan) !=
        CUDNN_STATUS_SUCCESS)
        return false;
    if (handle)
        (void)cudnn->set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    (void)cudnn->set(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                     1, &configuration);
    if (device)
        (void)cudnn->set(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                         1, &device);
    cudnnStatus_t status = cudnn->finalize(plan);
    out->only_compiled = device && status == CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER;
    if (out->only_compiled)
        status = cudnn->get(configuration, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                            &count, &out->workspace);
    else if (status == CUDNN_STATUS_SUCCESS)
        status = cudnn->get(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                            &count, &out->workspace);
    if (status != CUDNN_STATUS_SUCCESS) {
        (void)cudnn->destroy_descriptor(plan);
        return false;
    }
    out->plan = plan;
    out->engine = engine_of(builder, configuration);
    return true;
}

hd_status hdi_cudnn_finish(hdi_cudnn_builder *builder, cudnnHandle_t handle, hdi_descriptor device,
                           int64_t workspace_limit, hdi_cudnn_plan *out)
{
    const hdi_cudnn *cudnn = builder->cudnn;
    hdi_descriptor configurations[CONFIGURATIONS];
    int64_t least = -1;
    const int64_t count = find_configurations(builder, handle, device, configurations);
    for (int64_t i = 0; i < count; i++) {
        *out = (hdi_cudnn_plan){0};
        if (!try_configuration(builder, handle, device, configurations[i], out)) continue;
        if (out->workspace <= workspace_limit) return HD_OK;
        if (least < 0 || out->workspace < least) least = out->workspace;
        hdi_cudnn_destroy_plan(cudnn, out);
    }
    *out = (hdi_cudnn_plan){0};
    if (least >= 0)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "cuDNN: attention needs a workspace of %lld bytes, the plan has %lld",
                         (long long)least, (long long)workspace_limit);
    char text[256] = "";
    cudnn->last_error(text, sizeof text);
    return hdi_error(HD_ERROR_UNSUPPORTED, "cuDNN: no engine for attention (%s: %s; %s)",
                     builder->what ? builder->what : "plan",
                     cudnn->status_string(builder->status != CUDNN_STATUS_SUCCESS
                                              ? builder->status
                                              : CUDNN_STATUS_NOT_SUPPORTED),
                     text);
}

void hdi_cudnn_clear(hdi_cudnn_builder *builder)
{
    while (builder->count > 0)
        (void)builder->cudnn->destroy_descriptor(builder->all[--builder->count]);
}
