/* Graphs: what one thread queues on the compute stream, captured, to be queued again by one call. */
#include "backend/cuda/cuda.h"

/* The most that a driver has been seen to take for a kernel of a graph; later ones take less. */
enum { NODE_BYTES = 64 << 10 };

hd_status hdi_cuda_begin_record(hd_stream *stream)
{
    /* Other threads, those of NCCL, go on as they like. */
    return hdi_cuda_status(cudaStreamBeginCapture(stream->handle, cudaStreamCaptureModeThreadLocal),
                           "cudaStreamBeginCapture");
}

hd_status hdi_cuda_end_record(hd_stream *stream, hdi_graph *out)
{
    cudaGraph_t graph = NULL;
    const hd_status status =
        hdi_cuda_status(cudaStreamEndCapture(stream->handle, &graph), "cudaStreamEndCapture");
    *out = (hdi_graph){.recorded = graph};
    (void)cudaGetLastError(); /* of a call that cannot be kept */
    return status;
}

static hd_status load(hd_stream *stream, cudaGraph_t graph, cudaGraphExec_t *out)
{
    HD_RETURN_IF_ERROR(hdi_cuda_status(cudaGraphInstantiateWithFlags(out, graph, 0),
                                       "cudaGraphInstantiateWithFlags"));
    return hdi_cuda_status(cudaGraphUpload(*out, stream->handle), "cudaGraphUpload");
}

hd_status hdi_cuda_load_graph(hd_stream *stream, hdi_graph *graph, size_t most_bytes, size_t *bytes)
{
    size_t nodes = 0;
    hdi_memory_info before, after;
    cudaGraphExec_t ready = NULL;
    *bytes = 0;
    hd_status status =
        hdi_cuda_status(cudaGraphGetNodes(graph->recorded, NULL, &nodes), "cudaGraphGetNodes");
    const bool fits = nodes > 0 && nodes <= most_bytes / NODE_BYTES;
    if (status == HD_OK && fits) {
        status = hdi_cuda_memory_info(stream->device, &before);
        if (status == HD_OK) status = load(stream, graph->recorded, &ready);
        if (status == HD_OK) status = hdi_cuda_memory_info(stream->device, &after);
        if (status == HD_OK && before.free_bytes > after.free_bytes)
            *bytes = before.free_bytes - after.free_bytes;
    }
    hdi_cuda_forget_graph(graph);
    graph->loaded = ready;
    if (status != HD_OK) hdi_cuda_forget_graph(graph);
    return status;
}

hd_status hdi_cuda_run_graph(hd_stream *stream, const hdi_graph *graph)
{
    return hdi_cuda_status(cudaGraphLaunch(graph->loaded, stream->handle), "cudaGraphLaunch");
}

void hdi_cuda_forget_graph(hdi_graph *graph)
{
    if (graph->recorded) (void)cudaGraphDestroy(graph->recorded);
    if (graph->loaded) (void)cudaGraphExecDestroy(graph->loaded);
    (void)cudaGetLastError();
    *graph = (hdi_graph){0};
}
