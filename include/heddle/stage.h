/* Stages: what a model is asked to build for one pipeline stage. */
#ifndef HEDDLE_STAGE_H
#define HEDDLE_STAGE_H

#include <heddle/program.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hd_purpose {
    HD_PURPOSE_TRAIN,     /* ends in a loss, a backward follows */
    HD_PURPOSE_EVALUATE,  /* ends in a loss */
    HD_PURPOSE_GENERATE,  /* ends in logits of the last valid token; attention reads a cache */
    HD_PURPOSE_CONDITION, /* video: what depends on time and text only, for all steps at once */
    HD_PURPOSE_DENOISE    /* video: one step's velocity, from what CONDITION made */
} hd_purpose;

/* What a video model works on: sizes of the latents, before they are cut into patches, and of the
 * text. All zero for token models. */
typedef struct hd_video_shape {
    int64_t frames, height, width; /* of the latents (of the pixels, in pixel space) */
    int64_t text;                  /* text tokens of a sequence: exact, or the most there may be */
    bool text_counts;              /* fewer may be valid: input "text_counts" I32 [sequences] */
    bool masked_frames;            /* some frames are given: conditioning inputs are declared */
    int64_t steps;                 /* condition: denoising steps, rows of its outputs */
    int64_t pixel_height, pixel_width; /* of the frames, where positions depend on them (Open-Sora
                                          1.2); 0: latents times compression */
} hd_video_shape;

/* A run of a model's layers (its repeated blocks), on one (virtual) pipeline stage. */
typedef struct hd_stage {
    hd_purpose purpose;
    int first_layer, layers;
    bool first, last;          /* holds what stands before and after the blocks */
    int64_t sequences, tokens; /* of a micro-batch: `sequences` rows of `tokens` tokens */
    int64_t capacity;          /* generate: positions of the cache */
    bool recompute;            /* mark the blocks' scopes: hd_stage_recomputes */
    int kept_layers;           /* but for so many of the last, whose backward comes first */
    hd_video_shape video;      /* `tokens` is then not read */
} hd_stage;

/* Whether the scope of layer `layer`, counted over the whole model, is to be marked. Local. */
HD_API bool hd_stage_recomputes(const hd_stage *stage, int layer);

/* Builds a stage into `program`. `x` comes from the stage before ([sequences * tokens, hidden] for
 * token models); it is invalid on the first one, which declares the inputs that it needs itself.
 * Returns x for the next stage, or on the last stage the loss (train, evaluate), logits (generate),
 * the output "velocity" (denoise), or nothing of use (condition).
 *
 * Token models: inputs "tokens" I32 [sequences * tokens], "targets" alike; to generate (one sequence)
 * "position" I32 [1] and "count" I32 [1], the valid ones among `tokens`.
 *
 * Video models, all float inputs F32, each declared by the stages that need it and only if the
 * model has it:
 *   "latents" [sequences, channels, frames, height, width], in training x_t
 *   "time" [sequences] (condition: [steps]), noise level 1 to 0
 *   "text" [sequences * text, text columns], packed: valid rows of all sequences one after another
 *       where the model reads text by offsets, else each sequence's first rows
 *   "text_counts" I32 [sequences] or "text_offsets" I32 [sequences + 1], if video.text_counts;
 *       "text_places" I32 [sequences * text], of packed rows each one's place in its own text, if
 *       given frames read another text of the same lengths (Open-Sora 1.3)
 *   "pooled" [sequences, pooled columns]; "guidance" [sequences], times 1000; "fps" [sequences]
 *   "condition" [sequences, condition channels, frames, height, width] and "frame_entries" I32
 *       [sequences * frames after patching]: s for a frame at its sequence's time, sequences + s
 *       for one that is given (time 0); both only if video.masked_frames
 *   "target" [sequences, channels, frames, height, width]; "loss_weight" [sequences * frames after
 *       patching], if video.masked_frames: the loss is hd_squared_error of the velocity
 * To denoise there is one sequence. A stage's condition program makes what the denoise program of
 * the same stage reads: each of its outputs has the name, dtype and row of an input there, either as it
 * is or `steps` times as large, step by step. Condition programs take no x and send none. */
typedef hd_tensor (*hd_build_fn)(void *user, hd_program *program, const hd_stage *stage,
                                 hd_tensor x);

#ifdef __cplusplus
}
#endif
#endif
