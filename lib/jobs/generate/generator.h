/* The inside of a generator. */
#ifndef HDI_JOBS_GENERATE_GENERATOR_H
#define HDI_JOBS_GENERATE_GENERATOR_H

#include "jobs/stages.h"
#include "program/plan.h"
#include "runtime/session.h"

#include <heddle/generator.h>

/* A stage has a program for runs of prompt tokens and one for single tokens; both share weights
 * and caches. Without chunks (prefill = 1) the second serves for both. */
typedef enum hdi_generator_pass {
    HDI_PASS_PREFILL,
    HDI_PASS_DECODE,
    HDI_PASSES
} hdi_generator_pass;

typedef struct hdi_generator_program {
    hd_program *program; /* owned; NULL if not needed */
    int64_t tokens;
    hd_tensor x, out;               /* between stages; invalid at the pipeline's ends */
    hd_tensor ids, position, count; /* inputs; invalid where the stage does not declare them */
    hd_tensor logits;               /* of the last stage */
} hdi_generator_program;

/* What the whole model is, found by building its parts for one token. */
typedef struct hdi_generator_facts {
    int64_t vocab;
    hd_dtype x_dtype;
    int x_rank;
    int64_t x_dims[HD_MAX_DIMS]; /* for one token; the first counts tokens */
    int first_layer, layers;     /* of this rank's stage */
} hdi_generator_facts;

/* A sequence in flight, as this stage sees it. */
typedef struct hdi_generator_slot {
    int prompt;   /* -1: none */
    int64_t done; /* tokens of the sequence that have been through this stage */
    hd_request receive, send[HDI_PASSES], token_request;
    int32_t token;       /* on its way from the last stage to the first */
    int64_t token_place; /* of it in the caller's `out`; -1: none under way */
} hdi_generator_slot;

struct hd_generator {
    hd_generator_options options;
    int stages, stage;
    hdi_generator_facts facts;
    hdi_generator_program programs[HDI_PASSES];
    hd_plan *plan;
    hdi_keeping keep; /* of weights: as wanted, then as ranks agreed */
    int slot_count;

    /* NULL, or called on the first stages when a token of their own prompts is there: so many of so many. */
    void (*tell)(void *user, int64_t done, int64_t all);
    void *tell_user; /* borrowed */

    hd_session *session;
    hdi_generator_slot *slots; /* [slot_count] */
    float *logits;             /* [vocab], on the last stage: of the last sampled token */
    uint16_t *rounded;         /* [vocab], the same as 16 bits, where the model has those */
    int32_t *heap;             /* [vocab], for sampling */
    int32_t *ids;              /* [prefill] */
};

static inline bool hdi_generator_is_last(const hd_generator *generator)
{
    return generator->stage == generator->stages - 1;
}

/* generator_programs.c: learn the model's facts, cut the layers, build this stage's programs. */
hd_status hdi_generator_measure(hd_generator *generator);
hd_status hdi_generator_build(hd_generator *generator, hdi_generator_pass pass);

#endif
