/* Rows that go from places of frames to places of positions and back: cut into a chunk for each rank,
 * sent, and put where they belong. */
#include "ops/regroup.h"

#include "core/checked.h"
#include "core/error.h"
#include "ops/ops.h"
#include "ops/sequence_parts.h"
#include "ops/tensor_axis.h"

#include <inttypes.h>
#include <string.h>

typedef struct regroup_options {
    hdi_collective collective;
    int ranks, rank, ring;
    hdi_regroup_video video;
    bool by_position; /* how the rows are cut; of an exchange, how they will be */
    bool back;        /* chunks to rows */
} regroup_options;

static hdi_regroup_part part_of(const hdi_regroup_video *video, int ranks, int ring, int rank,
                                bool by_position)
{
    const int sharing = ranks / ring, place = rank / sharing;
    const int64_t runs = hdi_ceil_div(video->positions, video->together);
    const int64_t cut = by_position ? runs : video->frames;
    const int64_t first = hdi_sequence_first(cut, ring, place);
    const int64_t next = hdi_sequence_first(cut, ring, place + 1);
    hdi_regroup_part out = {.frames = video->frames, .positions = video->positions};
    if (by_position) {
        out.first_position = first * video->together;
        out.positions = (next == runs ? video->positions : next * video->together);
        out.positions -= out.first_position;
    } else {
        out.first_frame = first;
        out.frames = next - first;
    }
    out.begin = hdi_sequence_first(out.frames * out.positions, sharing, rank % sharing);
    out.end = hdi_sequence_first(out.frames * out.positions, sharing, rank % sharing + 1);
    return out;
}

hdi_regroup_part hdi_regroup_part_of(const hd_program *program, const hdi_regroup_video *video,
                                     bool by_position)
{
    return part_of(video, hdi_sequence_ranks(program), hdi_sequence_ring(program),
                   hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE), by_position);
}

/* Whether every rank has some of each sequence, both ways. */
static bool has_all(const hdi_regroup_video *video, int ranks, int ring)
{
    for (int r = 0; r < 2 * ranks; r++) {
        const hdi_regroup_part part = part_of(video, ranks, ring, r / 2, r % 2);
        if (part.begin >= part.end) return false;
    }
    return true;
}

bool hdi_regroup_begin(hd_program *program, const hdi_regroup_video *video, int64_t heads)
{
    const int ranks = hdi_sequence_ranks(program), most = hd_mesh_ring(program->mesh);
    int ring = most;
    while (ring > 1 && (ranks % ring || !has_all(video, ranks, ring)))
        ring--;
    program->sequence_together = video->positions;
    program->sequence_ring = ring;
    const int shares = ranks / ring * hdi_tensor_ranks(program);
    if (ring == most || shares <= heads) return true;
    hd_program_fail(program, HD_ERROR_UNSUPPORTED,
                    "layout.sequence is %d with a ring of %d, but %" PRId64 " frames and %" PRId64
                    " runs of a frame's positions make places for %d, which leaves each %d ranks "
                    "to share %" PRId64 " key and value heads; take more data or pipeline ranks",
                    ranks, most, video->frames, hdi_ceil_div(video->positions, video->together),
                    ring, shares, heads);
    return false;
}

static hdi_regroup_part part_at(const regroup_options *o, int rank, bool by_position)
{
    return part_of(&o->video, o->ranks, o->ring, rank, by_position);
}

/* The positions that a part has of a frame. */
typedef struct range {
    int64_t first, end;
} range;

static range of_frame(const hdi_regroup_part *part, int64_t frame)
{
    const int64_t before = (frame - part->first_frame) * part->positions;
    int64_t first = part->begin - before, end = part->end - before;
    if (frame < part->first_frame || frame >= part->first_frame + part->frames) end = first = 0;
    first = first < 0 ? 0 : first > part->positions ? part->positions : first;
    end = end < 0 ? 0 : end > part->positions ? part->positions : end;
    return (range){part->first_position + first, part->first_position + end};
}

static range of_both(const hdi_regroup_part *a, const hdi_regroup_part *b, int64_t frame)
{
    const range left = of_frame(a, frame), right = of_frame(b, frame);
    const range out = {left.first > right.first ? left.first : right.first,
                       left.end < right.end ? left.end : right.end};
    return out.first < out.end ? out : (range){0};
}

static int64_t tokens_of_both(const hdi_regroup_part *a, const hdi_regroup_part *b)
{
    int64_t tokens = 0;
    for (int64_t f = a->first_frame; f < a->first_frame + a->frames; f++) {
        const range both = of_both(a, b, f);
        tokens += both.end - both.first;
    }
    return tokens;
}

/* Rows of `own` that are also the `other`'s, to or (back) from a chunk, frames that have the same of
 * them at once. *chunk: rows before it, and then behind it. */
static hd_status copy_chunk(const hd_run *run, const hdi_regroup_part *own,
                            const hdi_regroup_part *other, int64_t *chunk)
{
    const regroup_options *o = run->op->options;
    const hd_tensor_info *info = run->op->in_info[0];
    const size_t row = (size_t)info->dims[1] * hd_dtype_bytes(info->dtype);
    const int64_t tokens = tokens_of_both(own, other), end = own->first_frame + own->frames;
    int64_t frames, packed = *chunk;
    for (int64_t f = own->first_frame; f < end; f += frames) {
        const range both = of_both(own, other, f);
        const int64_t count = both.end - both.first;
        frames = 1;
        for (range next; f + frames < end; frames++) {
            next = of_both(own, other, f + frames);
            if (next.first != both.first || next.end != both.end) break;
        }
        if (count == 0) continue;
        const int64_t at =
            (f - own->first_frame) * own->positions + both.first - own->first_position - own->begin;
        const size_t rows[] = {(size_t)(own->end - own->begin) * row, (size_t)own->positions * row};
        const size_t chunks[] = {(size_t)tokens * row, (size_t)count * row};
        hdi_copy_grid_args args = {.count = {1, 1, 1, o->video.sequences, frames},
                                   .block_bytes = (size_t)count * row};
        memcpy(args.x_stride + 3, o->back ? chunks : rows, sizeof rows);
        memcpy(args.out_stride + 3, o->back ? rows : chunks, sizeof rows);
        args.x = (const char *)run->in[0] + (size_t)(o->back ? packed : at) * row;
        args.out = (char *)run->out[0] + (size_t)(o->back ? at : packed) * row;
        HD_RETURN_IF_ERROR(run->backend->copy_grid(run->stream, &args));
        packed += frames * count;
    }
    *chunk += o->video.sequences * tokens;
    return HD_OK;
}

static int64_t rows_of(const regroup_options *o, bool by_position)
{
    const hdi_regroup_part part = part_at(o, o->rank, by_position);
    return o->video.sequences * (part.end - part.begin);
}

static hd_status move_shape(hd_program *program, const hd_op *op)
{
    const regroup_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, rows_of(o, o->by_position), -1));
    return hdi_sequence_declare(program, op, rows_of(o, o->by_position), op->in_info[0]->dims[1]);
}

static hd_status move_run(const hd_run *run)
{
    const regroup_options *o = run->op->options;
    const hdi_regroup_part own = part_at(o, o->rank, o->by_position);
    int64_t chunk = 0;
    for (int r = 0; r < o->ranks; r++) {
        const hdi_regroup_part other = part_at(o, r, !o->by_position);
        HD_RETURN_IF_ERROR(copy_chunk(run, &own, &other, &chunk));
    }
    return HD_OK;
}

static void move_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = 2 * (double)op->out_info[0]->bytes;
}

/* Elements only move: the gradient goes the other way. */
static void give_back(hd_backward *context, const hd_op *op, const regroup_options *options)
{
    const hd_tensor gradient = hd_backward_output_gradient(context, 0);
    hd_backward_give(context, 0,
                     hd_custom_op(hd_backward_program(context), op->kind, options, 1, &gradient));
}

static void move_backward(hd_backward *context, const hd_op *op)
{
    regroup_options options = *(const regroup_options *)op->options;
    options.back = !options.back;
    give_back(context, op, &options);
}

static const hd_op_kind regroup_rows = {
    .name = "regroup_rows",
    .options_bytes = sizeof(regroup_options),
    .shape = move_shape,
    .backward = move_backward,
    .cost = move_cost,
    .run = move_run,
};

static hd_status exchange_shape(hd_program *program, const hd_op *op)
{
    const regroup_options *o = op->options;
    HD_RETURN_IF_ERROR(hdi_sequence_check(op, rows_of(o, !o->by_position), -1));
    return hdi_sequence_declare(program, op, rows_of(o, o->by_position), op->in_info[0]->dims[1]);
}

static hd_status exchange_run(const hd_run *run)
{
    const regroup_options *o = run->op->options;
    const hd_tensor_info *x = run->op->in_info[0];
    const hdi_regroup_part from = part_at(o, o->rank, !o->by_position);
    const hdi_regroup_part to = part_at(o, o->rank, o->by_position);
    const int64_t each = o->video.sequences * x->dims[1];
    int64_t sent[HDI_SEQUENCE_RANKS], sent_at[HDI_SEQUENCE_RANKS], sent_end = 0;
    int64_t come[HDI_SEQUENCE_RANKS], come_at[HDI_SEQUENCE_RANKS], come_end = 0;
    for (int r = 0; r < o->ranks; r++) {
        const hdi_regroup_part reader = part_at(o, r, o->by_position),
                               sender = part_at(o, r, !o->by_position);
        sent[r] = tokens_of_both(&from, &reader) * each;
        come[r] = tokens_of_both(&sender, &to) * each;
        sent_at[r] = sent_end;
        come_at[r] = come_end;
        sent_end += sent[r];
        come_end += come[r];
    }
    *run->posted_on = hd_mesh_device_comm(run->mesh, o->collective.axis);
    return hd_comm_all_to_all(*run->posted_on, run->in[0], sent, sent_at, run->out[0], come,
                              come_at, x->dtype, run->request);
}

static void exchange_backward(hd_backward *context, const hd_op *op)
{
    regroup_options options = *(const regroup_options *)op->options;
    options.by_position = !options.by_position;
    give_back(context, op, &options);
}

static void exchange_cost(const hd_op *op, hd_cost *out)
{
    out->flops = 0;
    out->bytes = (double)op->out_info[0]->bytes;
}

const hd_op_kind hdi_op_regroup_exchange = {
    .name = "regroup_exchange",
    .options_bytes = sizeof(regroup_options),
    .flags = HD_OP_COMMUNICATES,
    .shape = exchange_shape,
    .backward = exchange_backward,
    .cost = exchange_cost,
    .run = exchange_run,
};

hd_tensor hdi_regroup(hd_program *program, hd_tensor x, const hdi_regroup_video *video,
                      bool by_position)
{
    const hd_tensor_info *info = hd_tensor_get(program, x);
    if (hdi_sequence_ring(program) == 1 || !info) return x;
    regroup_options o; /* starts as zeros, padding too: programs are compared */
    memset(&o, 0, sizeof o);
    o.collective.axis = HD_AXIS_SEQUENCE;
    o.collective.elements = video->sequences * video->frames * video->positions * hdi_columns(info);
    o.collective.what = by_position ? "rows to places of positions" : "rows to places of frames";
    o.ranks = hdi_sequence_ranks(program);
    o.rank = hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE);
    o.ring = hdi_sequence_ring(program);
    o.video = *video;
    o.by_position = !by_position;
    x = hd_custom_op(program, &regroup_rows, &o, 1, &x);
    o.by_position = by_position;
    x = hd_custom_op(program, &hdi_op_regroup_exchange, &o, 1, &x);
    o.back = true;
    return hd_custom_op(program, &regroup_rows, &o, 1, &x);
}

hd_tensor hdi_regroup_entries(hd_program *program, hd_tensor entries,
                              const hdi_regroup_video *video, bool by_position)
{
    const hdi_regroup_part part = hdi_regroup_part_of(program, video, by_position);
    const int64_t tokens = video->frames * part.positions;
    const hd_tensor each = hdi_sequence_each_row(program, entries, part.positions);
    return by_position ? hdi_sequence_rows_of_place(program, each, video->sequences, tokens)
                       : hdi_sequence_own_rows(program, each, video->sequences, tokens);
}
