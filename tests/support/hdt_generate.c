/* Generators for tests. */
#include "tests/support/hdt_generate.h"

#include "core/error.h"
#include "tests/support/hdt_device.h"

hd_status hdt_open_generator(hd_comm *comm, const hdt_generating *with, hdt_generator *out)
{
    *out = (hdt_generator){0};
    HD_RETURN_IF_ERROR(hdt_open_place(comm, &with->mesh, &out->mesh, &out->context));
    HD_RETURN_IF_ERROR(
        hd_generator_create(&(hd_generator_options){.build = hd_model_build,
                                                    .user = with->model,
                                                    .layers = hd_model_layers(with->model),
                                                    .mesh = out->mesh,
                                                    .backend = hd_context_backend(out->context),
                                                    .dtype = with->dtype,
                                                    .capacity = with->capacity,
                                                    .prefill = with->prefill,
                                                    .slots = with->slots,
                                                    .budget = with->budget,
                                                    .residency = with->residency,
                                                    .host_blocks = with->host_blocks},
                            &out->generator));
    HD_RETURN_IF_ERROR(hd_generator_start(out->generator, out->context, 3));
    return with->weights ? hd_generator_load(out->generator, with->weights) : HD_OK;
}

void hdt_close_generator(hdt_generator *it)
{
    hd_generator_destroy(it->generator);
    hdt_close_place(it->mesh, it->context);
}

hd_comm *hdt_open_self(void)
{
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    return self;
}
