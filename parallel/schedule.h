/* Pipeline schedules: what one pipeline rank computes in which order, and when it sends and receives. */
#ifndef HDI_PARALLEL_SCHEDULE_H
#define HDI_PARALLEL_SCHEDULE_H

#include <heddle/status.h>

/* With p stages, v chunks per stage, m micro-batches, and F and B the time of one stage's forward
 * and backward (all its chunks), stages being equal:
 *
 *   kind         bubble               most micro-batch chunks in flight on stage i
 *   gpipe        (p-1)(F+B)/v         m v
 *   1f1b         (p-1)(F+B)           min(m, p-i)
 *   interleaved  (p-1)(F+B)/v         min(m v, 2(p-i-1) + (v-1)G + 1)
 *   forward      (p-1)F/v             1
 *
 * With v > 1 micro-batches go through the chunks in max(1, m/p) groups as equal as possible, the
 * larger ones first; G is the size of the first. G = p where p divides m; where it does not, G is
 * larger, which costs memory and not time. Only m < p costs time: the one group cannot fill the
 * pipeline, so each of its v-1 turns around it waits for p-m more chunks, and the bubble is
 * ((p-1) + (v-1)(p-m)) (F+B)/v. Interleaved with v = 1 is 1f1b. */
typedef enum hdi_schedule_kind {
    HDI_SCHEDULE_GPIPE = 0,   /* all forwards, then all backwards */
    HDI_SCHEDULE_ONE_F_ONE_B, /* one chunk; after a warm-up, forwards and backwards alternate */
    HDI_SCHEDULE_INTERLEAVED, /* the same with several chunks per stage */
    HDI_SCHEDULE_FORWARD_ONLY /* validation and generation */
} hdi_schedule_kind;

/* "gpipe", "1f1b", "interleaved", "forward". */
const char *hdi_schedule_kind_name(hdi_schedule_kind kind);
hd_status hdi_schedule_kind_parse(const char *name, hdi_schedule_kind *out); /* else CONFIG */

/* What a row does. The two channels are the first three ops and the last three: activations go from
 * virtual stage to virtual stage upwards, gradients downwards. */
typedef enum hdi_schedule_op {
    HDI_RECV_FORWARD = 0, /* post the receive of the chunk's input */
    HDI_FORWARD,
    HDI_SEND_FORWARD,  /* start sending the chunk's output */
    HDI_RECV_BACKWARD, /* post the receive of the gradient of the chunk's output */
    HDI_BACKWARD,
    HDI_SEND_BACKWARD, /* start sending the gradient of the chunk's input */
    HDI_SCHEDULE_OPS
} hdi_schedule_op;

/* A channel is a direction of data between two neighbours. Messages on one (sender, receiver,
 * channel) match in the order in which they are posted. */
typedef enum hdi_schedule_channel {
    HDI_CHANNEL_FORWARD = 0,
    HDI_CHANNEL_BACKWARD,
    HDI_CHANNELS
} hdi_schedule_channel;

typedef struct hdi_schedule_action {
    hdi_schedule_op op; /* HDI_FORWARD or HDI_BACKWARD */
    int micro_batch, chunk;
} hdi_schedule_action;

/* How an executor runs the rows, in order: a receive is posted and a send is started without
 * waiting; a forward or backward row waits for its own receive, and for the send that still reads
 * the slot that it is about to write (micro-batch minus slot count, same chunk). A receive row
 * never has to wait: the schedule's slot counts see to it that its slot has been read. */
typedef struct hdi_schedule_row {
    hdi_schedule_op op;
    int micro_batch, chunk;       /* of this rank, also on communication rows */
    int peer;                     /* pipeline stage at the other end; -1 on compute rows */
    hdi_schedule_channel channel; /* meaningful on communication rows */
} hdi_schedule_row;

/* What a chunk holds per micro-batch; micro-batch b uses slot b % hdi_schedule_slots(). */
typedef enum hdi_schedule_buffer {
    HDI_BUFFER_ACTIVATIONS = 0, /* saved from the forward to the backward */
    HDI_BUFFER_FORWARD_IN,      /* input: from the posted receive to the end of the forward */
    HDI_BUFFER_FORWARD_IN_KEPT, /* the same input where the backward reads it in place */
    HDI_BUFFER_FORWARD_OUT,     /* output: from the forward to the end of its send */
    HDI_BUFFER_BACKWARD_IN,     /* gradient of the output: from the receive to the backward */
    HDI_BUFFER_BACKWARD_OUT, /* gradient of the input: from the backward to the end of its send */
    HDI_SCHEDULE_BUFFERS
} hdi_schedule_buffer;

typedef struct hdi_schedule_options {
    hdi_schedule_kind kind;
    int stages, stage; /* size of the pipeline, and this rank's place on it */
    int micro_batches;
    int chunks; /* per stage; zero means 1. Chunk c of stage i is virtual stage c * stages + i. */
} hdi_schedule_options;

/* One stage's table. Read it freely; only tests write to it. */
typedef struct hdi_schedule {
    hdi_schedule_options options; /* chunks is at least 1 */
    hdi_schedule_action *actions; /* owned: the compute order */
    int action_count;
    hdi_schedule_row *rows; /* owned: the same with communication */
    int row_count;
    int (*slots)[HDI_SCHEDULE_BUFFERS]; /* owned: per chunk */
} hdi_schedule;

/* Make the table of one stage; needs no other stage's. Local. ARGUMENT on sizes out of range,
 * CONFIG where the kind takes one chunk and got more. */
hd_status hdi_schedule_create(const hdi_schedule_options *options, hdi_schedule **out);
void hdi_schedule_destroy(hdi_schedule *schedule); /* takes NULL */

/* Slots that `chunk` needs of a buffer; 0 if it has none. Where producer and consumer are chunks of
 * one rank (one stage, several chunks) nothing is sent: the producer writes its output into the
 * consumer's input slot, counted there, and has no output slots of its own. */
int hdi_schedule_slots(const hdi_schedule *schedule, int chunk, hdi_schedule_buffer buffer);

int hdi_schedule_virtual_stage(const hdi_schedule *schedule, int chunk);
bool hdi_schedule_has_backward(const hdi_schedule *schedule);

/* Prove all stages' tables together, [stages] in stage order: every forward once before its
 * backward, computes of a chunk in micro-batch order, communication complete and in FIFO order, no
 * slot overwritten too early, no deadlock whether sends are buffered or wait for their receive.
 * Local. INTERNAL with the stage, row and reason; `*schedules` is only read. */
hd_status hdi_schedule_check(hdi_schedule *const *schedules, int stages);

typedef enum hdi_send_mode {
    HDI_SENDS_BUFFERED = 0, /* a send is over when it is started */
    HDI_SENDS_RENDEZVOUS    /* a send is over when its receive has taken it */
} hdi_send_mode;

typedef struct hdi_schedule_costs {
    const double *forward;  /* seconds per virtual stage, [stages * chunks]; NULL: all 1 */
    const double *backward; /* the same; NULL: all 1 */
    double latency;         /* seconds from both ends being ready to the arrival of a message */
    hdi_send_mode sends;
} hdi_schedule_costs;

typedef struct hdi_schedule_timing {
    double makespan; /* seconds from the first compute to the end of the last */
    double bubble;   /* makespan minus the busiest stage's compute time */
} hdi_schedule_timing;

typedef struct hdi_stage_timing {
    double busy;        /* seconds computing */
    int peak_in_flight; /* most (micro-batch, chunk) forwards whose backward was still to come */
} hdi_stage_timing;

/* Run all stages' tables on a clock. `per_stage` has room for [stages], or is NULL. Local.
 * INTERNAL where the tables are wrong or deadlock, naming who waits for whom. */
hd_status hdi_schedule_simulate(hdi_schedule *const *schedules, int stages,
                                const hdi_schedule_costs *costs, hdi_schedule_timing *out,
                                hdi_stage_timing *per_stage);

#endif
