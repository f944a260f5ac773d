/* The device that tests run on. */
#include "tests/support/hdt_device.h"

#include <stdlib.h>

#include "runtime/session.h"
#include "tests/support/hdt_recorder.h"

const char *hdt_device(void)
{
    const char *device = getenv("HEDDLE_DEVICE");
    return device && *device ? device : "cpu";
}

bool hdt_graphs(void)
{
    const char *graphs = getenv("HEDDLE_GRAPHS");
    return graphs && *graphs && strcmp(graphs, "0") != 0;
}

/* HEDDLE_COPIES=host or peers: ranks that share a GPU do not leave exchanges to NCCL. */
static hdi_copy_engines copy_engines(void)
{
    const char *way = getenv("HEDDLE_COPIES");
    if (way && strcmp(way, "host") == 0) return HDI_COPY_ENGINES_HOST;
    return way && strcmp(way, "peers") == 0 ? HDI_COPY_ENGINES_PEERS : HDI_COPY_ENGINES_AUTO;
}

static bool is_staged;

void hdt_set_staged(bool staged)
{
    is_staged = staged;
}

static hd_device_transport transport(void)
{
    if (is_staged) return HD_DEVICE_TRANSPORT_STAGED;
    const char *name = getenv("HEDDLE_TRANSPORT");
    if (name && strcmp(name, "nccl") == 0) return HD_DEVICE_TRANSPORT_NCCL;
    if (name && strcmp(name, "staged") == 0) return HD_DEVICE_TRANSPORT_STAGED;
    return HD_DEVICE_TRANSPORT_AUTO;
}

/* The place that stayed: one, because a communicator of the host moves on those of one mesh only. */
static hd_mesh *kept_mesh;
static hd_context *kept_context;

void hdt_end_place(void)
{
    hd_context_destroy(kept_context);
    hd_mesh_destroy(kept_mesh);
    kept_mesh = NULL;
    kept_context = NULL;
}

hd_status hdt_open_context(hd_comm *comm, hd_mesh *mesh, hd_context **out)
{
    if (comm == hdt_world) hdt_end_place();
    const hd_context_options options = {
        .device = hdt_device(), .share_gpu = true, .graphs = hdt_graphs()};
    hd_status status = hd_context_create_ranked(comm, &options, out);
    if (status == HD_OK) (*out)->copy_engines = copy_engines();
    if (status == HD_OK) status = hd_mesh_attach(mesh, *out, transport());
    if (status == HD_OK && hdt_graphs() && (*out)->backend == &hdi_backend_cpu) {
        (*out)->backend = hdt_recorder_backend(&hdi_backend_cpu);
        (*out)->attached = mesh;
    }
    return status;
}

static bool is_of(const hd_mesh *mesh, const hd_mesh_options *layout)
{
    const int group = layout->shard_group ? layout->shard_group : hd_mesh_size(mesh, HD_AXIS_DATA);
    const int pairs[][2] = {
        {layout->tensor, hd_mesh_size(mesh, HD_AXIS_TENSOR)},
        {layout->sequence, hd_mesh_size(mesh, HD_AXIS_SEQUENCE)},
        {layout->data, hd_mesh_size(mesh, HD_AXIS_DATA)},
        {layout->pipeline, hd_mesh_size(mesh, HD_AXIS_PIPELINE)},
        {layout->ring, hd_mesh_ring(mesh)},
        {group * hd_mesh_size(mesh, HD_AXIS_SEQUENCE), hd_mesh_size(mesh, HD_AXIS_SHARD)},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if ((pairs[i][0] ? pairs[i][0] : 1) != pairs[i][1]) return false;
    return mesh != NULL;
}

hd_status hdt_open_place(hd_comm *comm, const hd_mesh_options *layout, hd_mesh **mesh,
                         hd_context **context)
{
    *mesh = NULL;
    *context = NULL;
    if (comm == hdt_world && is_of(kept_mesh, layout)) {
        *mesh = kept_mesh;
        *context = kept_context;
        kept_mesh = NULL;
        kept_context = NULL;
        return HD_OK;
    }
    const hd_status status = hd_mesh_create(comm, layout, mesh);
    return status == HD_OK ? hdt_open_context(comm, *mesh, context) : status;
}

/* All ranks keep it, or none: what has failed on one is of no use. */
static bool can_stay(const hd_mesh *mesh, const hd_context *context)
{
    if (!context || hd_mesh_comm(mesh, HD_AXIS_NONE) != hdt_world) return false;
    if (hd_mesh_ranks(mesh) == 1 || strcmp(hdt_device(), "cpu") == 0) return false;
    const hd_status alive = hd_comm_barrier(hd_mesh_device_comm(mesh, HD_AXIS_NONE));
    return hd_comm_agree(hdt_world, alive) == HD_OK;
}

void hdt_close_place(hd_mesh *mesh, hd_context *context)
{
    if (!can_stay(mesh, context)) {
        hd_context_destroy(context);
        hd_mesh_destroy(mesh);
        return;
    }
    hdt_end_place();
    kept_mesh = mesh;
    kept_context = context;
}
