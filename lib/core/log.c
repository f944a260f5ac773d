/* One log sink per process. */
#include "core/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t sink_mutex = PTHREAD_MUTEX_INITIALIZER; /* guards sink and user */
static hd_log_fn sink;
static void *sink_user;
static atomic_int sink_level = HD_LOG_NONE;
static atomic_int own_rank = -1;
static _Thread_local bool inside_sink;

const char *hd_log_level_name(hd_log_level level)
{
    switch (level) {
    case HD_LOG_NONE: return "none";
    case HD_LOG_ERROR: return "error";
    case HD_LOG_WARN: return "warn";
    case HD_LOG_INFO: return "info";
    case HD_LOG_DEBUG: return "debug";
    case HD_LOG_TRACE: return "trace";
    }
    return "none";
}

void hd_log_set_sink(hd_log_fn new_sink, void *user, hd_log_level level)
{
    if (inside_sink) return; /* it holds the mutex */
    pthread_mutex_lock(&sink_mutex);
    sink = new_sink;
    sink_user = user;
    atomic_store(&sink_level, new_sink ? (int)level : HD_LOG_NONE);
    pthread_mutex_unlock(&sink_mutex);
}

void hdi_log_set_rank(int rank)
{
    atomic_store(&own_rank, rank);
}

bool hdi_log_enabled(hd_log_level level)
{
    return level != HD_LOG_NONE && (int)level <= atomic_load(&sink_level);
}

/* Hand `text`, which is changed, to the sink line by line. */
static void emit_lines(hd_log_level level, char *text)
{
    char lead[32], line[4096 + sizeof lead];
    int rank = atomic_load(&own_rank);
    if (rank < 0)
        snprintf(lead, sizeof lead, "[-] %s: ", hd_log_level_name(level));
    else
        snprintf(lead, sizeof lead, "[%d] %s: ", rank, hd_log_level_name(level));

    char *rest = text;
    while (rest) {
        char *one = strsep(&rest, "\n");
        if (rest && *rest == '\0') rest = NULL; /* a final newline begins no line */
        snprintf(line, sizeof line, "%s%s", lead, one);
        if (sink) sink(sink_user, level, line);
    }
}

void hdi_log(hd_log_level level, const char *format, ...)
{
    if (inside_sink || !hdi_log_enabled(level)) return;
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length >= (int)sizeof text) memcpy(text + sizeof text - 4, "...", 4);

    pthread_mutex_lock(&sink_mutex);
    inside_sink = true;
    emit_lines(level, text);
    inside_sink = false;
    pthread_mutex_unlock(&sink_mutex);
}
