/* The linear layer: weight and bias under their names in files, whole or in parts. */
#include "nn/nn.h"

#include "core/memory.h"
#include "ops/ops.h"
#include "ops/tensor_axis.h"

#include <inttypes.h>

/* "<name>.<what>" of the layer and its parts, for hd_parameter, which copies them. */
typedef struct names {
    char *name;
    char *part[HD_MAX_PARTS];
} names;

static void free_names(names *all)
{
    hdi_free(all->name);
    for (int i = 0; i < HD_MAX_PARTS; i++)
        hdi_free(all->part[i]);
}

/* Where a part lies in its file: the weight as told, the bias as the rows that go with it. */
static hd_parameter_part file_part(const hd_linear_part *part, int rank)
{
    hd_parameter_part out = {.rows = part->outputs, .first_row = part->first_output};
    if (!part->file_rank) return out;
    out.file_rank = rank == 1 ? 1 : part->file_rank;
    for (int i = 0; i < out.file_rank; i++)
        out.file_dims[i] = part->file_dims[i];
    if (rank == 2) out.first_column = part->first_input;
    return out;
}

static hd_tensor declare(hd_program *program, const hd_linear_options *options, const char *what,
                         hd_parameter_options *parameter)
{
    names all = {.name = hdi_format("%s.%s", options->name, what)};
    bool ok = all.name != NULL;
    parameter->name = all.name;
    parameter->parts = options->parts;
    for (int i = 0; i < options->parts; i++) {
        all.part[i] = hdi_format("%s.%s", options->part[i].name, what);
        ok = ok && all.part[i];
        parameter->part[i] = file_part(&options->part[i], parameter->rank);
        parameter->part[i].name = all.part[i];
        parameter->part[i].transposed = options->transposed && parameter->rank == 2;
    }
    const hd_tensor handle = ok ? hd_parameter(program, parameter)
                                : hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    free_names(&all);
    return handle;
}

static bool is_split(const hd_program *program, const hd_linear_options *options)
{
    return options->split != HD_SPLIT_NONE && hdi_tensor_ranks(program) > 1;
}

/* This rank's runs of outputs or inputs; *all is how many the layer has. */
static hd_shard shard_of(const hd_program *program, const hd_linear_options *options, int64_t *all)
{
    const hd_split_run whole = {.columns = options->outputs};
    const hd_split_run *runs = options->split_runs ? options->split_run : &whole;
    hd_shard out = {.axis = HD_AXIS_TENSOR,
                    .dim = options->split == HD_SPLIT_ROWS,
                    .runs = options->split_runs ? options->split_runs : 1};
    *all = 0;
    for (int i = 0; i < out.runs; i++) {
        const int64_t groups = runs[i].groups ? runs[i].groups : runs[i].columns;
        out.run[i] = hdi_tensor_deal(program, runs[i].columns, groups);
        out.run[i].first += *all;
        *all += runs[i].columns;
    }
    return out;
}

static int64_t shard_columns(const hd_shard *shard)
{
    int64_t columns = 0;
    for (int i = 0; i < shard->runs; i++)
        columns += shard->run[i].count;
    return columns;
}

static bool check_split(hd_program *program, const char *name, const hd_linear_options *options,
                        int64_t inputs)
{
    int64_t all = 0;
    bool ok = options->split_runs >= 0 && options->split_runs <= HD_MAX_PARTS;
    for (int i = 0; i < options->split_runs && ok; i++) {
        const hd_split_run *run = &options->split_run[i];
        ok = run->columns > 0 && run->groups >= 0 && !(run->groups && run->columns % run->groups);
        all += run->columns;
    }
    const bool rows = options->split == HD_SPLIT_ROWS;
    if (ok && rows && is_split(program, options)) {
        const hd_shard shard = shard_of(program, options, &all);
        ok = options->split_runs == 1 && shard_columns(&shard) == inputs;
    } else if (ok && options->split_runs) {
        ok = all == (rows ? inputs : options->outputs);
    }
    if (!ok)
        hd_program_fail(
            program, HD_ERROR_ARGUMENT,
            "linear '%s': x has %" PRId64 " columns, %" PRId64 " outputs, in %d runs of "
            "%" PRId64 " in all; want runs of whole groups that are all outputs, or one "
            "that is all inputs, of which x has this rank's",
            name, inputs, options->outputs, options->split_runs, all);
    return ok;
}

static hd_tensor declare_weight(hd_program *program, const hd_linear_options *options,
                                int64_t inputs)
{
    hd_parameter_options weight = {
        .rank = 2,
        .dims = {options->outputs, inputs},
        .init = options->std < 0 ? HD_INIT_ZEROS : HD_INIT_NORMAL,
        .std = options->std != 0 ? options->std : HDI_DEFAULT_STD,
        .transposed = options->transposed,
    };
    int64_t all;
    if (is_split(program, options)) {
        weight.shard = shard_of(program, options, &all);
        weight.dims[weight.shard.dim] = all;
    }
    if (!options->weight) return declare(program, options, "weight", &weight);
    weight.name = options->weight;
    return hd_parameter(program, &weight);
}

static hd_tensor declare_bias(hd_program *program, const hd_linear_options *options)
{
    hd_parameter_options bias = {.rank = 1, .dims = {options->outputs}, .init = HD_INIT_ZEROS};
    int64_t all;
    if (is_split(program, options) && options->split == HD_SPLIT_COLUMNS)
        bias.shard = shard_of(program, options, &all);
    else if (is_split(program, options))
        bias.shard =
            (hd_shard){.axis = HD_AXIS_TENSOR, .runs = 1, .run = {{.count = options->outputs}}};
    return declare(program, options, "bias", &bias);
}

hdi_linear_map hdi_linear_declare(hd_program *program, int64_t inputs,
                                  const hd_linear_options *options)
{
    const char *name = options->name ? options->name : options->weight;
    const hdi_linear_map none = {{0}, {0}};
    if (!name || (options->bias && !options->name)) {
        hd_program_fail(program, HD_ERROR_ARGUMENT, "linear: name is NULL, want a name");
        return none;
    }
    if (options->parts < 0 || options->parts > HD_MAX_PARTS) {
        hd_program_fail(program, HD_ERROR_ARGUMENT, "linear '%s': %d parts, want 0 to %d", name,
                        options->parts, HD_MAX_PARTS);
        return none;
    }
    if (!check_split(program, name, options, inputs)) return none;
    const bool leaves_bias = is_split(program, options) && options->split == HD_SPLIT_ROWS &&
                             hd_mesh_index(program->mesh, HD_AXIS_TENSOR) > 0;
    hdi_linear_map out = {.weight = declare_weight(program, options, inputs)};
    if (options->bias && !leaves_bias) out.bias = declare_bias(program, options);
    return out;
}

/* The same for the columns of x. */
static hdi_linear_map declare_linear(hd_program *program, hd_tensor x,
                                     const hd_linear_options *options)
{
    const char *name = options->name ? options->name : options->weight;
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (info && info->rank >= 1)
        return hdi_linear_declare(program, info->dims[info->rank - 1], options);
    hd_program_fail(program, HD_ERROR_ARGUMENT, "linear '%s': x is %s, want a tensor [..., inputs]",
                    name ? name : "", info ? "a scalar" : "invalid");
    return (hdi_linear_map){{0}, {0}};
}

hd_tensor hd_linear(hd_program *program, hd_tensor x, const hd_linear_options *options)
{
    const hdi_linear_map own = declare_linear(program, x, options);
    if (!own.weight.id) return own.weight;
    return options->add.id ? hdi_linear_add(program, x, own.weight, own.bias, options->add)
                           : hd_linear_op(program, x, own.weight, own.bias);
}

static hd_tensor sliced_mlp(hd_program *program, hdi_mlp_kind kind, hd_tensor x,
                            const hd_linear_options *up, const hd_linear_options *down)
{
    const hdi_linear_map first = declare_linear(program, x, up);
    if (!first.weight.id) return first.weight;
    const int64_t made = hd_tensor_get(program, first.weight)->dims[0];
    const hdi_linear_map second =
        hdi_linear_declare(program, kind == HDI_MLP_SWIGLU ? made / 2 : made, down);
    if (!second.weight.id) return second.weight;
    return hdi_mlp_slices(program, kind, x, &first, &second, program->mlp_slices);
}

hdi_gelu_half hdi_gelu_up(hd_program *program, hd_tensor x, const hd_linear_options *up)
{
    hdi_gelu_half half = {{0}, {0}};
    if (!program->training) {
        half.activated = hd_gelu_tanh(program, hd_linear(program, x, up));
        return half;
    }
    const hdi_linear_map map = declare_linear(program, x, up);
    if (map.weight.id)
        half.activated = hdi_linear_gelu(program, x, map.weight, map.bias, &half.before);
    return half;
}

hd_tensor hdi_gelu_down(hd_program *program, const hdi_gelu_half *half,
                        const hd_linear_options *down)
{
    if (!program->training) return hd_linear(program, half->activated, down);
    const hdi_linear_map map = declare_linear(program, half->activated, down);
    if (!map.weight.id) return map.weight;
    return hdi_linear_after_gelu(program, half->activated, half->before, map.weight, map.bias);
}

hd_tensor hdi_mlp(hd_program *program, hdi_mlp_kind kind, hd_tensor x, const hd_linear_options *up,
                  const hd_linear_options *down)
{
    const bool adds = up->add.id || down->add.id;
    if (program->mlp_slices > 1 && !adds) return sliced_mlp(program, kind, x, up, down);
    if (kind == HDI_MLP_GELU_TANH && !adds) {
        const hdi_gelu_half half = hdi_gelu_up(program, x, up);
        return hdi_gelu_down(program, &half, down);
    }
    x = hd_linear(program, x, up);
    x = kind == HDI_MLP_SWIGLU     ? hd_swiglu(program, x)
        : kind == HDI_MLP_GELU_ERF ? hd_gelu(program, x)
                                   : hd_gelu_tanh(program, x);
    return hd_linear(program, x, down);
}

hd_tensor hd_gelu_mlp(hd_program *program, hd_tensor x, const hd_linear_options *up,
                      const hd_linear_options *down)
{
    return hdi_mlp(program, HDI_MLP_GELU_TANH, x, up, down);
}
