/* The log: one sink for what the library has to say while it works. It prints nothing by itself. */
#ifndef HEDDLE_LOG_H
#define HEDDLE_LOG_H

#include <heddle/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Levels by volume: error and warn are rare, info comes once per process, debug once per object,
 * trace once per step. */
typedef enum hd_log_level {
    HD_LOG_NONE = 0,
    HD_LOG_ERROR,
    HD_LOG_WARN,
    HD_LOG_INFO,
    HD_LOG_DEBUG,
    HD_LOG_TRACE
} hd_log_level;

/* Receives one line, without its newline, led by the rank: "[3] warn: ...". Borrowed for the call.
 * Calls come from any thread, one at a time; what a sink logs itself is dropped. */
typedef void (*hd_log_fn)(void *user, hd_log_level level, const char *line);

/* Send lines up to `level` to `sink`; NULL or HD_LOG_NONE sends none, as at the start. Of the whole
 * process. Local. Thread-safe. */
HD_API void hd_log_set_sink(hd_log_fn sink, void *user, hd_log_level level);

/* "error", "warn", "info", "debug", "trace"; "none" for HD_LOG_NONE. Local. */
HD_API const char *hd_log_level_name(hd_log_level level);

#ifdef __cplusplus
}
#endif
#endif
