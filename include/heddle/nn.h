/* Layers: declare parameters and call ops. x has shape [..., inputs]; parameter names are
 * "<open scopes>.<name>.weight" and ".bias", a leading '/' in `name` leaves the scopes out. Bad
 * options are sticky errors of the program. All calls are Local. */
#ifndef HEDDLE_NN_H
#define HEDDLE_NN_H

#include <heddle/ops.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_embedding_options {
    const char *name;
    int64_t entries, columns;
    double std; /* of the first values; zero means 0.02 */
    bool split; /* each rank of the tensor axis has some of the entries */
} hd_embedding_options;

/* Rows of the table "<name>.weight" [entries, columns] by ids I32 [...]: [..., columns]. Split, rows of
 * others' entries are zeros: the sum over the ranks is the result. */
HD_API hd_tensor hd_embedding(hd_program *program, hd_tensor ids,
                              const hd_embedding_options *options);

typedef struct hd_position_embedding_options {
    const char *name;
    int64_t entries;
    int64_t tokens;      /* of a sequence: row r has position (*first) + r % tokens */
    hd_tensor first;     /* I32 [1], position of the first row; invalid: 0 */
    double std;          /* zero means 0.02 */
    hd_tensor positions; /* I32 [rows], each row's; invalid: as `tokens` and `first` say */
} hd_position_embedding_options;

/* x [rows, columns] plus the rows of the learned table "<name>.weight" [entries, columns] that
 * belong to the rows' positions. Shape of x. */
HD_API hd_tensor hd_position_embedding(hd_program *program, hd_tensor x,
                                       const hd_position_embedding_options *options);

/* How a linear layer is cut over the tensor axis. Ranks have unequal parts where they do not divide. */
typedef enum hd_split {
    HD_SPLIT_NONE,    /* all on every rank */
    HD_SPLIT_COLUMNS, /* each rank makes some of the outputs */
    HD_SPLIT_ROWS /* each rank takes some of the inputs: the sum over the ranks is the result. The
                         first rank alone has the bias */
} hd_split;

/* A run of a split layer's outputs or inputs that is dealt out in so many equal groups, the first ranks
 * having one more: heads. Zero groups: column by column. */
typedef struct hd_split_run {
    int64_t columns, groups;
} hd_split_run;

/* A layer that files hold as several: q, k and v of a fused projection. */
typedef struct hd_linear_part {
    const char *name;
    int64_t outputs;

    /* As in hd_parameter_part: dims of the file's weight, of which this is a block from these
     * outputs and inputs on. The file's bias is [file_dims[0]]. */
    int file_rank;
    int64_t file_dims[HD_MAX_DIMS];
    int64_t first_output, first_input;
} hd_linear_part;

typedef struct hd_linear_options {
    const char *name;
    int64_t outputs;
    bool bias;
    double std; /* of the weight's first values; zero means 0.02, < 0 all 0; biases start at 0 */
    const char *weight; /* name of a weight shared with another layer, instead of "<name>.weight" */
    bool transposed;    /* files hold the weight as [inputs, outputs]: GPT-2's Conv1D */
    hd_split split;
    int split_runs; /* their columns add up to all outputs, or inputs; 0: all outputs are one run */
    hd_split_run split_run[HD_MAX_PARTS];
    hd_tensor add; /* of the result's shape, added to it; in its place if nobody else needs it */
    int parts; /* 0: files hold one layer called `name`; else their outputs add up to `outputs` */
    hd_linear_part part[HD_MAX_PARTS];
} hd_linear_options;

/* x [..., inputs] by the weight [outputs, inputs], plus bias [outputs]: [..., outputs], of a split layer
 * this rank's. */
HD_API hd_tensor hd_linear(hd_program *program, hd_tensor x, const hd_linear_options *options);

/* down(hd_gelu_tanh(up(x))), in fewer passes over memory where the device has them: [..., outputs of
 * down]. */
HD_API hd_tensor hd_gelu_mlp(hd_program *program, hd_tensor x, const hd_linear_options *up,
                             const hd_linear_options *down);

typedef enum hd_norm_kind {
    HD_NORM_LAYER, /* weight and bias */
    HD_NORM_RMS    /* weight */
} hd_norm_kind;

typedef struct hd_norm_options {
    const char *name;
    double epsilon;    /* zero means 1e-5 */
    hd_norm_kind kind; /* for hd_residual_norm */
} hd_norm_options;

/* Norm over the last dim, scaled by "<name>.weight" [columns] (first 1) and, for layer norm, moved
 * by "<name>.bias" (first 0). Shape of x. */
HD_API hd_tensor hd_layer_norm(hd_program *program, hd_tensor x, const hd_norm_options *options);
HD_API hd_tensor hd_rms_norm(hd_program *program, hd_tensor x, const hd_norm_options *options);

/* One pass for *sum = x + delta and the norm of it, which is returned. Shape of x. */
HD_API hd_tensor hd_residual_norm(hd_program *program, hd_tensor x, hd_tensor delta,
                                  const hd_norm_options *options, hd_tensor *sum);

#ifdef __cplusplus
}
#endif
#endif
