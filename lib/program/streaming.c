/* What streaming costs, by FLOPs and the link's rate: a model of two queues, copies and computation, that
 * wait for each other where the plan says so. */
#include "program/plan.h"

typedef struct model {
    const hd_plan *plan;
    const hdi_unit *unit;
    double link_rate, compute_rate;
    double computed, copied; /* when each queue is through */
    double arrived[HD_STREAM_SLOTS];
    int held[HD_STREAM_SLOTS];
    int turn;
    size_t bytes;
} model;

static void copy_in(model *m, int use)
{
    const int uses = m->unit->use_count, slot = (m->turn + use) % m->plan->residency.slots;
    const int block = m->unit->uses[use % uses].block;
    if (m->held[slot] == block) return;
    const size_t bytes = m->plan->residency.blocks[block].bytes;
    if (m->copied < m->computed) m->copied = m->computed;
    m->copied += (double)bytes / m->link_rate;
    m->arrived[slot] = m->copied;
    m->held[slot] = block;
    m->bytes += bytes;
}

static void run(model *m)
{
    const hdi_unit *unit = m->unit;
    const int slots = m->plan->residency.slots;
    int next = 0, use = 0;
    for (int i = 0; i <= unit->program->op_count; i++) {
        for (; next < unit->use_count + slots && unit->fetches[next] <= i; next++)
            copy_in(m, next);
        if (i == unit->program->op_count) break;
        if (use < unit->use_count && unit->uses[use].first == i) {
            const double arrived = m->arrived[(m->turn + use++) % slots];
            if (m->computed < arrived) m->computed = arrived;
        }
        hd_cost cost;
        hdi_op_cost(unit->program->ops[i], &cost);
        m->computed += cost.flops / m->compute_rate;
    }
    m->turn = (m->turn + unit->use_count) % slots;
}

void hd_plan_streaming(const hd_plan *plan, const hd_program *program, hd_streaming *out)
{
    const hdi_residency *residency = &plan->residency;
    const hd_plan_options *o = &plan->options;
    *out = (hd_streaming){.blocks = residency->block_count, .host_blocks = residency->host_blocks};
    if (!residency->host_blocks) return;
    out->slots = residency->slots;
    out->host_bytes = residency->host_bytes;
    model m = {.plan = plan,
               .link_rate = o->link_rate > 0 ? o->link_rate : 25e9,
               .compute_rate = o->compute_rate > 0 ? o->compute_rate : 100e12};
    for (int s = 0; s < HD_STREAM_SLOTS; s++)
        m.held[s] = -1;
    for (int u = 0; u < plan->unit_count; u++)
        if (plan->units[u].program == program) m.unit = &plan->units[u];
    if (!m.unit || !m.unit->use_count) return;
    run(&m);
    const double begin = m.computed;
    m.bytes = 0;
    run(&m);
    hd_cost cost;
    hdi_program_cost(program, HDI_PHASE_FORWARD, &cost);
    out->run_bytes = m.bytes;
    out->copy_seconds = (double)m.bytes / m.link_rate;
    out->compute_seconds = cost.flops / m.compute_rate;
    out->exposed_seconds = m.computed - begin - out->compute_seconds;
    if (out->exposed_seconds < 1e-9 * out->compute_seconds) out->exposed_seconds = 0; /* rounding */
}
