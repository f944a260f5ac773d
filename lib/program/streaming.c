/* What streaming costs, by FLOPs and the link's rate: a model of two queues, copies and computation, that
 * wait for each other where the plan says so. */
#include "program/plan.h"

typedef struct model {
    const hd_plan *plan;
    const hdi_unit *unit;
    bool trains; /* a run is a forward and the backward that follows it */
    double link_rate, compute_rate;
    double computed, copied; /* when each queue is through */
    double arrived[HD_STREAM_SLOTS];
    int held[HD_STREAM_SLOTS];
    int turn;
    size_t bytes;
} model;

static const hdi_stream_run *streamed(const model *m, hdi_phase phase)
{
    return &m->unit->streamed[phase];
}

static hdi_phase phase_after(const model *m, hdi_phase phase)
{
    return m->trains && phase == HDI_PHASE_FORWARD ? HDI_PHASE_BACKWARD : HDI_PHASE_FORWARD;
}

static void copy_in(model *m, hdi_phase phase, int use)
{
    const hdi_stream_run *run = streamed(m, phase), *next = streamed(m, phase_after(m, phase));
    const int ahead = use - run->use_count, common = ahead < 0 ? 0 : hdi_stream_common(run, next);
    const int slot = (m->turn + use - common) % m->plan->residency.slots;
    if (ahead >= 0 && !next->use_count) return;
    const int block = ahead < 0 ? run->uses[use].block : next->uses[ahead % next->use_count].block;
    if (m->held[slot] == block) return;
    const size_t bytes = m->plan->residency.blocks[block].bytes;
    if (m->copied < m->computed) m->copied = m->computed;
    m->copied += (double)bytes / m->link_rate;
    m->arrived[slot] = m->copied;
    m->held[slot] = block;
    m->bytes += bytes;
}

static void run_phase(model *m, hdi_phase phase)
{
    const hd_program *program = m->unit->program;
    const hdi_stream_run *run = streamed(m, phase);
    const int slots = m->plan->residency.slots;
    int next = 0, use = 0;
    for (int i = 0; i <= program->op_count; i++) {
        for (; next < run->use_count + slots && run->fetches[next] <= i; next++)
            copy_in(m, phase, next);
        if (i == program->op_count) break;
        if (use < run->use_count && run->uses[use].first == i) {
            const double arrived = m->arrived[(m->turn + use++) % slots];
            if (m->computed < arrived) m->computed = arrived;
        }
        if (program->ops[i]->phase != phase) continue;
        hd_cost cost;
        hdi_op_cost(program->ops[i], &cost);
        m->computed += cost.flops / m->compute_rate;
    }
    const int common = hdi_stream_common(run, streamed(m, phase_after(m, phase)));
    m->turn = (m->turn + run->use_count - common) % slots;
}

static void run(model *m)
{
    run_phase(m, HDI_PHASE_FORWARD);
    if (m->trains) run_phase(m, HDI_PHASE_BACKWARD);
}

void hd_plan_streaming(const hd_plan *plan, const hd_program *program, hd_streaming *out)
{
    const hdi_residency *residency = &plan->residency;
    const hd_plan_options *o = &plan->options;
    *out = (hd_streaming){.blocks = residency->block_count, .host_blocks = residency->host_blocks};
    if (!residency->host_blocks) return;
    out->slots = residency->slots;
    out->host_bytes = residency->host_bytes;
    out->gathered = residency->gathers;
    model m = {.plan = plan,
               .link_rate = o->link_rate > 0 ? o->link_rate : 25e9,
               .compute_rate = o->compute_rate > 0 ? o->compute_rate : 100e12};
    for (int s = 0; s < HD_STREAM_SLOTS; s++)
        m.held[s] = -1;
    for (int u = 0; u < plan->unit_count; u++)
        if (plan->units[u].program == program) m.unit = &plan->units[u];
    if (!m.unit || !m.unit->streamed[HDI_PHASE_FORWARD].use_count) return;
    m.trains = m.unit->streamed[HDI_PHASE_BACKWARD].use_count > 0;
    run(&m);
    const double begin = m.computed;
    m.bytes = 0;
    run(&m);
    hd_cost cost, backward = {0};
    hdi_program_cost(program, HDI_PHASE_FORWARD, &cost);
    if (m.trains) hdi_program_cost(program, HDI_PHASE_BACKWARD, &backward);
    out->run_bytes = m.bytes;
    out->copy_seconds = (double)m.bytes / m.link_rate;
    out->compute_seconds = (cost.flops + backward.flops) / m.compute_rate;
    out->exposed_seconds = m.computed - begin - out->compute_seconds;
    if (out->exposed_seconds < 1e-9 * out->compute_seconds) out->exposed_seconds = 0; /* rounding */
}
