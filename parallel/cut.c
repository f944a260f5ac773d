/* Which of two cuts a schedule is faster with. */
#include "parallel/cut.h"

#include <string.h>

#include "core/error.h"
#include "core/memory.h"

static void cost_stages(const hdi_balance_options *balance, const int *counts, double *forward,
                        double *backward)
{
    for (int stage = 0, layer = 0; stage < balance->stages; stage++) {
        double cost = stage == 0 ? balance->first_cost : 0;
        if (stage == balance->stages - 1) cost += balance->last_cost;
        for (int i = 0; i < counts[stage]; i++, layer++)
            cost += balance->costs ? balance->costs[layer] : 1;
        forward[stage] = cost;
        backward[stage] = 2 * cost;
    }
}

static hd_status time_cut(const hdi_balance_options *balance, hdi_schedule *const *schedules,
                          const int *counts, double *seconds)
{
    double *forward = hdi_alloc_array(2 * (size_t)balance->stages, sizeof *forward);
    if (!forward) return hdi_error(HD_ERROR_MEMORY, "balance: out of host memory");
    double *backward = forward + balance->stages;
    cost_stages(balance, counts, forward, backward);
    hdi_schedule_timing timing = {0};
    const hd_status status = hdi_schedule_simulate(
        schedules, balance->ranks, &(hdi_schedule_costs){.forward = forward, .backward = backward},
        &timing, NULL);
    *seconds = timing.makespan;
    hdi_free(forward);
    return status;
}

/* Take `other` if the schedule ends sooner with it. */
static hd_status choose(const hdi_balance_options *balance, const hdi_schedule_options *options,
                        hdi_schedule **schedules, const int *other, int *counts)
{
    hdi_schedule_options of_stage = *options;
    for (int i = 0; i < balance->ranks; i++) {
        of_stage.stage = i;
        HD_RETURN_IF_ERROR(hdi_schedule_create(&of_stage, &schedules[i]));
    }
    double seconds, others;
    HD_RETURN_IF_ERROR(time_cut(balance, schedules, counts, &seconds));
    HD_RETURN_IF_ERROR(time_cut(balance, schedules, other, &others));
    if (others < seconds) memcpy(counts, other, (size_t)balance->stages * sizeof *counts);
    return HD_OK;
}

hd_status hdi_cut(const hdi_balance_options *balance, const hdi_schedule_options *schedule,
                  int *counts_out)
{
    const int chunks = schedule->chunks > 1 ? schedule->chunks : 1;
    hdi_balance_options even = *balance;
    even.stages = schedule->stages * chunks;
    even.ranks = 0;
    HD_RETURN_IF_ERROR(hdi_balance(&even, counts_out));
    if (chunks == 1) return HD_OK;
    even.ranks = schedule->stages;
    int *by_ranks = hdi_alloc_array((size_t)even.stages, sizeof *by_ranks);
    hdi_schedule **schedules = hdi_alloc_array((size_t)even.ranks, sizeof(hdi_schedule *));
    hd_status status = by_ranks && schedules
                           ? hdi_balance(&even, by_ranks)
                           : hdi_error(HD_ERROR_MEMORY, "balance: out of host memory");
    if (status == HD_OK) status = choose(&even, schedule, schedules, by_ranks, counts_out);
    for (int i = 0; schedules && i < even.ranks; i++)
        hdi_schedule_destroy(schedules[i]);
    hdi_free(schedules);
    hdi_free(by_ranks);
    return status;
}
