/* STDiT3 of Open-Sora 1.2 and 1.3 (hpcaitech/Open-Sora, branches opensora/v1.2 and v1.3): its
 * configuration and the pieces that its stages are made of. */
#ifndef HDI_MODELS_STDIT_H
#define HDI_MODELS_STDIT_H

#include <heddle/diffusion.h>

#include "models/model.h"
#include "ops/regroup.h"

typedef struct hdi_stdit_config {
    int64_t depth; /* pairs of a spatial and a temporal block */
    int64_t hidden, heads, inner, channels, text_columns, text_tokens;
    int64_t patch[3];
    int64_t square; /* side in pixels of the picture that positions are scaled to */
    double mlp_ratio;
    bool sigma; /* as many channels more are predicted; nothing reads them */
    bool qk_norm;

    /* Open-Sora 1.3. Temporal blocks attend within windows of so many places (height, width) over all
     * frames, turned on three axes; 0: along each place (1.2). */
    int64_t window[2];
    bool spatial_rope; /* spatial blocks are turned too */
    bool condition;    /* given frames come beside the latents, not in them */
} hdi_stdit_config;

hd_status hdi_stdit_read(const json_t *object, void *config);
void hdi_stdit_write(const void *config, hdi_text *out);
void hdi_stdit_describe(const void *config, hdi_model_facts *out);
extern const hdi_model_preset hdi_stdit_presets[];

/* The caption that stands for none: of the published files a buffer, not a weight. */
#define HDI_STDIT_NULL_TEXT "y_embedder.y_embedding"

/* Pixels of a latent, in height and width. */
enum { HDI_STDIT_COMPRESSION = 8 };

/* Constants of a program, in its dtype: positions [rows, hidden] of a frame's patches,
 * the first half of the columns for x, the second for y, each sines, then cosines; zeros F32
 * [rows]; and [2 * entries, 2 * hidden], of whose columns the first half is 0, then -1 from row
 * `entries` on, and the second 0, then 1. */
typedef struct hdi_stdit_places {
    int64_t height, width; /* in patches */
    int64_t hidden;
    int64_t first, rows; /* row r is at place (first + r) % (height * width) */
    double scale;        /* of the pictures' side to config.square */
} hdi_stdit_places;
hd_tensor hdi_stdit_positions(hd_program *program, const hdi_stdit_places *places);
hd_tensor hdi_stdit_zeros(hd_program *program, int64_t rows);
hd_tensor hdi_stdit_selection(hd_program *program, int64_t entries, int64_t hidden);

/* A stage under construction. */
typedef struct hdi_stdit_build {
    hd_program *p;
    const hdi_stdit_config *config;
    const hd_stage *stage;
    int64_t frames, height, width; /* in patches */
    int64_t places, tokens;        /* of a frame, of a sequence */

    /* How the ring's places cut the video, which of both ways they do now, and what this rank's has of
     * a sequence then; and of its tokens, those that this rank has in layers, for which the tensor
     * axis's rows come together, and between them. */
    hdi_regroup_video video;
    bool by_position;
    hdi_regroup_part part;
    int64_t joined, own;

    int64_t kinds, entries; /* 1 or 2, with frames given by time 0; times sequences */
    bool given;             /* frames may be given beside the latents */
    int64_t text_rows; /* a sequence's: of its text, and where frames are given of the null text */
    hd_tensor all_entries;    /* I32 [sequences * frames], if they are read */
    hd_tensor cut_entries[2]; /* of the rows of each cut, once they are wanted */

    /* Of so many rows each: in layers where frames are given beside the latents, else between them. */
    hd_tensor frame_entries;
    int64_t frame_rows;
    hd_tensor text_offsets;
    hd_tensor text; /* [sequences * text_rows, hidden]: all texts, packed, then all null texts */
    hd_tensor modulation; /* [entries * 6, hidden], for all blocks */
    hd_tensor time;       /* [entries, hidden], for the final layer */
} hdi_stdit_build;

/* The value of x + gate * delta, or x if delta is invalid: left to the norm that reads it. */
typedef struct hdi_stdit_stream {
    hd_tensor x, delta;
    hd_modulation gate;
} hdi_stdit_stream;

/* stdit_blocks.c */
hdi_stdit_stream hdi_stdit_block(hdi_stdit_build *build, int layer, const hdi_stdit_stream *from);
hd_tensor hdi_stdit_value(hdi_stdit_build *build, const hdi_stdit_stream *from);
hd_tensor hdi_stdit_final_layer(hdi_stdit_build *build, const hdi_stdit_stream *from);

/* stdit_attention.c: of a block, after its norm. */
hd_tensor hdi_stdit_self_attention(hdi_stdit_build *build, hd_tensor x, bool temporal);
hd_tensor hdi_stdit_text_attention(hdi_stdit_build *build, hd_tensor x);

/* stdit_inputs.c: what is made of inputs before the blocks. `times`: as many times and, without steps,
 * the sequences'. The condition program's outputs are what read_conditioning declares. */
hd_tensor hdi_stdit_latents(hdi_stdit_build *build);
double hdi_stdit_scale(const hdi_stdit_build *build); /* of the pictures' side to config.square */
void hdi_stdit_embed_time(hdi_stdit_build *build, int64_t times);
void hdi_stdit_embed_text(hdi_stdit_build *build);
void hdi_stdit_make_conditioning(hdi_stdit_build *build);
void hdi_stdit_read_conditioning(hdi_stdit_build *build);
void hdi_stdit_declare_buffers(hdi_stdit_build *build);

/* stdit_ranks.c. cut: ranks have rows as the places of a ring cut them, by position or by frame. turn:
 * rows that come cut otherwise, as they must be; with the tensor axis they stay as they are. */
void hdi_stdit_cut(hdi_stdit_build *build, bool by_position);
hdi_stdit_stream hdi_stdit_turn(hdi_stdit_build *build, const hdi_stdit_stream *from,
                                bool by_position);

/* This rank's of all tokens' rows; what is the same on all ranks up to the loss, of all;
 * and, around layers that the tensor axis shares, the rows that go into one and, of the parts that it
 * makes, those of the result. */
int64_t hdi_stdit_first(const hdi_stdit_build *build); /* of a sequence's tokens, cut by frame */
hd_tensor hdi_stdit_own_rows(hdi_stdit_build *build, hd_tensor x);
hd_tensor hdi_stdit_all_rows(hdi_stdit_build *build, hd_tensor x);
hd_tensor hdi_stdit_enter(hdi_stdit_build *build, hd_tensor x);
hd_tensor hdi_stdit_leave(hdi_stdit_build *build, hd_tensor x);

/* A layer from rows to `parts` runs of heads side by side, or one run of heads back: this rank's heads. */
hd_tensor hdi_stdit_to_heads(hdi_stdit_build *build, hd_tensor x, const char *name, int parts);
hd_tensor hdi_stdit_from_heads(hdi_stdit_build *build, hd_tensor x, const char *name);
int64_t hdi_stdit_heads(const hdi_stdit_build *build);

hd_tensor hdi_stdit_linear(hdi_stdit_build *build, hd_tensor x, const char *name, int64_t outputs);
hd_tensor hdi_stdit_rows(hdi_stdit_build *build, hd_tensor x, int64_t rows, int64_t columns);
hd_patch_options hdi_stdit_patches(const hdi_stdit_build *build, hd_patch_order order);
hd_tensor hdi_stdit_video(hdi_stdit_build *build, const char *name, int64_t videos);

/* Modulation by a table with a row for each group of rows that the time, or the frame, tells apart. */
hd_modulation hdi_stdit_modulation(const hdi_stdit_build *build, hd_tensor table);

/* x [rows that frame_rows tell of, columns], but in given frames `other`: the selection takes x away
 * there, exactly, and adds the other. */
hd_tensor hdi_stdit_choose(hdi_stdit_build *build, hd_tensor x, hd_tensor other);

#endif
