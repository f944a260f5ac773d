/* What the model families share. */
#ifndef HDI_MODELS_MODEL_H
#define HDI_MODELS_MODEL_H

#include <heddle/model.h>
#include <heddle/nn.h>

#include <jansson.h>

#include "core/text.h"

typedef struct hdi_model_config {
    int64_t vocab, max_tokens, hidden, inner, layers, heads, kv_heads, head_dim;
    double epsilon, theta;
    bool tied;      /* the head's weight is the token embedding's */
    bool gelu_tanh; /* GPT-2: tanh approximation instead of erf */
    double init_std;
} hdi_model_config;

typedef struct hdi_model_family {
    const char *type;
    hd_status (*read)(const json_t *object, hdi_model_config *out);
    void (*write)(const hdi_model_config *config, hdi_text *out);
    hd_build_fn build; /* user: the hdi_model_config */
} hdi_model_family;

extern const hdi_model_family hdi_gpt2, hdi_llama;

struct hd_model {
    const hdi_model_family *family;
    hdi_model_config config;
    int64_t parameters;
    char *json; /* owned */
};

/* The same as hd_model_create_json for an object that is parsed already, which is borrowed. */
hd_status hdi_model_create(const json_t *object, hd_model **out);

/* Values of a config.json. Without the key, or with null, *out keeps its value if `required` is
 * false and the call fails otherwise. Integers are at least 1. */
hd_status hdi_model_read_int(const json_t *object, const char *key, bool required, int64_t *out);
hd_status hdi_model_read_positive(const json_t *object, const char *key, double *out);
hd_status hdi_model_read_bool(const json_t *object, const char *key, bool *out);
hd_status hdi_model_read_string(const json_t *object, const char *key, const char **out);

/* HD_ERROR_UNSUPPORTED unless the key is absent or has this value. */
hd_status hdi_model_require_bool(const json_t *object, const char *key, bool wanted);

/* The value as text for messages, in a caller's buffer. */
enum { HDI_JSON_TEXT = 96 };
const char *hdi_model_json_text(const json_t *value, char out[HDI_JSON_TEXT]);

/* The ends of a stage, the same for all families. `begin` checks the stage and declares what a
 * generating one needs; `tokens` declares the token ids; `final_norm` norms what the head reads;
 * `finish` makes the loss or the logits from the normed x. */
typedef struct hdi_model_stage {
    const hdi_model_config *config;
    const hd_stage *stage;
    hd_tensor position, count; /* when generating */
} hdi_model_stage;

/* The residual stream between two blocks: its value is x + delta. The sum is left to the next norm,
 * which makes both in one pass and one gradient of both. Without a delta: x. */
typedef struct hdi_model_stream {
    hd_tensor x, delta;
} hdi_model_stream;

/* Norm of the stream's value, which *sum receives. `options` must say the kind. */
hd_tensor hdi_model_norm(hd_program *program, hdi_model_stream from, const hd_norm_options *options,
                         hd_tensor *sum);

/* The stream's value as one tensor: where a stage ends. */
hd_tensor hdi_model_sum(hd_program *program, hdi_model_stream from);

/* What a block hands on: x and what its second half adds. Where blocks run again in the backward the
 * two are joined, so that one tensor is kept for each block, not two. The bits are the same. */
hdi_model_stream hdi_model_hand_on(hd_program *program, const hdi_model_stage *at, hd_tensor x,
                                   hd_tensor delta);

bool hdi_model_stage_begin(hd_program *program, const hdi_model_config *config,
                           const hd_stage *stage, hd_tensor x, hdi_model_stage *out);
hd_tensor hdi_model_tokens(hd_program *program, const hdi_model_stage *at);
hd_tensor hdi_model_attention(hd_program *program, const hdi_model_stage *at, hd_tensor qkv);
hd_tensor hdi_model_final_norm(hd_program *program, const hdi_model_stage *at,
                               hdi_model_stream from, const hd_norm_options *options);
hd_tensor hdi_model_finish(hd_program *program, const hdi_model_stage *at, hd_tensor x,
                           const char *head_weight);

#endif
