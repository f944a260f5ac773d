/* Programs and a plan of them. */
#include "tests/support/hdt_plans.h"

hd_status hdt_try_plan(hdt_plans *it, const hd_plan_options *options)
{
    hdt_assert_ok(hd_plan_create(options, &it->plan));
    for (int i = 0; i < it->program_count; i++)
        hdt_assert_ok(hd_plan_add(it->plan, it->programs[i], NULL));
    return hd_plan_finish(it->plan);
}

void hdt_make_plan(hdt_plans *it, const hd_plan_options *options)
{
    hdt_assert_ok(hdt_try_plan(it, options));
}

void hdt_drop_plan(hdt_plans *it)
{
    hd_plan_destroy(it->plan);
    it->plan = NULL;
}

void hdt_drop_plans(hdt_plans *it)
{
    hdt_drop_plan(it);
    for (int i = 0; i < it->program_count; i++)
        hd_program_destroy(it->programs[i]);
    it->program_count = 0;
}
