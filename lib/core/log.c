/* The sinks of the log: one of the program's, one of a run's. */
#include "core/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* The program's sink, and the files of a run. */
enum { PROGRAM, RUN, SINKS };
static pthread_mutex_t sink_mutex = PTHREAD_MUTEX_INITIALIZER; /* guards the pointers in sinks */
static struct {
    hd_log_fn write;
    void *user;
    atomic_int level;
} sinks[SINKS];
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

static void set_sink(int which, hd_log_fn sink, void *user, hd_log_level level)
{
    if (inside_sink) return; /* it holds the mutex */
    pthread_mutex_lock(&sink_mutex);
    sinks[which].write = sink;
    sinks[which].user = user;
    atomic_store(&sinks[which].level, sink ? (int)level : HD_LOG_NONE);
    pthread_mutex_unlock(&sink_mutex);
}

void hd_log_set_sink(hd_log_fn sink, void *user, hd_log_level level)
{
    set_sink(PROGRAM, sink, user, level);
}

void hdi_log_attach(hd_log_fn sink, void *user, hd_log_level level)
{
    set_sink(RUN, sink, user, level);
}

void hdi_log_set_rank(int rank)
{
    atomic_store(&own_rank, rank);
}

bool hdi_log_enabled(hd_log_level level)
{
    if (level == HD_LOG_NONE) return false;
    return (int)level <= atomic_load(&sinks[PROGRAM].level) ||
           (int)level <= atomic_load(&sinks[RUN].level);
}

/* Hand `text`, which is changed, to the sinks line by line. */
static void emit_lines(hd_log_level level, char *text, int first_sink)
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
        for (int s = first_sink; s < SINKS; s++)
            if (sinks[s].write && (int)level <= atomic_load(&sinks[s].level))
                sinks[s].write(sinks[s].user, level, line);
    }
}

static void log_text(hd_log_level level, int first_sink, const char *format, va_list arguments)
{
    if (inside_sink || !hdi_log_enabled(level)) return;
    char text[4096];
    int length = vsnprintf(text, sizeof text, format, arguments);
    if (length >= (int)sizeof text) memcpy(text + sizeof text - 4, "...", 4);

    pthread_mutex_lock(&sink_mutex);
    inside_sink = true;
    emit_lines(level, text, first_sink);
    inside_sink = false;
    pthread_mutex_unlock(&sink_mutex);
}

void hdi_log(hd_log_level level, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    log_text(level, PROGRAM, format, arguments);
    va_end(arguments);
}

void hdi_log_run(hd_log_level level, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    log_text(level, RUN, format, arguments);
    va_end(arguments);
}
