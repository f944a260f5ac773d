/* What forward and backward of ring attention share: options, sizes of blocks, what travels. */
#ifndef HDI_OPS_RING_PARTS_H
#define HDI_OPS_RING_PARTS_H

#include "backend/backend.h"
#include "ops/ring.h"
#include "ops/sequence_parts.h"

typedef struct hdi_ring_options {
    hdi_collective collective;
    hdi_sequence_cut places;
    int place, base, step; /* place p is rank base + p * step of the axis */
    int64_t sequences, heads, kv_heads, head_dim, tokens, alike;
    float scale;
    bool causal, exact;

    /* The block at hand: of which place, and of each sequence `queries` queries from `first` on, which
     * see its first `keys` keys. */
    int source;
    int64_t first, queries, keys;
} hdi_ring_options;

/* Tokens of each sequence that a place attends. */
int64_t hdi_ring_tokens(const hdi_ring_options *o, int place);

/* The block that a place has after so many steps, and what of it is seen. */
void hdi_ring_at_step(hdi_ring_options *o, int step);

/* Columns of a query's heads, and of a key's and its value's. */
int64_t hdi_ring_query_columns(const hdi_ring_options *o);
int64_t hdi_ring_key_columns(const hdi_ring_options *o);

/* A shape rule's check of input `index`: rows of a place, and so many columns. */
hd_status hdi_ring_check(const hd_op *op, int index, const char *name, int place, int64_t columns);

/* Block o->source, or its gradient, goes on to the next place, and the one before it comes. */
hd_tensor hdi_ring_shift(hd_program *program, const hdi_ring_options *o, hd_tensor x,
                         const char *what);

/* Of one call of a block's attention: all sequences if every token takes part, else one. Pointers are
 * not set. */
hdi_attention_args hdi_ring_arguments(const hdi_ring_options *o, hd_dtype dtype);

/* Valid tokens of queries and keys, if there are counts (`in`, NULL if not): room for them at the end
 * of a workspace, and what the call takes. */
size_t hdi_ring_counts_bytes(const hdi_ring_options *o);
hd_status hdi_ring_count(const hd_run *run, const int32_t *in, void *room,
                         hdi_attention_args *args);

/* The backward rule of the op that ends the forward; in: queries, keys and values, sum, log-sum-exp,
 * counts. */
void hdi_ring_backward(hd_backward *context, const hd_op *op);

#endif
