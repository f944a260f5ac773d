/* The flat storage that a rank's parameters share: order, gradient buckets, shards.
 *
 * An entry is a parameter of this rank; it takes `elements` of the flat weights from `first`, a
 * multiple of 64. Its gradient has the same place in the flat gradients; further gradients of it
 * (other programs' uses, or each use in exact mode) follow after all entries. Buckets are runs of
 * entries in the order in which the backward finishes them. Shards cut a bucket at multiples of
 * HDI_BLOCK_ELEMENTS within each entry, so that a block's owner never depends on the layout.
 *
 * Flat positions name elements. What is sharded is stored as this rank's shards, one after another:
 * hdi_layout_stored_gradient and _weights say where. Weights are sharded, or kept on the host, block by
 * block (residency.h), and buckets then end where blocks do. */
#ifndef HDI_PROGRAM_LAYOUT_H
#define HDI_PROGRAM_LAYOUT_H

#include "core/names.h"
#include "program/program.h"
#include "program/shard.h"

enum { HDI_BLOCK_ELEMENTS_LAYOUT = 4096, HDI_FLAT_ALIGNMENT = 64 };

typedef struct hdi_entry {
    const char *name;                    /* borrowed from the program */
    const hd_parameter_options *options; /* borrowed from the program */
    int64_t elements, first;
    int bucket;
    int block;   /* where buckets end with blocks; -1: in none */
    int program; /* the first that uses it */
    bool tied;   /* lives on several stages: a bucket of its own */
    int instances;
} hdi_entry;

/* Whether ranks of some axis have different parts of it; else all of it. */
static inline bool hdi_entry_is_part(const hdi_entry *entry)
{
    return hdi_shard_is_part(entry->options);
}

/* One gradient tensor of one program. */
typedef struct hdi_instance {
    int program, entry;
    hd_tensor gradient;
    int64_t first;
    int64_t stored; /* of this rank's shard of its sum, or of all of it */
    bool alias;     /* has the bytes of another program's */
} hdi_instance;

typedef struct hdi_bucket {
    int64_t first, elements; /* of the flat gradients; includes padding between entries */
    int first_entry, entries;
    int program; /* whose backward finishes it; entries of one bucket share it */
    bool tied;
    int64_t *shard_first;              /* [shards + 1] flat positions; owned, as what follows */
    int64_t *counts, *offsets;         /* [shards] of each shard, from the bucket's first element */
    int64_t *own_counts, *own_offsets; /* [shards] one copy of this rank's shard from each rank */
    int64_t *copy_counts,
        *copy_offsets; /* [copies] parts of this rank's shard, from its first element: each
                                            is summed by one of the ranks that have the same shard */
    int64_t *part_counts,
        *part_offsets;   /* [copies] one copy of this rank's part from each of them */
    int64_t state_first; /* this rank's optimizer state of the bucket, in flat optimizer elements */
    int64_t gradient_first; /* and its gradients, in stored gradients */
    bool late; /* its sums are complete only when those of other stages, of further uses or of the
                  tensor axis have joined */
    int64_t weights_first; /* and weights, in stored weights of the device or of the host */
    int block;             /* where buckets end with blocks; -1: in none */
    bool sharded, host;    /* its weights; those on the host lie block by block */
} hdi_bucket;

typedef struct hdi_layout {
    hdi_entry *entries;
    int entry_count, entry_capacity;
    hdi_names by_name; /* of entries */
    hdi_instance *instances;
    int instance_count, instance_capacity;
    hdi_bucket *buckets;
    int bucket_count, bucket_capacity;
    int64_t weights_elements, gradient_elements, optimizer_elements; /* stored */
    int64_t host_weights_elements;                                   /* stored on the host */
    hd_axis axis;      /* of the ranks that have the same parameters, */
    int shards, shard; /* which share the optimizer's work; this rank's place */
    int copies, copy;  /* of the shards, on HD_AXIS_COPY; gradients are sums over them, too */
    bool state_sharded, gradients_sharded, weights_sharded;
    int levels; /* of partial sums: of gradients that are sharded each shard is stored so many times,
                   one after another, the sum first. Of others 1: their levels are the plan's */
    int block_count;                 /* where buckets end with blocks, else 0 */
    int sharded_blocks, host_blocks; /* those that are kept in shards, or on the host */
    bool accumulates;                /* steps have several micro-batches */
} hdi_layout;

typedef struct hdi_layout_options {
    int64_t bucket_elements; /* a bucket is closed at this size; zero means 8 Mi */
    hd_axis axis;            /* zero means the data axis */
    int shards, shard;
    int copies, copy; /* zero copies mean 1; more want sharding of gradients */
    int sharding;     /* 1: of optimizer state; 2: of gradients, too; 3: of blocks' weights, too. Of
                         one shard 1 at most, but for shards_alone */
    int host_blocks;  /* so many blocks are kept on the host, or all if there are fewer */
    bool
        cuts_blocks; /* buckets end where blocks do, whatever is kept where: ranks that differ in that
                         then still have the same buckets */
    bool accumulates;  /* steps have several micro-batches */
    int levels;        /* of partial sums of gradients that are sharded; zero means 1 */
    bool shards_alone; /* of one shard, too, gradients are transients that join a stored sum */
    bool sums_alike;   /* ranks of the tensor axis sum gradients of what all of them have */
    bool (*is_tied)(void *user, const char *name); /* lives on other stages too; may be NULL */
    void *user;
} hdi_layout_options;

/* Lay out the parameters of `programs`, in the order in which their forwards run. */
hd_status hdi_layout_create(hd_program *const *programs, int count,
                            const hdi_layout_options *options, hdi_layout **out);
void hdi_layout_destroy(hdi_layout *layout); /* takes NULL */

/* Of blocks that are cut, keep so many in shards and so many on the host, evenly spread; one of the two is
 * 0. Sets where weights are stored. */
void hdi_layout_keep(hdi_layout *layout, int sharded, int host);

/* Give the gradients of `program`, which takes turns with `like` (number `like_index`, one of those
 * laid out) and uses the same parameters in the same order, the places of like's. `index` numbers
 * it from now on. HD_ERROR_ARGUMENT where the uses differ. */
hd_status hdi_layout_alias(hdi_layout *layout, const hd_program *like, int like_index,
                           const hd_program *program, int index);

/* -1 if the rank has no such parameter. */
int hdi_layout_find(const hdi_layout *layout, const char *name);

/* Flat position of a program's gradient tensor; -1 if it is not one. */
int64_t hdi_layout_gradient(const hdi_layout *layout, int program, hd_tensor gradient);

/* Elements [*first, *first + count) of bucket `bucket` that shard `shard` owns. */
int64_t hdi_layout_shard(const hdi_layout *layout, int bucket, int shard, int64_t *first);

/* Where in the stored gradients the sum at flat position `first` of a bucket is; of those that are
 * sharded, this rank's only. And where in the stored weights the weight is. */
int64_t hdi_layout_stored_gradient(const hdi_layout *layout, int bucket, int64_t first);
int64_t hdi_layout_stored_weights(const hdi_layout *layout, int bucket, int64_t first);

/* Is block `block` one of `host` blocks on the host, which are spread evenly among `blocks`? A copy then has
 * the time of several blocks, where the same number in a row would have that of one each while the link
 * rests for the others. */
static inline bool hdi_block_is_host(int block, int host, int blocks)
{
    return (int64_t)(block + 1) * host / blocks > (int64_t)block * host / blocks;
}

#endif
