/* Embedding layers: tokens, and learned positions. */
#include <heddle/nn.h>

#include "core/memory.h"
#include "nn/nn.h"
#include "ops/ops.h"
#include "ops/tensor_axis.h"

#include <inttypes.h>

static hd_tensor table(hd_program *program, const char *name, int64_t entries, int64_t columns,
                       double std, const hd_shard *shard)
{
    char *weight = hdi_format("%s.weight", name);
    if (!weight) return hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    const hd_tensor handle =
        hd_parameter(program, &(hd_parameter_options){.name = weight,
                                                      .rank = 2,
                                                      .dims = {entries, columns},
                                                      .shard = *shard,
                                                      .init = HD_INIT_NORMAL,
                                                      .std = std != 0 ? std : HDI_DEFAULT_STD});
    hdi_free(weight);
    return handle;
}

hd_tensor hd_embedding(hd_program *program, hd_tensor ids, const hd_embedding_options *options)
{
    if (!options->name)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "embedding: name is NULL, want a name");
    hd_shard shard = {.axis = HD_AXIS_NONE};
    int64_t first = 0, limit = 0;
    if (options->split && hdi_tensor_ranks(program) > 1) {
        const hd_shard_run own = hdi_tensor_deal(program, options->entries, options->entries);
        shard = (hd_shard){.axis = HD_AXIS_TENSOR, .runs = 1, .run = {own}};
        first = own.first;
        limit = options->entries;
    }
    return hdi_embedding_part(
        program, ids,
        table(program, options->name, options->entries, options->columns, options->std, &shard),
        first, limit);
}

hd_tensor hd_position_embedding(hd_program *program, hd_tensor x,
                                const hd_position_embedding_options *options)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (!options->name || !info || info->rank != 2)
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "position embedding '%s': x has rank %d, want 2 and a name",
                               options->name ? options->name : "(NULL)", info ? info->rank : 0);
    const int64_t rows = info->dims[0], columns = info->dims[1];
    const hd_tensor positions =
        options->positions.id
            ? options->positions
            : hd_positions(program, options->first, rows, options->tokens, options->entries);
    return hd_add(program, x,
                  hd_embedding_op(program, positions,
                                  table(program, options->name, options->entries, columns,
                                        options->std, &(hd_shard){.axis = HD_AXIS_NONE})));
}
