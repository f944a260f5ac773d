/* cuDNN, found when heddle runs: the few functions of its backend interface that attention needs. */
#ifndef HDI_BACKEND_CUDA_CUDNN_LIBRARY_H
#define HDI_BACKEND_CUDA_CUDNN_LIBRARY_H

#include <cudnn_graph.h>

#include "core/error.h"

typedef struct hdi_cudnn {
    size_t version; /* 91900 for 9.19.0 */
    cudnnStatus_t (*create)(cudnnHandle_t *out);
    cudnnStatus_t (*destroy)(cudnnHandle_t handle);
    cudnnStatus_t (*set_stream)(cudnnHandle_t handle, cudaStream_t stream);
    const char *(*status_string)(cudnnStatus_t status);
    void (*last_error)(char *message, size_t bytes);
    cudnnStatus_t (*create_descriptor)(cudnnBackendDescriptorType_t type,
                                       cudnnBackendDescriptor_t *out);
    cudnnStatus_t (*destroy_descriptor)(cudnnBackendDescriptor_t descriptor);
    cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t descriptor);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t count, const void *values);
    cudnnStatus_t (*get)(const cudnnBackendDescriptor_t descriptor,
                         cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                         int64_t room, int64_t *count, void *values);
    cudnnStatus_t (*execute)(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                             cudnnBackendDescriptor_t variant_pack);
} hdi_cudnn;

/* Versions below are refused: their attention is wrong in places. */
enum { HDI_CUDNN_OLDEST = 91002, HDI_CUDNN_WANTED = 91501 };

/* The library, loaded once from $HEDDLE_CUDNN ("none": never) or by the loader's search. An error
 * (HD_ERROR_UNSUPPORTED) says why there is none. */
hd_status hdi_cudnn_load(const hdi_cudnn **out);

#endif
