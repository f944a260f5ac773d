/* A trainer's plan as files: plan.json and plan.svg. */
#ifndef HDI_JOBS_TRAIN_PLAN_REPORT_H
#define HDI_JOBS_TRAIN_PLAN_REPORT_H

#include "jobs/train/trainer.h"

/* Both, into `directory`, of this trainer's rank. Local. */
hd_status hdi_plan_report_write(const hd_trainer *trainer, const char *directory);

#endif
