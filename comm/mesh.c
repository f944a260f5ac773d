/* The mesh: a rank's place on the axes, and one communicator per axis. */
#include <heddle/mesh.h>

#include "comm/comm.h"
#include "comm/mesh.h"
#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"

struct hd_mesh {
    int rank, ranks, ring;
    int sizes[HD_AXES], indices[HD_AXES];
    int strides[HD_AXES];    /* how far apart in rank neighbours on the axis are */
    hd_comm *world;          /* borrowed; NULL on a fake mesh */
    hd_comm *comms[HD_AXES]; /* owned */
    hdi_mesh_device device;  /* its communicators end with detach */
};

static const char *const axis_names[HD_AXES] = {
    [HD_AXIS_NONE] = "none",   [HD_AXIS_TENSOR] = "tensor",     [HD_AXIS_SEQUENCE] = "sequence",
    [HD_AXIS_DATA] = "data",   [HD_AXIS_PIPELINE] = "pipeline", [HD_AXIS_REPLICA] = "replica",
    [HD_AXIS_SHARD] = "shard", [HD_AXIS_COPY] = "copy",
};

static bool is_axis(hd_axis axis)
{
    return axis > HD_AXIS_NONE && axis < HD_AXES;
}

const char *hd_axis_name(hd_axis axis)
{
    return is_axis(axis) ? axis_names[axis] : axis_names[HD_AXIS_NONE];
}

static void axis_sizes(const hd_mesh_options *options, int sizes[HD_AXES])
{
    const int given[HD_AXES] = {
        [HD_AXIS_TENSOR] = options->tensor,
        [HD_AXIS_SEQUENCE] = options->sequence,
        [HD_AXIS_DATA] = options->data,
        [HD_AXIS_PIPELINE] = options->pipeline,
    };
    sizes[HD_AXIS_NONE] = 1;
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXIS_REPLICA; axis++)
        sizes[axis] = given[axis] == 0 ? 1 : given[axis];
    for (int axis = HD_AXIS_REPLICA; axis < HD_AXES; axis++)
        sizes[axis] = 0;
    sizes[HD_AXIS_SHARD] = options->shard_group; /* until the data axis is known */
}

/* Axes that are made of others: sequence and data as one, and its two parts. */
static hd_status place_shards(hd_mesh *mesh)
{
    int *sizes = mesh->sizes, *indices = mesh->indices, *strides = mesh->strides;
    const int data = sizes[HD_AXIS_DATA], sequence = sizes[HD_AXIS_SEQUENCE];
    const int group = sizes[HD_AXIS_SHARD] ? sizes[HD_AXIS_SHARD] : data;
    if (group < 1 || data % group || (group == 1 && data > 1))
        return hdi_error(
            HD_ERROR_CONFIG,
            "layout.shard_group is %d with %d data ranks, want a divisor of it above 1", group,
            data);
    sizes[HD_AXIS_REPLICA] = sequence * data;
    strides[HD_AXIS_REPLICA] = strides[HD_AXIS_SEQUENCE];
    indices[HD_AXIS_REPLICA] = indices[HD_AXIS_DATA] * sequence + indices[HD_AXIS_SEQUENCE];
    sizes[HD_AXIS_SHARD] = sequence * group;
    strides[HD_AXIS_SHARD] = strides[HD_AXIS_SEQUENCE];
    indices[HD_AXIS_SHARD] = indices[HD_AXIS_REPLICA] % sizes[HD_AXIS_SHARD];
    sizes[HD_AXIS_COPY] = data / group;
    strides[HD_AXIS_COPY] = strides[HD_AXIS_DATA] * group;
    indices[HD_AXIS_COPY] = indices[HD_AXIS_DATA] / group;
    return HD_OK;
}

static hd_status place(hd_mesh *mesh, int rank, int ranks, const hd_mesh_options *options)
{
    int *sizes = mesh->sizes;
    axis_sizes(options, sizes);
    int64_t product = 1;
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXIS_REPLICA; axis++) {
        if (sizes[axis] < 0)
            return hdi_error(HD_ERROR_CONFIG, "layout.%s is %d, want at least 1", axis_names[axis],
                             sizes[axis]);
        if (!hdi_mul_i64(product, sizes[axis], &product))
            return hdi_error(HD_ERROR_CONFIG, "layout: the sizes' product overflows");
    }
    if (product != ranks)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout data %d x pipeline %d x sequence %d x tensor %d = %lld, ranks %d",
                         sizes[HD_AXIS_DATA], sizes[HD_AXIS_PIPELINE], sizes[HD_AXIS_SEQUENCE],
                         sizes[HD_AXIS_TENSOR], (long long)product, ranks);
    mesh->ring = options->ring == 0 ? 1 : options->ring;
    if (mesh->ring < 1 || sizes[HD_AXIS_SEQUENCE] % mesh->ring)
        return hdi_error(HD_ERROR_CONFIG, "layout.ring is %d, want a divisor of layout.sequence %d",
                         mesh->ring, sizes[HD_AXIS_SEQUENCE]);
    mesh->rank = rank;
    mesh->ranks = ranks;
    int stride = 1;
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXIS_REPLICA; axis++) {
        mesh->strides[axis] = stride;
        mesh->indices[axis] = rank / stride % sizes[axis];
        stride *= sizes[axis];
    }
    return place_shards(mesh);
}

/* Ranks on one line along `axis` share what is left of their rank without that axis. */
static hd_status cut_line(hd_mesh *mesh, hd_comm *world, hd_axis axis)
{
    const int index = mesh->indices[axis];
    if (mesh->sizes[axis] == 1)
        HD_RETURN_IF_ERROR(hdi_comm_create_alone(world, &mesh->comms[axis]));
    else
        HD_RETURN_IF_ERROR(hd_comm_split(world, mesh->rank - index * mesh->strides[axis], index,
                                         &mesh->comms[axis]));
    hdi_comm_set_name(mesh->comms[axis], axis_names[axis]);
    return HD_OK;
}

hd_axis hdi_mesh_same_line(const hd_mesh *mesh, hd_axis axis)
{
    for (hd_axis other = HD_AXIS_TENSOR; other < axis; other++)
        if (mesh->sizes[other] == mesh->sizes[axis] &&
            (mesh->sizes[axis] == 1 || mesh->strides[other] == mesh->strides[axis]))
            return other;
    return axis;
}

static hd_status fill_mesh(hd_mesh *mesh, hd_comm *comm, const hd_mesh_options *options)
{
    int sizes[HD_AXES];
    axis_sizes(options, sizes);
    HD_RETURN_IF_ERROR(hd_comm_check_equal(comm, sizes, sizeof sizes, "the layout"));
    HD_RETURN_IF_ERROR(
        hd_comm_check_equal(comm, &options->ring, sizeof options->ring, "the layout's ring"));
    HD_RETURN_IF_ERROR(place(mesh, hd_comm_rank(comm), hd_comm_size(comm), options));
    mesh->world = comm;
    for (int axis = HD_AXIS_TENSOR; axis < HD_AXES; axis++) {
        const hd_axis same =
            axis < HD_AXIS_REPLICA ? (hd_axis)axis : hdi_mesh_same_line(mesh, (hd_axis)axis);
        if ((int)same == axis)
            HD_RETURN_IF_ERROR(cut_line(mesh, comm, same));
        else
            mesh->comms[axis] = mesh->comms[same];
    }
    return HD_OK;
}

hd_status hd_mesh_create(hd_comm *comm, const hd_mesh_options *options, hd_mesh **out)
{
    if (!comm || !options || !out)
        return hdi_error(HD_ERROR_ARGUMENT, "mesh_create: comm, options or out is NULL");
    *out = NULL;
    hd_mesh *mesh = hdi_alloc(sizeof *mesh);
    if (!mesh) return hdi_error(HD_ERROR_MEMORY, "mesh_create: out of host memory");
    hd_status status = fill_mesh(mesh, comm, options);
    if (status != HD_OK) {
        hd_mesh_destroy(mesh);
        return status;
    }
    *out = mesh;
    return HD_OK;
}

hd_status hd_mesh_create_fake(int rank, int ranks, const hd_mesh_options *options, hd_mesh **out)
{
    if (!options || !out)
        return hdi_error(HD_ERROR_ARGUMENT, "mesh_create_fake: options or out is NULL");
    *out = NULL;
    if (rank < 0 || rank >= ranks)
        return hdi_error(HD_ERROR_ARGUMENT, "mesh_create_fake: rank is %d, want 0..%d", rank,
                         ranks - 1);
    hd_mesh *mesh = hdi_alloc(sizeof *mesh);
    if (!mesh) return hdi_error(HD_ERROR_MEMORY, "mesh_create_fake: out of host memory");
    hd_status status = place(mesh, rank, ranks, options);
    if (status != HD_OK) {
        hd_mesh_destroy(mesh);
        return status;
    }
    *out = mesh;
    return HD_OK;
}

void hd_mesh_destroy(hd_mesh *mesh)
{
    if (!mesh) return;
    hdi_mesh_detach(mesh);
    for (int axis = HD_AXES - 1; axis >= HD_AXIS_TENSOR; axis--)
        if (axis < HD_AXIS_REPLICA || (int)hdi_mesh_same_line(mesh, (hd_axis)axis) == axis)
            hd_comm_destroy(mesh->comms[axis]);
    hdi_free(mesh);
}

int hd_mesh_size(const hd_mesh *mesh, hd_axis axis)
{
    return mesh && is_axis(axis) ? mesh->sizes[axis] : 1;
}

int hd_mesh_index(const hd_mesh *mesh, hd_axis axis)
{
    return mesh && is_axis(axis) ? mesh->indices[axis] : 0;
}

int hd_mesh_ring(const hd_mesh *mesh)
{
    return mesh ? mesh->ring : 1;
}

int hd_mesh_rank(const hd_mesh *mesh)
{
    return mesh ? mesh->rank : 0;
}

int hd_mesh_ranks(const hd_mesh *mesh)
{
    return mesh ? mesh->ranks : 1;
}

int hd_mesh_peer(const hd_mesh *mesh, hd_axis axis, int index)
{
    if (!mesh) return 0;
    if (!is_axis(axis)) return mesh->rank;
    return mesh->rank + (index - mesh->indices[axis]) * mesh->strides[axis];
}

hd_comm *hd_mesh_comm(const hd_mesh *mesh, hd_axis axis)
{
    if (!mesh) return NULL;
    if (axis == HD_AXIS_NONE) return mesh->world;
    return is_axis(axis) ? mesh->comms[axis] : NULL;
}

void hdi_mesh_attach(hd_mesh *mesh, const hdi_mesh_device *device)
{
    mesh->device = *device;
}

void hdi_mesh_detach(hd_mesh *mesh)
{
    const hdi_mesh_device device = mesh->device;
    mesh->device = (hdi_mesh_device){0};
    if (device.detach) device.detach(device.user);
}

hd_comm *hd_mesh_device_comm(const hd_mesh *mesh, hd_axis axis)
{
    if (!mesh || axis < HD_AXIS_NONE || axis >= HD_AXES) return NULL;
    return mesh->device.comms[axis] ? mesh->device.comms[axis] : hd_mesh_comm(mesh, axis);
}
