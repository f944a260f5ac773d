/* Worlds of MPI and their communicators: start, splits, ends. */
#include "comm/mpi_world.h"

#include <stdlib.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"

/* MPI starts and ends once in a process, whoever starts it. */
static bool started_here;
static int open_worlds;

static int environment_number(const char *variable)
{
    const char *value = getenv(variable);
    return value ? atoi(value) : 0;
}

static hd_status start_mpi(void)
{
    int is_started, has_ended;
    MPI_Finalized(&has_ended);
    if (has_ended)
        return hdi_error(HD_ERROR_COMM,
                         "comm: MPI has ended in this process and cannot start again; "
                         "keep one world open while you need MPI");
    MPI_Initialized(&is_started);
    if (is_started) return HD_OK;
    int threads;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &threads) != MPI_SUCCESS)
        return hdi_error(HD_ERROR_COMM, "comm: MPI does not start");
    started_here = true;
    return HD_OK;
}

/* Another MPI's launcher starts ranks that each believe to be alone. */
static hd_status check_launcher(int size)
{
    static const char *const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) {
        const int launched = environment_number(variables[i]);
        if (size == 1 && launched > 1)
            return hdi_error(
                HD_ERROR_COMM,
                "comm: the launcher started %d ranks (%s) but MPI sees one: it belongs "
                "to another MPI than heddle was built with (Open MPI)",
                launched, variables[i]);
    }
    return HD_OK;
}

/* Where ranks share cores, looking often would take the core from the rank that is waited for. */
static int choose_spins(int size)
{
    int local = environment_number("OMPI_COMM_WORLD_LOCAL_SIZE");
    if (local == 0) local = size;
    return local <= sysconf(_SC_NPROCESSORS_ONLN) ? 500 : 20;
}

static void stop_mpi(hdi_mpi_world *world)
{
    if (world->has_stuck_collective) return;
    /* MPI_Finalize waits for all ranks without a deadline: enter it when they all have come. Without
     * it, mpirun sees this rank leave and ends the others. */
    hd_comm *all;
    if (hdi_comm_new(&hdi_transport_mpi, 0, 1, world->deadline_seconds, &all) != HD_OK) return;
    hdi_mpi_state state = {.world = world, .mpi = world->mpi};
    all->state = &state;
    const bool is_together = hd_comm_barrier(all) == HD_OK;
    hdi_comm_delete(all);
    if (!is_together) return;
    MPI_Comm_free(&world->mpi);
    MPI_Finalize();
}

static void leave_world(hdi_mpi_world *world)
{
    if (--world->communicators > 0) return;
    const bool is_last = world->pool && --open_worlds == 0;
    if (is_last && started_here)
        stop_mpi(world);
    else if (world->mpi != MPI_COMM_NULL && !world->has_stuck_collective)
        MPI_Comm_free(&world->mpi);
    hdi_mpi_pool_destroy(world->pool);
    hdi_free(world);
}

void hdi_mpi_destroy(hd_comm *comm)
{
    hdi_mpi_state *state = hdi_mpi_of(comm);
    if (state) {
        hdi_mpi_world *world = state->world;
        const bool is_clean = !world->pool || hdi_mpi_drain(world->pool, comm);
        if (!is_clean) world->has_stuck_collective = true;
        if (is_clean && state->mpi != world->mpi && state->mpi != MPI_COMM_NULL)
            MPI_Comm_free(&state->mpi);
        leave_world(world);
        hdi_free(state);
    }
    hdi_comm_delete(comm);
}

static hd_status attach(hd_comm *comm, hdi_mpi_world *world)
{
    hdi_mpi_state *state = hdi_alloc(sizeof *state);
    if (!state) return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory");
    state->world = world;
    state->mpi = MPI_COMM_NULL;
    comm->state = state;
    world->communicators++;
    return HD_OK;
}

/* The world's own copy of MPI_COMM_WORLD, so that no other library's messages meet ours. */
static hd_status copy_world(hd_comm *comm, hdi_mpi_world *world)
{
    hdi_mpi_operation *operation;
    hd_request request = {0};
    MPI_Request *posted;
    HD_RETURN_IF_ERROR(hdi_mpi_begin(world->pool, comm, "create_world", 0, -1, &operation));
    hd_status status = hdi_mpi_add(world->pool, operation, 0, -1, false, &posted);
    if (status == HD_OK)
        status = hdi_mpi_status(MPI_Comm_idup(MPI_COMM_WORLD, &world->mpi, posted), comm,
                                "MPI_Comm_idup");
    HD_RETURN_IF_ERROR(hdi_mpi_end(world->pool, operation, status, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(comm, &request));
    MPI_Comm_set_errhandler(world->mpi, MPI_ERRORS_RETURN);
    hdi_mpi_of(comm)->mpi = world->mpi;
    return HD_OK;
}

static hd_status fill_world(hd_comm *comm)
{
    hdi_mpi_world *world = hdi_alloc(sizeof *world);
    if (!world) return hdi_error(HD_ERROR_MEMORY, "comm: out of host memory");
    world->mpi = MPI_COMM_NULL;
    world->piece_bytes = (size_t)1 << 30;
    world->deadline_seconds = comm->deadline_seconds;
    hd_status status = attach(comm, world);
    if (status != HD_OK) {
        hdi_free(world);
        return status;
    }
    HD_RETURN_IF_ERROR(hdi_mpi_pool_create(comm->size, &world->pool));
    open_worlds++;
    comm->spins = choose_spins(comm->size);
    return copy_world(comm, world);
}

hd_status hdi_mpi_create_world(double deadline_seconds, hd_comm **out)
{
    HD_RETURN_IF_ERROR(start_mpi());
    int rank, size;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    HD_RETURN_IF_ERROR(check_launcher(size));
    hd_comm *comm;
    HD_RETURN_IF_ERROR(hdi_comm_new(&hdi_transport_mpi, rank, size, deadline_seconds, &comm));
    hd_status status = fill_world(comm);
    if (status != HD_OK) {
        hdi_mpi_destroy(comm);
        return status;
    }
    *out = comm;
    return HD_OK;
}

/* What each rank tells the others before MPI splits. */
typedef struct split_record {
    int32_t color, key, rank, has_memory;
} split_record;

_Static_assert(sizeof(split_record) <= HDI_COMM_RECORD, "a split record is one record");

static int compare_keys(const void *left, const void *right)
{
    const split_record *a = left, *b = right;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return (a->rank > b->rank) - (a->rank < b->rank);
}

/* All ranks reach the same verdict, since all see the same records. */
static hd_status check_split(const hd_comm *comm, const split_record *records)
{
    for (int r = 0; r < comm->size; r++) {
        if (records[r].color < 0)
            return hdi_error(HD_ERROR_ARGUMENT, "comm_split: rank %d has color %d, want >= 0", r,
                             (int)records[r].color);
        if (!records[r].has_memory)
            return hdi_error(HD_ERROR_MEMORY, "comm_split: rank %d is out of host memory", r);
    }
    return HD_OK;
}

static hd_status fill_split(hd_comm *comm, hd_comm *child, int color, int key)
{
    /* MPI_Comm_split blocks; the exchange before it has the deadline. */
    HD_RETURN_IF_ERROR(hdi_comm_gather(comm, sizeof(split_record)));
    split_record *records = comm->records;
    HD_RETURN_IF_ERROR(check_split(comm, records));

    int members = 0;
    for (int r = 0; r < comm->size; r++)
        if (records[r].color == color) records[members++] = records[r];
    qsort(records, (size_t)members, sizeof *records, compare_keys);
    for (int r = 0; r < members; r++) {
        child->world_ranks[r] = comm->world_ranks[records[r].rank];
        if (records[r].rank == comm->rank) child->rank = r;
    }
    child->size = members;
    child->spins = comm->spins;
    hdi_comm_set_name(child, "");
    hdi_comm_append(child->name, sizeof child->name, "split %d", color);
    return hdi_mpi_status(
        MPI_Comm_split(hdi_mpi_of(comm)->mpi, color, key, &hdi_mpi_of(child)->mpi), comm,
        "MPI_Comm_split");
}

hd_status hdi_mpi_split(hd_comm *comm, int color, int key, hd_comm **out)
{
    hd_comm *child;
    hd_status status =
        hdi_comm_new(&hdi_transport_mpi, 0, comm->size, comm->deadline_seconds, &child);
    if (status == HD_OK) status = attach(child, hdi_mpi_of(comm)->world);
    ((split_record *)comm->records)[comm->rank] = (split_record){
        .color = color, .key = key, .rank = comm->rank, .has_memory = status == HD_OK};
    if (status != HD_OK) { /* the others must hear of it */
        hdi_comm_delete(child);
        hdi_comm_gather(comm, sizeof(split_record));
        return hdi_error(status, "comm_split: out of host memory");
    }
    status = fill_split(comm, child, color, key);
    if (status != HD_OK) {
        hdi_mpi_destroy(child);
        return status;
    }
    *out = child;
    return HD_OK;
}

/* The split blocks: come here soon after something that all ranks have passed. */
hd_status hdi_mpi_local(hd_comm *comm, int *rank, int *size)
{
    HD_RETURN_IF_ERROR(hd_comm_barrier(comm));
    MPI_Comm local;
    HD_RETURN_IF_ERROR(
        hdi_mpi_status(MPI_Comm_split_type(hdi_mpi_of(comm)->mpi, MPI_COMM_TYPE_SHARED, comm->rank,
                                           MPI_INFO_NULL, &local),
                       comm, "MPI_Comm_split_type"));
    MPI_Comm_rank(local, rank);
    MPI_Comm_size(local, size);
    MPI_Comm_free(&local);
    return HD_OK;
}
