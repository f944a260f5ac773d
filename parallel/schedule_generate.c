/* The compute order of one stage. All kinds walk the same two lists, forwards and backwards, and
 * differ only in how many forwards they run before they alternate. */
#include "core/error.h"
#include "core/memory.h"
#include "parallel/schedule_internal.h"

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* Groups of micro-batches that go through one chunk before the next. A group of at least `stages`
 * comes round to the first stage's next chunk just when that stage is free; larger groups first,
 * because the warm-up that suits the largest must come before it. */
static int group_count(const hdi_schedule_options *options)
{
    const int groups = options->micro_batches / options->stages;
    return groups > 0 ? groups : 1;
}

static int group_size(const hdi_schedule_options *options, int group)
{
    const int groups = group_count(options);
    return options->micro_batches / groups + (group < options->micro_batches % groups);
}

int hdi_schedule_largest_group(const hdi_schedule_options *options)
{
    return group_size(options, 0);
}

static int warm_up(const hdi_schedule_options *options)
{
    const int total = options->micro_batches * options->chunks;
    const int after = options->stages - options->stage - 1; /* stages behind this one */
    switch (options->kind) {
    case HDI_SCHEDULE_GPIPE:
    case HDI_SCHEDULE_FORWARD_ONLY: return total;
    case HDI_SCHEDULE_ONE_F_ONE_B: return smaller(total, after);
    case HDI_SCHEDULE_INTERLEAVED: break;
    }
    if (options->chunks == 1) return smaller(total, after);
    return smaller(total, 2 * after + (options->chunks - 1) * hdi_schedule_largest_group(options));
}

/* Backwards take the groups in the same order, and the chunks of a group from last to first. */
static void fill_order(const hdi_schedule_options *options, hdi_schedule_op op,
                       hdi_schedule_action *order)
{
    const int chunks = options->chunks;
    int next = 0, first = 0;
    for (int group = 0; group < group_count(options); group++) {
        const int size = group_size(options, group);
        for (int turn = 0; turn < chunks; turn++)
            for (int i = 0; i < size; i++)
                order[next++] = (hdi_schedule_action){
                    .op = op,
                    .micro_batch = first + i,
                    .chunk = op == HDI_FORWARD ? turn : chunks - 1 - turn,
                };
        first += size;
    }
}

hd_status hdi_schedule_generate(hdi_schedule *schedule)
{
    const hdi_schedule_options *options = &schedule->options;
    const int total = options->micro_batches * options->chunks;
    const int backwards = hdi_schedule_has_backward(schedule) ? total : 0;
    const int warm = warm_up(options);

    schedule->action_count = total + backwards;
    schedule->actions = hdi_alloc_array((size_t)schedule->action_count, sizeof *schedule->actions);
    hdi_schedule_action *orders = hdi_alloc_array(2 * (size_t)total, sizeof *orders);
    if (!schedule->actions || !orders) {
        hdi_free(orders);
        return hdi_error(HD_ERROR_MEMORY, "schedule: out of host memory for %d actions",
                         schedule->action_count);
    }
    hdi_schedule_action *forward = orders, *backward = orders + total;
    fill_order(options, HDI_FORWARD, forward);
    fill_order(options, HDI_BACKWARD, backward);

    hdi_schedule_action *next = schedule->actions;
    for (int i = 0; i < warm; i++)
        *next++ = forward[i];
    for (int i = 0; i < backwards; i++) {
        if (warm + i < total) *next++ = forward[warm + i];
        *next++ = backward[i];
    }
    hdi_free(orders);
    return HD_OK;
}
