/* Transformers of two streams, image and text, that attend to each other (MMDiT, arXiv 2403.03206):
 * blocks with weights for each stream, then blocks on the joined rows. HunyuanVideo (arXiv
 * 2412.03603) and Open-Sora 2.0 (arXiv 2503.09642) are configurations of it. */
#ifndef HDI_MODELS_MMDIT_H
#define HDI_MODELS_MMDIT_H

#include "models/model.h"
#include "ops/slices.h"
#include "program/program.h"

#include <heddle/diffusion.h>

/* How files name and cut the tensors. Parameters have the names of the first one in all of them. */
typedef enum hdi_mmdit_layout {
    HDI_MMDIT_ORIGINAL,  /* HunyuanVideo: query, key and value fused */
    HDI_MMDIT_DIFFUSERS, /* HunyuanVideo in diffusers */
    HDI_MMDIT_FUSED,     /* Open-Sora */
    HDI_MMDIT_SEPARATE,  /* Open-Sora, as released: query, key and value apart */
    HDI_MMDIT_LAYOUTS
} hdi_mmdit_layout;

typedef struct hdi_mmdit_config {
    int64_t hidden, heads, head_dim, inner; /* inner: of the MLPs */
    int64_t double_blocks, single_blocks;
    int64_t refiner_blocks; /* of the text; 0: the text goes through one linear layer */
    int64_t channels, patch[3], compression[3];
    int64_t text_columns, text_tokens;
    int64_t pooled_columns, condition_channels; /* 0: none */
    int64_t axes[3];                            /* columns of a head that turn with each axis */
    double theta, mlp_ratio;
    bool text_first; /* of the joined rows; padded text is then read like any */
    bool guidance, halves, qk_norm;
    bool positions; /* a table of them is added to the image's rows */
    hdi_mmdit_layout layout;
} hdi_mmdit_config;

/* The blocks, whose names differ. */
typedef enum hdi_mmdit_section {
    HDI_MMDIT_ENDS,
    HDI_MMDIT_DOUBLE,
    HDI_MMDIT_SINGLE,
    HDI_MMDIT_REFINER,
    HDI_MMDIT_SECTIONS
} hdi_mmdit_section;

/* One stage under construction. */
typedef struct hdi_mmdit_build {
    hd_program *p;
    const hdi_mmdit_config *config;
    const hd_stage *stage;
    int64_t grid[3], image, text; /* patches of each axis; tokens of a sequence */
    int64_t shared;               /* the image's tokens that this rank's sequence rank has */
    int64_t own;                  /* of those this rank's, which the tensor axis deals out */
    int64_t entries;              /* noise levels at once: sequences, or steps to condition */
    hdi_mmdit_section section;
    int block; /* of the section */
    hd_tensor text_counts, joint_counts;
    hd_tensor vector; /* [entries, hidden]: silu of the conditioning; none when denoising */
} hdi_mmdit_build;

/* The scope of a block, whose layers the calls below name. */
void hdi_mmdit_begin(hdi_mmdit_build *b, hdi_mmdit_section section, int block);
void hdi_mmdit_end(hdi_mmdit_build *b);

/* A linear layer with bias, ready for hd_linear: its name and where files have it. The options point
 * into the struct, which must not be moved. */
typedef struct hdi_mmdit_layer {
    hd_linear_options options;
    char names[HD_MAX_PARTS][128];
} hdi_mmdit_layer;
void hdi_mmdit_layer_of(const hdi_mmdit_build *b, const char *name, int64_t inputs, int64_t outputs,
                        hdi_mmdit_layer *out);
hd_tensor hdi_mmdit_linear(hdi_mmdit_build *b, hd_tensor x, const char *name, int64_t outputs);

/* gelu_tanh between two layers of config->inner columns. */
hd_tensor hdi_mmdit_mlp(hdi_mmdit_build *b, hd_tensor x, const char *up, const char *down);

/* A vector of `columns`, with dims [columns], or [1, columns] for adding to rows. */
hd_tensor hdi_mmdit_vector(hdi_mmdit_build *b, const char *name, hd_init init, int rank,
                           int64_t columns);

/* The layout whose names are among the weights. */
hd_status hdi_mmdit_match(void *config, const hdi_weights *weights);
const char *hdi_mmdit_hunyuan_layout(const hdi_weights *weights);
const char *hdi_mmdit_open_sora_layout(const hdi_weights *weights);
const char *hdi_mmdit_layout_name(hdi_mmdit_layout layout);

/* The table of a block's shifts, scales and gates, [entries, vectors * hidden], in the order of its
 * layer `name`: made from the conditioning, or, when denoising, read. */
hd_tensor hdi_mmdit_modulation(hdi_mmdit_build *b, const char *name, int64_t vectors);

/* The table of positions, [image, hidden]. */
hd_tensor hdi_mmdit_positions(hdi_mmdit_build *b);

/* silu of what all blocks are modulated by, [entries, hidden]; and the text, refined, of hidden
 * columns: [sequences * text], to condition [steps * text] if it depends on time. */
hd_tensor hdi_mmdit_conditioning(hdi_mmdit_build *b);
hd_tensor hdi_mmdit_text(hdi_mmdit_build *b);

/* Rows between blocks: their value is x + gate * delta; the sum is left to the next norm. Without a
 * delta: x. */
typedef struct hdi_mmdit_rows {
    hd_tensor x, delta;
    hd_modulation gate;
} hdi_mmdit_rows;
hd_tensor hdi_mmdit_sum(hd_program *p, hdi_mmdit_rows *rows);

/* The streams in the order in which they are joined: the index of the image's. */
static inline int hdi_mmdit_image(const hdi_mmdit_config *config)
{
    return config->text_first ? 1 : 0;
}

/* Around layers that ranks share: of own image rows and text rows, in two streams or (`joined`) in one, the
 * rows that go into one that is split by columns; and, of the parts that one split by rows makes, those
 * of the result. Text rows are the same on all ranks. */
hd_tensor hdi_mmdit_enter(hdi_mmdit_build *b, bool image, hd_tensor x);
hd_tensor hdi_mmdit_leave(hdi_mmdit_build *b, bool image, hd_tensor x);
hd_tensor hdi_mmdit_enter_joined(hdi_mmdit_build *b, hd_tensor x);
hd_tensor hdi_mmdit_leave_joined(hdi_mmdit_build *b, hd_tensor x);

/* Whether sequences are split over ranks: the image's rows that go into attention are `shared`. */
static inline bool hdi_mmdit_is_split(const hdi_mmdit_build *b)
{
    return hd_mesh_size(b->p->mesh, HD_AXIS_SEQUENCE) > 1;
}

/* Queries, keys and values of shared image and text rows, in two streams or joined in one, on their way
 * to the ranks of their heads and back. */
typedef struct hdi_mmdit_travel {
    int count; /* of streams */
    hd_qkv_stream stream[2];
    hdi_sequence_heads image, text;         /* text: of its own stream */
    hd_tensor heads[2][HDI_SEQUENCE_TURNS]; /* [stream][turn] */
} hdi_mmdit_travel;

/* begin: all heads set out; attend: attention of a turn's heads as they come, and they set out back;
 * end: the streams' rows of the result. What is computed between two of these hides the first turn's
 * way there, the last one's back. Rotations are those of whole sequences. */
void hdi_mmdit_sequence_begin(hdi_mmdit_build *b, int count, const hd_qkv_stream *streams,
                              hdi_mmdit_travel *out);
void hdi_mmdit_sequence_attend(hdi_mmdit_build *b, hdi_mmdit_travel *travel);
void hdi_mmdit_sequence_end(hdi_mmdit_build *b, const hdi_mmdit_travel *travel, hd_tensor *out);

/* The same in slices: only two turns' heads are there at once, made of from->stream[].qkv's rows by
 * from->map, of which attend needs no more than those and the streams. The last turn's result is on its way
 * back until the end; until then rows lacks it. */
void hdi_mmdit_slices_attend(hdi_mmdit_build *b, const hdi_attention_slices *from,
                             hdi_mmdit_travel *out, hd_tensor *rows);
void hdi_mmdit_slices_end(hdi_mmdit_build *b, const hdi_mmdit_travel *travel, hd_tensor *rows);

/* A block's forward. Conditioning only, it makes its modulation and leaves the rows alone. */
void hdi_mmdit_double_block(hdi_mmdit_build *b, int block, hdi_mmdit_rows streams[2]);
void hdi_mmdit_single_block(hdi_mmdit_build *b, int block, hdi_mmdit_rows *joined);

hd_tensor hdi_mmdit_build_stage(void *config, hd_program *program, const hd_stage *stage,
                                hd_tensor x);

enum { HDI_MMDIT_SINUSOID = 256 };

#endif
