/* The trace of a trainer's steps. */
#include "core/error.h"
#include "jobs/train/trainer.h"

/* What a run of a program's phase records at most: a wait for each copy and exchange that it posts, wherever
 * that is waited for; for weights that pass through slots one before they are used and two before they are
 * fetched; and one for the host. Exchanges may be waited for between programs, where the host is away, too: that
 * wait is in two parts then. */
static int most_in_run(const hd_trainer *trainer, const hd_program *program, hdi_phase phase)
{
    const hd_plan *plan = trainer->plan;
    int posts = 0, uses = 0;
    for (int i = 0; i < program->op_count; i++) {
        const hd_op *op = &program->ops[i]->op;
        if (program->ops[i]->phase != phase || !hdi_op_is_posted(op)) continue;
        posts += op->kind->flags & HD_OP_COMMUNICATES ? 2 : 1;
    }
    for (int u = 0; u < plan->unit_count; u++)
        if (plan->units[u].program == program) uses = plan->units[u].streamed[phase].use_count;
    return posts + 3 * (uses + 2 * HD_STREAM_SLOTS) + 1;
}

/* What the rows of a schedule record: what they wait for, what they compute and what that waits for. */
static int most_in_rows(const hd_trainer *trainer, const hdi_trainer_shape *shape)
{
    int most = 0;
    for (int i = 0; i < shape->schedule->row_count; i++) {
        const hdi_schedule_row *row = &shape->schedule->rows[i];
        const hdi_phase phase = row->op == HDI_BACKWARD ? HDI_PHASE_BACKWARD : HDI_PHASE_FORWARD;
        if (row->op == HDI_FORWARD || row->op == HDI_BACKWARD)
            most += 3 + most_in_run(trainer, shape->train[row->chunk].program, phase);
    }
    return most;
}

static int most_spans(const hd_trainer *trainer)
{
    enum { ENDS = 16 }; /* of the rows; reduce, norm and update; and where the host is away there */
    int most = 0;
    for (int s = 0; s < trainer->shape_count; s++) {
        const int rows = most_in_rows(trainer, &trainer->shapes[s]);
        if (rows > most) most = rows;
    }
    return most + ENDS + most_in_run(trainer, trainer->norm, HDI_PHASE_FORWARD) +
           most_in_run(trainer, trainer->update, HDI_PHASE_FORWARD);
}

hd_status hdi_trainer_start_trace(hd_trainer *trainer, hdi_trace *trace)
{
    /* The device may end one step while the next one begins. */
    const int steps = hdi_trainer_ends_programs(trainer) ? 1 : 2;
    return hdi_spans_create(trainer->session, trace, steps * most_spans(trainer), &trainer->spans);
}

hd_status hdi_trainer_record(hd_trainer *trainer, const char *name, hdi_trace_category category,
                             hdi_moment *inout)
{
    const hdi_trace_event event = {
        .name = name, .category = category, .micro_batch = -1, .chunk = -1, .step = trainer->steps};
    HD_RETURN_IF_ERROR(hdi_spans_return(trainer->spans)); /* the wait for the host is inside */
    return hdi_spans_record(trainer->spans, &event, inout);
}
