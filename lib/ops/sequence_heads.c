/* What programs append for the sequence axis: rows that are taken or gathered, and heads that change
 * places with tokens a group at a time. */
#include "ops/ops.h"
#include "ops/sequence_parts.h"
#include "ops/slices.h"

#include <string.h>

/* Options start as zeros, padding too: programs are compared. */
static hdi_sequence_options start(const hd_program *program, int64_t sequences, int64_t tokens)
{
    hdi_sequence_options o;
    memset(&o, 0, sizeof o);
    const hdi_sequence_cut cut = hdi_sequence_cut_of(program);
    o.ranks = cut.ranks;
    o.ring = cut.ring;
    o.zigzag = cut.zigzag;
    o.together = cut.together;
    o.rank = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE);
    o.sequences = sequences;
    o.tokens = tokens;
    o.turns = 1;
    o.collective.axis = HD_AXIS_SEQUENCE;
    return o;
}

hd_tensor hdi_sequence_own_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    if (hdi_sequence_ranks(program) == 1) return x;
    const hdi_sequence_options o = start(program, sequences, tokens);
    return hd_custom_op(program, &hdi_op_sequence_own_rows, &o, 1, &x);
}

/* Options among the ranks that share a place. */
static hdi_sequence_options start_of_place(const hd_program *program, int64_t sequences,
                                           int64_t tokens)
{
    hdi_sequence_options o = start(program, sequences, tokens);
    o.ranks = hdi_sequence_sharing(program);
    o.base = hdi_sequence_place(program) * o.ranks;
    o.rank -= o.base;
    o.ring = 1;
    o.zigzag = false;
    o.together = 0;
    return o;
}

hd_tensor hdi_sequence_rows_of_place(hd_program *program, hd_tensor x, int64_t sequences,
                                     int64_t tokens)
{
    if (hdi_sequence_sharing(program) == 1) return x;
    const hdi_sequence_options o = start_of_place(program, sequences, tokens);
    return hd_custom_op(program, &hdi_op_sequence_own_rows, &o, 1, &x);
}

/* One sequence's rows are chunks as they are. */
static hd_tensor rearrange_rows(hd_program *program, hd_tensor x, hdi_sequence_options o, bool back)
{
    o.back = back;
    return o.sequences == 1 ? x : hd_custom_op(program, &hdi_op_sequence_rows, &o, 1, &x);
}

hd_tensor hdi_sequence_all_rows(hd_program *program, hd_tensor x, int64_t sequences, int64_t tokens)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (hdi_sequence_ranks(program) == 1 || !info) return x;
    hdi_sequence_options o = start(program, sequences, tokens);
    o.collective.elements = sequences * tokens * hdi_columns(info);
    o.collective.what = "rows";
    x = hd_custom_op(program, &hdi_op_sequence_share, &o, 1, &x);
    return rearrange_rows(program, x, o, true);
}

/* Ranks among whom a layer's heads are dealt out. */
static int64_t dealt_to(const hd_program *program)
{
    return (int64_t)hdi_sequence_sharing(program) * hd_mesh_size(program->mesh, HD_AXIS_TENSOR);
}

/* As many as each rank has heads for, and told. */
static int choose_turns(hd_program *program, const hdi_sequence_shape *shape, int64_t turns)
{
    const int64_t most = shape->kv_heads / dealt_to(program);
    if (turns > most) turns = most > 0 ? most : 1; /* none: refused */
    if (hdi_sequence_sharing(program) > 1 && turns > program->sequence_turns)
        program->sequence_turns = (int)turns;
    return (int)turns;
}

int hdi_sequence_turns(hd_program *program, const hdi_sequence_shape *shape)
{
    const int64_t ranks = hdi_sequence_sharing(program);
    int64_t turns = program->sequence_groups;
    if (ranks == 1) return 1;
    if (turns == 0) {
        const double columns = (double)((shape->heads + 2 * shape->kv_heads) * shape->head_dim) /
                               (double)dealt_to(program);
        const double tokens = (double)shape->tokens / hdi_sequence_ranks(program);
        const double sent = (double)shape->sequences * tokens * columns * (double)(ranks - 1) *
                            (double)hd_dtype_bytes(program->dtype);
        turns = 1 + (int64_t)(sent / HDI_SEQUENCE_MESSAGE);
    }
    if (turns > HDI_SEQUENCE_TURNS) turns = HDI_SEQUENCE_TURNS;
    return choose_turns(program, shape, turns);
}

int hdi_sequence_slices(hd_program *program, const hdi_sequence_shape *shape)
{
    const int turns = hdi_sequence_turns(program, shape);
    return choose_turns(program, shape, turns > program->slices ? turns : program->slices);
}

/* Options of all turns, among the ranks that share a place, whose tokens are the sequence that they
 * cut. What travels is counted over the whole axis, places with more and with fewer tokens alike. */
static hdi_sequence_options deal_heads(const hd_program *program, const hdi_sequence_heads *from,
                                       int parts)
{
    const hdi_sequence_shape *shape = &from->shape;
    const int64_t queries = shape->heads / shape->kv_heads * shape->head_dim;
    const int64_t unit[HDI_SEQUENCE_PARTS] = {queries, shape->head_dim, shape->head_dim};
    int64_t tokens = from->of_place;
    if (tokens == 0 && shape->tokens > 0)
        tokens = hdi_sequence_place_tokens(program, shape->tokens);
    hdi_sequence_options o = start_of_place(program, shape->sequences, tokens);
    o.collective.elements = shape->sequences * shape->tokens;
    o.groups = shape->kv_heads;
    o.parts = parts;
    memcpy(o.unit, unit, (size_t)parts * sizeof *unit);
    o.turns = from->turns;
    o.before = from->before;
    o.after = from->after;
    return o;
}

/* What travels of one turn: own rows, or, taken as sequences of one token, those that all have. */
static hdi_sequence_options one_turn(hdi_sequence_options o, int turn, bool alike)
{
    if (alike) {
        o.sequences *= o.before + o.after;
        o.tokens = 1;
        o.collective.elements = o.sequences;
    }
    o.before = o.after = 0;
    o.turn = turn;
    o.collective.elements *= hdi_sequence_turn_columns(&o);
    o.collective.what = o.parts == 1 ? "attention results" : "queries, keys and values";
    return o;
}

void hdi_sequence_to_heads(hd_program *program, hd_tensor qkv, const hdi_sequence_heads *from,
                           hd_tensor *own, hd_tensor *alike)
{
    const bool has_own = from->shape.tokens > 0, has_alike = from->before + from->after > 0;
    const bool travels = hdi_sequence_sharing(program) > 1;
    if (!travels && has_own != has_alike) {
        *(has_own ? own : alike) = qkv;
        return;
    }
    const hdi_sequence_options all = deal_heads(program, from, HDI_SEQUENCE_PARTS);
    const bool made = hd_custom_op(program, &hdi_op_sequence_part, &all, 1, &qkv).id != 0;
    for (int t = 0, from_own = has_own ? all.turns : 0; t < all.turns; t++) {
        if (has_own) own[t] = made ? hd_op_result(program, t) : (hd_tensor){0};
        if (has_alike) alike[t] = made ? hd_op_result(program, from_own + t) : (hd_tensor){0};
    }
    for (int t = 0; travels && has_own && t < all.turns; t++) {
        const hdi_sequence_options turn = one_turn(all, t, false);
        own[t] = hd_custom_op(program, &hdi_op_sequence_exchange, &turn, 1, &own[t]);
    }
}

void hdi_sequence_slice_to_heads(hd_program *program, hd_tensor rows, const hdi_linear_map *map,
                                 const hdi_sequence_heads *from, int turn, hd_tensor *own,
                                 hd_tensor *alike)
{
    const bool has_own = from->shape.tokens > 0, has_alike = from->before + from->after > 0;
    const hd_tensor in[] = {rows, map->weight, map->bias};
    hdi_sequence_options o = deal_heads(program, from, HDI_SEQUENCE_PARTS);
    o.turn = turn;
    o.single = true;
    const bool made = hd_custom_op(program, &hdi_op_sequence_make, &o, 3, in).id != 0;
    if (has_own) *own = made ? hd_op_result(program, 0) : (hd_tensor){0};
    if (has_alike) *alike = made ? hd_op_result(program, has_own) : (hd_tensor){0};
    if (!has_own || hdi_sequence_sharing(program) == 1) return;
    o = one_turn(deal_heads(program, from, HDI_SEQUENCE_PARTS), turn, false);
    *own = hd_custom_op(program, &hdi_op_sequence_exchange, &o, 1, own);
}

hd_tensor hdi_sequence_slice_to_tokens(hd_program *program, hd_tensor rows,
                                       const hdi_sequence_heads *from, int turn, hd_tensor own,
                                       hd_tensor alike)
{
    hdi_sequence_options o = deal_heads(program, from, 1);
    hd_tensor in[3] = {rows};
    int inputs = 1;
    o.turn = turn;
    o.single = o.back = o.all_ranks = true;
    if (o.tokens > 0) in[inputs++] = own;
    if (o.before + o.after > 0) in[inputs++] = alike;
    return hd_custom_op(program, &hdi_op_sequence_fill, &o, inputs, in);
}

hd_tensor hdi_sequence_arrive(hd_program *program, hd_tensor x, const hdi_sequence_heads *from,
                              int turn)
{
    if (hdi_sequence_sharing(program) == 1) return x;
    const hdi_sequence_options o =
        one_turn(deal_heads(program, from, HDI_SEQUENCE_PARTS), turn, false);
    return rearrange_rows(program, x, o, true);
}

hd_tensor hdi_sequence_return(hd_program *program, hd_tensor x, const hdi_sequence_heads *from,
                              int turn, bool alike)
{
    if (hdi_sequence_sharing(program) == 1) return x;
    hdi_sequence_options o = one_turn(deal_heads(program, from, 1), turn, alike);
    if (alike) return hd_custom_op(program, &hdi_op_sequence_share, &o, 1, &x);
    x = rearrange_rows(program, x, o, false);
    o.back = true;
    return hd_custom_op(program, &hdi_op_sequence_exchange, &o, 1, &x);
}

hd_tensor hdi_sequence_to_tokens(hd_program *program, const hdi_sequence_heads *from,
                                 const hd_tensor *own, const hd_tensor *alike)
{
    const bool has_own = from->shape.tokens > 0, has_alike = from->before + from->after > 0;
    if (hdi_sequence_sharing(program) == 1 && has_own != has_alike) return *(has_own ? own : alike);
    hdi_sequence_options o = deal_heads(program, from, 1);
    hd_tensor in[2 * HDI_SEQUENCE_TURNS];
    int inputs = 0;
    o.back = o.all_ranks = true;
    for (int t = 0; o.tokens > 0 && t < o.turns; t++)
        in[inputs++] = own[t];
    for (int t = 0; o.before + o.after > 0 && t < o.turns; t++)
        in[inputs++] = alike[t];
    return hd_custom_op(program, &hdi_op_sequence_join, &o, inputs, in);
}
