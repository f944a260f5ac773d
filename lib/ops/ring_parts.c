/* Blocks of ring attention: their sizes, how they travel, which of their tokens are valid. */
#include "ops/ring_parts.h"

#include "core/error.h"
#include "ops/ops.h"
#include "program/place.h"

static int64_t alike_first(const hdi_ring_options *o, int place)
{
    return hdi_sequence_first(o->alike, o->places.ring, place);
}

static int64_t cut_tokens(const hdi_ring_options *o, int place)
{
    return hdi_sequence_tokens_of(&o->places, o->tokens, place);
}

int64_t hdi_ring_tokens(const hdi_ring_options *o, int place)
{
    return cut_tokens(o, place) + alike_first(o, place + 1) - alike_first(o, place);
}

/* In a zigzag the pieces lie p, then 2 * ring - 1 - p: of a place before one's own only the first is
 * seen, by all queries; of one behind it both, by the second piece's queries. */
void hdi_ring_at_step(hdi_ring_options *o, int step)
{
    o->source = (o->place - step + o->places.ring) % o->places.ring;
    o->first = 0;
    o->queries = hdi_ring_tokens(o, o->place);
    o->keys = hdi_ring_tokens(o, o->source);
    if (!o->causal || step == 0) return;
    hdi_token_run runs[HDI_SEQUENCE_RUNS];
    if (o->source < o->place) {
        hdi_sequence_runs(&o->places, o->tokens, o->source, runs);
        o->keys = runs[0].count;
    } else {
        hdi_sequence_runs(&o->places, o->tokens, o->place, runs);
        o->first = runs[0].count;
        o->queries = runs[1].count;
    }
}

int64_t hdi_ring_query_columns(const hdi_ring_options *o)
{
    return o->heads * o->head_dim;
}

int64_t hdi_ring_key_columns(const hdi_ring_options *o)
{
    return 2 * o->kv_heads * o->head_dim;
}

hd_status hdi_ring_check(const hd_op *op, int index, const char *name, int place, int64_t columns)
{
    const hdi_ring_options *o = op->options;
    const int64_t dims[] = {o->sequences * hdi_ring_tokens(o, place), columns};
    return hdi_check_dims(op, index, name, HD_DTYPE_NONE, 2, dims);
}

static int before(const hdi_ring_options *o, int place)
{
    return (place + o->places.ring - 1) % o->places.ring;
}

static hd_status shift_shape(hd_program *program, const hd_op *op)
{
    const hdi_ring_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_ring_check(op, 0, "block", o->source, hdi_ring_key_columns(o)));
    const int64_t dims[] = {o->sequences * hdi_ring_tokens(o, before(o, o->source)),
                            hdi_ring_key_columns(o)};
    hd_op_output(program, op->in_info[0]->dtype, 2, dims);
    return HD_OK;
}

static void shift_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = (double)op->out_info[0]->bytes;
}

/* One exchange in which only neighbours have anything for each other: sending and receiving are posted
 * together, so rings of any length, two among them, cannot wait for themselves. */
static hd_status shift_run(const hd_run *run)
{
    const hdi_ring_options *o = run->op->options;
    int64_t send[HDI_SEQUENCE_RANKS] = {0}, recv[HDI_SEQUENCE_RANKS] = {0};
    const int64_t none[HDI_SEQUENCE_RANKS] = {0};
    send[o->base + (o->place + 1) % o->places.ring * o->step] = run->op->in_info[0]->elements;
    recv[o->base + before(o, o->place) * o->step] = run->op->out_info[0]->elements;
    *run->posted_on = hd_mesh_device_comm(run->mesh, HD_AXIS_SEQUENCE);
    return hd_comm_all_to_all(*run->posted_on, run->in[0], send, none, run->out[0], recv, none,
                              run->op->in_info[0]->dtype, run->request);
}

const hd_op_kind hdi_op_ring_shift = {
    .name = "ring_shift",
    .options_bytes = sizeof(hdi_ring_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = shift_shape,
    .cost = shift_cost,
    .run = shift_run,
};

hd_tensor hdi_ring_shift(hd_program *program, const hdi_ring_options *o, hd_tensor x,
                         const char *what)
{
    hdi_ring_options options = *o;
    options.collective.what = what;
    options.collective.elements = o->sequences * (o->tokens + o->alike) * 2 * o->head_dim;
    return hd_custom_op(program, &hdi_op_ring_shift, &options, 1, &x);
}

hdi_attention_args hdi_ring_arguments(const hdi_ring_options *o, hd_dtype dtype)
{
    const int64_t query = hdi_ring_query_columns(o), key = hdi_ring_key_columns(o);
    const bool whole =
        o->queries == hdi_ring_tokens(o, o->place) && o->keys == hdi_ring_tokens(o, o->source);
    return (hdi_attention_args){
        .dtype = dtype,
        .batch = whole ? o->sequences : 1,
        .tokens = o->queries,
        .kv_tokens = o->keys,
        .heads = o->heads,
        .kv_heads = o->kv_heads,
        .head_dim = o->head_dim,
        .q_stride = query,
        .k_stride = key,
        .v_stride = key,
        .out_stride = query,
        .scale = o->scale,
        .causal = o->causal && o->source == o->place,
        .exact = o->exact,
        .interleave = 1,
    };
}

size_t hdi_ring_counts_bytes(const hdi_ring_options *o)
{
    return 2 * hdi_place_round((size_t)o->sequences * sizeof(int32_t));
}

static hd_status count_place(const hd_run *run, const int32_t *in, int place, int32_t *out)
{
    const hdi_ring_options *o = run->op->options;
    const int64_t first = alike_first(o, place), end = alike_first(o, place + 1);
    return run->backend->raise_counts(run->stream,
                                      &(hdi_raise_counts_args){.elements = o->sequences,
                                                               .first = first,
                                                               .most = end - first,
                                                               .more = cut_tokens(o, place),
                                                               .counts = in,
                                                               .out = out});
}

hd_status hdi_ring_count(const hd_run *run, const int32_t *in, void *room, hdi_attention_args *args)
{
    const hdi_ring_options *o = run->op->options;
    if (!in) return HD_OK;
    int32_t *queries = room;
    int32_t *keys = (int32_t *)(void *)((char *)room + hdi_ring_counts_bytes(o) / 2);
    args->counts = queries;
    args->kv_counts = keys;
    HD_RETURN_IF_ERROR(count_place(run, in, o->place, queries));
    return count_place(run, in, o->source, keys);
}
