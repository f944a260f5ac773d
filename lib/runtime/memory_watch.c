/* Readings of a device's memory in use. */
#include "runtime/memory_watch.h"

#include "core/clock.h"
#include "core/log.h"
#include "runtime/session.h"

static const char *const names[HDI_WORKS] = {[HDI_WORK_TRAINING] = "training",
                                             [HDI_WORK_VALIDATION] = "validation",
                                             [HDI_WORK_SAVE] = "saving",
                                             [HDI_WORK_CONDITIONS] = "conditions",
                                             [HDI_WORK_STEPS] = "steps"};

static double gib(size_t bytes)
{
    return (double)bytes / (1 << 30);
}

static void warn(const hdi_memory_watch *watch, hdi_work work, size_t used, bool is_shared)
{
    hdi_log(HD_LOG_WARN,
            "memory: %.3f GiB of the device in use in %s, %.3f GiB over memory.budget, %.3f GiB%s; "
            "other programs on the device are counted, too",
            gib(used), names[work], gib(used - watch->budget), gib(watch->budget),
            is_shared ? ", by each of the ranks that share it" : "");
}

void hdi_watch_memory(hd_context *context, hdi_work work)
{
    enum { TIMES_ITS_COST = 200 };
    hdi_memory_watch *watch = &context->memory;
    hdi_memory_info now;
    const double begin = hdi_clock_seconds();
    if (context->backend->memory_info(context->device, &now) != HD_OK) return;
    const double end = hdi_clock_seconds();
    watch->next = end + TIMES_ITS_COST * (end - begin);
    const size_t sharers = context->sharers > 1 ? (size_t)context->sharers : 1;
    const size_t used = (now.total_bytes - now.free_bytes) / sharers;
    watch->total = now.total_bytes;
    if (used > watch->most[work]) watch->most[work] = used;
    if (!watch->budget || used <= watch->budget || watch->has_warned) return;
    watch->has_warned = true;
    warn(watch, work, used, sharers > 1);
}

void hdi_glance_at_memory(hd_context *context, hdi_work work)
{
    const hdi_memory_watch *watch = &context->memory;
    if (!watch->most[work] || hdi_clock_seconds() >= watch->next) hdi_watch_memory(context, work);
}

size_t hdi_memory_most(const hdi_memory_watch *watch)
{
    size_t most = 0;
    for (int w = 0; w < HDI_WORKS; w++)
        if (watch->most[w] > most) most = watch->most[w];
    return most;
}

const char *hdi_work_name(hdi_work work)
{
    return names[work];
}
