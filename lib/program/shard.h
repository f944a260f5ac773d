/* Between a rank's elements of a parameter, row-major in its own rows and columns, and those of the
 * whole, which values, checkpoints and files go by. */
#ifndef HDI_PROGRAM_SHARD_H
#define HDI_PROGRAM_SHARD_H

#include <heddle/program.h>

/* The dims of this rank's tensor. False if the shard is not a part of the parameter. */
bool hdi_shard_dims(const hd_parameter_options *options, int64_t out[HD_MAX_DIMS]);

/* Whether ranks have different parts of it. */
static inline bool hdi_shard_is_part(const hd_parameter_options *options)
{
    return options->shard.axis != HD_AXIS_NONE;
}

bool hdi_shard_equal(const hd_shard *left, const hd_shard *right);

/* Elements of the whole. */
int64_t hdi_shard_whole(const hd_parameter_options *options);

/* Where this rank's element `own` is in the whole, and how many from it on follow one another there. */
int64_t hdi_shard_run(const hd_parameter_options *options, int64_t own, int64_t *global);

/* Elements [first, first + count) of the whole, from wherever they are. */
typedef hd_status (*hdi_shard_read_fn)(void *user, int64_t first, int64_t count, void *out);

/* This rank's elements [begin, begin + count), of `element_bytes`, gathered from the whole. Where they
 * are columns, whole rows are read, some at a time: runs of a row are short. */
hd_status hdi_shard_read(const hd_parameter_options *options, int64_t begin, int64_t count,
                         size_t element_bytes, hdi_shard_read_fn read, void *user, void *out);

#endif
