/* Training steps of a model of one's own on any layout: heddle cuts it into stages, makes the
 * backward, plans every byte, and runs the schedule. */
#ifndef HEDDLE_TRAINER_H
#define HEDDLE_TRAINER_H

#include <heddle/mesh.h>
#include <heddle/plan.h>
#include <heddle/session.h>
#include <heddle/stage.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_trainer hd_trainer;

/* Decoupled weight decay (arXiv 1711.05101). Zeros mean 0.9, 0.999, 1e-8, no decay. */
typedef struct hd_adamw_options {
    float beta1, beta2, epsilon, weight_decay;
    bool decay_all; /* else parameters of one dim (norms, biases) are left alone */
} hd_adamw_options;

/* What the optimizer updates when weights have 16 bits. Both kinds train the same weights bit for
 * bit. */
typedef enum hd_master {
    HD_MASTER_AUTO,     /* remainders for BF16, an fp32 copy for F16 */
    HD_MASTER_F32,      /* an fp32 copy of each weight: 4 bytes */
    HD_MASTER_REMAINDER /* BF16 only: the 16 bits that the weight leaves of the fp32 value: 2 bytes */
} hd_master;

/* A size of what one step works on. All ranks take the same one at a step, so that none waits for
 * another's longer work; shapes share weights, gradients and, one after another, the scratch. */
typedef struct hd_trainer_shape {
    int64_t sequences;    /* of a micro-batch */
    int64_t tokens;       /* of a sequence: token models */
    hd_video_shape video; /* video models */
    int accumulate;       /* micro-batches a step on each data rank; zero means 1 */
} hd_trainer_shape;

/* What blocks (hd_residency) keep between forward and backward. All but INT8 give the same bits. */
typedef enum hd_activations {
    HD_ACTIVATIONS_KEEP,      /* what the backward reads */
    HD_ACTIVATIONS_RECOMPUTE, /* what enters them; the rest is made again, a third more computation */
    HD_ACTIVATIONS_RECOMPUTE_HOST, /* so, but what enters them waits in pinned host memory */
    HD_ACTIVATIONS_HOST, /* copied to pinned host memory and back beside the computation */
    HD_ACTIVATIONS_INT8, /* 8 bits an element and a scale for 128: each is off by up to 1/254 of the
                                 largest of its 128 */
    HD_ACTIVATIONS_AUTO  /* the first of the others, but for int8, that fits the budget */
} hd_activations;

enum { HD_SLICES_AUTO = -1, HD_SLICES_AUTO_MOST = 16 };

typedef struct hd_trainer_options {
    hd_build_fn build; /* called several times, for whole stages and for single layers */
    void *user;        /* borrowed */
    int layers;
    const hd_mesh *mesh;            /* borrowed; a fake one serves planning only */
    const hd_backend *backend;      /* that will run it, of hd_context_backend; NULL: the CPU's */
    int64_t sequences, tokens;      /* of a micro-batch, where there are no shapes */
    int accumulate;                 /* micro-batches a step on each data rank; zero means 1 */
    const hd_trainer_shape *shapes; /* [shape_count], copied; layers are balanced for the first */
    int shape_count;                /* zero: one, of sequences, tokens and accumulate */
    const char
        *schedule; /* "gpipe", "1f1b", "interleaved"; NULL: 1f1b, interleaved if chunks > 1 */
    int chunks;    /* virtual stages per pipeline rank; zero means 1 */
    const int *stage_layers; /* [pipeline x chunks] layers of each; NULL: balanced by cost */
    bool exact;              /* the same bits on every layout; costs gradient buffers */
    int shard_state;         /* split over the data axis: 1: optimizer state; 2: gradients, too; 3:
                                weights of layers, too, which are gathered when they are used */
    int sequence_groups;     /* as hd_program_options has it */
    int tensor_groups;       /* the same */
    int slices; /* as hd_program_options has it: the loss is the same, but the gradient of its layer is a
                   sum over slices, in their order; zero: 1; HD_SLICES_AUTO: as few as the budget asks
                   for, at most HD_SLICES_AUTO_MOST, without `exact` and tensor ranks */
    int mlp_slices; /* the same of MLPs of blocks. Where a block's activations are kept nothing of what lies
                       within its MLP is: its first product is made again in the backward */
    hd_activations activations;
    bool recompute;        /* short for HD_ACTIVATIONS_RECOMPUTE, where `activations` is KEEP */
    int activation_blocks; /* the others' are kept: of this rank's blocks so many are as `activations`
                              says, or all if there are fewer: the first ones, whose backward comes
                              last, or evenly spread where they are copied or rounded. Zero: all, or,
                              with AUTO, as few as the budget asks for */
    hd_residency
        residency;   /* of the weights of blocks: on the device (zero); HOST: in pinned host memory,
                               from where blocks are copied in while the ones before them compute, in
                               each forward and backward, and where the update changes them. The
                               optimizer's state is there, too, then; of level 3 of shard_state the
                               rank's shards. AUTO: as few blocks as the
                               budget asks for, if nothing else fits and optimizer_residency is not
                               RESIDENT. The same bits. */
    int host_blocks; /* HOST: so many, evenly spread, or all if there are fewer; zero: all */
    hd_residency optimizer_residency; /* of moments, masters and the average: on the device (zero);
                                         in pinned host memory, from where they pass through the
                                         device while it updates; AUTO: there if nothing else fits
                                         the budget. The same bits. */
    bool in_turn; /* such an update ends before the next step begins; else it goes on beside that
                     step's first forward, where the budget has room for it. The same bits. */
    hd_residency
        gradient_residency;  /* of gradients' sums: HOST: a bucket goes there when the backward
                                         has made it, and comes in to be added to; AUTO: if nothing
                                         else fits. With several data and sequence ranks it wants
                                         shard_state 2 or 3. The same bits. */
    int64_t chunk_elements;  /* that pass at a time; zero means 4 Mi */
    size_t budget, foreign;  /* bytes of device memory; zero budget: no limit */
    size_t transport;        /* bytes of it that communicators take */
    size_t mailboxes;        /* bytes of pinned host memory that communicators have */
    hd_rates rates;          /* that plans predict seconds by; zeros: of no device in particular */
    int64_t bucket_elements; /* of a gradient bucket; zero means 8 Mi */
    hd_dtype dtype;          /* of weights and activations: F32 (zero means it), BF16 or F16 */
    hd_dtype gradients; /* F32 (zero means it), or with a dtype of BF16 and without `exact` BF16:
                                half the bytes of gradients in memory and between ranks; what
                                micro-batches and ranks add is rounded to it */
    hd_master master;
    float loss_scale;     /* F16: the first; zero means 32768 */
    int loss_scale_steps; /* F16: the scale doubles after so many steps without overflow; zero: 1000 */
    hd_adamw_options adamw;
    float clip_norm;      /* global gradient norm; zero: no clipping */
    float ema_decay;      /* of an fp32 average of the weights, split as the optimizer state is;
                             zero: none */
    bool ema_warmup;      /* update t decays by (1 + t) / (10 + t), if that is less */
    int validate_batches; /* micro-batches of a validation of a shape on each data rank; zero: none */
} hd_trainer_options;

/* Fills an input of one micro-batch: `name` as the model declared it, `global_batch` counts
 * micro-batches of the step over all data ranks, `bytes` are wanted at `out`. */
typedef hd_status (*hd_feed_fn)(void *user, const char *name, int64_t global_batch, void *out,
                                size_t bytes);

typedef struct hd_step_result {
    double loss;       /* mean over the step's tokens; of video models, over latents' elements */
    double tokens;     /* that counted: targets that are not ignored; elements of the velocity */
    double grad_norm;  /* before clipping, of the mean loss; 0 from hd_trainer_validate */
    double loss_scale; /* of the step's gradients, divided out of everything here; 1 unless F16 */
    bool skipped;      /* loss or norm was not finite: nothing was updated, on any rank. In F16 the
                          loss scale is then halved for the next step */
} hd_step_result;

/* Build and plan; allocates host memory only. HD_ERROR_BUDGET if it cannot fit. Local: every rank
 * may plan for any rank of a fake mesh. But where the mesh is none such, Collective: if mlp_slices are AUTO, or
 * activations with a budget, over the ranks that share sequences or layers, which choose the same; if state is
 * sharded and any of it, gradients or weights may be on the host, without in_turn, over those that share it, whose
 * updates all go on beside the next step or none. */
HD_API hd_status hd_trainer_create(const hd_trainer_options *options, hd_trainer **out);
HD_API void
hd_trainer_destroy(hd_trainer *trainer); /* takes NULL; ends as hd_session_destroy says */

/* The plan; borrowed. Local. */
HD_API const hd_plan *hd_trainer_plan(const hd_trainer *trainer);

/* Reserve the arena on `context` (borrowed) and initialise the parameters from `seed`. Collective. */
HD_API hd_status hd_trainer_start(hd_trainer *trainer, hd_context *context, uint64_t seed);

/* One step: all micro-batches forward and backward, gradients summed over ranks, clipping, update.
 * The result is equal on all ranks. Collective. */
HD_API hd_status hd_trainer_step(hd_trainer *trainer, double learning_rate, hd_feed_fn feed,
                                 void *user, hd_step_result *out);

/* The same on shape number `shape`, which all ranks must give alike. */
HD_API hd_status hd_trainer_step_shape(hd_trainer *trainer, int shape, double learning_rate,
                                       hd_feed_fn feed, void *user, hd_step_result *out);

/* Mean loss over validate_batches micro-batches of each data rank; changes nothing. Collective. */
HD_API hd_status hd_trainer_validate(hd_trainer *trainer, hd_feed_fn feed, void *user,
                                     hd_step_result *out);

HD_API hd_status hd_trainer_validate_shape(hd_trainer *trainer, int shape, hd_feed_fn feed,
                                           void *user, hd_step_result *out);

/* The session, for reading tensors and the high-water mark; borrowed, NULL before start. Local. But where an update
 * goes on beside the next step and ranks gather what it changes, reading a weight between steps is Collective over
 * them, on the same weight: what ranks post comes in one order only if they wait at the same places. */
HD_API hd_session *hd_trainer_session(hd_trainer *trainer);

/* XXH3 over all weights in global order, as the forward uses them (16 bits each in BF16 and F16),
 * equal on all ranks: what "same bits" means. Collective. */
HD_API hd_status hd_trainer_weights_hash(hd_trainer *trainer, uint64_t *out);

#ifdef __cplusplus
}
#endif
#endif
