/* Ops of diffusion transformers: sinusoids, adaptive layer norm (adaLN, arXiv 2212.09748), joint
 * query-key-value streams with QK norm and 3-D rotary positions, cross attention, patches of
 * images and videos, and the rectified-flow loss (arXiv 2209.03003).
 *
 * "rows" are all dims but the last together. Bad shapes are sticky errors of the program. All
 * calls are Local and return the op's first output. */
#ifndef HEDDLE_DIFFUSION_H
#define HEDDLE_DIFFUSION_H

#include <heddle/ops.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hd_sinusoid_options {
    int64_t columns; /* even */
    double scale;    /* of the argument; zero means 1 */
    double period;   /* longest; zero means 10000 */
} hd_sinusoid_options;

/* x F32 [rows] to [rows, columns] of the program's dtype: cos(scale * x * f_i) then
 * sin(scale * x * f_i), f_i = period^(-2i / columns). Angles are formed in fp64. No gradient. */
HD_API hd_tensor hd_sinusoid(hd_program *program, hd_tensor x, const hd_sinusoid_options *options);

/* Vectors that scale, move and gate rows. `table` is [entries, any columns]; the vectors are
 * `columns of x` wide and start at the given columns of it (-1: none). The rows of x fall into groups of rows_per_group; group g uses entry
 * index[g], or g without an index. */
typedef struct hd_modulation {
    hd_tensor table;
    hd_tensor index; /* I32 [groups]; invalid: group g uses entry g */
    int64_t rows_per_group;
    int64_t shift, scale; /* hd_modulated_norm */
    int64_t gate;         /* hd_gated_add */
} hd_modulation;

/* Layer norm without weights, then * (1 + scale) + shift. Shape of x. epsilon 0 means 1e-6. */
HD_API hd_tensor hd_modulated_norm(hd_program *program, hd_tensor x, const hd_modulation *by,
                                   double epsilon);

/* x + gate * delta. */
HD_API hd_tensor hd_gated_add(hd_program *program, hd_tensor x, hd_tensor delta,
                              const hd_modulation *by);

/* One pass for *sum = hd_gated_add(x, delta, gated) and hd_modulated_norm(*sum, by), which is
 * returned. */
HD_API hd_tensor hd_gated_modulated_norm(hd_program *program, hd_tensor x, hd_tensor delta,
                                         const hd_modulation *gated, const hd_modulation *by,
                                         double epsilon, hd_tensor *sum);

/* x [rows, columns] + table [period, columns], repeated: row r gets table row r % period. Both get
 * gradients; table may be a parameter. */
HD_API hd_tensor hd_add_rows(hd_program *program, hd_tensor x, hd_tensor table);

/* Rows of several tensors [sequences * tokens_i, columns], sequence by sequence one below another:
 * [sequences * sum of tokens_i, columns]; and the way back: `parts` tensors, part i of
 * tokens[i] rows a sequence. Adjoint to each other. At most 4. */
HD_API hd_tensor hd_join_rows(hd_program *program, int64_t sequences, int parts,
                              const hd_tensor *x);
HD_API void hd_split_rows(hd_program *program, hd_tensor x, int64_t sequences, int parts,
                          const int64_t *tokens, hd_tensor *out);

/* Videos cut into windows of window_height x window_width places over all frames; at the far sides
 * what is left makes smaller ones. Rows of a video are in the order frame, y, x. */
typedef struct hd_window_options {
    int64_t sequences, frames, height, width;
    int64_t window_height, window_width;
} hd_window_options;

/* Rows of x [sequences * frames * height * width, columns], window by window: a tensor for each size
 * of windows, [windows * tokens, columns], of which there are 1 to 4. A window's tokens are in the
 * order frame, y, x; their numbers go to `tokens`, which may be NULL. Returns how many tensors; 0: an error. And the
 * way back. Adjoint to each other. */
enum { HD_WINDOW_PARTS = 4 };
HD_API int hd_split_windows(hd_program *program, hd_tensor x, const hd_window_options *options,
                            hd_tensor out[HD_WINDOW_PARTS], int64_t tokens[HD_WINDOW_PARTS]);
HD_API hd_tensor hd_join_windows(hd_program *program, const hd_tensor x[HD_WINDOW_PARTS],
                                 const hd_window_options *options);

/* Rotary positions on up to three axes. Token r of a sequence is at (r / stride[a]) % length[a] of axis
 * a, times scale[a] (zero means 1); dims[a] of a head's columns turn with it, axis by axis, dims summing up to head_dim. */
typedef struct hd_rope_axes {
    int axes; /* 0: no rotation */
    int64_t dims[3], length[3], stride[3];
    double scale[3];
    double theta;
    hd_rope_pairing
        pairing; /* halves: the axes' angles one after another, column i with i + head_dim / 2 */

    /* Only tokens first .. first + count - 1 of a sequence turn, the one at `first` as token `start`:
     * images in a joined stream, and parts of them. count 0: all. */
    int64_t first, count, start;
} hd_rope_axes;

/* One stream of queries, keys and values. */
typedef struct hd_qkv_stream {
    hd_tensor qkv;                  /* [sequences * tokens, 3 * heads * head_dim] */
    hd_tensor query_norm, key_norm; /* [head_dim], shared by heads; both invalid: no norm */
    int64_t tokens;                 /* of a sequence */
    hd_rope_axes rope;              /* token 0 is the stream's first */
} hd_qkv_stream;

/* Queries and keys RMS-normed over each head (fp32, rounded, then times the weight) and rotated,
 * values as they are; of one or two streams, joined sequence by sequence in their order:
 * [sequences * (tokens_0 + tokens_1), 3 * heads * head_dim], for hd_attention. epsilon 0 means 1e-6. */
HD_API hd_tensor hd_joint_qkv(hd_program *program, int64_t sequences, int64_t heads,
                              int64_t head_dim, double epsilon, int streams,
                              const hd_qkv_stream *stream);

typedef struct hd_cross_attention_options {
    int64_t heads, head_dim;
    int64_t tokens;    /* queries of a sequence */
    int64_t most_keys; /* of a sequence, by offsets; zero means any number */
    double scale;      /* zero means 1 / sqrt(head_dim) */
} hd_cross_attention_options;

/* Attention of q [sequences * tokens, heads * head_dim] to kv [kv_rows, 2 * heads * head_dim]
 * (keys, then values): sequence s reads rows offsets[s] .. offsets[s + 1] - 1 of kv, offsets I32
 * [sequences + 1] on the device, rising; invalid: kv_rows / sequences rows each. A sequence
 * without rows gives zeros; kv rows of no sequence get zero gradient. GPUs set memory aside for
 * most_keys rows of each sequence, so a small bound saves some. Shape of q. */
HD_API hd_tensor hd_cross_attention(hd_program *program, hd_tensor q, hd_tensor kv,
                                    hd_tensor offsets, const hd_cross_attention_options *options);

/* How a row's columns stand for the elements of a patch. */
typedef enum hd_patch_order {
    HD_PATCH_CHANNELS_FIRST, /* (channel, frame, y, x) */
    HD_PATCH_CHANNELS_LAST   /* (frame, y, x, channel) */
} hd_patch_order;

/* Videos F32 [sequences, channels, frames, height, width] and their patches. Sizes that the patch
 * does not divide are padded with zeros on the far side, and cut off on the way back. Rows are in
 * the order frame, y, x. */
typedef struct hd_patch_options {
    int64_t sequences, channels, frames, height, width;
    int64_t patch[3]; /* frames, height, width */
    hd_patch_order order;
    hd_dtype dtype; /* of patchify's rows; zero means the program's. F32 for targets */
} hd_patch_options;

/* [sequences * patches, channels * patch volume]. No gradient. */
HD_API hd_tensor hd_patchify(hd_program *program, hd_tensor video, const hd_patch_options *options);

/* The way back, F32. x may have more columns than channels * patch volume calls for only if
 * `order` is channels last with `columns` = (patch volume) * more channels, of which the first are
 * kept. No gradient. */
HD_API hd_tensor hd_unpatchify(hd_program *program, hd_tensor x, const hd_patch_options *options);

/* Frames (runs of patch[0] of them) as rows, for losses that weigh them: [sequences * frames after
 * patching, channels * patch[0] * height * width]; of a video F32, without gradient, and of patches
 * as hd_unpatchify takes them, in their dtype: the gradient of what that cuts off or leaves out is
 * zero. */
HD_API hd_tensor hd_frame_rows(hd_program *program, hd_tensor video,
                               const hd_patch_options *options);
HD_API hd_tensor hd_patches_to_frames(hd_program *program, hd_tensor x,
                                      const hd_patch_options *options);

/* Means of the first counts[s] rows of each sequence of x F32 [sequences * tokens, columns], in fp64,
 * rounded to F32 [sequences, columns]; counts I32 [sequences] may be invalid: all rows. Zeros where
 * there is none. No gradient. */
HD_API hd_tensor hd_mean_rows(hd_program *program, hd_tensor x, hd_tensor counts,
                              int64_t sequences);

/* counts I32 [any], each plus `more`: valid rows of a joined sequence. */
HD_API hd_tensor hd_raise_counts(hd_program *program, hd_tensor counts, int64_t more);

/* x F32 to the program's dtype. No gradient. */
HD_API hd_tensor hd_cast(hd_program *program, hd_tensor x);

/* Squared error of `prediction` [rows, columns] to `target` F32 [rows, columns]. `weight` F32
 * [rows] may be invalid: 1. Returns the output "loss" F64 [2]: sum of weight * error^2 and of
 * weight * columns. To be given to hd_program_backward; the gradient is that of the sum, in F16
 * times the input "loss_scale" as for hd_cross_entropy. */
HD_API hd_tensor hd_squared_error(hd_program *program, hd_tensor prediction, hd_tensor target,
                                  hd_tensor weight);

#ifdef __cplusplus
}
#endif
#endif
