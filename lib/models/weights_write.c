/* Parameters as the tensors of a file: which there are, and what each holds. */
#include "models/weights.h"

#include "core/error.h"
#include "core/memory.h"

#include <inttypes.h>
#include <string.h>

static hdi_model_tensor *find(hdi_model_tensor *list, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0) return &list[i];
    return NULL;
}

/* Note a part; elements count down to those that no part has filled yet. */
static void note(hdi_model_tensor *list, int *count, const hdi_model_part *part)
{
    hdi_model_tensor *it = find(list, *count, part->name);
    if (!it) {
        it = &list[(*count)++];
        *it = (hdi_model_tensor){.name = part->name, .rank = part->rank, .elements = 1};
        for (int i = 0; i < part->rank; i++)
            it->elements *= it->dims[i] = part->dims[i];
    }
    it->elements -= part->rows * part->columns;
}

hd_status hdi_model_list_tensors(const hd_parameter_options *const *parameters, int count,
                                 hdi_model_tensor **out, int *out_count)
{
    *out_count = 0;
    *out = hdi_alloc_array((size_t)count * HD_MAX_PARTS + 1, sizeof **out);
    if (!*out) return hdi_error(HD_ERROR_MEMORY, "weights: out of host memory");
    for (int p = 0; p < count; p++) {
        for (int i = 0; i < hdi_model_part_count(parameters[p]); i++) {
            const hdi_model_part part = hdi_model_part_of(parameters[p], i);
            note(*out, out_count, &part);
        }
    }
    for (int t = 0; t < *out_count; t++) {
        hdi_model_tensor *it = &(*out)[t];
        if (it->elements) {
            const hd_status status =
                hdi_error(HD_ERROR_ARGUMENT,
                          "tensor \"%s\": the parameters' parts differ from it by %" PRId64
                          " elements, want all of it",
                          it->name, it->elements);
            hdi_free(*out);
            *out = NULL;
            return status;
        }
        it->elements = 1;
        for (int i = 0; i < it->rank; i++)
            it->elements *= it->dims[i];
    }
    return HD_OK;
}

static void place(const hdi_model_part *part, const float *values, float *out)
{
    for (int64_t r = 0; r < part->rows; r++) {
        const float *row = values + r * part->columns;
        if (part->transposed)
            for (int64_t c = 0; c < part->columns; c++)
                out[c * part->rows + r] = row[c];
        else
            memcpy(out + part->first + r * part->file_columns, row,
                   (size_t)part->columns * sizeof *row);
    }
}

static hd_status fill_part(const hdi_model_part *part, int parameter, int64_t first,
                           hdi_model_values_fn values, void *user, float *out)
{
    const int64_t elements = part->rows * part->columns;
    if (!part->transposed && part->columns == part->file_columns)
        return values(user, parameter, first, elements, out + part->first);
    float *block = hdi_alloc_array((size_t)elements, sizeof *block);
    hd_status status =
        block ? HD_OK : hdi_error(HD_ERROR_MEMORY, "%s: out of host memory", part->name);
    if (status == HD_OK) status = values(user, parameter, first, elements, block);
    if (status == HD_OK) place(part, block, out);
    hdi_free(block);
    return status;
}

hd_status hdi_model_fill_tensor(const hdi_model_tensor *tensor,
                                const hd_parameter_options *const *parameters, int count,
                                hdi_model_values_fn values, void *user, float *out)
{
    for (int p = 0; p < count; p++) {
        int64_t first = 0;
        for (int i = 0; i < hdi_model_part_count(parameters[p]); i++) {
            const hdi_model_part part = hdi_model_part_of(parameters[p], i);
            if (strcmp(part.name, tensor->name) == 0)
                HD_RETURN_IF_ERROR(fill_part(&part, p, first, values, user, out));
            first += part.rows * part.columns;
        }
    }
    return HD_OK;
}
