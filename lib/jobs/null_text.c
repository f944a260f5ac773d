/* The text that stands for none, from a model's weights. */
#include "jobs/null_text.h"

#include "core/error.h"
#include "core/memory.h"
#include "core/random.h"
#include "io/checkpoint.h"
#include "models/weights.h"

#include <stdio.h>

static hd_status read_checkpoint(const char *path, const char *name, int64_t elements, float *out)
{
    hdi_checkpoint *checkpoint;
    char *warning = NULL, full[256];
    snprintf(full, sizeof full, "weights/%s", name);
    HD_RETURN_IF_ERROR(hdi_checkpoint_open(path, NULL, &warning, &checkpoint));
    hdi_free(warning); /* loading the weights tells it again */
    const hdi_checkpoint_tensor *tensor = hdi_checkpoint_find(checkpoint, full);
    hd_status status =
        tensor && tensor->elements == elements
            ? hdi_checkpoint_read(checkpoint, full, 0, elements, HD_DTYPE_F32, out)
            : hdi_error(HD_ERROR_FORMAT, "%s: tensor \"%s\" is missing or of another size",
                        hdi_checkpoint_folder(checkpoint), full);
    hdi_checkpoint_close(checkpoint);
    return status;
}

static hd_status read_weights(const char *path, const hd_video_model *model, int64_t elements,
                              float *out)
{
    const hd_parameter_options options = {
        .name = model->null_text, .rank = 2, .dims = {model->text_tokens, model->text_columns}};
    hdi_weights *weights;
    HD_RETURN_IF_ERROR(hdi_weights_open(path, &weights));
    const hd_status status = hdi_model_read_parameter(weights, &options, 0, elements, out);
    hdi_weights_close(weights);
    return status;
}

hd_status hdi_null_text_read(const hd_video_model *model, const char *path, uint64_t seed,
                             float **out)
{
    *out = NULL;
    if (!model->null_text) return HD_OK;
    const int64_t elements = model->text_tokens * model->text_columns;
    float *values = hdi_alloc_array((size_t)elements, sizeof *values);
    if (!values) return hdi_error(HD_ERROR_MEMORY, "null text: out of host memory");
    hd_status status = HD_OK;
    if (!*path)
        for (int64_t i = 0; i < elements; i++)
            values[i] = (float)model->null_text_std *
                        hdi_random_normal(seed, hdi_random_stream(model->null_text), (uint64_t)i);
    else
        status = hdi_checkpoint_exists(path)
                     ? read_checkpoint(path, model->null_text, elements, values)
                     : read_weights(path, model, elements, values);
    if (status == HD_OK)
        *out = values;
    else
        hdi_free(values);
    return status;
}
