/* Status texts and the thread's last message. */
#include "core/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[4096];

const char *hd_status_string(hd_status status)
{
    switch (status) {
    case HD_OK: return "ok";
    case HD_ERROR_ARGUMENT: return "bad argument";
    case HD_ERROR_CONFIG: return "bad configuration";
    case HD_ERROR_BUDGET: return "does not fit the memory budget";
    case HD_ERROR_MEMORY: return "out of memory";
    case HD_ERROR_IO: return "input/output error";
    case HD_ERROR_FORMAT: return "bad file content";
    case HD_ERROR_MISMATCH: return "ranks disagree";
    case HD_ERROR_COMM: return "communication failed";
    case HD_ERROR_TIMEOUT: return "deadline passed";
    case HD_ERROR_DEVICE: return "device error";
    case HD_ERROR_UNSUPPORTED: return "not supported";
    case HD_ERROR_INTERRUPTED: return "interrupted";
    case HD_ERROR_INTERNAL: return "internal error";
    }
    return "unknown status";
}

const char *hd_last_error(void)
{
    return last_error;
}

hd_status hdi_error(hd_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char text[sizeof last_error]; /* `format` may take hd_last_error() as an argument */
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(last_error, text, sizeof text);
    return status;
}

hd_status hdi_error_context(hd_status status, const char *format, ...)
{
    char context[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
    return hdi_error(status, "%s: %s", context, last_error);
}
