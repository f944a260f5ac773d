/* What STDiT3's ranks have of rows and layers, where they share sequences or layers. */
#include "models/stdit.h"
#include "ops/sequence.h"
#include "ops/tensor_axis.h"
#include "program/program.h"

static int64_t first_on(const hdi_stdit_build *b, hd_axis axis, int64_t tokens)
{
    return hdi_sequence_first(tokens, hd_mesh_size(b->p->mesh, axis),
                              hd_mesh_index(b->p->mesh, axis));
}

int64_t hdi_stdit_first(const hdi_stdit_build *b)
{
    return first_on(b, HD_AXIS_SEQUENCE, b->tokens) + first_on(b, HD_AXIS_TENSOR, b->joined);
}

hd_tensor hdi_stdit_own_rows(hdi_stdit_build *b, hd_tensor x)
{
    const int64_t sequences = b->stage->sequences;
    return hdi_sequence_own_rows(b->p, hdi_tensor_own_rows(b->p, x, sequences, b->tokens),
                                 sequences, b->tokens);
}

hd_tensor hdi_stdit_all_rows(hdi_stdit_build *b, hd_tensor x)
{
    const int64_t sequences = b->stage->sequences;
    return hdi_sequence_all_rows(b->p, hdi_tensor_whole_rows(b->p, x, sequences, b->tokens),
                                 sequences, b->tokens);
}

hd_tensor hdi_stdit_enter(hdi_stdit_build *b, hd_tensor x)
{
    return hdi_tensor_all_rows(b->p, x, b->stage->sequences, b->joined);
}

hd_tensor hdi_stdit_leave(hdi_stdit_build *b, hd_tensor x)
{
    return hdi_tensor_sum_rows(b->p, x, b->stage->sequences, b->joined);
}

int64_t hdi_stdit_heads(const hdi_stdit_build *b)
{
    return hdi_tensor_deal(b->p, b->config->heads, b->config->heads).count;
}

hd_tensor hdi_stdit_to_heads(hdi_stdit_build *b, hd_tensor x, const char *name, int parts)
{
    const hdi_stdit_config *c = b->config;
    hd_linear_options options = {.name = name,
                                 .outputs = parts * c->hidden,
                                 .bias = true,
                                 .split = HD_SPLIT_COLUMNS,
                                 .split_runs = parts};
    for (int i = 0; i < parts; i++)
        options.split_run[i] = (hd_split_run){c->hidden, c->heads};
    return hd_linear(b->p, x, &options);
}

hd_tensor hdi_stdit_from_heads(hdi_stdit_build *b, hd_tensor x, const char *name)
{
    const hdi_stdit_config *c = b->config;
    return hd_linear(b->p, x,
                     &(hd_linear_options){.name = name,
                                          .outputs = c->hidden,
                                          .bias = true,
                                          .split = HD_SPLIT_ROWS,
                                          .split_runs = 1,
                                          .split_run = {{c->hidden, c->heads}}});
}
