/* The golden runs of STDiT3: of Open-Sora 1.2's own code, and of 1.3's model restated in PyTorch
 * (tools/make_stdit3_golden.py); and programs of heddle's fed with them. */
#ifndef HDT_STDIT_H
#define HDT_STDIT_H

#include <heddle/model.h>

#include "models/weights.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_safetensors.h"

enum {
    HDT_STDIT_CHANNELS = 4,
    HDT_STDIT_HIDDEN = 64,
    HDT_STDIT_LAYERS = 4,
    HDT_STDIT_TEXT = 10, /* tokens of a text, valid or not */
    HDT_STDIT_COLUMNS = 24
};

/* The golden file, and two files made of it: its weights and its gradients, under their own names. */
typedef struct hdt_stdit {
    hd_model *model;
    hdi_safetensors *file;
    hdi_weights *weights, *gradients;
} hdt_stdit;

hdt_stdit hdt_stdit_open(void);
hdt_stdit hdt_stdit_open_v13(void);
void hdt_stdit_close(hdt_stdit *g);

/* One of the golden runs: which videos, with which masks. */
typedef struct hdt_stdit_scene {
    const char *out, *video, *height, *width; /* names in the file */
    int64_t sequences, dims[3];
    bool frames_masked, text_masked;
    unsigned given; /* 1.3: bits of frames */
} hdt_stdit_scene;

enum { HDT_STDIT_SCENES = 4, HDT_STDIT_V13_SCENES = 5 };
extern const hdt_stdit_scene hdt_stdit_scenes[HDT_STDIT_SCENES];
extern const hdt_stdit_scene hdt_stdit_v13_scenes[HDT_STDIT_V13_SCENES];

/* The whole model for a scene. */
hd_stage hdt_stdit_stage(const hdt_stdit *g, const hdt_stdit_scene *s, hd_purpose purpose);

/* A program in memory of its own, with the golden weights. x [x_rows, hidden] and seed are there for
 * stages that are not the first or the last. */
typedef struct hdt_stdit_trial {
    hd_program *program;
    hd_tensor x, result, seed;
    hdt_machine *machine;
} hdt_stdit_trial;

hdt_stdit_trial hdt_stdit_start(const hdt_stdit *g, const hd_stage *stage, bool wide,
                                int64_t x_rows);
void hdt_stdit_stop(hdt_stdit_trial *t);

/* An input's values, if the program has it. */
void hdt_stdit_set(const hdt_stdit_trial *t, const char *name, const double *values, int64_t count);

/* The inputs of sequences [first, first + sequences) of a scene, as far as the program has them;
 * "time" only where it is the sequences'. */
void hdt_stdit_feed(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s,
                    int64_t first, int64_t sequences);

void hdt_stdit_run(const hdt_stdit_trial *t, hdi_phase phase);

/* Largest distance of the prediction from the golden one, all predicted channels. */
double hdt_stdit_distance(const hdt_stdit_trial *t, const hdt_stdit *g, const hdt_stdit_scene *s);

/* The same of gradients of the loss's sum over `count`, all that the file has, of each one's largest
 * value: at most `tolerance`. */
void hdt_stdit_compare_gradients(const hdt_stdit_trial *t, const hdt_stdit *g, double count,
                                 double tolerance);

#endif
