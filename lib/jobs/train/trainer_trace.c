/* The trace of a trainer's steps. */
#include "jobs/train/trainer.h"

/* What rows of a schedule record: what they wait for and what they compute; and the ends of a step. */
static int most_spans(const hd_trainer *trainer)
{
    enum { ENDS = 4 };
    int most = 0;
    for (int s = 0; s < trainer->shape_count; s++) {
        const int rows = trainer->shapes[s].schedule->row_count;
        if (rows > most) most = rows;
    }
    return 2 * most + ENDS;
}

hd_status hdi_trainer_start_trace(hd_trainer *trainer, hdi_trace *trace)
{
    enum { STEPS = 2 }; /* the device may end one while the next one begins */
    return hdi_spans_create(trainer->session, trace, STEPS * most_spans(trainer), &trainer->spans);
}

hd_status hdi_trainer_record(hd_trainer *trainer, const char *name, hdi_trace_category category,
                             hdi_moment *inout)
{
    const hdi_trace_event event = {
        .name = name, .category = category, .micro_batch = -1, .chunk = -1, .step = trainer->steps};
    return hdi_spans_record(trainer->spans, &event, inout);
}
