/* What the program says, and who of many ranks says it. */
#ifndef HEDDLE_LAUNCHER_REPORT_H
#define HEDDLE_LAUNCHER_REPORT_H

#include <heddle/job.h>

/* Exit statuses. */
enum { EXIT_USAGE = 2, EXIT_INTERRUPTED = 75 };

/* This process among those that mpirun or a batch system started; 0 if nobody did. */
int own_rank(void);

/* Send the log of rank 0 to standard error, or if `verbose` of all ranks. A training's other ranks
 * keep theirs in the run's folder. */
void start_log(bool quiet, bool verbose);

/* A wrong command line: one line on standard error. The value is the exit status. */
int usage_error(const char *format, ...) HD_PRINTF(1, 2);

/* Report a failed job and give the exit status.
 *
 * Ranks that fail together mostly have the same text, and ranks that fail alone must not go unheard.
 * So rank 0 speaks at once and leaves; the launcher then ends the others, which have been waiting a
 * moment for that. Those that are still there, each at its own time, say what they have seen. */
int report_failure(hd_status status);

/* The value of main. A rank that failed leaves at once: what other libraries do at exit may wait for
 * peers, and the launcher ends them only when this rank is gone. */
int leave(int status);

/* hd_progress_fn and hd_write_fn of the jobs. */
bool show_progress(void *user, const hd_progress *progress);
void end_progress(void);
bool write_output(void *user, const char *text);

/* True if everything written to standard output has arrived, or its reader did not want more. */
bool flush_output(void);

#endif
