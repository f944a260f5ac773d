/* What STDiT3's ranks have of rows and layers, where they share sequences or layers. */
#include "models/stdit.h"
#include "ops/sequence.h"
#include "ops/tensor_axis.h"
#include "program/program.h"

/* An entry for each frame where all its rows are here; else ranks may have parts of frames, and know each
 * row's. */
static void cut_entries(hdi_stdit_build *b)
{
    const bool is_cut = (b->given ? b->joined : b->own) < b->tokens;
    hd_tensor *known = &b->cut_entries[b->by_position];
    if (is_cut && b->all_entries.id && !known->id) {
        *known = hdi_regroup_entries(b->p, b->all_entries, &b->video, b->by_position);
        if (!b->given) *known = hdi_tensor_own_rows(b->p, *known, b->video.sequences, b->joined);
    }
    b->frame_entries = is_cut ? *known : b->all_entries;
    b->frame_rows = is_cut ? 1 : b->places;
}

void hdi_stdit_cut(hdi_stdit_build *b, bool by_position)
{
    b->by_position = by_position;
    b->part = hdi_regroup_part_of(b->p, &b->video, by_position);
    b->joined = b->part.end - b->part.begin;
    b->own = hdi_tensor_own_tokens(b->p, b->joined);
    cut_entries(b);
}

hdi_stdit_stream hdi_stdit_turn(hdi_stdit_build *b, const hdi_stdit_stream *from, bool by_position)
{
    const bool stays = hdi_sequence_ring(b->p) == 1 || hdi_tensor_ranks(b->p) > 1;
    if (stays || by_position == b->by_position) return *from;
    const hd_tensor x = hdi_stdit_value(b, from);
    hdi_stdit_cut(b, by_position);
    return (hdi_stdit_stream){.x = hdi_regroup(b->p, x, &b->video, by_position)};
}

int64_t hdi_stdit_first(const hdi_stdit_build *b)
{
    return b->part.first_frame * b->places + b->part.begin +
           hdi_sequence_first(b->joined, hdi_tensor_ranks(b->p),
                              hd_mesh_index(b->p->mesh, HD_AXIS_TENSOR));
}

hd_tensor hdi_stdit_own_rows(hdi_stdit_build *b, hd_tensor x)
{
    const int64_t sequences = b->stage->sequences;
    x = hdi_sequence_own_rows(b->p, x, sequences, b->tokens);
    return hdi_tensor_own_rows(b->p, x, sequences, b->joined);
}

hd_tensor hdi_stdit_all_rows(hdi_stdit_build *b, hd_tensor x)
{
    const int64_t sequences = b->stage->sequences;
    x = hdi_tensor_whole_rows(b->p, x, sequences, b->joined);
    return hdi_sequence_all_rows(b->p, x, sequences, b->tokens);
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
