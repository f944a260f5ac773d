/* Op records: what an operation is. Built-in ops and a user's own (hd_custom_op) are the same
 * thing: one const record with a shape rule, a backward rule, a cost and a run function. */
#ifndef HEDDLE_OP_H
#define HEDDLE_OP_H

#include <heddle/program.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { HD_OP_INPUTS = 13, HD_OP_OUTPUTS = 8 };

typedef struct hd_op_kind hd_op_kind;
typedef struct hd_backward hd_backward;
typedef struct hd_stream hd_stream;

/* One op of a program as rules see it. Absent optional tensors have invalid handles and NULL
 * infos. Borrowed for the call. */
typedef struct hd_op {
    const hd_op_kind *kind;
    const void *options;       /* the record's options_bytes, copied at the call */
    const hd_backend *backend; /* of the program, for workspace rules; NULL: the CPU's */
    int inputs, outputs;
    hd_tensor in[HD_OP_INPUTS], out[HD_OP_OUTPUTS];
    const hd_tensor_info *in_info[HD_OP_INPUTS], *out_info[HD_OP_OUTPUTS];
} hd_op;

/* Work of one op: multiply-adds count as two; bytes are what must be read and written once. Of ops with
 * HD_OP_ATTENDS also the columns of a head and the keys that a query sees, on average: their speed
 * depends on both. Zeros: many. */
typedef struct hd_cost {
    double flops;
    double bytes;
    double head_dim, keys;
} hd_cost;

/* What a run function gets. Pointers are device pointers; NULL for absent tensors. */
typedef struct hd_run {
    const hd_op *op;
    const void *in[HD_OP_INPUTS];
    void *out[HD_OP_OUTPUTS];
    void *workspace; /* as many bytes as the record's workspace rule asked for, 256-byte aligned */
    const hd_backend *backend;
    hd_stream *stream;   /* work is queued here; the CPU backend computes before it returns */
    const hd_mesh *mesh; /* of the program */
    bool accumulate;     /* weight-gradient ops: add to the output instead of writing it */
    int folds;           /* gradient levels below out[0] that it joins now */
    size_t level_bytes;  /* from one gradient level to the next */
    int micro_batch;     /* of the step, on this rank, */
    bool last;           /* which is the last of them */
    hd_request *request; /* communication ops leave what they posted here, */
    hd_comm **posted_on; /* and on which communicator */
    int slot;            /* of the backend's copies, for HD_OP_LOADS and HD_OP_STORES */
} hd_run;

enum {
    HD_OP_WEIGHT_GRADIENT = 1, /* writes a HD_ROLE_GRADIENT output, honours run->accumulate */
    HD_OP_COMMUNICATES = 2,    /* posts on a communicator; completes when the request does */
    HD_OP_UPDATES = 4,         /* out[0] is in[0], updated in place (state, weights) */
    HD_OP_ROUNDS = 8,   /* a weight gradient that writes and adds to any dtype of gradients; of
                           others fp32 is asked, and heddle rounds */
    HD_OP_LOADS = 16,   /* copies from host memory beside the computation; and */
    HD_OP_STORES = 32,  /* to it: both complete when somebody waits */
    HD_OP_ATTENDS = 64, /* its FLOPs go at the rate of attention, not of matrix products */
    HD_OP_VARIES = 128 /* run waits, or queues what does not follow from its hd_run: not replayed */
};

struct hd_op_kind {
    const char *name;
    size_t options_bytes;
    uint32_t flags;

    /* Check inputs and declare outputs through hd_op_output. Required. */
    hd_status (*shape)(hd_program *program, const hd_op *op);

    /* Emit ops that make the gradients of the inputs. NULL: no gradient flows through. */
    void (*backward)(hd_backward *context, const hd_op *op);

    /* Required for ops that take time; NULL counts the bytes of all tensors and no FLOPs. */
    void (*cost)(const hd_op *op, hd_cost *out);

    /* Scratch bytes while the op runs, part of the plan. NULL: none. */
    size_t (*workspace)(const hd_op *op);

    /* Bit i: out[0] may take the place of in[i] when nobody needs it later. */
    uint32_t in_place;
    uint32_t second_in_place; /* the same for out[1] */

    /* Bit i: of rows of in[i] alone the op makes the same rows of its outputs, all of them [rows,
     * columns]: it may run for some rows at a time. Zero: it may not. */
    uint32_t by_rows;

    /* Options with which the op makes rows first .. first + rows - 1 of its output out of all of its
     * inputs but those by_rows: changed in place; false if it cannot. NULL: none need to change. */
    bool (*cut)(const hd_op *op, int64_t first, int64_t rows, void *options);

    hd_status (*run)(const hd_run *run);
};

/* Append an op: the record's shape rule runs at once. Returns its first output; further outputs by
 * hd_op_result. `options` may be NULL when the record has none. */
HD_API hd_tensor hd_custom_op(hd_program *program, const hd_op_kind *kind, const void *options,
                              int inputs, const hd_tensor *in);

/* The `index`-th output of the op that was appended last. */
HD_API hd_tensor hd_op_result(hd_program *program, int index);

/* In a shape rule: declare the next output. */
HD_API void hd_op_output(hd_program *program, hd_dtype dtype, int rank, const int64_t *dims);

/* In a backward rule: the gradient of an output (invalid if nobody needs it), whether a gradient of
 * an input is wanted, and the gradient of an input, handed over (summed if given more than once).
 * For a parameter input call hd_backward_weight, with a record that has HD_OP_WEIGHT_GRADIENT; its
 * shape rule declares no output: the gradient is out[0]. */
HD_API hd_program *hd_backward_program(hd_backward *context);
HD_API hd_tensor hd_backward_output_gradient(hd_backward *context, int output);
HD_API bool hd_backward_wants(const hd_backward *context, int input);
HD_API void hd_backward_give(hd_backward *context, int input, hd_tensor gradient);
HD_API void hd_backward_weight(hd_backward *context, int input, const hd_op_kind *kind,
                               const void *options, int inputs, const hd_tensor *in);

#ifdef __cplusplus
}
#endif
#endif
