/* Writing to the log. The sink is the program's: heddle/log.h. */
#ifndef HDI_CORE_LOG_H
#define HDI_CORE_LOG_H

#include <heddle/log.h>

/* The rank that leads each line; a line before this call is led by "-". */
void hdi_log_set_rank(int rank);

/* True if a line of this level would reach a sink: guards costly text. */
bool hdi_log_enabled(hd_log_level level);

/* A second sink, of the library's own: the files of a run. NULL ends it. Thread-safe. */
void hdi_log_attach(hd_log_fn sink, void *user, hd_log_level level);

/* Log the text, one line per line of it. Allocates nothing: text beyond 4 kB is cut and marked. */
void hdi_log(hd_log_level level, const char *format, ...) HD_PRINTF(2, 3);

/* The same for the run's files alone: what the program will say itself. */
void hdi_log_run(hd_log_level level, const char *format, ...) HD_PRINTF(2, 3);

#endif
