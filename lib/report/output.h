/* A report file on its way: written beside its place through a fixed buffer, renamed when whole, so
 * a reader never sees half of one. Errors are sticky; hdi_output_commit reports the first. */
#ifndef HDI_REPORT_OUTPUT_H
#define HDI_REPORT_OUTPUT_H

#include "core/error.h"
#include "core/file.h"

enum { HDI_OUTPUT_BUFFER = 8192 };

typedef struct hdi_output {
    hd_status status;
    int fd;
    size_t used;
    char path[HDI_PATH_BYTES], temporary[HDI_PATH_BYTES];
    char buffer[HDI_OUTPUT_BUFFER];
} hdi_output;

/* Must be followed by commit or abandon, also when it fails. Errors: IO, ARGUMENT (path length). */
hd_status hdi_output_open(hdi_output *output, const char *path);

void hdi_output_bytes(hdi_output *output, const void *data, size_t bytes);
void hdi_output_text(hdi_output *output, const char *text);
void hdi_output_format(hdi_output *output, const char *format, ...) HD_PRINTF(2, 3);
void hdi_output_fixed(hdi_output *output, double value, int decimals); /* hdi_format_fixed */
void hdi_output_json(hdi_output *output, const char *text);            /* quoted and escaped */
void hdi_output_xml(hdi_output *output, const char *text);             /* escaped */

/* Flush to disk and take the place of an older file. On failure the older file stays. */
hd_status hdi_output_commit(hdi_output *output);
void hdi_output_abandon(hdi_output *output);

#endif
