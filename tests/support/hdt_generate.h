/* Generators for tests: a model on a layout, ready to run. */
#ifndef HDT_GENERATE_H
#define HDT_GENERATE_H

#include "tests/support/hdt_train.h"

#include <heddle/generator.h>

typedef struct hdt_generating {
    hd_model *model;
    const char *weights; /* NULL: from seed 3 */
    hd_mesh_options mesh;
    hd_dtype dtype;
    int64_t capacity, prefill;
    int slots;
    size_t budget;
    hd_residency residency;
    int host_blocks;
} hdt_generating;

typedef struct hdt_generator {
    hd_mesh *mesh;
    hd_context *context;
    hd_generator *generator;
} hdt_generator;

/* Collective over `comm`. Close it whatever the status is. */
hd_status hdt_open_generator(hd_comm *comm, const hdt_generating *with, hdt_generator *out);
void hdt_close_generator(hdt_generator *it);

/* A communicator of this rank alone. Collective over hdt_world. */
hd_comm *hdt_open_self(void);

#endif
