/* How long programs take, by the rates of a device: a model of four queues, computation, copies from and
 * to the host, and communication, that wait for each other where the plan says so. A program that runs beside
 * others has queues of its own; of the link each takes what the other leaves. */
#include "core/error.h"
#include "core/memory.h"
#include "program/plan.h"

typedef struct model {
    const struct model *beside; /* it began with this one; NULL: nothing runs beside */
    double link_seconds;        /* of copies so far that took from its */
    const hd_plan *plan;
    const hdi_unit *unit;
    bool trains; /* a run is a forward and the backward that follows it */
    hd_rates rates;
    double computed, copied, stored, sent; /* when each queue is through */
    double worked;                         /* seconds of computation alone */
    double *ended; /* [ops] of those that are posted, and of releases; NULL: without them */
    double arrived[HD_STREAM_SLOTS];
    int held[HD_STREAM_SLOTS];
    int turn;
    size_t bytes, linked;        /* of streamed weights; what of them comes from the host */
    size_t loaded, stored_bytes; /* by ops */
} model;

static const hdi_stream_run *streamed(const model *m, hdi_phase phase)
{
    return &m->unit->streamed[phase];
}

static hdi_phase phase_after(const model *m, hdi_phase phase)
{
    return m->trains && phase == HDI_PHASE_FORWARD ? HDI_PHASE_BACKWARD : HDI_PHASE_FORWARD;
}

/* From the host, or from the ranks that have shards, of which each may take `linked` bytes from the host. */
static double fetch_seconds(const model *m, size_t bytes, size_t linked)
{
    const hdi_residency *it = &m->plan->residency;
    const bool to_peers = it->gathers && m->rates.peer > 0;
    const double own = (double)linked / m->rates.link;
    const double peers = to_peers ? (double)bytes / m->rates.peer : 0;
    return own > peers ? own : peers;
}

/* Bytes of a block that come to this rank from the host. */
static size_t linked_bytes(const model *m, int block)
{
    const hdi_layout *layout = m->plan->layout;
    const size_t bytes = m->plan->residency.blocks[block].bytes;
    if (!m->plan->residency.gathers) return bytes;
    const bool host = hdi_block_is_host(block, layout->host_blocks, layout->block_count);
    return host ? bytes / (size_t)layout->shards : 0;
}

typedef struct span {
    size_t begin, end;
} span;

static bool releases(const model *other, const hd_op *op, const span *spans, int count)
{
    for (int i = 0; i < op->inputs; i++) {
        span free;
        if (!hdi_unit_range(other->plan, other->unit, op->in[i].id, &free.begin, &free.end))
            continue;
        for (int k = 0; k < count; k++)
            if (spans[k].begin < free.end && free.begin < spans[k].end) return true;
    }
    return false;
}

/* What the program beside has to release first of some bytes. */
static void wait_for_releases(model *m, const span *spans, int count)
{
    const model *other = m->beside;
    for (int i = 0; other && i < other->unit->program->op_count; i++) {
        const hd_op *op = &other->unit->program->ops[i]->op;
        const double released = other->ended[i] + m->link_seconds;
        if (op->kind->flags & HD_OP_RELEASES && m->computed < released &&
            releases(other, op, spans, count))
            m->computed = released;
    }
}

static void wait_for_op(model *m, const hd_op *op)
{
    span spans[HD_OP_INPUTS + HD_OP_OUTPUTS];
    int count = 0;
    for (int k = 0; m->beside && k < op->inputs + op->outputs; k++) {
        const int id = (k < op->inputs ? op->in[k] : op->out[k - op->inputs]).id;
        span *it = &spans[count];
        count += hdi_unit_range(m->plan, m->unit, id, &it->begin, &it->end);
    }
    wait_for_releases(m, spans, count);
}

/* What is kept of a block is released before it is copied or gathered. */
static void wait_for_block(model *m, int block)
{
    const model *other = m->beside;
    for (int i = 0; other && i < other->unit->program->op_count; i++) {
        const double released = other->ended[i] + m->link_seconds;
        if (m->computed < released &&
            hdi_releases_block(m->plan, &other->unit->program->ops[i]->op, block))
            m->computed = released;
    }
}

/* How long the program beside has something for the queue of what has such flags. */
static double beside_until(const model *m, uint32_t flags)
{
    if (!m->beside) return 0;
    if (flags & HD_OP_LOADS) return m->beside->copied;
    return flags & HD_OP_STORES ? m->beside->stored : m->beside->sent;
}

/* When something of so many seconds that is queued now is over: copies take twice as long, and as much from the
 * other's, while that has some in the same direction. */
static double posted_until(model *m, double free, double seconds, uint32_t flags)
{
    const double from = free > m->computed ? free : m->computed;
    if (from >= beside_until(m, flags)) return from + seconds;
    m->link_seconds += seconds;
    return from + 2 * seconds;
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
    const double seconds = fetch_seconds(m, bytes, linked_bytes(m, block));
    wait_for_block(m, block);
    m->copied = posted_until(m, m->copied, seconds, linked_bytes(m, block) ? HD_OP_LOADS : 0);
    m->arrived[slot] = m->copied;
    m->held[slot] = block;
    m->bytes += bytes;
    m->linked += linked_bytes(m, block);
}

static void compute(model *m, int index)
{
    const hdi_unit *unit = m->unit;
    const hdi_op *op = unit->program->ops[index];
    const double seconds = hdi_op_seconds(op, &m->rates);
    for (int w = unit->wait_begin[index]; m->ended && w < unit->wait_begin[index + 1]; w++)
        if (m->computed < m->ended[unit->waits[w]]) m->computed = m->ended[unit->waits[w]];
    wait_for_op(m, &op->op);
    if (hdi_op_is_posted(&op->op)) {
        if (!m->ended) return;
        const bool loads = op->op.kind->flags & HD_OP_LOADS;
        const bool stores = op->op.kind->flags & HD_OP_STORES;
        double *queue = loads ? &m->copied : stores ? &m->stored : &m->sent;
        *queue = posted_until(m, *queue, seconds, op->op.kind->flags);
        m->ended[index] = *queue;
        hd_cost cost;
        hdi_op_cost(op, &cost);
        if (loads) m->loaded += (size_t)cost.bytes;
        if (stores) m->stored_bytes += (size_t)cost.bytes;
    } else {
        m->computed += seconds;
        m->worked += seconds;
        if (m->ended) m->ended[index] = m->computed;
    }
}

static void run_phase(model *m, hdi_phase phase)
{
    const hd_program *program = m->unit->program;
    const hdi_stream_run *run = streamed(m, phase);
    const int slots = m->plan->residency.slots;
    const bool streams = m->plan->residency.host_blocks > 0;
    int next = 0, use = 0;
    for (int i = 0; i <= program->op_count; i++) {
        for (; streams && next < run->use_count + slots && run->fetches[next] <= i; next++)
            copy_in(m, phase, next);
        if (i == program->op_count) break;
        if (streams && use < run->use_count && run->uses[use].first == i) {
            const double arrived = m->arrived[(m->turn + use++) % slots];
            if (m->computed < arrived) m->computed = arrived;
        }
        if (program->ops[i]->phase == phase) compute(m, i);
    }
    for (int i = 0; m->ended && i < program->op_count;
         i++) { /* other programs use the transients */
        const hd_op *op = &program->ops[i]->op;
        const bool copies = op->kind->flags & (HD_OP_LOADS | HD_OP_STORES);
        if (program->ops[i]->phase == phase && copies && m->computed < m->ended[i])
            m->computed = m->ended[i];
    }
    if (!streams) return;
    const int common = hdi_stream_common(run, streamed(m, phase_after(m, phase)));
    m->turn = (m->turn + run->use_count - common) % slots;
}

static void run(model *m)
{
    run_phase(m, HDI_PHASE_FORWARD);
    if (m->trains) run_phase(m, HDI_PHASE_BACKWARD);
}

static void begin(model *m, const hd_plan *plan, const hd_program *program)
{
    *m = (model){.plan = plan, .rates = hdi_rates_filled(&plan->options.rates)};
    for (int s = 0; s < HD_STREAM_SLOTS; s++)
        m->held[s] = -1;
    for (int u = 0; u < plan->unit_count; u++)
        if (plan->units[u].program == program) m->unit = &plan->units[u];
}

void hd_plan_streaming(const hd_plan *plan, const hd_program *program, hd_streaming *out)
{
    const hdi_residency *residency = &plan->residency;
    *out = (hd_streaming){.blocks = residency->block_count, .host_blocks = residency->host_blocks};
    if (!residency->host_blocks) return;
    out->slots = residency->slots;
    out->host_bytes = residency->host_bytes;
    out->gathered = residency->gathers;
    model m;
    begin(&m, plan, program);
    if (!m.unit || !m.unit->streamed[HDI_PHASE_FORWARD].use_count) return;
    m.trains = m.unit->streamed[HDI_PHASE_BACKWARD].use_count > 0;
    run(&m);
    const double first = m.computed;
    m.bytes = m.linked = 0;
    m.worked = 0;
    run(&m);
    out->run_bytes = m.bytes;
    out->copy_seconds = fetch_seconds(&m, m.bytes, m.linked);
    out->compute_seconds = m.worked;
    out->exposed_seconds = m.computed - first - m.worked;
    if (out->exposed_seconds < 1e-9 * out->compute_seconds) out->exposed_seconds = 0; /* rounding */
}

/* Begin with all that is posted; *m has memory to free. */
static hd_status begin_whole(model *m, const hd_plan *plan, const hd_program *program)
{
    begin(m, plan, program);
    if (!plan->finished || !m->unit)
        return hdi_error(HD_ERROR_ARGUMENT, "plan: seconds of a program that it does not hold");
    m->trains = program->training;
    m->ended = hdi_alloc_array((size_t)program->op_count + 1, sizeof(double));
    return m->ended ? HD_OK : hdi_error(HD_ERROR_MEMORY, "plan: out of host memory");
}

/* The second of two runs of a program. */
static hd_status run_again(model *m, const hd_plan *plan, const hd_program *program, double *out)
{
    HD_RETURN_IF_ERROR(begin_whole(m, plan, program));
    run(m);
    const double first = m->computed;
    m->worked = 0;
    m->loaded = m->stored_bytes = m->linked = 0;
    run(m);
    *out = m->computed - first;
    hdi_free(m->ended);
    return HD_OK;
}

hd_status hdi_plan_copies(const hd_plan *plan, const hd_program *program, hdi_copies *out)
{
    model m;
    double seconds = 0;
    *out = (hdi_copies){0};
    HD_RETURN_IF_ERROR(run_again(&m, plan, program, &seconds));
    *out = (hdi_copies){.in_bytes = m.loaded + m.linked,
                        .out_bytes = m.stored_bytes,
                        .compute_seconds = m.worked,
                        .exposed_seconds = seconds - m.worked};
    if (out->exposed_seconds < 1e-9 * seconds) out->exposed_seconds = 0; /* rounding */
    return HD_OK;
}

/* A forward of each of the programs, one after the other, from 0 on. */
static hd_status run_forwards(const hd_plan *plan, hd_program *const *programs, int count,
                              const model *beside, double *seconds)
{
    *seconds = 0;
    for (int i = 0; i < count; i++) {
        model m;
        HD_RETURN_IF_ERROR(begin_whole(&m, plan, programs[i]));
        m.beside = beside;
        m.computed = m.copied = m.stored = m.sent = *seconds;
        run_phase(&m, HDI_PHASE_FORWARD);
        hdi_free(m.ended);
        *seconds = m.computed;
    }
    return HD_OK;
}

hd_status hdi_plan_copies_beside(const hd_plan *plan, const hd_program *program,
                                 hd_program *const *next, int count, hdi_copies *out)
{
    model m;
    double with = 0, without = 0;
    *out = (hdi_copies){0};
    HD_RETURN_IF_ERROR(begin_whole(&m, plan, program));
    run_phase(&m, HDI_PHASE_FORWARD);
    hd_status status = run_forwards(plan, next, count, &m, &with);
    if (status == HD_OK) status = run_forwards(plan, next, count, NULL, &without);
    hdi_free(m.ended);
    *out = (hdi_copies){
        .in_bytes = m.loaded, .out_bytes = m.stored_bytes, .exposed_seconds = with - without};
    return status;
}

hd_status hd_plan_seconds(const hd_plan *plan, const hd_program *program, double *out)
{
    model m;
    *out = 0;
    return run_again(&m, plan, program, out);
}
