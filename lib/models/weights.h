/* Parameters in Hugging Face safetensors files. A parameter is one tensor there, or several parts
 * stacked along its first dim, each possibly transposed; elements are counted in heddle's order:
 * parts after one another, [outputs, inputs] row-major. Local. */
#ifndef HDI_MODELS_WEIGHTS_H
#define HDI_MODELS_WEIGHTS_H

#include "core/text.h"
#include "io/weights_index.h"

/* Read elements [first, first + count) of a parameter as fp32. Names are looked up with and without
 * the leading "transformer.", which GPT-2's published files leave out. A missing tensor or one of
 * another shape is HD_ERROR_FORMAT and names file, tensor, seen and wanted. */
hd_status hdi_model_read_parameter(const hdi_weights *weights, const hd_parameter_options *options,
                                   int64_t first, int64_t count, float *out);

/* The same checks without reading. */
hd_status hdi_model_check_parameter(const hdi_weights *weights,
                                    const hd_parameter_options *options);

/* Append the names of tensors that none of the parameters reads, comma-separated. */
hd_status hdi_model_unused_tensors(const hdi_weights *weights,
                                   const hd_parameter_options *const *parameters, int count,
                                   hdi_text *out);

/* Declare the tensors of a parameter, fp32, in a writer; then, in the order of declaration, write
 * its `values`, whole. Writing allocates nothing. */
hd_status hdi_model_declare_parameter(hdi_safetensors_writer *writer,
                                      const hd_parameter_options *options);
hd_status hdi_model_write_parameter(hdi_safetensors_writer *writer,
                                    const hd_parameter_options *options, const float *values);

#endif
