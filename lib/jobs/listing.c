/* Lines of text for a writer. */
#include "jobs/listing.h"

#include "core/error.h"
#include "core/memory.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

void hdi_list(hdi_listing *listing, const char *format, ...)
{
    if (listing->stopped || listing->failed) return;
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(NULL, 0, format, arguments);
    char *line = length < 0 ? NULL : hdi_alloc((size_t)length + 1);
    if (line) {
        vsnprintf(line, (size_t)length + 1, format, again);
        listing->stopped = !listing->write(listing->user, line);
    }
    listing->failed = listing->failed || !line;
    hdi_free(line);
    va_end(again);
    va_end(arguments);
}

const char *hdi_list_safe(const char *name, char *out, size_t bytes)
{
    size_t used = 0;
    unsigned char before = 0;
    for (; *name && used + 1 < bytes; name++) {
        const unsigned char c = (unsigned char)*name;
        /* U+0080 to U+009F, the second block of controls, are C2 80 to C2 9F. */
        const bool is_control = c < ' ' || c == 0x7f || (before == 0xc2 && c < 0xa0);
        out[used++] = is_control ? '?' : *name;
        before = c;
    }
    out[used] = '\0';
    return out;
}

const char *hdi_list_dims(int rank, const int64_t *dims, char *out, size_t bytes)
{
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (int i = 0; i < rank && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%" PRId64, i ? ", " : "", dims[i]);
    if (used < bytes) snprintf(out + used, bytes - used, "]");
    return out;
}

hd_status hdi_list_end(const hdi_listing *listing)
{
    return listing->failed ? hdi_error(HD_ERROR_MEMORY, "listing: out of host memory") : HD_OK;
}
