/* Programs: the ordered ops of one rank for one purpose, with fixed shapes.
 *
 * Model code reads top to bottom, so errors are sticky: a builder call on bad input records the
 * first error (op, scope, shapes seen and wanted) and returns an invalid handle that later calls
 * pass on; hd_program_finish reports it. A handle names a tensor, it is not memory: hd_plan places
 * tensors, hd_session holds their bytes. Everything here is Local and allocates host memory only. */
#ifndef HEDDLE_PROGRAM_H
#define HEDDLE_PROGRAM_H

#include <heddle/dtype.h>
#include <heddle/mesh.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { HD_MAX_DIMS = 8 };

typedef struct hd_program hd_program;
typedef struct hd_backend hd_backend;

/* A tensor of one program. A zeroed handle is invalid. */
typedef struct hd_tensor {
    int32_t id;
} hd_tensor;

/* What a tensor is for, which decides where it lives and for how long. */
typedef enum hd_role {
    HD_ROLE_ACTIVATION, /* made by an op; lives until its last use */
    HD_ROLE_INPUT,      /* filled by the caller before each run: data, step values */
    HD_ROLE_PARAMETER,  /* weights; one storage a rank for each global name */
    HD_ROLE_GRADIENT,   /* accumulates a parameter's gradient over micro-batches */
    HD_ROLE_STATE,      /* persists over runs: optimizer state, KV cache */
    HD_ROLE_OUTPUT,     /* read by the caller after a run: losses, samples */
    HD_ROLE_BOUNDARY    /* travels between pipeline stages */
} hd_role;

/* Facts about a tensor. Borrowed from the program. */
typedef struct hd_tensor_info {
    const char *name; /* "" for unnamed activations */
    hd_dtype dtype;
    hd_role role;
    int rank;
    int64_t dims[HD_MAX_DIMS];
    int64_t elements;
    size_t bytes;
} hd_tensor_info;

struct hd_rates;

typedef struct hd_program_options {
    const char *name;    /* for messages and prints; copied */
    hd_dtype dtype;      /* of activations; zero means F32 */
    const hd_mesh *mesh; /* borrowed, must outlive the program; NULL: one rank */
    bool training;       /* a backward will be made: ops keep what it needs */
    hd_dtype gradients;  /* of parameters: F32 (zero means it) or BF16: half the bytes, sums of
                            micro-batches are rounded to it */
    bool exact;          /* reduction "exact": each use of a parameter has a gradient of its own */
    const hd_backend *backend; /* whose workspaces the plan counts; borrowed; NULL: the CPU's */
    int slices; /* over 1: the loss of token models in about so many slices of rows, so that there are
                   never more logits than those of one; in forwards alone also layers that can make
                   what is large within them in parts */
    int mlp_slices; /* over 1: MLPs of blocks in about so many slices of rows. Nothing of what lies between
                       their linear maps is kept for a backward, which makes it again, slice by slice */
    int sequence_groups; /* heads change places on the mesh's sequence axis in so many groups, at most
                            4, one under way while another is computed; zero: by their bytes */
    int tensor_groups; /* pieces of products beside what travels on the mesh's tensor axis, one computed
                          while another is under way: a rank's own rows and, of each other rank, one
                          less; 1: all at once; zero: as many as are fastest by */
    const struct hd_rates *rates; /* (plan.h) of the device, the same on all ranks; NULL: of none */
} hd_program_options;

HD_API hd_status hd_program_create(const hd_program_options *options, hd_program **out);
HD_API void hd_program_destroy(hd_program *program); /* takes NULL */

/* Report the first error of the builder calls. After it the program may be given to passes. */
HD_API hd_status hd_program_finish(hd_program *program);

/* A scope is a named run of ops (a transformer block): the unit of names, recompute, residency and
 * pipeline cuts. Parameter names are prefixed by the open scopes, joined by dots. Scopes nest. */
HD_API void hd_scope_begin(hd_program *program, const char *format, ...) HD_PRINTF(2, 3);
HD_API void hd_scope_end(hd_program *program);

/* Mark the innermost open scope: its activations are recomputed in the backward. */
HD_API void hd_scope_recompute(hd_program *program);

/* A tensor that the caller fills before each run, of `rank` dims. */
HD_API hd_tensor hd_input(hd_program *program, const char *name, hd_dtype dtype, int rank,
                          const int64_t *dims);

/* A tensor that persists over runs and starts as zeros. Programs of one plan that declare the same
 * name share it. */
HD_API hd_tensor hd_state(hd_program *program, const char *name, hd_dtype dtype, int rank,
                          const int64_t *dims);

/* Make `x` readable by the caller after a run, as `name`. Returns x's handle. */
HD_API hd_tensor hd_output(hd_program *program, hd_tensor x, const char *name);

/* How a parameter's values are first made: a function of (seed, global name, element index). */
typedef enum hd_init {
    HD_INIT_ZEROS,
    HD_INIT_ONES,
    HD_INIT_NORMAL,
    HD_INIT_ROTARY /* 10000^(-i / elements): rotary frequencies */
} hd_init;

/* A parameter may be stored in a file as several tensors stacked along its first dim (q, k and v
 * of a fused projection), each possibly transposed there (GPT-2's Conv1D). */
typedef struct hd_parameter_part {
    const char *name; /* global name in files, without scopes' prefix if it starts with '/' */
    int64_t rows;     /* of the parameter's first dim */
    bool transposed;  /* the file holds [inputs, outputs] */

    /* Where the part is a block of a larger tensor, or has other dims there: that tensor's dims,
     * taken as a matrix of dims[0] rows and the product of the others as columns, and the block's
     * corner in it. file_rank 0: the tensor is the part. Not together with `transposed`. */
    int file_rank;
    int64_t file_dims[HD_MAX_DIMS];
    int64_t first_row, first_column;
} hd_parameter_part;

enum { HD_MAX_PARTS = 4 };

/* What this rank has of a parameter that ranks share: runs of its rows or, one run, of its columns (of
 * the product of all dims but the first), ascending. Names, values and files are those of the whole. */
typedef struct hd_shard_run {
    int64_t first, count;
} hd_shard_run;

typedef struct hd_shard {
    hd_axis axis; /* of the ranks that share it; HD_AXIS_NONE: each has all of it */
    int dim;      /* 0: rows, 1: columns */
    int runs;
    hd_shard_run run[HD_MAX_PARTS];
} hd_shard;

typedef struct hd_parameter_options {
    const char *name; /* within the open scopes; a leading '/' makes it absolute */
    int rank;
    int64_t dims[HD_MAX_DIMS]; /* global dims */
    hd_init init;
    double std;      /* for HD_INIT_NORMAL */
    bool transposed; /* in files, when there are no parts */
    int parts;       /* 0: stored as one tensor called `name` */
    hd_parameter_part part[HD_MAX_PARTS];
    bool frozen; /* keeps its values in training: it has no gradient */
    hd_shard shard;
} hd_parameter_options;

/* Declare a use of a parameter: a tensor of this rank's rows and columns. The same global name may be
 * used several times, in one program or on several pipeline stages: heddle sums the gradients of all
 * uses. */
HD_API hd_tensor hd_parameter(hd_program *program, const hd_parameter_options *options);

/* Facts about a tensor; NULL for an invalid handle. */
HD_API const hd_tensor_info *hd_tensor_get(const hd_program *program, hd_tensor tensor);

/* The input, state or output of that name; invalid if there is none. */
HD_API hd_tensor hd_tensor_find(const hd_program *program, const char *name);

/* Record an error from layer code of the caller's; returns the invalid handle. */
HD_API hd_tensor hd_program_fail(hd_program *program, hd_status status, const char *format, ...)
    HD_PRINTF(3, 4);

/* Append the backward of everything between the parameters and `loss`. `loss` is the output of
 * hd_cross_entropy (already a sum over tokens, gradient seed 1) or, with `seed` valid, any tensor
 * whose gradient is the input `seed`. Gradients of inputs marked by hd_input_needs_gradient are
 * kept. Sticky errors apply. */
HD_API void hd_program_backward(hd_program *program, hd_tensor loss, hd_tensor seed);
HD_API void hd_input_needs_gradient(hd_program *program, hd_tensor input);

/* The gradient of a parameter (accumulated) or of a marked input; invalid before backward. */
HD_API hd_tensor hd_gradient(const hd_program *program, hd_tensor tensor);

/* Write the program as text: ops, shapes, scopes, phases, streams, costs. */
HD_API void hd_program_print(const hd_program *program, hd_write_fn write, void *user);

#ifdef __cplusplus
}
#endif
#endif
