/* Programs and a plan of them, for tests of what a plan makes of its options. */
#ifndef HDT_PLANS_H
#define HDT_PLANS_H

#include "program/plan.h"
#include "tests/support/hdt.h"

typedef struct hdt_plans {
    hd_program *programs[2];
    int program_count;
    hd_plan *plan; /* these are owned */
} hdt_plans;

/* A plan of the programs; it may be none. */
hd_status hdt_try_plan(hdt_plans *it, const hd_plan_options *options);
void hdt_make_plan(hdt_plans *it, const hd_plan_options *options); /* asserts */
void hdt_drop_plan(hdt_plans *it);

/* The plan and the programs. */
void hdt_drop_plans(hdt_plans *it);

#endif
