/* What collectives of GPU memory reach between the ranks that mpirun starts, as nccl-tests would print it:
 * bytes of the largest buffer over the time (algorithm bandwidth), and what that asks of each link (bus
 * bandwidth); before that, how long it takes to start and to end them. Exchanges and messages go by kernels and,
 * where there is a way, by copy engines; behind all that, what products take beside either. Usage:
 * [SHARE_GPU=1] [THROUGH_HOST=1] mpirun -np RANKS speed_collectives [MIB...]. THROUGH_HOST: copies pass through host
 * memory; NCCL_P2P_DISABLE=1: kernels, too. */
#include <cuda_runtime_api.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda/cuda.h"
#include "comm/direct.h"
#include "core/clock.h"
#include "runtime/gpu.h"
#include "runtime/session.h"
#include "runtime/transport.h"
#include "tests/support/hdt_video_speed.h"

enum { RUNS = 10, MOST_RANKS = 64 };

typedef struct bench {
    hd_comm *comm, *host; /* the same ranks */
    hd_request *posted;   /* where to leave requests; NULL: they are ordered at once */
    int posts;
    int ranks, rank;
    float *data, *other; /* the second behind the first */
    hdi_way way;         /* no window: there is none */
    int64_t count;       /* of the whole buffer, a multiple of the ranks */
    int64_t counts[MOST_RANKS], offsets[MOST_RANKS];
} bench;

static hd_status finish(bench *it, hd_status posted, hd_request *request)
{
    if (posted == HD_OK && it->posted) it->posted[it->posts++] = *request;
    return posted == HD_OK && !it->posted ? hdi_comm_order(it->comm, request) : posted;
}

static hd_status all_reduce(bench *it)
{
    hd_request request;
    return finish(
        it,
        hd_comm_all_reduce(it->comm, it->data, it->count, HD_DTYPE_F32, HD_REDUCE_SUM, &request),
        &request);
}

static hd_status all_gather(bench *it)
{
    hd_request request;
    return finish(
        it, hd_comm_all_gather(it->comm, it->data, it->counts, it->offsets, HD_DTYPE_F32, &request),
        &request);
}

static hd_status all_to_all(bench *it)
{
    hd_request request;
    return finish(it,
                  hd_comm_all_to_all(it->comm, it->data, it->counts, it->offsets, it->other,
                                     it->counts, it->offsets, HD_DTYPE_F32, &request),
                  &request);
}

static hd_status copy_gather(bench *it)
{
    for (int r = 0; r < it->ranks; r++)
        it->way.to[r] = (size_t)it->offsets[it->rank] * sizeof(float);
    it->comm->way = &it->way;
    const hd_status status = all_gather(it);
    it->comm->way = NULL;
    return status;
}

static hd_status copy_exchange(bench *it)
{
    for (int r = 0; r < it->ranks; r++)
        it->way.to[r] = (size_t)(it->count + it->offsets[it->rank]) * sizeof(float);
    it->comm->way = &it->way;
    const hd_status status = all_to_all(it);
    it->comm->way = NULL;
    return status;
}

static hd_status broadcast(bench *it)
{
    hd_request request;
    return finish(
        it, hd_comm_broadcast(it->comm, it->data, (size_t)it->count * sizeof(float), 0, &request),
        &request);
}

static hd_status send_and_receive(bench *it)
{
    const size_t bytes = (size_t)it->count * sizeof(float);
    const int next = (it->rank + 1) % it->ranks, last = (it->rank + it->ranks - 1) % it->ranks;
    hd_request in = {0}, out = {0};
    hd_status status = hd_comm_recv(it->comm, it->other, bytes, last, 0, &in);
    if (status == HD_OK) status = hd_comm_send(it->comm, it->data, bytes, next, 0, &out);
    if (status == HD_OK) status = hdi_comm_order(it->comm, &in);
    return status == HD_OK ? hdi_comm_order(it->comm, &out) : status;
}

static hd_status copy_messages(bench *it)
{
    for (int r = 0; r < it->ranks; r++)
        it->way.to[r] = (size_t)it->count * sizeof(float);
    it->comm->way = &it->way;
    const hd_status status = send_and_receive(it);
    it->comm->way = NULL;
    return status;
}

static double measure(bench *it, hd_status (*run)(bench *))
{
    double begin = 0;
    for (int i = 0; i < 3 + RUNS; i++) {
        if (i == 3) {
            hdt_must(hdi_comm_settle(it->comm));
            hdt_must(hd_comm_barrier(it->comm));
            begin = hdi_clock_seconds();
        }
        hdt_must(run(it));
    }
    hdt_must(hdi_comm_settle(it->comm));
    return (hdi_clock_seconds() - begin) / RUNS;
}

/* Milliseconds of bf16 products of a transformer's size while the exchanges before them are on their way; NULL:
 * with nothing beside. */
static double measure_products(bench *it, hd_context *context, hd_status (*run)(bench *))
{
    enum { ROWS = 32768, COLUMNS = 768, INNER = 3072, PRODUCTS = 60, EXCHANGES = 12 };
    const size_t elements = (size_t)ROWS * INNER + (size_t)INNER * COLUMNS + (size_t)ROWS * COLUMNS;
    uint16_t *memory;
    hdt_must(hdi_cuda_status(cudaMalloc((void **)&memory, 2 * elements), "cudaMalloc"));
    hdt_must(hdi_cuda_status(cudaMemset(memory, 0, 2 * elements), "cudaMemset"));
    const hdi_gemm_args product = {.dtype = HD_DTYPE_BF16,
                                   .out_dtype = HD_DTYPE_BF16,
                                   .rows = ROWS,
                                   .columns = COLUMNS,
                                   .inner = INNER,
                                   .a = memory,
                                   .b = memory + (size_t)ROWS * INNER,
                                   .a_stride = INNER,
                                   .b_stride = COLUMNS,
                                   .out_stride = COLUMNS,
                                   .out = memory + elements - (size_t)ROWS * COLUMNS};
    hd_request requests[EXCHANGES];
    cudaEvent_t begin, end;
    float milliseconds = 0;
    hdt_must(hdi_cuda_status(cudaEventCreate(&begin), "cudaEventCreate"));
    hdt_must(hdi_cuda_status(cudaEventCreate(&end), "cudaEventCreate"));
    for (int turn = 0; turn < 2; turn++) { /* the first finds kernels */
        hdt_must(hdi_comm_settle(it->comm));
        hdt_must(hdi_cuda_status(cudaDeviceSynchronize(), "cudaDeviceSynchronize"));
        hdt_must(hd_comm_barrier(it->host));
        it->posted = requests;
        it->posts = 0;
        for (int i = 0; run && i < EXCHANGES; i++)
            hdt_must(run(it));
        it->posted = NULL;
        (void)cudaEventRecord(begin, context->stream->handle);
        for (int i = 0; i < PRODUCTS; i++)
            hdt_must(context->backend->gemm(context->stream, &product));
        (void)cudaEventRecord(end, context->stream->handle);
        for (int i = 0; i < it->posts; i++)
            hdt_must(hdi_comm_order(it->comm, &requests[i]));
        hdt_must(hdi_comm_settle(it->comm));
        hdt_must(hdi_cuda_status(cudaEventSynchronize(end), "cudaEventSynchronize"));
        (void)cudaEventElapsedTime(&milliseconds, begin, end);
    }
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    (void)cudaFree(memory);
    return milliseconds;
}

/* Seconds in which all ranks get a mesh with communicators of device memory. */
static double measure_start(hd_comm *world, const hd_mesh_options *layout, hd_context *context,
                            hd_mesh **out)
{
    hdt_must(hd_comm_barrier(world));
    const double begin = hdi_clock_seconds();
    hdt_must(hd_mesh_create(world, layout, out));
    hdt_must(hd_mesh_attach(*out, context, HD_DEVICE_TRANSPORT_AUTO));
    hdt_must(hd_comm_barrier(world));
    return hdi_clock_seconds() - begin;
}

/* Of one axis of all ranks, first and again, and of two axes. */
static void measure_starts(hd_comm *world, hd_context *context)
{
    const int ranks = hd_comm_size(world);
    const hd_mesh_options layouts[] = {
        {.data = ranks}, {.data = ranks}, {.pipeline = ranks}, {.data = 2, .pipeline = ranks / 2}};
    for (int i = 0; i < (ranks >= 4 && ranks % 2 == 0 ? 4 : 3); i++) {
        hd_mesh *mesh;
        const double seconds = measure_start(world, &layouts[i], context, &mesh);
        const int data = hd_mesh_size(mesh, HD_AXIS_DATA), lanes = hdi_transport_lanes(mesh);
        const double begin = hdi_clock_seconds();
        hd_mesh_destroy(mesh);
        hdt_must(hd_comm_barrier(world));
        if (hd_comm_rank(world) == 0)
            printf("data %d x pipeline %d: %d lanes, started in %.2f s, ended in %.2f s\n", data,
                   ranks / data, lanes, seconds, hdi_clock_seconds() - begin);
    }
}

int main(int argc, char **argv)
{
    static const int64_t sizes[] = {1, 16, 256};
    hd_comm *world;
    hdt_must(hd_comm_create_world(NULL, &world));
    bench it = {.ranks = hd_comm_size(world), .rank = hd_comm_rank(world)};
    const double n = it.ranks;
    const struct {
        const char *name;
        hd_status (*run)(bench *);
        double factor; /* bus bandwidth / algorithm bandwidth */
        bool needs_way;
    } ops[] = {{"all-reduce", all_reduce, 2 * (n - 1) / n, false},
               {"all-gather", all_gather, (n - 1) / n, false},
               {"  by copies", copy_gather, (n - 1) / n, true},
               {"all-to-all", all_to_all, (n - 1) / n, false},
               {"  by copies", copy_exchange, (n - 1) / n, true},
               {"broadcast", broadcast, 1, false},
               {"send and receive", send_and_receive, 1, false},
               {"  by copies", copy_messages, 1, true}};
    hd_mesh *mesh;
    hd_context *context;
    hdt_must(hd_context_create_ranked(
        world, &(hd_context_options){.device = "cuda", .share_gpu = getenv("SHARE_GPU") != NULL},
        &context));
    if (getenv("THROUGH_HOST")) context->copy_engines = HDI_COPY_ENGINES_HOST;
    measure_starts(world, context);
    measure_start(world, &(hd_mesh_options){.pipeline = it.ranks}, context, &mesh);
    it.comm = hd_mesh_device_comm(mesh, HD_AXIS_PIPELINE);
    it.host = hd_mesh_comm(mesh, HD_AXIS_PIPELINE);
    if (it.rank == 0) printf("%-18s %6s %8s %12s %12s\n", "", "ranks", "MiB", "GB/s", "bus GB/s");
    for (int s = 0; s < (argc > 1 ? argc - 1 : 3); s++) {
        const int64_t mib = argc > 1 ? strtoll(argv[s + 1], NULL, 10) : sizes[s];
        const int64_t each = (mib << 20) / (int64_t)sizeof(float) / it.ranks;
        it.count = each * it.ranks;
        const size_t bytes = (size_t)it.count * sizeof(float);
        for (int r = 0; r < it.ranks; r++) {
            it.counts[r] = each;
            it.offsets[r] = r * each;
        }
        void *arena;
        hdt_must(context->backend->reserve(context->device, 2 * bytes, &arena));
        it.data = arena;
        it.other = it.data + it.count;
        if (it.comm->transport->open_window)
            hdt_must(it.comm->transport->open_window(
                it.comm, arena, hdi_gpu_can_share(context->ordinal, arena, 2 * bytes),
                &it.way.window));
        if (it.rank == 0)
            printf("copies: %s\n", !it.way.window          ? "none"
                                   : it.comm->through_host ? "through host memory"
                                                           : "into peers' memory");
        for (size_t o = 0; o < sizeof ops / sizeof ops[0]; o++) {
            if (ops[o].needs_way && !it.way.window) continue;
            const double rate = (double)bytes / measure(&it, ops[o].run) / 1e9;
            if (it.rank == 0)
                printf("%-18s %6d %8" PRId64 " %12.1f %12.1f\n", ops[o].name, it.ranks, mib, rate,
                       rate * ops[o].factor);
        }
        const double alone = measure_products(&it, context, NULL);
        const double kernels = measure_products(&it, context, all_to_all);
        const double copies = it.way.window ? measure_products(&it, context, copy_exchange) : alone;
        if (it.rank == 0)
            printf(
                "products alone %.2f ms, beside exchanges by kernels %+.1f %%, by copies %s%+.1f "
                "%%\n",
                alone, (kernels / alone - 1) * 100, it.way.window ? "" : "(there are none) ",
                (copies / alone - 1) * 100);
        if (it.way.window) it.comm->transport->close_window(it.comm, it.way.window);
        hdt_must(hd_comm_barrier(it.host));
        context->backend->release(context->device, arena, 2 * bytes);
    }
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_comm_destroy(world);
    return EXIT_SUCCESS;
}
