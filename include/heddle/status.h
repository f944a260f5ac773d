/* Results of calls: every call that can fail returns hd_status; the text is in hd_last_error(). */
#ifndef HEDDLE_STATUS_H
#define HEDDLE_STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HD_API __attribute__((visibility("default")))

#ifdef __GNUC__
#define HD_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define HD_PRINTF(format_index, first)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grouped by what the caller can do about it. */
typedef enum hd_status {
    HD_OK = 0,
    HD_ERROR_ARGUMENT,    /* a call was given something impossible: shape, rank, NULL */
    HD_ERROR_CONFIG,      /* the configuration is wrong: unknown key, wrong type, layout x ranks */
    HD_ERROR_BUDGET,      /* the plan does not fit the memory budget; nothing was allocated */
    HD_ERROR_MEMORY,      /* the system refused memory that the plan had counted on */
    HD_ERROR_IO,          /* the operating system refused a file operation */
    HD_ERROR_FORMAT,      /* a file's content breaks its format */
    HD_ERROR_MISMATCH,    /* ranks disagree on something that they must share */
    HD_ERROR_COMM,        /* a peer or the transport failed */
    HD_ERROR_TIMEOUT,     /* a peer did not answer within the deadline */
    HD_ERROR_DEVICE,      /* the accelerator or one of its libraries failed */
    HD_ERROR_UNSUPPORTED, /* a combination that heddle refuses; the text gives the reason */
    HD_ERROR_INTERRUPTED, /* stopped on request (signal) after saving; resume to go on */
    HD_ERROR_INTERNAL     /* a heddle bug: the verifier or an invariant caught it */
} hd_status;

/* Fixed short text of a code, never NULL. Local. */
HD_API const char *hd_status_string(hd_status status);

/* What went wrong last on this thread: what, where, seen, wanted. Never NULL; "" if nothing did.
 * Borrowed: valid until the next failing call on this thread. Local. */
HD_API const char *hd_last_error(void);

/* Receives text that the library was asked to produce (plans, listings); `text` is NUL-terminated
 * and borrowed for the call. Return false to stop. */
typedef bool (*hd_write_fn)(void *user, const char *text);

#ifdef __cplusplus
}
#endif
#endif
