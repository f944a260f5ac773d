/* Contexts: one device of this process. */
#include "core/error.h"
#include "core/memory.h"
#include "runtime/session.h"

#include <string.h>

hd_status hd_context_create(const hd_context_options *options, hd_context **out)
{
    *out = NULL;
    const char *name = options->device ? options->device : "auto";
    const hd_backend *backend = NULL;
    if (strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0) backend = &hdi_backend_cpu;
    if (!backend) return hdi_error(HD_ERROR_DEVICE, "device '%s': this build has 'cpu' only", name);
    hd_context *context = hdi_alloc(sizeof *context);
    if (!context) return hdi_error(HD_ERROR_MEMORY, "context: out of host memory");
    context->backend = backend;
    if (backend == &hdi_backend_cpu)
        hdi_cpu_set_threads(options->threads > 0 ? options->threads : 1);
    hd_status status = backend->open(options->ordinal, &context->device);
    if (status != HD_OK) {
        hd_context_destroy(context);
        return status;
    }
    context->stream = backend->stream(context->device);
    *out = context;
    return HD_OK;
}

void hd_context_destroy(hd_context *context)
{
    if (!context) return;
    if (context->device) context->backend->close(context->device);
    hdi_free(context);
}

const char *hd_context_device(const hd_context *context)
{
    return context->backend->name;
}
