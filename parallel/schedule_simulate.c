/* All stages' tables on a clock: makespan and bubble, or who waits for whom in a deadlock. */
#include <stdio.h>

#include "core/error.h"
#include "core/memory.h"
#include "parallel/schedule_internal.h"

/* Both ends of one message; a time is negative until the end is ready. */
typedef struct transfer {
    double sent, posted;
} transfer;

typedef struct stage_state {
    int row; /* next to run */
    double clock;
    int in_flight;
} stage_state;

typedef struct simulation {
    hdi_schedule *const *schedules;
    int stages, micro_batches;
    const hdi_schedule_costs *costs;
    transfer *transfers; /* [HDI_CHANNELS][virtual stages][micro-batches], by consumer */
    stage_state *states; /* [stages] */
    hdi_stage_timing *timings;
} simulation;

/* What keeps a compute row from running. */
typedef struct obstacle {
    enum { NOTHING, RECEIVE, SEND } kind;
    hdi_schedule_row row; /* the communication row that is not over */
} obstacle;

static transfer *find_transfer(const simulation *sim, const hdi_schedule *schedule,
                               const hdi_schedule_row *row)
{
    const size_t virtual_stages = (size_t)sim->stages * (size_t)schedule->options.chunks;
    const size_t consumer = (size_t)hdi_schedule_consumer(schedule, row);
    return &sim->transfers[((size_t)row->channel * virtual_stages + consumer) *
                               (size_t)sim->micro_batches +
                           (size_t)row->micro_batch];
}

static double later(double a, double b)
{
    return a > b ? a : b;
}

/* Time at which the row's chunk may compute: its message is there and its output slot is free. */
static obstacle find_start(const simulation *sim, const hdi_schedule *schedule,
                           const hdi_schedule_row *row, double *start)
{
    const bool forward = row->op == HDI_FORWARD;
    obstacle wait = {.row = *row};
    wait.row.channel = hdi_schedule_channel_of(row->op);

    wait.row.op = forward ? HDI_RECV_FORWARD : HDI_RECV_BACKWARD;
    if (hdi_schedule_has(schedule, row->chunk, wait.row.op)) {
        const transfer *message = find_transfer(sim, schedule, &wait.row);
        wait.kind = RECEIVE;
        if (message->sent < 0) return wait;
        *start = later(*start, later(message->sent, message->posted) + sim->costs->latency);
    }
    wait.row.op = forward ? HDI_SEND_FORWARD : HDI_SEND_BACKWARD;
    wait.row.micro_batch -= hdi_schedule_slots(
        schedule, row->chunk, forward ? HDI_BUFFER_FORWARD_OUT : HDI_BUFFER_BACKWARD_OUT);
    if (sim->costs->sends == HDI_SENDS_RENDEZVOUS && wait.row.micro_batch >= 0 &&
        hdi_schedule_has(schedule, row->chunk, wait.row.op)) {
        const transfer *message = find_transfer(sim, schedule, &wait.row);
        wait.kind = SEND;
        if (message->posted < 0) return wait;
        *start = later(*start, later(message->sent, message->posted) + sim->costs->latency);
    }
    wait.kind = NOTHING;
    return wait;
}

static double cost_of(const simulation *sim, const hdi_schedule *schedule,
                      const hdi_schedule_row *row)
{
    const double *costs = row->op == HDI_FORWARD ? sim->costs->forward : sim->costs->backward;
    return costs ? costs[hdi_schedule_virtual_stage(schedule, row->chunk)] : 1;
}

/* Run the stage until it waits or is done; true if it got anywhere. */
static bool advance(simulation *sim, int stage)
{
    const hdi_schedule *schedule = sim->schedules[stage];
    stage_state *state = &sim->states[stage];
    hdi_stage_timing *timing = &sim->timings[stage];
    const int before = state->row;

    for (; state->row < schedule->row_count; state->row++) {
        const hdi_schedule_row *row = &schedule->rows[state->row];
        if (!hdi_schedule_is_compute(row->op)) {
            transfer *message = find_transfer(sim, schedule, row);
            if (hdi_schedule_is_send(row->op))
                message->sent = state->clock;
            else
                message->posted = state->clock;
            continue;
        }
        double start = state->clock;
        if (find_start(sim, schedule, row, &start).kind != NOTHING) break;
        const double cost = cost_of(sim, schedule, row);
        state->clock = start + cost;
        timing->busy += cost;
        state->in_flight += row->op == HDI_FORWARD ? 1 : -1;
        if (state->in_flight > timing->peak_in_flight) timing->peak_in_flight = state->in_flight;
        if (!hdi_schedule_has_backward(schedule)) state->in_flight--;
    }
    return state->row > before;
}

/* "stage 0 (row 5, backward of micro-batch 0 chunk 0) waits for its gradient from stage 1". */
static size_t explain_wait(const simulation *sim, int stage, char *text, size_t room, int *peer)
{
    const hdi_schedule *schedule = sim->schedules[stage];
    const int index = sim->states[stage].row;
    *peer = -1;
    if (index == schedule->row_count)
        return (size_t)snprintf(text, room, "stage %d has finished its table", stage);

    const hdi_schedule_row *row = &schedule->rows[index];
    double start = 0;
    const obstacle wait = find_start(sim, schedule, row, &start);
    const bool forward = row->op == HDI_FORWARD;
    *peer = hdi_schedule_peer(schedule, wait.row.op);
    const size_t length =
        (size_t)snprintf(text, room, "stage %d (row %d, %s of micro-batch %d chunk %d) ", stage,
                         index, hdi_schedule_op_text(row->op), row->micro_batch, row->chunk);
    if (wait.kind == RECEIVE)
        return length + (size_t)snprintf(text + length, room - length,
                                         "waits for its %s from stage %d",
                                         forward ? "input" : "gradient", *peer);
    return length + (size_t)snprintf(text + length, room - length,
                                     "waits for stage %d to receive the %s of micro-batch %d",
                                     *peer, forward ? "output" : "gradient", wait.row.micro_batch);
}

/* Follow the waits from one stuck stage until they close a circle or end. */
static hd_status explain_deadlock(const simulation *sim)
{
    enum { MOST_HOPS = 12, MOST_TEXT = 192 };
    char text[MOST_HOPS * MOST_TEXT];
    size_t length = 0;
    int first = 0;
    while (sim->states[first].row == sim->schedules[first]->row_count)
        first++;

    int stage = first;
    for (int hop = 0; hop < MOST_HOPS && stage >= 0 && (hop == 0 || stage != first); hop++) {
        if (hop > 0) length += (size_t)snprintf(text + length, sizeof text - length, "; ");
        length += explain_wait(sim, stage, text + length, sizeof text - length, &stage);
    }
    return hdi_error(HD_ERROR_INTERNAL, "schedule: deadlock with %s sends: %s",
                     sim->costs->sends == HDI_SENDS_RENDEZVOUS ? "rendezvous" : "buffered", text);
}

static hd_status run(simulation *sim, hdi_schedule_timing *out)
{
    bool moved = true;
    while (moved) {
        moved = false;
        for (int stage = 0; stage < sim->stages; stage++)
            moved |= advance(sim, stage);
    }
    double busiest = 0;
    *out = (hdi_schedule_timing){0};
    for (int stage = 0; stage < sim->stages; stage++) {
        if (sim->states[stage].row < sim->schedules[stage]->row_count) return explain_deadlock(sim);
        out->makespan = later(out->makespan, sim->states[stage].clock);
        busiest = later(busiest, sim->timings[stage].busy);
    }
    out->bubble = out->makespan - busiest;
    return HD_OK;
}

hd_status hdi_schedule_simulate(hdi_schedule *const *schedules, int stages,
                                const hdi_schedule_costs *costs, hdi_schedule_timing *out,
                                hdi_stage_timing *per_stage)
{
    *out = (hdi_schedule_timing){0};
    HD_RETURN_IF_ERROR(hdi_schedule_check_tables(schedules, stages));

    const hdi_schedule_options *options = &schedules[0]->options;
    const size_t messages = (size_t)HDI_CHANNELS * (size_t)stages * (size_t)options->chunks *
                            (size_t)options->micro_batches;
    simulation sim = {
        .schedules = schedules,
        .stages = stages,
        .micro_batches = options->micro_batches,
        .costs = costs,
        .transfers = hdi_alloc_array(messages, sizeof *sim.transfers),
        .states = hdi_alloc_array((size_t)stages, sizeof *sim.states),
        .timings = hdi_alloc_array((size_t)stages, sizeof *sim.timings),
    };
    hd_status status = HD_OK;
    if (!sim.transfers || !sim.states || !sim.timings) {
        status = hdi_error(HD_ERROR_MEMORY, "schedule: out of host memory to simulate %d stages",
                           stages);
    } else {
        for (size_t i = 0; i < messages; i++)
            sim.transfers[i] = (transfer){.sent = -1, .posted = -1};
        status = run(&sim, out);
    }
    for (int stage = 0; status == HD_OK && per_stage && stage < stages; stage++)
        per_stage[stage] = sim.timings[stage];
    hdi_free(sim.transfers);
    hdi_free(sim.states);
    hdi_free(sim.timings);
    return status;
}

hd_status hdi_schedule_check(hdi_schedule *const *schedules, int stages)
{
    hdi_schedule_timing timing;
    HD_RETURN_IF_ERROR(hdi_schedule_simulate(
        schedules, stages, &(hdi_schedule_costs){.sends = HDI_SENDS_BUFFERED}, &timing, NULL));
    return hdi_schedule_simulate(
        schedules, stages, &(hdi_schedule_costs){.sends = HDI_SENDS_RENDEZVOUS}, &timing, NULL);
}
