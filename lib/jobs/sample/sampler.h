/* The inside of a sampler. */
#ifndef HDI_JOBS_SAMPLE_SAMPLER_H
#define HDI_JOBS_SAMPLE_SAMPLER_H

#include "jobs/stages.h"
#include "program/plan.h"
#include "runtime/session.h"

#include <heddle/sampler.h>

/* What fills an input of a program. */
typedef enum hdi_sampler_source {
    HDI_FROM_STORE, /* what the condition program made */
    HDI_FROM_LATENTS,
    HDI_FROM_TIME,
    HDI_FROM_TEXT,
    HDI_FROM_POOLED,
    HDI_FROM_GUIDANCE,
    HDI_FROM_FPS,
    HDI_FROM_CONDITION,
    HDI_FROM_FRAME_ENTRIES
} hdi_sampler_source;

/* An input, or an output of the condition program. */
typedef struct hdi_sampler_port {
    hd_tensor tensor;
    hdi_sampler_source from;
    size_t bytes;
    size_t offset; /* in the store of a text */
    bool by_step;  /* the store holds it for every step */
} hdi_sampler_port;

enum { HDI_SAMPLER_PORTS = 256, HDI_SAMPLER_SLOTS = 2 };

/* The stage's programs for one length of text, and what a text of that length leaves on the host. */
typedef struct hdi_sampler_set {
    int64_t tokens;
    hd_program *condition, *denoise; /* owned; condition: NULL if it makes nothing */
    hd_tensor x, out, velocity;      /* of denoise; invalid at the pipeline's other end */
    hd_dtype x_dtype;
    int x_rank;
    int64_t x_dims[HD_MAX_DIMS];
    hdi_sampler_port *inputs, *condition_inputs, *outputs; /* owned */
    int input_count, condition_input_count, output_count;
    size_t store_bytes;
} hdi_sampler_set;

struct hd_sampler {
    hd_sampler_options options;
    hd_video_model model;
    int stages, stage;
    int first_layer, layers; /* of this rank's stage */
    hdi_sampler_set *sets;   /* [options.text_lengths] */
    hd_plan *condition, *denoise;
    hdi_keeping keep_condition, keep_denoise; /* their weights: as wanted, then as ranks agreed */
    int boundary_slots; /* copies of what travels: 2 overlap it with computing */
    int slices;         /* of the denoising programs */

    hd_context *context;        /* borrowed */
    hd_sampler_weights weights; /* its path is owned */
};

static inline bool hdi_sampler_is_last(const hd_sampler *sampler)
{
    return sampler->stage == sampler->stages - 1;
}

static inline int64_t hdi_sampler_plane(const hd_sampler *sampler)
{
    return sampler->options.shape.height * sampler->options.shape.width;
}

static inline int64_t hdi_sampler_elements(const hd_sampler *sampler)
{
    return sampler->model.channels * sampler->options.shape.frames * hdi_sampler_plane(sampler);
}

/* sampler_programs.c: cut the layers and build the condition programs; then build and bind the
 * denoising programs of every set, instead of those that there are. */
hd_status hdi_sampler_build_conditions(hd_sampler *sampler);
hd_status hdi_sampler_build_denoising(hd_sampler *sampler, int slices);

/* hd_sampler_create; with HD_ERROR_BUDGET, *least is the budget that would do. */
hd_status hdi_sampler_create(const hd_sampler_options *options, size_t *least, hd_sampler **out);

/* sampler_plan.c: both phases' plans, and the slices that they ask for; with HD_ERROR_BUDGET, *least as
 * above. Then, again where ranks that gather weights from each other differ. The second is collective. */
hd_status hdi_sampler_plan(hd_sampler *sampler, size_t *least);
hd_status hdi_sampler_agree(hd_sampler *sampler);

/* A run in progress. */
typedef struct hdi_sampler_call {
    hd_sampler *sampler;
    const hd_sampler_text *texts;
    int text_count;
    const hd_sampler_video *videos;
    int video_count;
    const hd_sampler_run_options *options;
    double *levels; /* [steps + 1], owned */
    char **stores;  /* [text_count], owned, of the texts that this line needs; else NULL */
    hd_session *session;
    hd_sampler_result result;
} hdi_sampler_call;

/* Seconds of one pass through this rank's stage with the first length of texts, by the options' rates
 * (sampler_plan.c). */
hd_status hdi_sampler_seconds(const hd_sampler *sampler, double *out);

/* The set for texts of that length; NULL if none was planned. */
hdi_sampler_set *hdi_sampler_set_of(const hd_sampler *sampler, int64_t tokens);

/* The branches that any step of the run has. */
static inline int hdi_sampler_branches(const hd_sampler_run_options *options)
{
    return options->branches > 0 ? options->branches : 1;
}

/* Open a session of one of the plans with its weights; without a plan, take part in the reading.
 * Collective. */
hd_status hdi_sampler_open_session(const hd_sampler *sampler, const hd_plan *plan,
                                   hd_session **out);

/* sampler_condition.c: phase one, which leaves it->stores. Collective. */
hd_status hdi_sampler_make_conditions(hdi_sampler_call *it);

/* sampler_steps.c: phase two on it->session. Collective along the pipeline. */
hd_status hdi_sampler_take_steps(hdi_sampler_call *it);

#endif
