/* Schedules: names, life cycle, and where things are on the pipeline. */
#include "parallel/schedule.h"

#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "parallel/schedule_internal.h"

/* Tables are indexed with int; this leaves room for six rows per (micro-batch, chunk). */
enum { MOST_CHUNK_RUNS = 1 << 24 };

static const char *const kind_names[] = {
    [HDI_SCHEDULE_GPIPE] = "gpipe",
    [HDI_SCHEDULE_ONE_F_ONE_B] = "1f1b",
    [HDI_SCHEDULE_INTERLEAVED] = "interleaved",
    [HDI_SCHEDULE_FORWARD_ONLY] = "forward",
};
enum { KINDS = sizeof kind_names / sizeof *kind_names };

const char *hdi_schedule_kind_name(hdi_schedule_kind kind)
{
    return (unsigned)kind < KINDS ? kind_names[kind] : "unknown";
}

hd_status hdi_schedule_kind_parse(const char *name, hdi_schedule_kind *out)
{
    for (int kind = 0; kind < KINDS; kind++) {
        if (strcmp(name, kind_names[kind]) == 0) {
            *out = (hdi_schedule_kind)kind;
            return HD_OK;
        }
    }
    return hdi_error(HD_ERROR_CONFIG,
                     "schedule is \"%s\", want \"gpipe\", \"1f1b\", \"interleaved\" or \"forward\"",
                     name);
}

const char *hdi_schedule_op_text(hdi_schedule_op op)
{
    static const char *const texts[HDI_SCHEDULE_OPS] = {
        [HDI_RECV_FORWARD] = "receive for the forward",
        [HDI_FORWARD] = "forward",
        [HDI_SEND_FORWARD] = "send after the forward",
        [HDI_RECV_BACKWARD] = "receive for the backward",
        [HDI_BACKWARD] = "backward",
        [HDI_SEND_BACKWARD] = "send after the backward",
    };
    return (unsigned)op < HDI_SCHEDULE_OPS ? texts[op] : "unknown row";
}

static hd_status check_options(const hdi_schedule_options *options)
{
    if ((unsigned)options->kind >= KINDS)
        return hdi_error(HD_ERROR_ARGUMENT, "schedule: kind is %d, want 0 to %d",
                         (int)options->kind, KINDS - 1);
    if (options->stages < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "schedule: stages is %d, want at least 1",
                         options->stages);
    if (options->stage < 0 || options->stage >= options->stages)
        return hdi_error(HD_ERROR_ARGUMENT, "schedule: stage is %d, want 0 to %d", options->stage,
                         options->stages - 1);
    if (options->micro_batches < 1)
        return hdi_error(HD_ERROR_ARGUMENT, "schedule: micro-batches is %d, want at least 1",
                         options->micro_batches);
    if (options->chunks < 0 || options->chunks > MOST_CHUNK_RUNS / options->micro_batches ||
        options->stages > MOST_CHUNK_RUNS / (options->chunks > 0 ? options->chunks : 1))
        return hdi_error(HD_ERROR_ARGUMENT,
                         "schedule: %d chunks of %d stages with %d micro-batches, want at most %d "
                         "runs of a chunk per stage",
                         options->chunks, options->stages, options->micro_batches, MOST_CHUNK_RUNS);
    if (options->kind == HDI_SCHEDULE_ONE_F_ONE_B && options->chunks > 1)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout.schedule 1f1b runs one chunk a stage, layout.chunks is %d: choose "
                         "the schedule \"interleaved\", or 1 chunk",
                         options->chunks);
    return HD_OK;
}

hd_status hdi_schedule_create(const hdi_schedule_options *options, hdi_schedule **out)
{
    *out = NULL;
    HD_RETURN_IF_ERROR(check_options(options));
    hdi_schedule *schedule = hdi_alloc(sizeof *schedule);
    if (!schedule) return hdi_error(HD_ERROR_MEMORY, "schedule: out of host memory");
    schedule->options = *options;
    if (schedule->options.chunks == 0) schedule->options.chunks = 1;

    hd_status status = hdi_schedule_generate(schedule);
    if (status == HD_OK) status = hdi_schedule_lower(schedule);
    if (status == HD_OK) status = hdi_schedule_count_slots(schedule);
    if (status != HD_OK) {
        hdi_schedule_destroy(schedule);
        return status;
    }
    *out = schedule;
    return HD_OK;
}

void hdi_schedule_destroy(hdi_schedule *schedule)
{
    if (!schedule) return;
    hdi_free(schedule->actions);
    hdi_free(schedule->rows);
    hdi_free(schedule->slots);
    hdi_free(schedule);
}

int hdi_schedule_virtual_stage(const hdi_schedule *schedule, int chunk)
{
    return chunk * schedule->options.stages + schedule->options.stage;
}

bool hdi_schedule_has_backward(const hdi_schedule *schedule)
{
    return schedule->options.kind != HDI_SCHEDULE_FORWARD_ONLY;
}

int hdi_schedule_slots(const hdi_schedule *schedule, int chunk, hdi_schedule_buffer buffer)
{
    return schedule->slots[chunk][buffer];
}

bool hdi_schedule_has(const hdi_schedule *schedule, int chunk, hdi_schedule_op op)
{
    const int stages = schedule->options.stages;
    const int virtual_stage = hdi_schedule_virtual_stage(schedule, chunk);
    const bool first = virtual_stage == 0;
    const bool last = virtual_stage == stages * schedule->options.chunks - 1;

    if (op >= HDI_RECV_BACKWARD && !hdi_schedule_has_backward(schedule)) return false;
    switch (op) {
    case HDI_FORWARD:
    case HDI_BACKWARD: return true;
    case HDI_RECV_FORWARD:
    case HDI_SEND_BACKWARD: return stages > 1 && !first;
    case HDI_SEND_FORWARD:
    case HDI_RECV_BACKWARD: return stages > 1 && !last;
    case HDI_SCHEDULE_OPS: break;
    }
    return false;
}

int hdi_schedule_peer(const hdi_schedule *schedule, hdi_schedule_op op)
{
    const int stages = schedule->options.stages;
    const bool upwards = op == HDI_SEND_FORWARD || op == HDI_RECV_BACKWARD;
    return (schedule->options.stage + (upwards ? 1 : stages - 1)) % stages;
}

int hdi_schedule_consumer(const hdi_schedule *schedule, const hdi_schedule_row *row)
{
    const int own = hdi_schedule_virtual_stage(schedule, row->chunk);
    if (row->op == HDI_SEND_FORWARD) return own + 1;
    if (row->op == HDI_SEND_BACKWARD) return own - 1;
    return own;
}

size_t hdi_schedule_where_count(const hdi_schedule *schedule)
{
    return (size_t)HDI_SCHEDULE_OPS * (size_t)schedule->options.chunks *
           (size_t)schedule->options.micro_batches;
}

size_t hdi_schedule_where_index(const hdi_schedule *schedule, hdi_schedule_op op, int chunk,
                                int micro_batch)
{
    return ((size_t)op * (size_t)schedule->options.chunks + (size_t)chunk) *
               (size_t)schedule->options.micro_batches +
           (size_t)micro_batch;
}
