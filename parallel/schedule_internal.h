/* Shared by the files that make, check and run schedules. */
#ifndef HDI_PARALLEL_SCHEDULE_INTERNAL_H
#define HDI_PARALLEL_SCHEDULE_INTERNAL_H

#include "parallel/schedule.h"

/* The steps of hdi_schedule_create, in order; each fills its part of `schedule`. */
hd_status hdi_schedule_generate(hdi_schedule *schedule);
hd_status hdi_schedule_lower(hdi_schedule *schedule);
hd_status hdi_schedule_count_slots(hdi_schedule *schedule);

/* Most micro-batches that go through one chunk before the next. */
int hdi_schedule_largest_group(const hdi_schedule_options *options);

/* "forward", "receive for the forward", ... as they read in errors. */
const char *hdi_schedule_op_text(hdi_schedule_op op);

/* Whether the chunk does `op` once per micro-batch, or never. */
bool hdi_schedule_has(const hdi_schedule *schedule, int chunk, hdi_schedule_op op);

static inline bool hdi_schedule_is_compute(hdi_schedule_op op)
{
    return op == HDI_FORWARD || op == HDI_BACKWARD;
}

static inline bool hdi_schedule_is_send(hdi_schedule_op op)
{
    return op == HDI_SEND_FORWARD || op == HDI_SEND_BACKWARD;
}

static inline hdi_schedule_channel hdi_schedule_channel_of(hdi_schedule_op op)
{
    return op < HDI_RECV_BACKWARD ? HDI_CHANNEL_FORWARD : HDI_CHANNEL_BACKWARD;
}

/* The stage at the other end of a communication op. */
int hdi_schedule_peer(const hdi_schedule *schedule, hdi_schedule_op op);

/* The virtual stage that takes the message which `row` sends or receives. */
int hdi_schedule_consumer(const hdi_schedule *schedule, const hdi_schedule_row *row);

/* The inverse of the table: where[index] is the row of (op, chunk, micro-batch), or -1. The caller
 * gives room for hdi_schedule_where_count() ints. */
size_t hdi_schedule_where_count(const hdi_schedule *schedule);
size_t hdi_schedule_where_index(const hdi_schedule *schedule, hdi_schedule_op op, int chunk,
                                int micro_batch);

/* Find two micro-batches of `chunk` whose lives in a slot of `buffer` overlap when there are `slots`
 * of them; true, and the earlier of the two, if there are such. */
bool hdi_schedule_slots_collide(const hdi_schedule *schedule, const int *where, int chunk,
                                hdi_schedule_buffer buffer, int slots, int *micro_batch);

/* Every stage's table for itself, then the order of messages between neighbours. */
hd_status hdi_schedule_check_tables(hdi_schedule *const *schedules, int stages);

#endif
