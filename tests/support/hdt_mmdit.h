/* MMDiTs of golden files as programs in memory of their own. */
#ifndef HDT_MMDIT_H
#define HDT_MMDIT_H

#include "io/weights_index.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_interpret.h"

#include <heddle/model.h>

enum { HDT_HUNYUAN, HDT_HUNYUAN_DIFFUSERS, HDT_OPEN_SORA, HDT_OPEN_SORA_FUSED, HDT_MMDITS };

typedef struct hdt_mmdit {
    int which;
    hd_model *model; /* with the file's layout */
    hdi_safetensors *file;
    hdi_weights *weights, *gradients;
    int64_t dims[4];     /* channels, frames, height, width of the latents */
    int64_t text, valid; /* tokens; of which are no padding */
    double tolerance;    /* of results in fp32, and of gradients for each of their largest */
    double gradient_tolerance;
    int slices; /* of programs that are started; 0 at first */
} hdt_mmdit;

/* `edit` (NULL: none) is merged into the golden config. */
hdt_mmdit hdt_mmdit_open(int which, const char *edit);
void hdt_mmdit_close(hdt_mmdit *g);

/* A stage of the golden size: all layers, one sequence, padded text by counts where there is any. */
hd_stage hdt_mmdit_stage(const hdt_mmdit *g, hd_purpose purpose);

/* A built stage with the golden weights and, for one sequence, inputs. Seed and x are there where the stage is cut. */
typedef struct hdt_mmdit_run {
    hd_program *program;
    hdt_machine *machine;
    hd_tensor result, x, seed;
} hdt_mmdit_run;
hdt_mmdit_run hdt_mmdit_start(const hdt_mmdit *g, const hd_stage *stage, bool wide);
void hdt_mmdit_stop(hdt_mmdit_run *run);

/* Whether there was such an input, and it is now the golden tensor, or this value. */
bool hdt_mmdit_feed(const hdt_mmdit_run *run, const char *input, const double *values);

/* The prediction of a stage that ends in a loss, in the order of `latents`. To be freed. */
double *hdt_mmdit_prediction(const hdt_mmdit *g, const hdt_mmdit_run *run);

/* Golden values of that shape: "out64.x" and the like, unpacked where the file packs patches. */
double *hdt_mmdit_latents(const hdt_mmdit *g, const char *name);

/* The largest distance; fails on what is not finite. */
double hdt_mmdit_distance(const double *seen, const double *wanted, int64_t count);

#endif
