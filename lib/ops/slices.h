/* What is large is made part by part, for less memory. */
#ifndef HDI_OPS_SLICES_H
#define HDI_OPS_SLICES_H

#include <heddle/diffusion.h>

#include "backend/backend.h"
#include "ops/sequence.h"
#include "program/program.h"

/* A linear map's parameters: [outputs, inputs] and [outputs], which may be invalid. */
typedef struct hdi_linear_map {
    hd_tensor weight, bias;
} hdi_linear_map;

/* The row at which slice `index` of `slices` begins: at whole tiles of products, of which none is cut so short
 * that the BLAS would take another kernel for it, and no more slices than tiles, so that the last one is no
 * shorter. Slices for which no rows are left are empty. */
static inline int64_t hdi_slice_begin(int64_t rows, int slices, int index)
{
    enum { TILE = 64 };
    const int64_t tiles = rows > TILE ? rows / TILE : 1, most = slices < tiles ? slices : tiles;
    return index >= most ? rows : rows * index / most / TILE * TILE;
}

/* hd_cross_entropy of x [rows, inputs] times the weight [classes, inputs], as hd_linear_op has it, in
 * about `slices` slices of rows: there are never more logits than those of one. In training the slices
 * are made in the backward, each with its gradients: the loss is there when that has run. first, limit: as
 * hdi_logits has them; with limit > 0 collective. */
hd_tensor hdi_loss_slices(hd_program *program, hd_tensor x, hd_tensor weight, hd_tensor targets,
                          int64_t first, int64_t limit, int slices);

/* What an MLP does between its linear maps. SwiGLU: the first has twice the second's columns. */
typedef enum hdi_mlp_kind { HDI_MLP_GELU_TANH, HDI_MLP_GELU_ERF, HDI_MLP_SWIGLU } hdi_mlp_kind;

/* down(activation(up(x))) in about `slices` slices of rows; only one slice of what lies between is in memory.
 * The result takes x's place where nobody else needs that. A backward makes it again, slice by slice, with the
 * gradients of each: those of weights are sums over slices. x then is [rows, inputs]. */
hd_tensor hdi_mlp_slices(hd_program *program, hdi_mlp_kind kind, hd_tensor x,
                         const hdi_linear_map *up, const hdi_linear_map *down, int slices);

/* Queries, keys and values of one or two streams by linear maps of their rows, hd_joint_qkv and
 * hd_attention, for a group of heads at a time: about `groups` groups. stream[s].qkv are the rows
 * that map[s] takes. counts I32 [sequences] may be invalid. out[streams]: each stream's rows of the
 * result. No gradient. */
typedef struct hdi_attention_slices {
    int64_t sequences, heads, head_dim;
    double epsilon;
    hd_tensor counts;
    int streams, groups;
    hd_qkv_stream stream[2];
    hdi_linear_map map[2];
} hdi_attention_slices;
void hdi_attention_sliced(hd_program *program, const hdi_attention_slices *from, hd_tensor *out);

/* Heads that change places with tokens (ops/sequence.h) a turn at a time: from->turns, which are at least
 * the program's slices where each rank has heads for so many. */
int hdi_sequence_slices(hd_program *program, const hdi_sequence_shape *shape);

/* One turn of what hdi_sequence_to_heads gives of rows' linear map, of which only that is made: *own, on its
 * way, and *alike, where `from` has such rows. No gradient. Collective when run. */
void hdi_sequence_slice_to_heads(hd_program *program, hd_tensor rows, const hdi_linear_map *map,
                                 const hdi_sequence_heads *from, int turn, hd_tensor *own,
                                 hd_tensor *alike);

/* What hdi_sequence_to_tokens makes, one turn's columns of it: `rows`, where those of the turns before
 * are (the first time: invalid), with them. The result takes its place. No gradient. */
hd_tensor hdi_sequence_slice_to_tokens(hd_program *program, hd_tensor rows,
                                       const hdi_sequence_heads *from, int turn, hd_tensor own,
                                       hd_tensor alike);

/* What hd_joint_qkv makes of its sizes and of a stream: false after a sticky error. *table is invalid
 * where nothing turns. */
bool hdi_joint_sizes(hd_program *program, int64_t sequences, int64_t heads, int64_t head_dim,
                     double epsilon, int streams);
bool hdi_joint_rope(hd_program *program, const hd_qkv_stream *stream, int index, int64_t head_dim,
                    hdi_rope_axes *rope, hd_tensor *table);

#endif
