/* Plans: where every tensor of a rank's programs lives, decided before anything is allocated.
 *
 * The arena of a rank is laid out as persistent regions (weights, optimizer state, tables and
 * caches) followed by scratch. Programs are put into groups; groups never overlap in time, so
 * their scratch shares bytes: validation lives where gradients and activations were. Local; host
 * memory only; needs no device and no MPI. */
#ifndef HEDDLE_PLAN_H
#define HEDDLE_PLAN_H

#include <heddle/program.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hd_region {
    HD_REGION_WEIGHTS,
    HD_REGION_STREAMED, /* slots for weights that stay on the host or are sharded */
    HD_REGION_OPTIMIZER,
    HD_REGION_STATE, /* tables, KV caches */
    HD_REGION_GRADIENTS,
    HD_REGION_IO,        /* inputs and outputs, per micro-batch */
    HD_REGION_SAVED,     /* activations kept for the backward, per micro-batch in flight */
    HD_REGION_BOUNDARY,  /* tensors that travel between pipeline stages */
    HD_REGION_TRANSIENT, /* activations, workspaces and staging that die within a program */
    HD_REGION_FOREIGN,   /* declared for others: device context, library workspaces; page tables */
    HD_REGION_TRANSPORT, /* declared for communicators of device memory */
    HD_REGIONS,

    /* Pinned host memory of the rank. */
    HD_REGION_HOST_WEIGHTS = HD_REGIONS, /* of blocks; one copy may serve several ranks */
    HD_REGION_HOST_OPTIMIZER,
    HD_REGION_HOST_GRADIENTS,
    HD_REGION_HOST_SAVED,     /* activations, per micro-batch in flight */
    HD_REGION_HOST_STAGING,   /* inputs and results of a training on their way, per micro-batch */
    HD_REGION_HOST_MAILBOXES, /* declared for communicators of device memory: this rank's share */
    HD_ALL_REGIONS
} hd_region;

typedef struct hd_plan hd_plan;

/* Where the weights of blocks are. A block is a scope without scopes inside, such as a transformer
 * layer; weights that ops outside it read, too, are always resident. Results are the same bits.
 * Of the ranks that have the same blocks each may keep a share: they gather a block while the blocks
 * before compute, so that all must run programs equally often. */
typedef enum hd_residency {
    HD_RESIDENCY_RESIDENT, /* in device memory */
    HD_RESIDENCY_HOST,     /* in pinned host memory, copied in while the blocks before compute */
    HD_RESIDENCY_AUTO, /* as few blocks as the budget asks for elsewhere, over the fastest link; none
                          without one */
    HD_RESIDENCY_SHARDED,     /* a share in each rank's device memory */
    HD_RESIDENCY_HOST_SHARDED /* in pinned host memory, of which each rank copies in a share */
} hd_residency;

enum { HD_STREAM_SLOTS = 8 };

/* What a device does in a second, and what ops cost besides (ADR 0034). Zeros mean what the comments say.
 * A product takes the time of its FLOPs, then that of writing its results; an op takes no less than its
 * bytes do, and its launch. Attention's rate lies between the two in proportion to the columns of heads of 64
 * to 128; wider heads have that of 128, and under 64 it falls with the columns. */
typedef struct hd_rates {
    double compute;                       /* FLOPs of matrix products; 100e12 */
    double attention, attention_gradient; /* FLOPs, heads of 128 columns; those of compute */
    double narrow_attention, narrow_attention_gradient; /* of 64; those of 128, and for all heads */
    double memory;                /* bytes that ops read and write; without end */
    double link;                  /* bytes from host to device; 25e9 (PCIe 4.0 x16) */
    double peer;                  /* bytes to other ranks; without end */
    double query, query_gradient; /* keys that a query costs besides those it sees; none */
    double launch;                /* seconds that an op takes to begin and to end; none */
} hd_rates;

/* Rates that a device reaches with matrices of 16 bits, by a name that has its model in it ("NVIDIA H100
 * 80GB HBM3", "rtx-4090"). Those of the H100 and the H200 were measured; the others' are shares of the
 * makers' figures as large as the H100's. HD_ERROR_ARGUMENT names the known ones. Local. */
HD_API hd_status hd_rates_find(const char *device, hd_rates *out);

typedef struct hd_plan_options {
    size_t budget;       /* bytes of device memory, foreign included; zero: no limit */
    size_t foreign;      /* bytes that others will take */
    size_t transport;    /* bytes that communicators will take; foreign, too, but shown apart */
    size_t mailboxes;    /* bytes of pinned host memory that communicators have for the rank */
    size_t pinned_share; /* of pinned host memory so many bytes take one of the device, for its page
                            tables, which is foreign, too; zero: none */
    int gradient_levels; /* buffers of partial gradient sums; zero means 1 */

    hd_residency residency; /* but for RESIDENT: of plans whose programs write no weights */
    int host_blocks;   /* so many are not resident, or all if there are fewer; zero: all. But for
                               AUTO, which finds the number */
    int shards, shard; /* ranks of HD_AXIS_SHARD, and this one's place: SHARDED and HOST_SHARDED
                               want at least 2, AUTO may use them; zero: 1 */
    int stream_slots; /* blocks from the host that have room on the device, at most HD_STREAM_SLOTS;
                         zero means 2. AUTO takes fewer where nothing else fits: with one, copies
                         and computation take turns. */
    hd_rates rates;   /* for hd_plan_streaming and hd_plan_seconds */
} hd_plan_options;

/* How a program takes part. Zeros mean 1 slot, group 0. */
typedef struct hd_plan_program_options {
    int group;
    int saved_slots;    /* micro-batches in flight */
    int io_slots;       /* micro-batches whose inputs and outputs are held at once */
    int cache_slots;    /* copies of each per-slot state: sequences in flight */
    int boundary_slots; /* copies of each boundary tensor */
    /* Its runs go on beside what is run next, so its scratch is nobody else's. It may not use weights that
     * pass through slots; what else touches its bytes finds them released (HD_OP_RELEASES) behind their last
     * use. Where it communicates, ranks that do so together have the same releases, and run programs that
     * first touch what these release in the same order. */
    bool beside;
} hd_plan_program_options;

HD_API hd_status hd_plan_create(const hd_plan_options *options, hd_plan **out);

/* Programs are borrowed and must be finished and outlive the plan. */
HD_API hd_status hd_plan_add(hd_plan *plan, hd_program *program,
                             const hd_plan_program_options *options);

/* Place everything and verify it: no two live tensors share bytes, every pair of ops that touch
 * the same bytes is ordered. HD_ERROR_BUDGET if it does not fit, with a table of regions and the
 * bytes that it needs: with HD_RESIDENCY_AUTO the smallest budget that would do. */
HD_API hd_status hd_plan_finish(hd_plan *plan);
HD_API void hd_plan_destroy(hd_plan *plan); /* takes NULL; programs stay */

/* Bytes of a region, of the arena (all but foreign and transport), and of everything. Scratch regions are those of
 * the largest group. */
HD_API size_t hd_plan_region_bytes(const hd_plan *plan, hd_region region);
HD_API size_t hd_plan_arena_bytes(const hd_plan *plan);
HD_API size_t hd_plan_total_bytes(const hd_plan *plan);

/* Bytes of pinned host memory, all regions of it. */
HD_API size_t hd_plan_host_bytes(const hd_plan *plan);
HD_API const char *hd_region_name(hd_region region);

/* What streaming takes, by the rates of the options. Zeros if all weights are resident. */
typedef struct hd_streaming {
    int blocks, host_blocks, slots;
    bool gathered;     /* from the ranks' shards; without host_bytes these are on the devices */
    size_t host_bytes; /* of pinned host memory */
    size_t run_bytes;  /* copied or gathered by a run that follows one of the same program */
    double copy_seconds, compute_seconds;
    double exposed_seconds; /* in which computation waits for copies */
} hd_streaming;

/* For runs of `program`, which is in the finished plan, one after another. */
HD_API void hd_plan_streaming(const hd_plan *plan, const hd_program *program, hd_streaming *out);

/* Seconds that `program`, which is in the finished plan, takes by the rates of the options: its ops one
 * after another, each as long as hd_rates says, and what it waits for copies and for other
 * ranks. Of a run that follows another; a training program's is a forward and a backward. */
HD_API hd_status hd_plan_seconds(const hd_plan *plan, const hd_program *program, double *out);

/* The plan as text: a table of regions, then each program with every op's tensors and addresses. */
HD_API void hd_plan_print(const hd_plan *plan, hd_write_fn write, void *user);

#ifdef __cplusplus
}
#endif
#endif
