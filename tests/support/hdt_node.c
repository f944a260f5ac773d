/* What each rank has open. */
#include "tests/support/hdt_node.h"

#include "core/error.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_late.h"

hd_status hdt_node_open(hd_program *program, const hd_plan_options *options,
                        const hd_mesh_options *sizes, hdt_node *out)
{
    *out = (hdt_node){.program = program};
    hdt_assert_ok(hd_plan_create(options, &out->plan));
    hdt_assert_ok(hd_plan_add(out->plan, out->program, NULL));
    hdt_assert_ok(hd_plan_finish(out->plan));
    return hdt_open_place(hdt_world, sizes, &out->mesh, &out->context);
}

hd_status hdt_node_start(hdt_node *it, bool late)
{
    hd_status status = hdi_session_create_shared(it->context, it->plan, it->mesh, &it->session);
    if (late && it->context->backend == &hdi_backend_cpu) it->context->backend = hdt_late_backend();
    if (status == HD_OK) status = hd_session_initialize(it->session, 5);
    return hd_comm_agree(hdt_world, status);
}

void hdt_node_stop(hdt_node *it)
{
    hd_session_destroy(it->session);
    it->session = NULL;
}

void hdt_node_close(hdt_node *it)
{
    hdt_node_stop(it);
    hdt_close_place(it->mesh, it->context);
    hd_plan_destroy(it->plan);
    hd_program_destroy(it->program);
}

hd_status hdt_node_run(const hdt_node *it, const hd_session_run_options *how, const float *x,
                       float *y)
{
    HD_RETURN_IF_ERROR(
        hd_session_write(it->session, it->program, hd_tensor_find(it->program, "x"), 0, x));
    HD_RETURN_IF_ERROR(hd_session_run(it->session, it->program, how));
    return hd_session_read(it->session, it->program, hd_tensor_find(it->program, "y"), 0, y);
}
