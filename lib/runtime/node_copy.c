/* Who shares host memory with whom, and the steps in which they come to have it. */
#include "runtime/node_copy.h"

#include "comm/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "runtime/session.h"

#include <string.h>
#include <xxhash.h>

/* What a rank tells the others about what it wants to share. */
typedef struct want {
    uint64_t host, content;
    uint64_t bytes; /* 0: nothing */
} want;

_Static_assert(sizeof(want) <= HDI_COMM_RECORD, "what is wanted is one record");
_Static_assert(sizeof(hdi_shared_name) <= HDI_COMM_RECORD, "a name is one record");

/* This rank's group: the ranks that want the same. */
typedef struct group {
    hd_comm *world;
    want *wants; /* [ranks], owned */
    bool *fails; /* [ranks], owned */
    int leader;  /* its first rank */
} group;

/* Names, sizes and places of all that streams. */
static uint64_t hash_content(const hd_mesh *mesh, const hd_plan *plan)
{
    const int axes[] = {hd_mesh_index(mesh, HD_AXIS_PIPELINE), hd_mesh_index(mesh, HD_AXIS_TENSOR)};
    uint64_t hash = XXH3_64bits(axes, sizeof axes);
    for (int i = 0; i < plan->layout->entry_count; i++) {
        const hdi_home *home = hdi_residency_host(&plan->residency, i);
        if (!home) continue;
        const hdi_entry *entry = &plan->layout->entries[i];
        const size_t facts[] = {plan->residency.blocks[home->block].host_offset, home->in_block,
                                home->bytes, (size_t)entry->elements};
        hash = XXH3_64bits_withSeed(facts, sizeof facts, hash);
        hash = XXH3_64bits_withSeed(entry->name, strlen(entry->name), hash);
    }
    return hash;
}

static bool is_same(const want *a, const want *b)
{
    return a->bytes && a->bytes == b->bytes && a->host == b->host && a->content == b->content;
}

static int count_same(const group *it, int rank)
{
    int count = 0;
    for (int r = 0; r < hd_comm_size(it->world); r++)
        count += is_same(&it->wants[rank], &it->wants[r]);
    return count;
}

/* Everybody tells whether it has failed; a group of which one has goes no further. */
static hd_status exchange_failures(group *it, hd_status status)
{
    bool *told = it->world->records;
    told[hd_comm_rank(it->world)] = status != HD_OK;
    HD_RETURN_IF_ERROR(hdi_comm_gather(it->world, sizeof *told));
    for (int r = 0; r < hd_comm_size(it->world); r++)
        for (int other = 0; other < hd_comm_size(it->world) && told[r]; other++)
            if (is_same(&it->wants[r], &it->wants[other])) it->fails[other] = true;
    return HD_OK;
}

static hd_status find_group(hd_comm *world, const want *own, hdi_node_copy *copy, group *out)
{
    const int ranks = hd_comm_size(world), rank = hd_comm_rank(world);
    want *records = world->records;
    records[rank] = *own;
    HD_RETURN_IF_ERROR(hdi_comm_gather(world, sizeof *records));
    memcpy(out->wants, records, (size_t)ranks * sizeof *records);
    out->leader = -1;
    for (int r = 0; r < ranks; r++) {
        if (!is_same(own, &out->wants[r])) continue;
        if (out->leader < 0) out->leader = r;
        copy->place += r < rank;
        copy->ranks++;
    }
    return HD_OK;
}

/* The leader makes it, the others look where it says. */
static hd_status map(group *it, hdi_node_copy *copy)
{
    const int rank = hd_comm_rank(it->world);
    const size_t bytes = it->wants[rank].bytes;
    const bool wants = copy->ranks > 1;
    hdi_shared_name name = {0};
    hd_status status = HD_OK;
    if (wants && it->leader == rank) status = hdi_shared_create(bytes, &copy->shared, &name);
    hdi_shared_name *names = it->world->records;
    names[rank] = name;
    HD_RETURN_IF_ERROR(hdi_comm_gather(it->world, sizeof *names));
    if (wants && it->leader != rank) {
        name = names[it->leader];
        if (name.process) status = hdi_shared_open(&name, bytes, &copy->shared);
    }
    if (status != HD_OK) hdi_log(HD_LOG_WARN, "%s", hd_last_error());
    return exchange_failures(it, status);
}

/* Each has the system give it its run of the bytes: nobody can do without later. */
static hd_status take(group *it, hdi_node_copy *copy)
{
    hd_status status = HD_OK;
    if (copy->ranks > 1 && !it->fails[hd_comm_rank(it->world)]) {
        const size_t piece = copy->shared.bytes / (size_t)copy->ranks;
        const size_t first = piece * (size_t)copy->place;
        status =
            hdi_shared_take(&copy->shared, first,
                            copy->place == copy->ranks - 1 ? copy->shared.bytes - first : piece);
    }
    if (status != HD_OK) hdi_log(HD_LOG_WARN, "%s", hd_last_error());
    return exchange_failures(it, status);
}

static hd_status register_all(group *it, const hd_context *context, hdi_node_copy *copy)
{
    hd_status status = HD_OK;
    if (copy->ranks > 1 && !it->fails[hd_comm_rank(it->world)]) {
        status = context->backend->register_host(context->device, copy->shared.memory,
                                                 copy->shared.bytes);
        copy->registered = status == HD_OK;
    }
    if (status != HD_OK) hdi_log(HD_LOG_WARN, "%s", hd_last_error());
    return exchange_failures(it, status);
}

/* All ranks have the same records, so rank 0 can say it for all. */
static void report(const group *it)
{
    size_t shared = 0, single = 0;
    int copies = 0, sharing = 0, refused = 0;
    for (int r = 0; r < hd_comm_size(it->world); r++) {
        const int ranks = count_same(it, r);
        bool is_first = true;
        for (int before = 0; before < r; before++)
            is_first = is_first && !is_same(&it->wants[before], &it->wants[r]);
        if (ranks < 2 || it->fails[r])
            single += it->wants[r].bytes;
        else if (is_first)
            shared += it->wants[r].bytes, copies++;
        sharing += ranks > 1 && !it->fails[r];
        refused += it->fails[r];
    }
    if (hd_comm_rank(it->world) != 0 || shared + single == 0) return;
    if (refused)
        hdi_log(HD_LOG_WARN,
                "streamed weights: %d ranks could share host memory but take copies of their own",
                refused);
    hdi_log(HD_LOG_INFO,
            "streamed weights: host memory planned: %zu bytes shared (copies: %d, ranks: %d), %zu "
            "bytes private",
            shared, copies, sharing, single);
}

static hd_status open_copy(const hd_context *context, const want *own, group *it,
                           hdi_node_copy *copy)
{
    HD_RETURN_IF_ERROR(find_group(it->world, own, copy, it));
    int most = 0;
    for (int r = 0; r < hd_comm_size(it->world); r++)
        if (count_same(it, r) > most) most = count_same(it, r);
    if (most > 1) {
        HD_RETURN_IF_ERROR(map(it, copy));
        HD_RETURN_IF_ERROR(take(it, copy));
        HD_RETURN_IF_ERROR(register_all(it, context, copy));
    }
    report(it);
    return HD_OK;
}

hd_status hdi_node_copy_open(hd_context *context, const hd_mesh *mesh, const hd_plan *plan,
                             hdi_node_copy *out)
{
    *out = (hdi_node_copy){0};
    hd_comm *world = hd_mesh_comm(mesh, HD_AXIS_NONE);
    const bool streams = plan && plan->residency.host_blocks;
    want own = {.bytes = streams ? plan->residency.host_bytes : 0};
    if (!world) return HD_OK;
    if (streams) {
        own.host = hdi_host_hash();
        own.content = hash_content(mesh, plan);
    }
    const size_t ranks = (size_t)hd_comm_size(world);
    group it = {.world = world,
                .wants = hdi_alloc_array(ranks, sizeof *it.wants),
                .fails = hdi_alloc_array(ranks, sizeof *it.fails)};
    hd_status status =
        it.wants && it.fails ? HD_OK : hdi_error(HD_ERROR_MEMORY, "session: out of host memory");
    status = hd_comm_agree(world, status);
    if (status == HD_OK) status = open_copy(context, &own, &it, out);
    hdi_shared_hide(&out->shared);
    if (status != HD_OK || out->ranks < 2 || it.fails[hd_comm_rank(world)])
        hdi_node_copy_close(context, out);
    hdi_free(it.wants);
    hdi_free(it.fails);
    return status;
}

void hdi_node_copy_close(const hd_context *context, hdi_node_copy *copy)
{
    if (copy->registered)
        context->backend->unregister_host(context->device, copy->shared.memory, copy->shared.bytes);
    hdi_shared_close(&copy->shared);
    *copy = (hdi_node_copy){0};
}

bool hdi_node_copy_is_mine(const hdi_node_copy *copy, size_t offset)
{
    if (copy->ranks < 2) return true;
    const size_t piece = copy->shared.bytes / (size_t)copy->ranks;
    const size_t owner = piece ? offset / piece : 0, last = (size_t)copy->ranks - 1;
    return (owner < last ? owner : last) == (size_t)copy->place;
}
