/* What the model families share. */
#ifndef HDI_MODELS_MODEL_H
#define HDI_MODELS_MODEL_H

#include <heddle/model.h>
#include <heddle/nn.h>

#include <jansson.h>

#include "core/text.h"
#include "io/weights_index.h"

/* What a model of any family says of itself. */
typedef struct hdi_model_facts {
    int64_t layers, hidden;
    int64_t vocab, max_tokens; /* token models; 0 otherwise */
    bool is_video;
    hd_video_model video;
    const char *layout; /* how files name the tensors; NULL where there is one way only */
} hdi_model_facts;

/* A shape by name, as the text of a config.json. */
typedef struct hdi_model_preset {
    const char *name, *json;
} hdi_model_preset;

/* A family of models, with a configuration of its own kind: config_bytes of plain data, zeros before
 * `read`, which borrows nothing of the object. */
typedef struct hdi_model_family {
    const char *type;       /* "model_type" */
    const char *class_name; /* the same in files of others; NULL: none */
    size_t config_bytes;
    const hdi_model_preset *presets; /* the last has no name; NULL: none */
    hd_status (*read)(const json_t *object, void *config);
    void (*write)(const void *config, hdi_text *out);
    void (*describe)(const void *config, hdi_model_facts *out); /* *out is zeros before */
    hd_build_fn build;                                          /* user: the configuration */

    /* Take over the layout that these weights' tensor names show. NULL: there is one only. */
    hd_status (*match)(void *config, const hdi_weights *weights);

    /* The name of that layout, NULL if the weights show none of the family's. NULL: never asked. */
    const char *(*layout_of)(const hdi_weights *weights);
} hdi_model_family;

extern const hdi_model_family hdi_gpt2, hdi_llama, hdi_hunyuan_video, hdi_open_sora_2,
    hdi_mmdit_pixels, hdi_stdit3;

struct hd_model {
    const hdi_model_family *family;
    void *config; /* owned; of the family's kind */
    hdi_model_facts facts;
    int64_t parameters;
    char *json; /* owned */
};

/* The configuration of token models. */
typedef struct hdi_model_config {
    int64_t vocab, max_tokens, hidden, inner, layers, heads, kv_heads, head_dim;
    double epsilon, theta;
    bool tied;      /* the head's weight is the token embedding's */
    bool gelu_tanh; /* GPT-2: tanh approximation instead of erf */
    double init_std;
} hdi_model_config;

/* `describe` of token models. */
void hdi_model_describe_tokens(const void *config, hdi_model_facts *out);

/* The smallest stage that is the whole model and declares every parameter. */
hd_stage hdi_model_whole(const hd_model *model, hd_purpose purpose);

/* hd_model_match_weights for weights that are open. */
hd_status hdi_model_match(hd_model *model, const hdi_weights *weights);

/* The family and the layout that tensors' names show, where a family has several; false: none. */
bool hdi_model_layout_of(const hdi_weights *weights, const char **family, const char **layout);

/* The same as hd_model_create_json for an object that is parsed already, which is borrowed. */
hd_status hdi_model_create(const json_t *object, hd_model **out);

/* Values of a config.json. Without the key, or with null, *out keeps its value if `required` is
 * false and the call fails otherwise. Integers are at least 1. */
hd_status hdi_model_read_int(const json_t *object, const char *key, bool required, int64_t *out);
hd_status hdi_model_read_positive(const json_t *object, const char *key, double *out);
hd_status hdi_model_read_bool(const json_t *object, const char *key, bool *out);
hd_status hdi_model_read_string(const json_t *object, const char *key, const char **out);

hd_status hdi_model_read_ints(const json_t *object, const char *key, int count, int64_t *out);

/* HD_ERROR_UNSUPPORTED unless the key is absent or has this value. */
hd_status hdi_model_require_bool(const json_t *object, const char *key, bool wanted);
hd_status hdi_model_require_string(const json_t *object, const char *key, const char *wanted);

/* The value as text for messages, in a caller's buffer. */
enum { HDI_JSON_TEXT = 96 };
const char *hdi_model_json_text(const json_t *value, char out[HDI_JSON_TEXT]);

/* The ends of a stage, the same for all families. `begin` checks the stage and declares what a
 * generating one needs; `tokens` declares the token ids; `final_norm` norms what the head reads;
 * `finish` makes the loss or the logits from the normed x. */
typedef struct hdi_model_stage {
    const hdi_model_config *config;
    const hd_stage *stage;
    int64_t shared;            /* tokens of a sequence that this rank's sequence rank has */
    int64_t tokens;            /* of those this rank's, which the tensor axis deals out */
    bool alike;                /* all ranks of a tensor axis have all rows */
    hd_tensor places;          /* I32, of the rows that it attends, where they do not count up */
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

/* What block `layer` hands on: x and what its second half adds. Where it runs again in the backward the
 * two are joined, so that one tensor is kept for it, not two. The bits are the same. */
hdi_model_stream hdi_model_hand_on(hd_program *program, const hdi_model_stage *at, hd_tensor x,
                                   hd_tensor delta, int layer);

bool hdi_model_stage_begin(hd_program *program, const hdi_model_config *config,
                           const hd_stage *stage, hd_tensor x, hdi_model_stage *out);
hd_tensor hdi_model_tokens(hd_program *program, const hdi_model_stage *at);

/* Rows of the tokens by their ids. */
hd_tensor hdi_model_embedding(hd_program *program, const hdi_model_stage *at, const char *name);

/* Around layers that are split: rows for one that is split by columns, in an order that attention alone
 * minds, and those of the result of one that is split by rows. */
hd_tensor hdi_model_enter(hd_program *program, const hdi_model_stage *at, hd_tensor x);
hd_tensor hdi_model_leave(hd_program *program, const hdi_model_stage *at, hd_tensor x);

/* Attention of whole sequences, whose queries and keys turn as `rope` says, without its heads, or not
 * at all; and the positions I32 of own tokens, and of the rows that are attended, or none where they
 * simply count up. */
hd_tensor hdi_model_attention(hd_program *program, const hdi_model_stage *at, hd_tensor qkv,
                              const hd_rope_options *rope);
hd_tensor hdi_model_positions(hd_program *program, const hdi_model_stage *at);
hd_tensor hdi_model_places(hd_program *program, const hdi_model_stage *at);
hd_tensor hdi_model_final_norm(hd_program *program, const hdi_model_stage *at,
                               hdi_model_stream from, const hd_norm_options *options);
hd_tensor hdi_model_finish(hd_program *program, const hdi_model_stage *at, hd_tensor x,
                           const char *head_weight);

#endif
