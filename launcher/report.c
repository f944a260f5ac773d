/* Standard error and output: errors, the log, the progress line. */
#include "report.h"

#include <errno.h>
#include <heddle/log.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* mpirun takes a second to end the others when one rank has left. */
enum {
    WAIT_MILLISECONDS = 2500,
    WAIT_PER_RANK = 20,
    WAIT_MOST = 5000,
    LINE_MILLISECONDS = 100,
    SHORT_MILLISECONDS = 2000
};

static bool is_line_open;    /* the progress line stands on the terminal */
static int output_error;     /* errno of the first failed write */
static int tenths_said = -1; /* of the run, where there is no terminal */

/* The rank as the launcher tells it; NULL if this process is alone. */
static const char *rank_text(void)
{
    static const char *const variables[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) {
        const char *value = getenv(variables[i]);
        if (value && *value) return value;
    }
    return NULL;
}

int own_rank(void)
{
    const char *text = rank_text();
    return text ? atoi(text) : 0;
}

int leave(int status)
{
    if (status != EXIT_SUCCESS && rank_text()) {
        fflush(NULL);
        _exit(status);
    }
    return status;
}

static void clear_line(void)
{
    if (is_line_open) fputs("\r\033[K", stderr);
    is_line_open = false;
}

static void write_log(void *user, hd_log_level level, const char *line)
{
    (void)user, (void)level;
    clear_line();
    fprintf(stderr, "%s\n", line);
}

void start_log(bool quiet, bool verbose)
{
    hd_log_level level = quiet ? HD_LOG_ERROR : HD_LOG_INFO;
    if (own_rank() != 0) level = HD_LOG_NONE;
    if (verbose) level = HD_LOG_DEBUG;
    hd_log_set_sink(write_log, NULL, level);
}

static void sleep_milliseconds(int milliseconds)
{
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

/* See report_failure. */
static void wait_for_turn(void)
{
    const int rank = own_rank();
    if (rank == 0) return;
    signal(SIGTERM, SIG_DFL); /* the launcher may end this rank now */
    const int wait = WAIT_MILLISECONDS + WAIT_PER_RANK * rank;
    sleep_milliseconds(wait < WAIT_MOST ? wait : WAIT_MOST);
}

static void write_error(const char *text)
{
    clear_line();
    fflush(stdout);
    if (own_rank() == 0)
        fprintf(stderr, "heddle: %s\n", text);
    else
        fprintf(stderr, "heddle: rank %d: %s\n", own_rank(), text);
}

int usage_error(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    wait_for_turn();
    write_error(text);
    return EXIT_USAGE;
}

int report_failure(hd_status status)
{
    wait_for_turn();
    write_error(*hd_last_error() ? hd_last_error() : hd_status_string(status));
    if (status == HD_ERROR_CONFIG) return EXIT_USAGE;
    return status == HD_ERROR_INTERRUPTED ? EXIT_INTERRUPTED : EXIT_FAILURE;
}

static int64_t now_milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 79;
}

/* Is it time for a line? On a terminal it stays in place; elsewhere there is one for every tenth of a run, but
 * none of what is over in seconds. */
static bool is_due(const hd_progress *progress, bool is_terminal)
{
    static int64_t begun_at, shown_at;
    const bool is_last = progress->step >= progress->steps;
    const int64_t now = now_milliseconds();
    const int tenths = progress->steps > 0 ? (int)(10 * progress->step / progress->steps) : 0;
    if (begun_at == 0) begun_at = now;
    if (is_terminal) {
        if (!is_last && now - shown_at < LINE_MILLISECONDS) return false;
    } else if (tenths == tenths_said || now - begun_at < SHORT_MILLISECONDS) {
        return false;
    }
    shown_at = now;
    tenths_said = tenths;
    return true;
}

bool show_progress(void *user, const hd_progress *progress)
{
    (void)user;
    const bool is_terminal = isatty(STDERR_FILENO);
    if (!is_due(progress, is_terminal)) return true;
    char line[256];
    hd_progress_format(progress, is_terminal ? terminal_columns() : 120, line, sizeof line);
    clear_line();
    fprintf(stderr, is_terminal ? "%s" : "%s\n", line);
    is_line_open = is_terminal;
    return true;
}

void end_progress(void)
{
    if (is_line_open) fputc('\n', stderr);
    is_line_open = false;
}

bool write_output(void *user, const char *text)
{
    (void)user;
    end_progress();
    if (output_error == 0 && fputs(text, stdout) == EOF) output_error = errno;
    return output_error == 0;
}

bool flush_output(void)
{
    if (output_error == 0 && fflush(stdout) == EOF) output_error = errno;
    if (output_error == 0 || output_error == EPIPE) return true;
    fprintf(stderr, "heddle: standard output: %s\n", strerror(output_error));
    return false;
}
