/* Error text and propagation inside the library. */
#ifndef HDI_CORE_ERROR_H
#define HDI_CORE_ERROR_H

#include <heddle/status.h>

/* Store the text for hd_last_error() on this thread; returns `status`. The text says what, where,
 * the value seen and the value wanted. */
hd_status hdi_error(hd_status status, const char *format, ...) HD_PRINTF(2, 3);

/* Put "context: " before the stored text; returns `status`, so that a caller can add where. */
hd_status hdi_error_context(hd_status status, const char *format, ...) HD_PRINTF(2, 3);

#define HD_RETURN_IF_ERROR(expr)              \
    do {                                      \
        hd_status status_ = (expr);           \
        if (status_ != HD_OK) return status_; \
    } while (0)

#endif
