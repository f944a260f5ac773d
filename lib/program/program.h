/* The inside of a program: tensors, ops, scopes, uses of parameters. */
#ifndef HDI_PROGRAM_PROGRAM_H
#define HDI_PROGRAM_PROGRAM_H

#include <heddle/op.h>
#include <heddle/plan.h>
#include <heddle/program.h>

/* When in a micro-batch's life an op runs. */
typedef enum hdi_phase { HDI_PHASE_FORWARD, HDI_PHASE_BACKWARD, HDI_PHASES } hdi_phase;

/* A tensor that is a range of the flat storage that all parameters of a rank share. */
typedef enum hdi_flat {
    HDI_FLAT_NONE,
    HDI_FLAT_WEIGHTS,
    HDI_FLAT_GRADIENTS,
    HDI_FLAT_OPTIMIZER
} hdi_flat;

/* Fills a table (a constant made once at start) on the host. */
typedef void (*hdi_table_fill)(void *user, float *out);

enum { HDI_TABLE_USER_BYTES = 64 };

typedef struct hdi_tensor {
    hd_tensor_info info; /* info.name is owned */
    int producer;        /* index of the op that makes it, -1 if none */
    int use;             /* PARAMETER and GRADIENT: index into program->uses; -1 otherwise */
    bool needs_gradient;
    bool keep;          /* an output or a marked gradient: readable after the run */
    hd_tensor gradient; /* of a marked input */

    hdi_flat flat; /* with flat_first: a range of flat storage */
    int64_t flat_first;
    bool summed;     /* GRADIENT: a weight gradient adds to it */
    bool level_zero; /* GRADIENT: the joined sum, not the micro-batch's leaf */
    bool host;       /* lives in pinned host memory: only loads read it, only stores write it */
    bool staged;     /* INPUT, OUTPUT: has a place there, too, through which it is copied */

    hd_tensor within; /* lies in this one, which lies in none, from its element within_first on: a
                         GRADIENT in an activation, an ACTIVATION in any that is no parameter */
    int64_t within_first;
    bool holds; /* ACTIVATION: the ops of what lies within it make it */

    int slots;           /* BOUNDARY: copies; zero means the program's boundary_slots */
    bool per_slot;       /* STATE: one copy for each slot of the program (KV caches) */
    hdi_table_fill fill; /* STATE: contents at start; NULL: zeros */
    char fill_user[HDI_TABLE_USER_BYTES];
} hdi_tensor;

typedef struct hdi_op {
    hd_op op;
    void *options; /* owned copy, or NULL */
    hdi_phase phase;
    int scope;
    bool recomputed;   /* a forward op that runs again in the backward */
    bool last_only;    /* runs for the last micro-batch of a step only */
    bool adds_only;    /* runs where gradients are added to those of earlier micro-batches only */
    bool first_writer; /* weight gradient: no earlier op of the program writes this gradient */
} hdi_op;

typedef struct hdi_scope {
    char *name; /* full name, owned; "" for the outermost */
    int parent; /* -1 for the outermost */
    bool recompute;
} hdi_scope;

/* One declaration of a parameter. */
typedef struct hdi_use {
    char *name;                   /* global, owned */
    hd_parameter_options options; /* names inside are owned and global */
    hd_tensor tensor;             /* of role PARAMETER */
    hd_tensor gradient;           /* of role GRADIENT once backward exists */
} hdi_use;

struct hd_program {
    char *name;
    hd_dtype dtype, gradients;
    const hd_mesh *mesh;
    const hd_backend *backend; /* NULL: the CPU's */
    bool training, exact, finished;
    bool splits_sequences;     /* the model heeds the mesh's sequence axis */
    bool causal_sequences;     /* tokens see those before them only, which is how rings cut them */
    int64_t sequence_together; /* runs of tokens that a ring's places do not part; 0: 1 */
    int sequence_ring;         /* places that sequences are cut into; 0: the mesh's ring */
    bool whole_loss;           /* of all tokens, on each rank of that axis, not of the rank's */
    bool splits_layers;        /* the model heeds the mesh's tensor axis */
    int slices;                /* of blocks, at least 1; 1 where a backward follows */
    int loss_slices, mlp_slices; /* at least 1 */
    int sequence_groups;         /* of heads that change places; 0: as many as pay */
    int sequence_turns;          /* the most that it came to; 0: nothing changes places */
    int tensor_groups; /* pieces of products around what travels on the tensor axis; 0: by rates */
    int tensor_pieces; /* the most that it came to; 0: no such products */
    hd_rates rates;    /* zeros: of no device in particular */

    hd_status status; /* of the first error */
    char *message;

    hdi_tensor **tensors; /* [1..tensor_count), stable addresses; slot 0 is the invalid one */
    int tensor_count, tensor_capacity;
    hdi_op **ops;
    int op_count, op_capacity;
    hdi_scope *scopes;
    int scope_count, scope_capacity, scope_open;
    hdi_use *uses;
    int use_count, use_capacity;

    hdi_phase phase;   /* of ops appended from here on */
    hdi_op *appending; /* while its shape rule runs */
    bool appending_recomputed;
};

/* What passes need of the ops above them: the record that sums two gradients of one tensor
 * (lib/ops/add.c), and the one that adds an fp32 weight gradient, in[0], to 16-bit gradients
 * (lib/ops/round_sum.c). */
extern const hd_op_kind hdi_op_add, hdi_op_round_sum;

/* NULL for an invalid handle. */
hdi_tensor *hdi_tensor_of(const hd_program *program, hd_tensor handle);

/* Append a tensor; sticky on failure. `name` may be NULL. */
hd_tensor hdi_tensor_add(hd_program *program, const char *name, hd_dtype dtype, hd_role role,
                         int rank, const int64_t *dims);

/* A range of flat storage as a tensor: `first` and `elements` count elements of it. */
hd_tensor hdi_flat_tensor(hd_program *program, const char *name, hdi_flat flat, hd_dtype dtype,
                          int64_t first, int64_t elements);

/* A constant table made by `fill(user)` at start; user_bytes are copied. Shared by name. */
hd_tensor hdi_table(hd_program *program, const char *name, int rank, const int64_t *dims,
                    hdi_table_fill fill, const void *user, size_t user_bytes);

/* A state with one copy per slot: hd_plan_program_options.cache_slots. */
hd_tensor hdi_cache(hd_program *program, const char *name, hd_dtype dtype, int rank,
                    const int64_t *dims);

/* Append an op whose outputs exist already (`out`), as passes do. */
hdi_op *hdi_op_append(hd_program *program, const hd_op_kind *kind, const void *options, int inputs,
                      const hd_tensor *in, int outputs, const hd_tensor *out);

/* Does the op go on after its run, until somebody waits for it? */
static inline bool hdi_op_is_posted(const hd_op *op)
{
    return op->kind->flags & (HD_OP_COMMUNICATES | HD_OP_LOADS | HD_OP_STORES);
}

/* Move the op at `from` so that it stands at index `to`; the ops between shift by one. */
void hdi_op_move(hd_program *program, int from, int to);

/* Put the ops from `original_ops` on, which were appended, before the original ones that `before`
 * names, [appended op]; those of one place in the order in which they came. Sticky errors apply. */
void hdi_program_insert(hd_program *program, int original_ops, const int *before);

/* Remove ops marked recomputed whose outputs nobody reads. Keeps the order. */
void hdi_program_remove_dead(hd_program *program);

/* A range of an activation that an op makes as a whole. */
hd_tensor hdi_tensor_view(hd_program *program, hd_tensor whole, int64_t first, int64_t elements);

/* Let `part`, which an op makes, lie in `whole`, which such parts make up, from its element `first` on. */
void hdi_tensor_put(hd_program *program, hd_tensor part, hd_tensor whole, int64_t first);

/* Make a tensor of `rows` rows of `whole` [rows, columns] from `first` on, with the same bytes. */
hd_tensor hdi_tensor_rows(hd_program *program, hd_tensor whole, int64_t first, int64_t rows);

/* Post communication of activations as soon as they are there: move it up to what makes them, within
 * its scope and behind other communication. Ranks' programs of one layout stay alike. */
void hdi_program_post_early(hd_program *program);

/* Cut products before and after what travels on the tensor axis into pieces of rows, of which one is
 * computed while another travels (lib/ops/tensor_pieces.c). */
void hdi_program_cut(hd_program *program);

/* Make tensors' producers agree with the ops' order. Call after moving or removing ops. */
void hdi_program_index(hd_program *program);

/* Sum of the costs of the ops of one phase. */
void hdi_program_cost(const hd_program *program, hdi_phase phase, hd_cost *out);
void hdi_op_cost(const hdi_op *op, hd_cost *out);

/* "attn.c_attn: linear" for messages: scope and record name, in a caller's buffer. */
const char *hdi_op_label(const hd_program *program, const hdi_op *op, char *buffer, size_t bytes);

#endif
