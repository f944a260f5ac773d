/* What the transports of device memory share: labels, and device memory that is host memory. */
#include "comm/device.h"

#include <string.h>

#include "core/error.h"
#include "core/memory.h"

void hdi_comm_append_label(char *text, size_t bytes, const hdi_comm_label *label)
{
    if (!label->program) return;
    hdi_comm_append(text, bytes, " in '%s'", label->program);
    if (label->scope) hdi_comm_append(text, bytes, ", op %d", label->op);
    if (label->scope && *label->scope) hdi_comm_append(text, bytes, " (%s)", label->scope);
    if (!label->scope) hdi_comm_append(text, bytes, ", micro-batch %d", label->op);
}

static hd_status reserve(hdi_staging *staging, size_t bytes, void **out)
{
    (void)staging;
    *out = hdi_map(bytes);
    return *out ? HD_OK
                : hdi_error(HD_ERROR_MEMORY, "staged: out of host memory: %zu bytes", bytes);
}

static void release(hdi_staging *staging, void *memory, size_t bytes)
{
    (void)staging;
    hdi_unmap(memory, bytes);
}

static hd_status nothing(hdi_staging *staging, int slot)
{
    (void)staging, (void)slot;
    return HD_OK;
}

static hd_status copy(hdi_staging *staging, void *out, const void *x, size_t bytes)
{
    (void)staging;
    if (bytes && out != x) memmove(out, x, bytes);
    return HD_OK;
}

static hd_status query(hdi_staging *staging, int slot, bool *done)
{
    (void)staging, (void)slot;
    *done = true;
    return HD_OK;
}

static void destroy(hdi_staging *staging)
{
    hdi_free(staging);
}

hd_status hdi_staging_create_host(hdi_staging **out)
{
    *out = hdi_alloc(sizeof **out);
    if (!*out) return hdi_error(HD_ERROR_MEMORY, "staged: out of host memory");
    **out = (hdi_staging){.reserve = reserve,
                          .release = release,
                          .begin = nothing,
                          .copy = copy,
                          .mark = nothing,
                          .query = query,
                          .destroy = destroy};
    return HD_OK;
}
