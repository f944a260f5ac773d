/* What attention forward, backward, cached and across share: one sequence of a call, the cut into
 * blocks of queries, and softmax of a block of scores. */
#ifndef HDI_BACKEND_CPU_ATTENTION_H
#define HDI_BACKEND_CPU_ATTENTION_H

#include "backend/cpu/cpu.h"

/* Queries in a block. Its scores against all visible keys are held at once: no other part of the
 * tokens x tokens matrix ever exists. */
enum { HDI_CPU_QUERIES = 64 };

/* Floats of one lane's scores, a multiple of 16 so that lanes share no cache line. */
static inline int64_t hdi_cpu_score_floats(int64_t tokens, int64_t kv_tokens)
{
    return hdi_round_up(hdi_cpu_min(tokens, HDI_CPU_QUERIES) * kv_tokens, 16);
}

/* Keys that query `token` sees. */
static inline int64_t hdi_cpu_visible(const hdi_attention_args *args, int64_t token)
{
    if (!args->causal) return args->kv_tokens;
    const int64_t visible = token + args->kv_tokens - args->tokens + 1;
    return visible < 0 ? 0 : hdi_cpu_min(visible, args->kv_tokens);
}

/* One sequence as a call of its own: batch 1, interleave 1, no counts. */
typedef struct hdi_cpu_sequence {
    hdi_attention_args args;
    int64_t places;     /* tokens that there is room for: rows from args.tokens on become zero */
    int64_t key_places; /* the same of keys, in gradients */
    int64_t lse_stride; /* from head to head */
} hdi_cpu_sequence;

hdi_cpu_sequence hdi_cpu_attention_sequence(const hdi_attention_args *args, int64_t batch);

/* Block `block` of queries of a head, through scores of hdi_cpu_score_floats. False if the BLAS
 * refuses. */
bool hdi_cpu_attend(const hdi_cpu_sequence *one, int64_t head, int64_t block, float *scores);

/* The gradients of all queries that read kv_head, and of its keys and values. */
bool hdi_cpu_attend_back(const hdi_cpu_sequence *one, int64_t kv_head, float *scores,
                         float *slopes);

/* One head's attention of queries [0, queries): query q sees `visible + q` keys, but at most `keys`
 * (all keys if not causal). scores [queries, keys]; lse [queries] or NULL. */
typedef struct hdi_cpu_attention_block {
    int64_t queries, keys, head_dim, visible;
    int64_t q_stride, k_stride, v_stride, out_stride;
    float scale;
    bool causal;
    const float *q, *k, *v;
    float *out, *scores, *lse;
} hdi_cpu_attention_block;

bool hdi_cpu_attend_block(const hdi_cpu_attention_block *block);

#endif
