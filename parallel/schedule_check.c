/* The static half of the schedule checker: each stage's table, then the order of messages. */
#include "core/error.h"
#include "core/memory.h"
#include "parallel/schedule_internal.h"

/* Where a row is, in the words of every error of this file. */
#define ROW_FORMAT "schedule: stage %d row %d: %s of micro-batch %d chunk %d"
#define ROW_VALUES(schedule, index)                                                       \
    (schedule)->options.stage, (index), hdi_schedule_op_text((schedule)->rows[index].op), \
        (schedule)->rows[index].micro_batch, (schedule)->rows[index].chunk

/* Fill `where`, refusing rows that do not belong to this stage or stand there twice. */
static hd_status index_rows(const hdi_schedule *schedule, int *where)
{
    const hdi_schedule_options *options = &schedule->options;
    for (size_t i = 0; i < hdi_schedule_where_count(schedule); i++)
        where[i] = -1;

    for (int i = 0; i < schedule->row_count; i++) {
        const hdi_schedule_row *row = &schedule->rows[i];
        if ((unsigned)row->op >= HDI_SCHEDULE_OPS || row->chunk < 0 ||
            row->chunk >= options->chunks || row->micro_batch < 0 ||
            row->micro_batch >= options->micro_batches)
            return hdi_error(HD_ERROR_INTERNAL,
                             ROW_FORMAT " is out of range (%d micro-batches, %d chunks)",
                             options->stage, i, hdi_schedule_op_text(row->op), row->micro_batch,
                             row->chunk, options->micro_batches, options->chunks);
        if (!hdi_schedule_has(schedule, row->chunk, row->op))
            return hdi_error(HD_ERROR_INTERNAL, ROW_FORMAT " has no place on virtual stage %d",
                             ROW_VALUES(schedule, i),
                             hdi_schedule_virtual_stage(schedule, row->chunk));
        if (!hdi_schedule_is_compute(row->op) &&
            (row->peer != hdi_schedule_peer(schedule, row->op) ||
             row->channel != hdi_schedule_channel_of(row->op)))
            return hdi_error(
                HD_ERROR_INTERNAL, ROW_FORMAT " has peer %d on channel %d, want %d on channel %d",
                ROW_VALUES(schedule, i), row->peer, (int)row->channel,
                hdi_schedule_peer(schedule, row->op), (int)hdi_schedule_channel_of(row->op));
        int *place =
            &where[hdi_schedule_where_index(schedule, row->op, row->chunk, row->micro_batch)];
        if (*place >= 0)
            return hdi_error(HD_ERROR_INTERNAL, ROW_FORMAT " was already in row %d",
                             ROW_VALUES(schedule, i), *place);
        *place = i;
    }
    return HD_OK;
}

static hd_status check_complete(const hdi_schedule *schedule, const int *where)
{
    for (int op = 0; op < HDI_SCHEDULE_OPS; op++)
        for (int chunk = 0; chunk < schedule->options.chunks; chunk++) {
            if (!hdi_schedule_has(schedule, chunk, (hdi_schedule_op)op)) continue;
            for (int b = 0; b < schedule->options.micro_batches; b++)
                if (where[hdi_schedule_where_index(schedule, (hdi_schedule_op)op, chunk, b)] < 0)
                    return hdi_error(HD_ERROR_INTERNAL,
                                     "schedule: stage %d has no %s of micro-batch %d chunk %d",
                                     schedule->options.stage,
                                     hdi_schedule_op_text((hdi_schedule_op)op), b, chunk);
        }
    return HD_OK;
}

/* `before` must stand above `after`; either may be absent (-1). */
static hd_status check_above(const hdi_schedule *schedule, int before, int after)
{
    if (before < after || before < 0 || after < 0) return HD_OK;
    const hdi_schedule_row *row = &schedule->rows[before];
    return hdi_error(HD_ERROR_INTERNAL,
                     ROW_FORMAT " stands before the %s of micro-batch %d chunk %d that it needs "
                                "(row %d)",
                     ROW_VALUES(schedule, after), hdi_schedule_op_text(row->op), row->micro_batch,
                     row->chunk, before);
}

static int row_of(const hdi_schedule *schedule, const int *where, hdi_schedule_op op, int chunk,
                  int micro_batch)
{
    if (chunk >= schedule->options.chunks || micro_batch >= schedule->options.micro_batches)
        return -1;
    return where[hdi_schedule_where_index(schedule, op, chunk, micro_batch)];
}

static hd_status check_order(const hdi_schedule *schedule, const int *where, int chunk,
                             int micro_batch)
{
    static const hdi_schedule_op needs[][2] = {
        {HDI_RECV_FORWARD, HDI_FORWARD},   {HDI_FORWARD, HDI_SEND_FORWARD},
        {HDI_FORWARD, HDI_BACKWARD},       {HDI_RECV_BACKWARD, HDI_BACKWARD},
        {HDI_BACKWARD, HDI_SEND_BACKWARD},
    };
    int row[HDI_SCHEDULE_OPS];
    for (int op = 0; op < HDI_SCHEDULE_OPS; op++)
        row[op] = row_of(schedule, where, (hdi_schedule_op)op, chunk, micro_batch);
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        HD_RETURN_IF_ERROR(check_above(schedule, row[needs[i][0]], row[needs[i][1]]));

    /* Through this stage's chunks upwards and back down; a chunk's micro-batches in order. */
    for (int op = HDI_FORWARD; op <= HDI_BACKWARD; op += HDI_BACKWARD - HDI_FORWARD) {
        const hdi_schedule_op compute = (hdi_schedule_op)op;
        const int above = row_of(schedule, where, compute, chunk + 1, micro_batch);
        const int later = row_of(schedule, where, compute, chunk, micro_batch + 1);
        HD_RETURN_IF_ERROR(compute == HDI_FORWARD ? check_above(schedule, row[op], above)
                                                  : check_above(schedule, above, row[op]));
        HD_RETURN_IF_ERROR(check_above(schedule, row[op], later));
    }
    return HD_OK;
}

static hd_status check_out_slots(const hdi_schedule *schedule, const int *where, int chunk,
                                 hdi_schedule_op compute)
{
    const hdi_schedule_op send = compute == HDI_FORWARD ? HDI_SEND_FORWARD : HDI_SEND_BACKWARD;
    const int slots = hdi_schedule_slots(
        schedule, chunk, compute == HDI_FORWARD ? HDI_BUFFER_FORWARD_OUT : HDI_BUFFER_BACKWARD_OUT);
    if (!hdi_schedule_has(schedule, chunk, send)) return HD_OK;
    if (slots < 1)
        return hdi_error(HD_ERROR_INTERNAL, "schedule: stage %d chunk %d has no slot to %s",
                         schedule->options.stage, chunk, hdi_schedule_op_text(send));
    for (int b = 0; b + slots < schedule->options.micro_batches; b++)
        HD_RETURN_IF_ERROR(check_above(schedule, row_of(schedule, where, send, chunk, b),
                                       row_of(schedule, where, compute, chunk, b + slots)));
    return HD_OK;
}

static hd_status check_slots(const hdi_schedule *schedule, const int *where, int chunk)
{
    static const char *const names[HDI_SCHEDULE_BUFFERS] = {
        [HDI_BUFFER_ACTIVATIONS] = "activations",     [HDI_BUFFER_FORWARD_IN] = "input",
        [HDI_BUFFER_FORWARD_IN_KEPT] = "kept input",  [HDI_BUFFER_FORWARD_OUT] = "output",
        [HDI_BUFFER_BACKWARD_IN] = "output gradient", [HDI_BUFFER_BACKWARD_OUT] = "input gradient",
    };
    for (int i = 0; i < HDI_SCHEDULE_BUFFERS; i++) {
        const hdi_schedule_buffer buffer = (hdi_schedule_buffer)i;
        if (buffer == HDI_BUFFER_FORWARD_OUT || buffer == HDI_BUFFER_BACKWARD_OUT) continue;
        const int slots = hdi_schedule_slots(schedule, chunk, buffer);
        int b;
        if (hdi_schedule_slots_collide(schedule, where, chunk, buffer, slots, &b))
            return hdi_error(HD_ERROR_INTERNAL,
                             "schedule: stage %d chunk %d: %s of micro-batch %d is overwritten by "
                             "micro-batch %d before its last use: %d slots are too few",
                             schedule->options.stage, chunk, names[buffer], b, b + slots, slots);
    }
    HD_RETURN_IF_ERROR(check_out_slots(schedule, where, chunk, HDI_FORWARD));
    return check_out_slots(schedule, where, chunk, HDI_BACKWARD);
}

static hd_status check_table(const hdi_schedule *schedule)
{
    int *where = hdi_alloc_array(hdi_schedule_where_count(schedule), sizeof *where);
    if (!where) return hdi_error(HD_ERROR_MEMORY, "schedule: out of host memory for a check");

    hd_status status = index_rows(schedule, where);
    if (status == HD_OK) status = check_complete(schedule, where);
    for (int chunk = 0; chunk < schedule->options.chunks; chunk++) {
        for (int b = 0; b < schedule->options.micro_batches && status == HD_OK; b++)
            status = check_order(schedule, where, chunk, b);
        if (status == HD_OK) status = check_slots(schedule, where, chunk);
    }
    hdi_free(where);
    return status;
}

/* Index of the next row with `op` at or after `from`; row_count if there is none. */
static int next_row(const hdi_schedule *schedule, int from, hdi_schedule_op op)
{
    while (from < schedule->row_count && schedule->rows[from].op != op)
        from++;
    return from;
}

/* Messages carry no label, so the k-th send must be what the k-th receive expects. */
static hd_status check_channel(const hdi_schedule *sender, const hdi_schedule *receiver,
                               hdi_schedule_op send, hdi_schedule_op receive)
{
    int s = next_row(sender, 0, send), r = next_row(receiver, 0, receive);
    for (int message = 0; s < sender->row_count && r < receiver->row_count; message++) {
        const hdi_schedule_row *sent = &sender->rows[s], *expected = &receiver->rows[r];
        const int stages = sender->options.stages;
        if (sent->micro_batch != expected->micro_batch ||
            hdi_schedule_consumer(sender, sent) != hdi_schedule_consumer(receiver, expected))
            return hdi_error(HD_ERROR_INTERNAL,
                             "schedule: message %d from stage %d to stage %d on the %s channel is "
                             "sent for micro-batch %d chunk %d (row %d) but received for "
                             "micro-batch %d chunk %d (row %d)",
                             message, sender->options.stage, receiver->options.stage,
                             send == HDI_SEND_FORWARD ? "forward" : "backward", sent->micro_batch,
                             hdi_schedule_consumer(sender, sent) / stages, s, expected->micro_batch,
                             expected->chunk, r);
        s = next_row(sender, s + 1, send);
        r = next_row(receiver, r + 1, receive);
    }
    if (s < sender->row_count || r < receiver->row_count)
        return hdi_error(HD_ERROR_INTERNAL,
                         "schedule: stages %d and %d do not agree on the number of messages",
                         sender->options.stage, receiver->options.stage);
    return HD_OK;
}

static hd_status check_same_options(hdi_schedule *const *schedules, int stages)
{
    for (int stage = 0; stage < stages; stage++) {
        const hdi_schedule_options *options = &schedules[stage]->options;
        const hdi_schedule_options *first = &schedules[0]->options;
        if (options->stages != stages || options->stage != stage ||
            options->micro_batches != first->micro_batches || options->chunks != first->chunks ||
            (options->kind == HDI_SCHEDULE_FORWARD_ONLY) !=
                (first->kind == HDI_SCHEDULE_FORWARD_ONLY))
            return hdi_error(HD_ERROR_INTERNAL,
                             "schedule: table %d is %s, stage %d of %d, %d micro-batches, %d "
                             "chunks; table 0 is %s, %d stages, %d micro-batches, %d chunks",
                             stage, hdi_schedule_kind_name(options->kind), options->stage,
                             options->stages, options->micro_batches, options->chunks,
                             hdi_schedule_kind_name(first->kind), stages, first->micro_batches,
                             first->chunks);
    }
    return HD_OK;
}

hd_status hdi_schedule_check_tables(hdi_schedule *const *schedules, int stages)
{
    HD_RETURN_IF_ERROR(check_same_options(schedules, stages));
    for (int stage = 0; stage < stages; stage++)
        HD_RETURN_IF_ERROR(check_table(schedules[stage]));
    for (int stage = 0; stage < stages; stage++) {
        const hdi_schedule *lower = schedules[stage], *upper = schedules[(stage + 1) % stages];
        HD_RETURN_IF_ERROR(check_channel(lower, upper, HDI_SEND_FORWARD, HDI_RECV_FORWARD));
        HD_RETURN_IF_ERROR(check_channel(upper, lower, HDI_SEND_BACKWARD, HDI_RECV_BACKWARD));
    }
    return HD_OK;
}
