/* Models: whole transformers of a family at any size, described by Hugging Face config.json keys.
 *
 * Families: "gpt2" (learned positions, layer norm, GELU, tied or untied head) and "llama" (rotary
 * positions, RMS norm, SwiGLU, grouped-query attention). Parameter names are those of Hugging Face
 * files. A model is a description: it holds no weights. All calls are Local. */
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

HD_API const char *hd_model_type(const hd_model *model); /* "gpt2" or "llama" */
HD_API int hd_model_layers(const hd_model *model);
HD_API int64_t hd_model_vocab(const hd_model *model);
HD_API int64_t hd_model_hidden(const hd_model *model);
HD_API int64_t hd_model_max_tokens(const hd_model *model); /* longest sequence */

/* Elements of all parameters, shared ones counted once. */
HD_API int64_t hd_model_parameters(const hd_model *model);

/* The model as a config.json that makes the same model again. Borrowed. */
HD_API const char *hd_model_config_json(const hd_model *model);

/* The hd_build_fn of all models; `model` is the hd_model. x and the result are [sequences * tokens,
 * hidden] between stages; logits of a generating stage are the output "logits" [1, vocab]. Each
 * block is one scope. */
HD_API hd_tensor hd_model_build(void *model, hd_program *program, const hd_stage *stage,
                                hd_tensor x);

#ifdef __cplusplus
}
#endif
#endif
