/* A program of a golden model on a device, in fp32 or bf16: planned alone, fed from the interpreter's
 * memory, read as floats. */
#ifndef HDT_PLANNED_H
#define HDT_PLANNED_H

#include "models/weights.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_interpret.h"

#include <heddle/model.h>
#include <heddle/session.h>

typedef struct hdt_planned {
    hd_program *program;
    hd_tensor result, prediction; /* the loss; what goes into the op that makes it, an output */
    hd_plan *plan;
    hd_session *session;
} hdt_planned;

/* A whole model with these weights. The context is borrowed. `loss_op` is the kind's name whose first input is the prediction;
 * of a training stage there is a backward. */
hdt_planned hdt_planned_start(hd_context *context, hd_model *model, const hd_stage *stage,
                              hd_dtype dtype, const char *loss_op, const hdi_weights *weights);
void hdt_planned_stop(hdt_planned *p);

/* Numbers as the dtype has them, in place: 16 bits side by side at the front. */
void hdt_narrow(hd_dtype dtype, float *values, int64_t count);

/* Copy the inputs of a program in the interpreter, by their names. */
void hdt_planned_feed(const hdt_planned *p, const hd_program *from, const hdt_machine *machine);

void hdt_planned_run(const hdt_planned *p, hd_phase phase);

/* A tensor that may be read, whatever its dtype. To be freed. */
float *hdt_planned_read(const hdt_planned *p, hd_tensor tensor);

/* Ops on the longest way to a tensor: how many roundings follow one another. */
int hdt_planned_depth(const hdt_planned *p, hd_tensor tensor);

#endif
