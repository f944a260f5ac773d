/* STDiT3's blocks and its final layer. */
#include "models/stdit.h"
#include "program/program.h"

#include <math.h>

/* Groups of rows that a modulation table's rows stand for. */
hd_modulation hdi_stdit_modulation(const hdi_stdit_build *b, hd_tensor table)
{
    return (hd_modulation){.table = table,
                           .index = b->kinds == 2 ? b->frame_entries : (hd_tensor){0},
                           .rows_per_group = b->kinds == 2 ? b->frame_rows : b->own,
                           .shift = -1,
                           .scale = -1,
                           .gate = -1};
}

static hd_tensor norm(hdi_stdit_build *b, const hdi_stdit_stream *from, const hd_modulation *by,
                      hd_tensor *sum)
{
    *sum = from->x;
    return from->delta.id
               ? hd_gated_modulated_norm(b->p, from->x, from->delta, &from->gate, by, 0, sum)
               : hd_modulated_norm(b->p, from->x, by, 0);
}

hd_tensor hdi_stdit_value(hdi_stdit_build *b, const hdi_stdit_stream *from)
{
    return from->delta.id ? hd_gated_add(b->p, from->x, from->delta, &from->gate) : from->x;
}

static hd_tensor mlp(hdi_stdit_build *b, hd_tensor x)
{
    const hdi_stdit_config *c = b->config;
    x = hd_gelu_mlp(
        b->p, hdi_stdit_enter(b, x),
        &(hd_linear_options){
            .name = "mlp.fc1", .outputs = c->inner, .bias = true, .split = HD_SPLIT_COLUMNS},
        &(hd_linear_options){.name = "mlp.fc2",
                             .outputs = c->hidden,
                             .bias = true,
                             .split = HD_SPLIT_ROWS,
                             .split_runs = 1,
                             .split_run = {{c->inner, 0}}});
    return hdi_stdit_leave(b, x);
}

/* Learned rows added to each run of as many of `rows`, then `count` rows side by side. */
static hd_tensor table_of(hdi_stdit_build *b, hd_tensor rows, const char *name, int64_t count)
{
    const int64_t hidden = b->config->hidden;
    const hd_tensor learned =
        hd_parameter(b->p, &(hd_parameter_options){.name = name,
                                                   .rank = 2,
                                                   .dims = {count, hidden},
                                                   .init = HD_INIT_NORMAL,
                                                   .std = 1 / sqrt((double)hidden)});
    return hdi_stdit_rows(b, hd_add_rows(b->p, rows, learned), b->entries, count * hidden);
}

hdi_stdit_stream hdi_stdit_block(hdi_stdit_build *b, int layer, const hdi_stdit_stream *from)
{
    const int64_t hidden = b->config->hidden;
    const bool temporal = layer % 2;
    const hdi_stdit_stream start = hdi_stdit_turn(b, from, temporal);
    hd_scope_begin(b->p, "%s_blocks.%d", temporal ? "temporal" : "spatial", layer / 2);
    const bool again = hd_stage_recomputes(b->stage, layer);
    if (again) hd_scope_recompute(b->p);
    hd_modulation by = hdi_stdit_modulation(b, table_of(b, b->modulation, "scale_shift_table", 6));
    hd_modulation gate = by;
    by.shift = 0;
    by.scale = hidden;
    gate.gate = 2 * hidden;
    hd_tensor x, h = norm(b, &start, &by, &x);
    x = hd_gated_add(b->p, x, hdi_stdit_self_attention(b, h, temporal), &gate);
    x = hd_add(b->p, x, hdi_stdit_text_attention(b, x));
    by.shift = 3 * hidden;
    by.scale = 4 * hidden;
    gate.gate = 5 * hidden;
    h = hd_modulated_norm(b->p, x, &by, 0);
    hdi_stdit_stream out = {.x = x, .delta = mlp(b, h), .gate = gate};
    /* Where blocks run again in the backward, one tensor is kept for each, not three. */
    if (again) out = (hdi_stdit_stream){.x = hdi_stdit_value(b, &out)};
    hd_scope_end(b->p);
    return out;
}

hd_tensor hdi_stdit_choose(hdi_stdit_build *b, hd_tensor x, hd_tensor other)
{
    const hd_tensor_info *info = hd_tensor_get(b->p, x);
    if (!info) return (hd_tensor){0};
    const int64_t columns = info->dims[1];
    hd_modulation select = {.table = hdi_stdit_selection(b->p, b->stage->sequences, columns),
                            .index = b->frame_entries,
                            .rows_per_group = b->frame_rows,
                            .shift = -1,
                            .scale = -1,
                            .gate = 0};
    x = hd_gated_add(b->p, x, x, &select);
    select.gate = columns;
    return hd_gated_add(b->p, x, other, &select);
}

hd_tensor hdi_stdit_final_layer(hdi_stdit_build *b, const hdi_stdit_stream *from)
{
    const hdi_stdit_config *c = b->config;
    const hd_tensor twice[] = {b->time, b->time};
    const hd_tensor rows = hd_join_rows(b->p, b->entries, 2, twice);
    hd_modulation given =
        hdi_stdit_modulation(b, table_of(b, rows, "final_layer.scale_shift_table", 2));
    given.shift = 0;
    given.scale = c->hidden;
    hd_modulation by = given; /* all frames at their sequence's time */
    by.index = (hd_tensor){0};
    by.rows_per_group = b->own;
    /* Where some frames have time 0 the gate's groups of rows are not the norm's, and a table's gradient
     * would be summed otherwise than after a block that runs again. */
    hdi_stdit_stream apart = *from;
    if (b->kinds == 2) apart = (hdi_stdit_stream){.x = hdi_stdit_value(b, from)};
    hd_tensor x, h = norm(b, &apart, &by, &x);
    /* Frames at time 0 are normed and modulated twice, as the model was trained: with their sequence's
     * time and then, what came out, with time 0. */
    if (b->kinds == 2) h = hdi_stdit_choose(b, h, hd_modulated_norm(b->p, h, &given, 0));
    const int64_t channels = c->channels * (c->sigma ? 2 : 1);
    return hdi_stdit_linear(b, h, "final_layer.linear",
                            c->patch[0] * c->patch[1] * c->patch[2] * channels);
}
