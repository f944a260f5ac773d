/* Sampling of videos with a model of one's own on any layout: the ranks of the pipeline axis hold the
 * stages and work on many passes at once (videos, seeds, branches of guidance), those of the data
 * axis share out the videos. Results are the same bits on every layout.
 *
 * A run has two phases with a plan each. What depends on time and text only is computed first, for
 * all steps at once, and kept in host memory; those weights leave the device. Then the steps.
 * Latents, their Euler steps (rectified flow, arXiv 2209.03003) and guidance are fp32 on the host. */
#ifndef HEDDLE_SAMPLER_H
#define HEDDLE_SAMPLER_H

#include <heddle/model.h>
#include <heddle/plan.h>
#include <heddle/session.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_sampler hd_sampler;

typedef struct hd_sampler_options {
    hd_build_fn build; /* called with HD_PURPOSE_CONDITION and HD_PURPOSE_DENOISE */
    void *user;        /* borrowed */
    int layers;
    const hd_video_model *model; /* copied */
    const hd_mesh *mesh;         /* borrowed; NULL: one rank; a fake one serves planning only */
    const hd_backend *backend;   /* that will run it, of hd_context_backend; NULL: the CPU's */
    hd_dtype dtype;              /* of weights and activations; zero means F32 */
    const int *stage_layers;     /* [pipeline] layers of each stage; NULL: balanced by cost */
    hd_video_shape shape;        /* frames, height, width, steps, masked_frames; text is not read */
    const int64_t *texts;        /* [text_lengths] the lengths of texts, all different */
    int text_lengths;
    size_t budget, foreign; /* bytes of device memory; zero budget: no limit */
    size_t transport;       /* bytes of it that communicators take */
    size_t mailboxes;       /* bytes of pinned host memory that communicators have */
    hd_rates rates;         /* that plans predict seconds by; zeros: of no device in particular */
    hd_residency residency; /* of weights, in both phases; ranks of HD_AXIS_SHARD may share them */
    int host_blocks;        /* as hd_plan_options has it */
    int slices; /* as hd_program_options has it, of denoising; zero: 1, or with a budget that this
                   does not fit, even with all blocks on the host, 2, 4, 8 or 16 */
    int sequence_groups; /* as hd_program_options has it */
    int tensor_groups;   /* the same */
} hd_sampler_options;

/* Build and plan; allocates host memory only. HD_ERROR_BUDGET names the phase that does not fit and
 * the budget that would do.
 * HD_ERROR_ARGUMENT for an input of a denoising program that nothing fills. Local: every rank may plan
 * for any rank of a fake mesh. */
HD_API hd_status hd_sampler_create(const hd_sampler_options *options, hd_sampler **out);
HD_API void hd_sampler_destroy(hd_sampler *sampler); /* takes NULL */

/* The plan of HD_PURPOSE_CONDITION or HD_PURPOSE_DENOISE; NULL where a stage has nothing to compute in
 * that phase. Borrowed, until hd_sampler_start, which may plan again. Local. */
HD_API const hd_plan *hd_sampler_plan(const hd_sampler *sampler, hd_purpose phase);

/* Floating-point operations of this rank's stage, for the text length of that index: of one denoising
 * pass, or of the whole condition phase. Local. */
HD_API double hd_sampler_flops(const hd_sampler *sampler, hd_purpose phase, int text_length);

/* The slices that denoising works in. Local. */
HD_API int hd_sampler_slices(const hd_sampler *sampler);

/* The layers of this rank's stage. Local. */
HD_API void hd_sampler_layers(const hd_sampler *sampler, int *first, int *count);

typedef struct hd_sampler_weights {
    const char
        *path;    /* a heddle checkpoint (a run or one step-N) or safetensors (a folder or a file);
                         NULL: parameters from `seed` */
    bool average; /* of a checkpoint: the average of the weights that training kept (EMA) */
    uint64_t seed;
} hd_sampler_weights;

/* Say where to run and with which weights. They are read when a run needs them, by each rank those of
 * its stage. Ranks that gather weights from each other plan again where AUTO chose otherwise on each.
 * `context` is borrowed. Collective. */
HD_API hd_status hd_sampler_start(hd_sampler *sampler, hd_context *context,
                                  const hd_sampler_weights *weights);

enum { HD_SAMPLER_BRANCHES = 3 };

/* A text as encoders give it. Borrowed. */
typedef struct hd_sampler_text {
    const float *text;   /* [tokens, text columns] */
    int64_t tokens;      /* one of the sampler's lengths */
    const float *pooled; /* [pooled columns]; NULL: zeros */
} hd_sampler_text;

/* A video to be made. What is pointed to is borrowed; of the ranks only those need it that hold the
 * first or the last stage. */
typedef struct hd_sampler_video {
    int text[HD_SAMPLER_BRANCHES]; /* of each branch, by its place in the texts */
    uint64_t seed, number;    /* the noise is a function of both and of the place in the latents */
    int64_t step;             /* steps done already */
    const float *latents;     /* [channels, frames, height, width] after them; NULL: noise */
    const float *condition;   /* [condition channels, frames, height, width]; NULL: zeros. The third
                               branch sees zeros always, but for masks if given_by_mask. */
    const float *given;       /* latents of given frames, by models with frame_times; NULL: none */
    const bool *given_frames; /* [frames] which ones are given; NULL: none */
} hd_sampler_video;

/* Called on the first and the last stage of each data line, by the first rank of those that share its
 * sequences, when a step of a video is over. `latents`
 * are borrowed for the call. A failure ends the run. */
typedef struct hd_sampler_event {
    int video;
    int64_t step, steps; /* steps done */
    const float *latents;
    bool is_last_stage; /* true on one rank of those that hear of the step */
} hd_sampler_event;
typedef hd_status (*hd_sampler_event_fn)(void *user, const hd_sampler_event *event);

/* Zeros mean: levels by `shift`, one branch, no guidance. Equal on all ranks. */
typedef struct hd_sampler_run_options {
    const double *levels; /* [steps + 1] of noise, falling from 1 to 0; NULL: even ones, shifted */
    double shift;         /* level = shift * t / (1 + (shift - 1) * t); zero means 1 */
    bool towards_data;    /* velocities are data minus noise (Open-Sora 1.2) */
    int branches; /* 1; 2: with a negative text; 3: and one without given frames (Open-Sora 2.0) */
    double guidance;       /* 2, 3: weight of the text */
    double image_guidance; /* 3: weight of the given frames */
    bool oscillate;        /* 2, 3: every other step from the 11th on goes without guidance */
    bool ramp;       /* 3: image guidance rises over the frames from 1, and falls with the steps */
    double embedded; /* models with `guidance`: the scale that they read */
    bool embedded_rounded; /* formed in bf16, as both references do: 6 becomes 6.016 */
    double fps;            /* models with `fps` */
    int in_flight;         /* videos at once on a data line; zero: enough to keep all stages busy */
    hd_sampler_event_fn event; /* may be NULL */
    void *user;
} hd_sampler_run_options;

typedef struct hd_sampler_result {
    int64_t passes;           /* of the network by this data line */
    double condition_seconds; /* first phase, with its weights' loading */
    double load_seconds;      /* of the second phase's weights */
    double seconds;           /* of the steps */
    double busy_seconds;      /* of them, this rank's computation: over seconds its utilisation */
    size_t condition_high_water, high_water; /* of the phases' arenas */
} hd_sampler_result;

/* Make the videos; they are handed over by events. Texts, videos and options are equal on all ranks (but
 * for what they point to, where ranks do not need it). `result` may be NULL. HD_ERROR_ARGUMENT: a
 * text of a length that was not planned, or velocities that are not finite. The steps allocate
 * nothing. Collective. */
HD_API hd_status hd_sampler_run(hd_sampler *sampler, const hd_sampler_text *texts, int text_count,
                                const hd_sampler_video *videos, int video_count,
                                const hd_sampler_run_options *options, hd_sampler_result *result);

#ifdef __cplusplus
}
#endif
#endif
