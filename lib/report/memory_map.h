/* The plan as a picture: bytes by region along the program, the peak named. */
#ifndef HDI_REPORT_MEMORY_MAP_H
#define HDI_REPORT_MEMORY_MAP_H

#include <heddle/status.h>

enum { HDI_MEMORY_MAP_REGIONS = 16 };

typedef struct hdi_memory_region {
    const char *name;    /* "weights", "saved activations", ... */
    const size_t *bytes; /* [positions] */
} hdi_memory_region;

/* A named run of positions, up to the next phase's first. */
typedef struct hdi_memory_phase {
    const char *name; /* "forward", ... */
    int64_t begin;
} hdi_memory_phase;

/* Everything is borrowed. Regions are stacked in the order given, the first at the bottom: put
 * first what changes least. */
typedef struct hdi_memory_map {
    const char *title; /* NULL: "memory plan" */
    const hdi_memory_region *regions;
    int region_count;
    int64_t positions;                 /* ops of the program, in the order of execution */
    const char *const *position_names; /* [positions]: "backward h.3.mlp"; NULL: numbers only */
    const hdi_memory_phase *phases;
    int phase_count;
    size_t budget; /* 0: none */
} hdi_memory_map;

/* The first position where the sum over regions is highest, and that sum. */
void hdi_memory_map_peak(const hdi_memory_map *map, int64_t *position, size_t *bytes);

/* Write the SVG. Atomic. Errors: ARGUMENT (no positions, too many regions), IO. */
hd_status hdi_memory_map_write(const char *path, const hdi_memory_map *map);

#endif
