/* Open-Sora 1.2's STDiT3 (hpcaitech/Open-Sora, branch opensora/v1.2): its configuration and tables. */
#ifndef HDI_MODELS_STDIT_H
#define HDI_MODELS_STDIT_H

#include "models/model.h"

typedef struct hdi_stdit_config {
    int64_t depth; /* pairs of a spatial and a temporal block */
    int64_t hidden, heads, inner, channels, text_columns, text_tokens;
    int64_t patch[3];
    int64_t square; /* side in pixels of the picture that positions are scaled to */
    double mlp_ratio;
    bool sigma; /* as many channels more are predicted; nothing reads them */
    bool qk_norm;
} hdi_stdit_config;

hd_status hdi_stdit_read(const json_t *object, void *config);
void hdi_stdit_write(const void *config, hdi_text *out);
void hdi_stdit_describe(const void *config, hdi_model_facts *out);
extern const hdi_model_preset hdi_stdit_presets[];

/* Pixels of a latent, in height and width. */
enum { HDI_STDIT_COMPRESSION = 8 };

/* Constants of a program, in its dtype: positions [height * width, hidden] of a frame's patches,
 * the first half of the columns for x, the second for y, each sines, then cosines; zeros F32
 * [rows]; and [2 * entries, 2 * hidden], of whose columns the first half is 0, then -1 from row
 * `entries` on, and the second 0, then 1. */
typedef struct hdi_stdit_places {
    int64_t height, width; /* in patches */
    int64_t hidden;
    double scale; /* of the pictures' side to config.square */
} hdi_stdit_places;
hd_tensor hdi_stdit_positions(hd_program *program, const hdi_stdit_places *places);
hd_tensor hdi_stdit_zeros(hd_program *program, int64_t rows);
hd_tensor hdi_stdit_selection(hd_program *program, int64_t entries, int64_t hidden);

#endif
