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
    HD_REGION_OPTIMIZER,
    HD_REGION_STATE, /* tables, KV caches */
    HD_REGION_GRADIENTS,
    HD_REGION_IO,        /* inputs and outputs, per micro-batch */
    HD_REGION_SAVED,     /* activations kept for the backward, per micro-batch in flight */
    HD_REGION_BOUNDARY,  /* tensors that travel between pipeline stages */
    HD_REGION_TRANSIENT, /* activations, workspaces and staging that die within a program */
    HD_REGION_FOREIGN,   /* declared for others: device context, library workspaces, transport */
    HD_REGIONS
} hd_region;

typedef struct hd_plan hd_plan;

typedef struct hd_plan_options {
    size_t budget;       /* bytes of device memory, foreign included; zero: no limit */
    size_t foreign;      /* bytes that others will take */
    int gradient_levels; /* buffers of partial gradient sums; zero means 1 */
} hd_plan_options;

/* How a program takes part. Zeros mean 1 slot, group 0. */
typedef struct hd_plan_program_options {
    int group;
    int saved_slots;    /* micro-batches in flight */
    int io_slots;       /* micro-batches whose inputs and outputs are held at once */
    int cache_slots;    /* copies of each per-slot state: sequences in flight */
    int boundary_slots; /* copies of each boundary tensor */
} hd_plan_program_options;

HD_API hd_status hd_plan_create(const hd_plan_options *options, hd_plan **out);

/* Programs are borrowed and must be finished and outlive the plan. */
HD_API hd_status hd_plan_add(hd_plan *plan, hd_program *program,
                             const hd_plan_program_options *options);

/* Place everything and verify it: no two live tensors share bytes, every pair of ops that touch
 * the same bytes is ordered. HD_ERROR_BUDGET if it does not fit, with a table of regions. */
HD_API hd_status hd_plan_finish(hd_plan *plan);
HD_API void hd_plan_destroy(hd_plan *plan); /* takes NULL; programs stay */

/* Bytes of a region, of the arena (all but foreign), and of everything. Scratch regions are those of
 * the largest group. */
HD_API size_t hd_plan_region_bytes(const hd_plan *plan, hd_region region);
HD_API size_t hd_plan_arena_bytes(const hd_plan *plan);
HD_API size_t hd_plan_total_bytes(const hd_plan *plan);
HD_API const char *hd_region_name(hd_region region);

/* The plan as text: a table of regions, then each program with every op's tensors and addresses. */
HD_API void hd_plan_print(const hd_plan *plan, hd_write_fn write, void *user);

#ifdef __cplusplus
}
#endif
#endif
