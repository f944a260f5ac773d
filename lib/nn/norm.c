/* Norm layers. */
#include <heddle/nn.h>

#include "core/memory.h"
#include "ops/ops.h"

static hd_tensor vector(hd_program *program, const char *name, const char *what, hd_init init,
                        int64_t columns)
{
    char *full = hdi_format("%s.%s", name, what);
    if (!full) return hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    const hd_tensor handle = hd_parameter(
        program, &(hd_parameter_options){.name = full, .rank = 1, .dims = {columns}, .init = init});
    hdi_free(full);
    return handle;
}

static hd_tensor norm(hd_program *program, hdi_norm_kind kind, hd_tensor x, hd_tensor delta,
                      const hd_norm_options *options, hd_tensor *sum)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (!options->name || !info || info->rank < 1)
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "norm '%s': x is %s, want a tensor [..., columns] and a name",
                               options->name ? options->name : "(NULL)",
                               !info        ? "invalid"
                               : info->rank ? "valid"
                                            : "a scalar");
    const int64_t columns = hdi_columns(info);
    const double epsilon = options->epsilon != 0 ? options->epsilon : 1e-5;
    const hd_tensor weight = vector(program, options->name, "weight", HD_INIT_ONES, columns);
    hd_tensor bias = {0};
    if (kind == HDI_LAYER_NORM)
        bias = vector(program, options->name, "bias", HD_INIT_ZEROS, columns);
    return hdi_norm(program, kind, (float)epsilon, x, delta, weight, bias, sum);
}

hd_tensor hd_layer_norm(hd_program *program, hd_tensor x, const hd_norm_options *options)
{
    return norm(program, HDI_LAYER_NORM, x, (hd_tensor){0}, options, NULL);
}

hd_tensor hd_rms_norm(hd_program *program, hd_tensor x, const hd_norm_options *options)
{
    return norm(program, HDI_RMS_NORM, x, (hd_tensor){0}, options, NULL);
}

hd_tensor hd_residual_norm(hd_program *program, hd_tensor x, hd_tensor delta,
                           const hd_norm_options *options, hd_tensor *sum)
{
    *sum = (hd_tensor){0};
    if (!hd_tensor_get(program, delta))
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "residual norm '%s': delta is invalid, want a tensor like x",
                               options->name ? options->name : "(NULL)");
    const hdi_norm_kind kind = options->kind == HD_NORM_RMS ? HDI_RMS_NORM : HDI_LAYER_NORM;
    return norm(program, kind, x, delta, options, sum);
}
