/* From compute order to rows with communication, and the buffers that these rows need. */
#include "core/error.h"
#include "core/memory.h"
#include "parallel/schedule_internal.h"

/* Output slots: one being sent while the next is computed. */
enum { OUT_SLOTS = 2 };

static void add_row(hdi_schedule *schedule, const hdi_schedule_action *action, hdi_schedule_op op)
{
    if (!hdi_schedule_has(schedule, action->chunk, op)) return;
    schedule->rows[schedule->row_count++] = (hdi_schedule_row){
        .op = op,
        .micro_batch = action->micro_batch,
        .chunk = action->chunk,
        .peer = hdi_schedule_is_compute(op) ? -1 : hdi_schedule_peer(schedule, op),
        .channel = hdi_schedule_channel_of(op),
    };
}

static void add_receive(hdi_schedule *schedule, const hdi_schedule_action *action)
{
    add_row(schedule, action, action->op == HDI_FORWARD ? HDI_RECV_FORWARD : HDI_RECV_BACKWARD);
}

/* A receive stands one compute before the one that needs it, so that the transfer overlaps. */
hd_status hdi_schedule_lower(hdi_schedule *schedule)
{
    schedule->rows = hdi_alloc_array(3 * (size_t)schedule->action_count, sizeof *schedule->rows);
    if (!schedule->rows)
        return hdi_error(HD_ERROR_MEMORY, "schedule: out of host memory for the rows of %d actions",
                         schedule->action_count);
    schedule->row_count = 0;
    add_receive(schedule, &schedule->actions[0]);
    for (int i = 0; i < schedule->action_count; i++) {
        const hdi_schedule_action *action = &schedule->actions[i];
        if (i + 1 < schedule->action_count) add_receive(schedule, action + 1);
        add_row(schedule, action, action->op);
        add_row(schedule, action, action->op == HDI_FORWARD ? HDI_SEND_FORWARD : HDI_SEND_BACKWARD);
    }
    return HD_OK;
}

/* First and last row that need `buffer`; false if the chunk has none. With one stage the chunk's
 * neighbours are on this rank: the life of an input begins where the neighbour writes it. */
static bool find_life(const hdi_schedule *schedule, const int *where, int chunk, int micro_batch,
                      hdi_schedule_buffer buffer, int *first, int *last)
{
    const bool forward = buffer != HDI_BUFFER_BACKWARD_IN;
    const hdi_schedule_op compute = forward ? HDI_FORWARD : HDI_BACKWARD;
    hdi_schedule_op begin = compute, end = compute;
    int begin_chunk = chunk;

    if (buffer != HDI_BUFFER_ACTIVATIONS) {
        const hdi_schedule_op receive = forward ? HDI_RECV_FORWARD : HDI_RECV_BACKWARD;
        const int producer = forward ? chunk - 1 : chunk + 1;
        if (hdi_schedule_has(schedule, chunk, receive))
            begin = receive;
        else if (schedule->options.stages == 1 && producer >= 0 &&
                 producer < schedule->options.chunks && hdi_schedule_has(schedule, chunk, compute))
            begin_chunk = producer;
        else
            return false;
    }
    if ((buffer == HDI_BUFFER_ACTIVATIONS || buffer == HDI_BUFFER_FORWARD_IN_KEPT) &&
        hdi_schedule_has_backward(schedule))
        end = HDI_BACKWARD;
    *first = where[hdi_schedule_where_index(schedule, begin, begin_chunk, micro_batch)];
    *last = where[hdi_schedule_where_index(schedule, end, chunk, micro_batch)];
    return true;
}

bool hdi_schedule_slots_collide(const hdi_schedule *schedule, const int *where, int chunk,
                                hdi_schedule_buffer buffer, int slots, int *micro_batch)
{
    int first = 0, last = 0, next_first = 0, next_last = 0;
    *micro_batch = 0;
    if (!find_life(schedule, where, chunk, 0, buffer, &first, &last)) return false;
    if (slots == 0) return true;
    /* Computes of a chunk run in micro-batch order, so neighbours in a slot are enough. */
    for (int b = 0; b + slots < schedule->options.micro_batches; b++) {
        find_life(schedule, where, chunk, b, buffer, &first, &last);
        find_life(schedule, where, chunk, b + slots, buffer, &next_first, &next_last);
        if (next_first > last) continue;
        *micro_batch = b;
        return true;
    }
    return false;
}

/* Between the pipeline's ends, from one chunk to the next, a group of more micro-batches than stages
 * arrives before its turn: as many outputs as it is larger have to wait at the sender. */
static int out_slots(const hdi_schedule *schedule, int chunk, hdi_schedule_op send)
{
    if (!hdi_schedule_has(schedule, chunk, send)) return 0;
    const int last = schedule->options.stages - 1;
    const int end = send == HDI_SEND_FORWARD ? last : 0;
    const int waiting = hdi_schedule_largest_group(&schedule->options) - schedule->options.stages;
    int slots = OUT_SLOTS;
    if (schedule->options.stage == end && waiting + 1 > slots) slots = waiting + 1;
    return slots < schedule->options.micro_batches ? slots : schedule->options.micro_batches;
}

hd_status hdi_schedule_count_slots(hdi_schedule *schedule)
{
    const int chunks = schedule->options.chunks;
    schedule->slots = hdi_alloc_array((size_t)chunks, sizeof *schedule->slots);
    int *where = hdi_alloc_array(hdi_schedule_where_count(schedule), sizeof *where);
    if (!schedule->slots || !where) {
        hdi_free(where);
        return hdi_error(HD_ERROR_MEMORY, "schedule: out of host memory for %d chunks", chunks);
    }
    for (int i = 0; i < schedule->row_count; i++) {
        const hdi_schedule_row *row = &schedule->rows[i];
        where[hdi_schedule_where_index(schedule, row->op, row->chunk, row->micro_batch)] = i;
    }
    for (int chunk = 0; chunk < chunks; chunk++) {
        int *slots = schedule->slots[chunk];
        for (int buffer = 0; buffer < HDI_SCHEDULE_BUFFERS; buffer++) {
            int micro_batch;
            if (buffer == HDI_BUFFER_FORWARD_OUT)
                slots[buffer] = out_slots(schedule, chunk, HDI_SEND_FORWARD);
            else if (buffer == HDI_BUFFER_BACKWARD_OUT)
                slots[buffer] = out_slots(schedule, chunk, HDI_SEND_BACKWARD);
            else
                while (hdi_schedule_slots_collide(schedule, where, chunk,
                                                  (hdi_schedule_buffer)buffer, slots[buffer],
                                                  &micro_batch))
                    slots[buffer]++;
        }
    }
    hdi_free(where);
    return HD_OK;
}
