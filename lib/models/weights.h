/* Parameters in published safetensors files. A parameter is one tensor there, or several parts
 * stacked along its first dim, each a whole tensor, possibly transposed, or a block of one; elements
 * are counted in heddle's order: parts after one another, [outputs, inputs] row-major. Local. */
#ifndef HDI_MODELS_WEIGHTS_H
#define HDI_MODELS_WEIGHTS_H

#include <heddle/program.h>

#include "core/text.h"
#include "io/weights_index.h"

/* A part of a parameter and the file's tensor that holds it; a parameter without parts is one. */
typedef struct hdi_model_part {
    const char *name;
    int64_t rows, columns;       /* in heddle's order */
    int64_t first, file_columns; /* of the block in the file's tensor: first element, row length */
    bool transposed;
    int rank;
    int64_t dims[HD_MAX_DIMS]; /* in the file */
} hdi_model_part;

int hdi_model_part_count(const hd_parameter_options *options);
hdi_model_part hdi_model_part_of(const hd_parameter_options *options, int index);

/* Read elements [first, first + count) of a parameter as fp32. Names are looked up with and without
 * the leading "transformer.", which GPT-2's published files leave out. A missing tensor or one of
 * another shape is HD_ERROR_FORMAT and names file, tensor, seen and wanted. */
hd_status hdi_model_read_parameter(const hdi_weights *weights, const hd_parameter_options *options,
                                   int64_t first, int64_t count, float *out);

/* True if all of the parameter's elements are in the file as `dtype`, and its rows as heddle has them. */
bool hdi_model_is_stored_as(const hdi_weights *weights, const hd_parameter_options *options,
                            hd_dtype dtype);

/* Elements of such a parameter as they are in the file, a NaN's bits too; of any parameter, if dtype is
 * F32. */
hd_status hdi_model_copy_parameter(const hdi_weights *weights, const hd_parameter_options *options,
                                   hd_dtype dtype, int64_t first, int64_t count, void *out);

/* The same checks without reading, of one or of many: all that is wrong in one message. */
hd_status hdi_model_check_parameter(const hdi_weights *weights,
                                    const hd_parameter_options *options);
hd_status hdi_model_check_parameters(const hdi_weights *weights,
                                     const hd_parameter_options *const *parameters, int count);

/* Append the names of tensors that none of the parameters reads, comma-separated. */
hd_status hdi_model_unused_tensors(const hdi_weights *weights,
                                   const hd_parameter_options *const *parameters, int count,
                                   hdi_text *out);

/* The tensors of a file that holds these parameters, in their order: each once, though several
 * parameters may have parts of it. The names are the parameters'. */
typedef struct hdi_model_tensor {
    const char *name;
    int rank;
    int64_t dims[HD_MAX_DIMS], elements;
} hdi_model_tensor;

/* The list, to be released by hdi_free. HD_ERROR_ARGUMENT if the parts do not fill a tensor. */
hd_status hdi_model_list_tensors(const hd_parameter_options *const *parameters, int count,
                                 hdi_model_tensor **out, int *out_count);

/* Elements [first, first + count) of the `parameter`-th of them, from wherever they are. */
typedef hd_status (*hdi_model_values_fn)(void *user, int parameter, int64_t first, int64_t count,
                                         float *out);

/* All elements of one of those tensors, into out [elements]. */
hd_status hdi_model_fill_tensor(const hdi_model_tensor *tensor,
                                const hd_parameter_options *const *parameters, int count,
                                hdi_model_values_fn values, void *user, float *out);

#endif
