/* The inside of a plan: places of tensors, scratch of ops, order of communication. */
#ifndef HDI_PROGRAM_PLAN_H
#define HDI_PROGRAM_PLAN_H

#include "program/layout.h"
#include "program/program.h"
#include "program/residency.h"

#include <heddle/plan.h>

/* Addresses from here on are in the host's arena: one space for both, so that order and aliasing are
 * decided alike. */
#define HDI_HOST_BASE ((size_t)1 << 60)

/* Where a tensor lives: base of its region (of its program for scratch) + offset +
 * (micro-batch % slots) * stride. */
typedef struct hdi_place_of {
    hd_region region;
    size_t offset, bytes, stride;
    int slots;
    bool placed;
    size_t staging; /* of what is staged: offset in a micro-batch's part of the program's staging */
} hdi_place_of;

/* One program in the plan. Offsets of its scratch regions are relative to the arena. */
typedef struct hdi_unit {
    hd_program *program; /* borrowed */
    hd_plan_program_options options;
    hdi_place_of *places;    /* [tensor id] */
    size_t *workspaces;      /* [op] offset in the transient region */
    size_t *workspace_bytes; /* [op] */
    int *wait_begin;         /* [op + 1] into waits */
    int *waits;              /* ops whose communication must be over before the op runs */
    int wait_count, wait_capacity;
    hdi_stream_run streamed[HDI_PHASES];
    size_t bytes[HD_ALL_REGIONS]; /* of this program's part of IO, SAVED, BOUNDARY, TRANSIENT */
    size_t base[HD_ALL_REGIONS];  /* arena offset of each region as this program sees it; of host
                                     regions, HDI_HOST_BASE and the offset in the host's arena */
    size_t peak_bytes;            /* live transients at the worst op; says how tight placement is */
    int peak_op;
} hdi_unit;

typedef struct hdi_state {
    const char *name;       /* borrowed from a program */
    const hdi_tensor *from; /* for its fill */
    size_t offset, bytes;
} hdi_state;

struct hd_plan {
    hd_plan_options options;
    hdi_unit *units;
    int unit_count, unit_capacity;
    hdi_layout *layout; /* owned */
    hdi_residency residency;
    hdi_state *states;
    int state_count, state_capacity;
    size_t bytes[HD_ALL_REGIONS]; /* persistent ones, and scratch of the largest group */
    size_t gradient_level_bytes;
    size_t least_weights; /* bytes of weights with all blocks on the host; 0: not known */
    size_t arena_bytes, host_arena_bytes; /* the host's without weights that are only read */
    bool finished;
};

/* Give the plan a layout, before hd_plan_finish, which makes a plain one otherwise. Takes it over. */
void hdi_plan_set_layout(hd_plan *plan, hdi_layout *layout);

/* Arena offset of a tensor for a micro-batch; `level` is the gradient level of a leaf. */
size_t hdi_plan_address(const hd_plan *plan, int unit, hd_tensor tensor, int micro_batch,
                        int level);

/* Bytes of the device for page tables of so many of pinned host memory (host_arena.c). */
size_t hdi_plan_page_tables(const hd_plan *plan, size_t pinned);

/* Address in the host's arena of a staged tensor's place there (host_arena.c). */
size_t hdi_plan_staging(const hd_plan *plan, int unit, hd_tensor tensor, int micro_batch);

/* Does anything live on the host that copies of ops bring and take? */
static inline bool hdi_plan_uses_host(const hd_plan *plan)
{
    return plan->host_arena_bytes > plan->bytes[HD_REGION_HOST_STAGING];
}

/* Where the arena's regions begin, from the bytes of each (arena.c). */
void hdi_plan_lay_out_arena(hd_plan *plan);

/* Regions of the host's arena (host_arena.c), once all that lies there has a place; and its first one. */
void hdi_plan_lay_out_host(hd_plan *plan);
static inline int hdi_plan_first_host(const hd_plan *plan)
{
    return plan->residency.updates ? HD_REGION_HOST_WEIGHTS : HD_REGION_HOST_OPTIMIZER;
}

/* Places of one unit's activations, inputs and outputs (lib/program/lifetime.c). */
hd_status hdi_unit_place(hdi_unit *unit);

/* Which communication each op must wait for, from the bytes that they touch (waits.c). */
hd_status hdi_unit_waits(const hd_plan *plan, int index);

/* An estimate, not measured apart: kernels that wait for the ones before, fill the device and leave it. */
#define HDI_LAUNCH_SECONDS 5e-6

/* Rates with what zeros mean filled in, and the seconds of an op by them (rates.c). */
hd_rates hdi_rates_filled(const hd_rates *given);
double hdi_op_seconds(const hdi_op *op, const hd_rates *rates);
double hdi_program_seconds(const hd_program *program, hdi_phase phase, const hd_rates *rates);

/* What the copies of ops take in a run of a program, by the rates of the options. */
typedef struct hdi_copies {
    size_t in_bytes, out_bytes;
    double compute_seconds,
        exposed_seconds; /* exposed: in which computation waits, for other ranks too */
} hdi_copies;
hd_status hdi_plan_copies(const hd_plan *plan, const hd_program *program, hdi_copies *out);

/* The same of a program that runs beside forwards of others, one after another: what it computes is beside theirs,
 * and exposed is what they wait for it. */
hd_status hdi_plan_copies_beside(const hd_plan *plan, const hd_program *program,
                                 hd_program *const *next, int count, hdi_copies *out);

/* Prove the plan: aliasing and ordering (verify.c). HD_ERROR_INTERNAL names the op. */
hd_status hdi_plan_verify(const hd_plan *plan);

/* The part of the proof that spans programs and slots (verify_regions.c): what outlives a program's
 * run shares no bytes with anything that runs meanwhile, in any slot or gradient level. */
hd_status hdi_plan_verify_regions(const hd_plan *plan);

/* Options of an op that releases: buckets whose weights pass through slots, if they do. So all ranks wait for the
 * same release of a block, whatever they have of it. NULL: none. */
typedef struct hdi_release_options {
    int low, high;
} hdi_release_options;

static inline bool hdi_releases_bucket(const hd_op *op, int bucket)
{
    const hdi_release_options *o = op->kind->flags & HD_OP_RELEASES ? op->options : NULL;
    return o && o->low <= bucket && bucket <= o->high;
}

bool hdi_releases_block(const hd_plan *plan, const hd_op *op, int block);

/* And that a program which runs beside others releases what they share behind its last use (verify_beside.c);
 * so many releases can be told apart. */
enum { HDI_RELEASES = 60 };
hd_status hdi_plan_verify_beside(const hd_plan *plan);

/* Byte range [*begin, *end) in the arena of tensor `id` of a unit, slot 0, level 0. */
bool hdi_unit_range(const hd_plan *plan, const hdi_unit *unit, int id, size_t *begin, size_t *end);

#endif
