/* A program run op by op with memory of its own for every tensor: no plan, nothing shared, nothing in
 * place. What a planned run has to agree with, and, in wide form, the ground truth for gradients. */
#ifndef HDT_INTERPRET_H
#define HDT_INTERPRET_H

#include "backend/backend.h"
#include "program/program.h"

typedef struct hdt_machine hdt_machine;

/* Tensors begin at multiples of this, so that a window into one tells where it begins. */
enum { HDT_MACHINE_ALIGNMENT = 65536 };

/* Memory for a program, all zeros, tables filled. `wide`: runs on hdt_reference, and every F32 tensor
 * holds doubles. The program is borrowed. */
hdt_machine *hdt_machine_create(const hd_program *program, bool wide);
void hdt_machine_destroy(hdt_machine *machine);

/* Memory of a tensor; uses of one parameter name share it. */
void *hdt_machine_data(const hdt_machine *machine, hd_tensor tensor);

/* One element of an F32 or F64 tensor, whatever holds it. */
double hdt_machine_get(const hdt_machine *machine, hd_tensor tensor, int64_t element);
void hdt_machine_set(hdt_machine *machine, hd_tensor tensor, int64_t element, double value);

/* Run the ops of a phase. Outputs hold NaN until they are written. */
hd_status hdt_machine_run(hdt_machine *machine, hdi_phase phase, bool accumulate);

/* The forward ops in plain fp64 loops; pointers are to doubles where the table says float. */
extern const hd_backend hdt_reference;

#endif
