/* Opening and closing a place for copies between ranks. */
#include "tests/gpu/hdt_copies.h"

#include <stdio.h>

#include "comm/comm.h"
#include "runtime/gpu.h"

hdt_copies hdt_place;

void hdt_copies_reserve(size_t bytes)
{
    hdt_copies *it = &hdt_place;
    const hd_context *context = it->context;
    void *memory = NULL;
    it->arena_bytes = bytes;
    hdt_assert_ok(context->backend->reserve(context->device, bytes, &memory));
    it->arena = memory;
    hdt_assert_ok(it->comm->transport->open_window(
        it->comm, it->arena, hdi_gpu_can_share(context->ordinal, it->arena, bytes),
        &it->way.window));
}

void hdt_copies_release(void)
{
    hdt_copies *it = &hdt_place;
    if (it->way.window) it->comm->transport->close_window(it->comm, it->way.window);
    it->way.window = NULL;
    (void)hd_comm_barrier(hdt_world);
    it->context->backend->release(it->context->device, it->arena, it->arena_bytes);
    it->arena = NULL;
}

/* Arenas of different sizes. */
void hdt_copies_open(const hd_mesh_options *layout, hd_axis axis, bool through_host)
{
    hdt_copies *it = &hdt_place;
    const hd_context_options options = {.device = "cuda", .share_gpu = true};
    hdt_assert_ok(hd_mesh_create(hdt_world, layout, &it->mesh));
    hdt_assert_ok(hd_context_create_ranked(hdt_world, &options, &it->context));
    it->context->copy_engines = through_host ? HDI_COPY_ENGINES_HOST : HDI_COPY_ENGINES_PEERS;
    hdt_assert_ok(hd_mesh_attach(it->mesh, it->context, HD_DEVICE_TRANSPORT_NCCL));
    it->comm = hd_mesh_device_comm(it->mesh, axis);
    hdt_copies_reserve(HDT_ARENA + ((size_t)hd_comm_rank(hdt_world) << 22));
    if (hd_comm_rank(hdt_world) == 0)
        printf("%scopies %s%s\n", it->way.window ? "" : "skipped: no ",
               through_host ? "through host memory" : "into peers' memory",
               it->context->shares_gpu ? ", ranks share GPUs" : "");
}

void hdt_copies_open_peers(void)
{
    hdt_copies_open(&(hd_mesh_options){.pipeline = hd_comm_size(hdt_world)}, HD_AXIS_PIPELINE,
                    false);
}

void hdt_copies_open_host(void)
{
    hdt_copies_open(&(hd_mesh_options){.pipeline = hd_comm_size(hdt_world)}, HD_AXIS_PIPELINE,
                    true);
}

void hdt_copies_close(void)
{
    hdt_copies_release();
    hd_context_destroy(hdt_place.context);
    hd_mesh_destroy(hdt_place.mesh);
    hdt_place = (hdt_copies){0};
}
