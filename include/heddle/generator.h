/* Text generation with a model of one's own on any layout: the ranks of the pipeline axis hold the
 * stages and work on many sequences at once, those of the data axis share out the sequences.
 * Keys and values are cached; every byte is planned before the first weight is loaded. */
#ifndef HEDDLE_GENERATOR_H
#define HEDDLE_GENERATOR_H

#include <heddle/mesh.h>
#include <heddle/plan.h>
#include <heddle/session.h>
#include <heddle/stage.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_generator hd_generator;

typedef struct hd_generator_options {
    hd_build_fn build; /* called with HD_PURPOSE_GENERATE; the last stage makes output "logits" */
    void *user;        /* borrowed */
    int layers;
    const hd_mesh *mesh;       /* borrowed; NULL: one rank; a fake one serves planning only */
    const hd_backend *backend; /* that will run it, of hd_context_backend; NULL: the CPU's */
    const int *stage_layers;   /* [pipeline] layers of each stage; NULL: balanced by cost */
    hd_dtype dtype;   /* of weights, caches and activations: F32 (zero means it), BF16 or F16 */
    int64_t capacity; /* tokens of the longest sequence, prompt and generated ones together */
    int64_t prefill;  /* prompt tokens that one pass takes; zero means 32 */
    int slots; /* sequences in flight on each data rank, at most 256; zero: twice the stages. Fewer
                  if the budget does not hold their caches. */
    size_t budget, foreign; /* bytes of device memory; zero budget: no limit */
    hd_residency
        residency;   /* of weights; AUTO: elsewhere only where one sequence does not fit else */
    int host_blocks; /* as hd_plan_options has it */
} hd_generator_options;

/* Build and plan; allocates host memory only. HD_ERROR_BUDGET if not even one sequence in flight
 * fits. Local: every rank may plan for any rank of a fake mesh. */
HD_API hd_status hd_generator_create(const hd_generator_options *options, hd_generator **out);
HD_API void hd_generator_destroy(hd_generator *generator); /* takes NULL */

/* The plan; borrowed, until hd_generator_start, which may plan again. Local. */
HD_API const hd_plan *hd_generator_plan(const hd_generator *generator);

/* Classes of the logits, and sequences in flight (after start: those that all ranks have room
 * for). Local. */
HD_API int64_t hd_generator_vocab(const hd_generator *generator);
HD_API int hd_generator_slots(const hd_generator *generator);

/* Ranks that gather weights from each other first plan again where AUTO chose otherwise on each. Reserve the
 * arena on `context` (borrowed) and initialise the parameters from `seed`. Collective. */
HD_API hd_status hd_generator_start(hd_generator *generator, hd_context *context, uint64_t seed);

/* Fill the parameters from a heddle checkpoint (a run directory or one step-N) or Hugging Face
 * weights (a folder or a safetensors file). Each rank reads its own stage's. Collective. */
HD_API hd_status hd_generator_load(hd_generator *generator, const char *path);

typedef struct hd_prompt {
    const int32_t *tokens; /* [length], borrowed for the call */
    int64_t length;        /* at least 1 */
} hd_prompt;

/* Zeros mean greedy: the likeliest token, of equally likely ones that with the lowest number. */
typedef struct hd_sampling_options {
    double temperature;
    int64_t top_k; /* sample among the k likeliest; zero: among all */
    uint64_t seed; /* a token is a function of seed, prompt number, position and logits */
    bool stop;     /* texts end at `end`; it is still computed past it, then cut */
    int32_t end;
} hd_sampling_options;

typedef struct hd_generator_result {
    int64_t tokens;      /* generated over all prompts and ranks */
    double seconds;      /* of the call */
    double busy_seconds; /* of them, this rank's computation */
} hd_generator_result;

/* Add `tokens` tokens to each of `count` prompts. out [count * tokens] holds them on every rank, in
 * the order of the prompts; what follows `end` is `end`. Prompts and options are equal on all ranks. The
 * result is independent of the layout. HD_ERROR_ARGUMENT for an empty prompt, a token outside the
 * vocabulary, or a sequence beyond the capacity. `result` may be NULL. Allocates nothing.
 * Collective. */
HD_API hd_status hd_generator_run(hd_generator *generator, const hd_prompt *prompts, int count,
                                  int64_t tokens, const hd_sampling_options *sampling, int32_t *out,
                                  hd_generator_result *result);

/* The session, for the high-water mark; borrowed, NULL before start. Local. */
HD_API hd_session *hd_generator_session(hd_generator *generator);

#ifdef __cplusplus
}
#endif
#endif
