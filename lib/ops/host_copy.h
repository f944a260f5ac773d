/* Copies between the device and pinned host memory, beside the computation. Appended by passes. */
#ifndef HDI_OPS_HOST_COPY_H
#define HDI_OPS_HOST_COPY_H

#include "program/program.h"

/* in[k], on the host, to out[k], on the device, which has as many bytes or more. The op that reads it
 * waits. */
extern const hd_op_kind hdi_op_load;

/* As many bytes as out[k], on the host, has from in[k], on the device. Whoever writes in[k]'s bytes next
 * waits. */
extern const hd_op_kind hdi_op_store;

/* Does nothing: its inputs keep their bytes until here, so that nobody has to wait for a copy of them
 * that is on its way. */
extern const hd_op_kind hdi_op_hold;

/* Does nothing: where its program runs beside others, these may have its inputs' bytes from here on. */
extern const hd_op_kind hdi_op_release;

#endif
