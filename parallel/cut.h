/* Layers of the virtual stages of a schedule. */
#ifndef HDI_PARALLEL_CUT_H
#define HDI_PARALLEL_CUT_H

#include "parallel/balance.h"
#include "parallel/schedule.h"

/* hdi_balance for a schedule's stages and chunks, which balance->stages and ->ranks are set to. With several
 * chunks even stages and even ranks may be two things: the cut is that of the two with which the schedule
 * ends sooner, a backward taking twice its forward. Local; errors as hdi_balance. */
hd_status hdi_cut(const hdi_balance_options *balance, const hdi_schedule_options *schedule,
                  int *counts_out);

#endif
