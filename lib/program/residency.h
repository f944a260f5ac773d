/* Weights that are not whole on the device and pass through it block by block.
 *
 * A block is a scope without scopes inside (a transformer layer): those of its weights that no op
 * outside it reads. The weights of host blocks have no place of their own on the device but one in
 * each of a few slots. Blocks take slots in the order in which the ops of a run read them, and the
 * runs go on from each other: use number n of a session has slot n modulo the slots. So a copy has
 * the computation of at least one other block to hide under, whatever the number of blocks.
 *
 * Sharded weights pass through in the same way: a block is gathered from the ranks that have a shard of it,
 * instead of copied from the host; or each rank first copies its shard from the host to a place beside the
 * slots, while the block before is gathered. So do weights that programs update on the host, all of them
 * or this rank's shards, which lie in the rank's arena there; what else is on the host several ranks may
 * share. */
#ifndef HDI_PROGRAM_RESIDENCY_H
#define HDI_PROGRAM_RESIDENCY_H

#include "program/layout.h"

#include <heddle/plan.h>

typedef struct hdi_block {
    const char *name;   /* of the scope, borrowed from a program */
    size_t bytes;       /* of its weights, with padding */
    bool host;          /* or, of a plan that gathers, in the ranks' shards */
    size_t host_offset; /* of a host block in the host's copy */
} hdi_block;

/* Where the weights of a layout's entry are kept. */
typedef struct hdi_home {
    int block; /* -1: the entry is in no block */
    size_t bytes;
    size_t in_block; /* offset in the block */
    size_t offset;   /* in the weights region, unless the block is on the host */
} hdi_home;

/* A run of ops, from the first to the last that reads a host block, none of another between. */
typedef struct hdi_stream_use {
    int block, first, last;
} hdi_stream_use;

/* What one run, of one phase of a program, uses. */
typedef struct hdi_stream_run {
    hdi_stream_use *uses;
    int use_count, use_capacity;
    int *
        fetches; /* [use_count + slots] the op before which the fetch of a use is queued; behind the
                     run's own uses are those that the next run begins with */
} hdi_stream_run;

typedef struct hdi_residency {
    hdi_block *blocks; /* in the order of use */
    int block_count, block_capacity;
    hdi_home *homes; /* [layout entries] */
    int host_blocks; /* 0: all is resident, and homes are not used */
    bool gathers;    /* blocks are put together from the ranks' shards of them */
    bool updates;    /* programs write the host's weights, which lie in the rank's arena there */
    int slots;
    size_t slot_bytes, host_bytes;
    size_t shard_bytes; /* of shards that come from the host: room for one, behind the slots */
} hdi_residency;

/* Does the rank keep its shard of each block and no more, on the device or on the host? */
static inline bool hdi_residency_is_sharded(const hdi_residency *residency)
{
    return residency->gathers && (residency->updates || !residency->host_bytes);
}

/* Decide for a plan whose programs only read weights (decide.c): `count` of the blocks, 0 for all, are
 * kept as `kind` says; or, where all but weights takes `rest` bytes, the fewest that fit the budget. */
hd_status hdi_residency_keep(hd_plan *plan, hd_residency kind, int count, int slots);
hd_status hdi_residency_fit(hd_plan *plan, size_t rest, int slots);

/* Find blocks and homes. HD_ERROR_UNSUPPORTED if a program writes weights. */
hd_status hdi_residency_find(hd_plan *plan);

/* Put `count` blocks on the host, evenly spread, to pass through `slots` slots, fewer if there are
 * fewer blocks. Sets homes, and the bytes of the weights' regions. */
void hdi_residency_choose(hd_plan *plan, int count, int slots);

/* Number the blocks that weights are sharded by: sets the entries' and the layout's. Parameters that live
 * on several stages are in none. */
hd_status hdi_residency_blocks(hdi_layout *layout, hd_program *const *programs, int count);

/* Of a layout that shards weights, or has blocks on the host: these blocks pass through `slots` slots
 * (laid_out.c). Sets homes, and the bytes of the weights' regions. */
hd_status hdi_residency_laid_out(hd_plan *plan, int slots);

/* Uses of host blocks in a unit's phases, and when their copies are queued. */
hd_status hdi_unit_uses(hd_plan *plan, int index);

/* Prove it (verify_residency.c): no two weights share bytes, and every op that reads a host block finds
 * it in its slot, run after run. HD_ERROR_INTERNAL names the op. */
hd_status hdi_plan_verify_residency(const hd_plan *plan);

/* Uses that a run has in common with the next: 1 if that begins with the block that this one ends with, as
 * a backward does behind its forward. It stays in its slot. */
static inline int hdi_stream_common(const hdi_stream_run *run, const hdi_stream_run *next)
{
    return next && run->use_count && next->use_count &&
           run->uses[run->use_count - 1].block == next->uses[0].block;
}

/* Bytes of a rank's shard of a bucket, where shards lie one after another. */
size_t hdi_residency_shard_bytes(const hdi_bucket *bucket, int shard, size_t width);

/* Of such a layout: addresses of what this rank keeps of a bucket's weights. */
void hdi_residency_kept(const hd_plan *plan, int bucket, size_t *begin, size_t *end);

/* Bytes of the weights' regions on the rank that has the largest shards. */
size_t hdi_residency_most_bytes(const hd_plan *plan);

/* The home of an entry if it is on the host; else NULL. */
const hdi_home *hdi_residency_host(const hdi_residency *residency, int entry);

void hdi_residency_free(hdi_residency *residency);

#endif
