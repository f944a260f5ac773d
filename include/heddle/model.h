/* Models: whole transformers of a family at any size, described by Hugging Face config.json keys.
 *
 * Families: "gpt2" (learned positions, layer norm, GELU, tied or untied head), "llama" (rotary
 * positions, RMS norm, SwiGLU, grouped-query attention); of video diffusion transformers
 * "hunyuan_video" (arXiv 2412.03603) and "open_sora_2" (arXiv 2503.09642), both of double-stream
 * and single-stream blocks, and "stdit3" (Open-Sora 1.2 and 1.3, arXiv 2412.20404), of spatial and
 * temporal blocks in turn. Parameter names are those of the published files. A model is a
 * description: it holds no weights. All calls are Local. */
#ifndef HEDDLE_MODEL_H
#define HEDDLE_MODEL_H

#include <heddle/stage.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_model hd_model;

/* The text of a config.json. An unknown model_type, a missing, ill-typed or impossible key is
 * HD_ERROR_CONFIG (HD_ERROR_UNSUPPORTED for variants that heddle does not compute) with the key, the
 * value seen and what is wanted; keys that do not change the network are passed over. Owned by the
 * caller. */
HD_API hd_status hd_model_create_json(const char *text, hd_model **out);

/* A shape by name: hd_model_preset lists them. Owned by the caller. */
HD_API hd_status hd_model_create_preset(const char *name, hd_model **out);
HD_API void hd_model_destroy(hd_model *model); /* takes NULL */

/* Names of presets, NULL from the end on. */
HD_API const char *hd_model_preset(int index);

/* Take over the way that the weights at `path` (a file, an index or a folder) name and cut their
 * tensors, where a family's files come in several layouts, and check that all is there. The error,
 * HD_ERROR_FORMAT, names each tensor that is missing or has another shape; tensors that the model
 * does not read are told in the log. Programs built before keep the layout that they had. */
HD_API hd_status hd_model_match_weights(hd_model *model, const char *path);

/* That layout: hunyuan_video "original" or "diffusers", open_sora_2 "fused" or "separate"; NULL for
 * families that have one only. Parameters' names are the same in all layouts. Borrowed. */
HD_API const char *hd_model_layout(const hd_model *model);

HD_API const char *hd_model_type(const hd_model *model); /* the family */
HD_API int hd_model_layers(const hd_model *model);
HD_API int64_t hd_model_vocab(const hd_model *model); /* token models; else 0 */
HD_API int64_t hd_model_hidden(const hd_model *model);
HD_API int64_t hd_model_max_tokens(const hd_model *model); /* longest sequence; video: 0 */

/* Elements of all parameters, shared ones counted once. */
HD_API int64_t hd_model_parameters(const hd_model *model);

/* The model as a config.json that makes the same model again. Borrowed. */
HD_API const char *hd_model_config_json(const hd_model *model);

/* What a video model reads and writes. */
typedef struct hd_video_model {
    int64_t channels;       /* of the latents; 3 in pixel space */
    int64_t patch[3];       /* frames, height, width of a patch */
    int64_t compression[3]; /* pixels to latents: frames (4k + 1), height, width; 1: pixel space */
    int64_t text_columns;   /* of the text embedding */
    int64_t text_tokens;    /* most tokens of a text */
    int64_t pooled_columns; /* of the pooled text embedding; 0: none */
    int64_t condition_channels; /* given frames beside the latents; 0: none */
    int64_t condition_masks; /* the first of these, each 1 where a frame is given; then latents */
    bool given_by_mask; /* given frames are noise in the latents, as all others: masks alone tell of
                           them, and stay where guidance leaves out what is in them */
    bool guidance;      /* embedded guidance: one pass a step without a negative text */
    bool fps;           /* reads frames per second */
    bool frame_times;   /* given frames are marked by time 0 (input "frame_entries") */
    bool text_packed;   /* text by offsets ("text_offsets"), not by counts */
    bool towards_data;  /* its velocity is data minus noise, else noise minus data */

    /* The tensor [text_tokens, text_columns] of weights that stands for no text in classifier-free
     * guidance and text dropout: as many of its rows as the text has that it stands in for. Training
     * never changes it; without weights it begins as normal numbers of this spread. NULL: an empty
     * text. */
    const char *null_text;
    double null_text_std;
} hd_video_model;

/* NULL for token models. Borrowed. */
HD_API const hd_video_model *hd_model_video(const hd_model *model);

/* The hd_build_fn of all models; `model` is the hd_model. x and the result are [sequences * tokens,
 * hidden] between stages; logits of a generating stage are the output "logits" [1, vocab]. Each
 * block is one scope. */
HD_API hd_tensor hd_model_build(void *model, hd_program *program, const hd_stage *stage,
                                hd_tensor x);

#ifdef __cplusplus
}
#endif
#endif
