/* metrics.jsonl: one JSON object a line, appended by one write(2) each, so that a killed run loses
 * at most its last line. Readers skip lines that are not whole records. */
#ifndef HDI_REPORT_METRICS_H
#define HDI_REPORT_METRICS_H

#include <heddle/status.h>

typedef enum hdi_metric_type {
    HDI_METRIC_INT,
    HDI_METRIC_FLOAT,
    HDI_METRIC_STRING
} hdi_metric_type;

/* One field of a record. Names and texts are borrowed for the call. */
typedef struct hdi_metric {
    const char *name;
    hdi_metric_type type;
    int64_t integer;
    double real; /* NaN and infinities are written as null */
    const char *text;
} hdi_metric;

static inline hdi_metric hdi_metric_int(const char *name, int64_t value)
{
    return (hdi_metric){.name = name, .type = HDI_METRIC_INT, .integer = value};
}

static inline hdi_metric hdi_metric_float(const char *name, double value)
{
    return (hdi_metric){.name = name, .type = HDI_METRIC_FLOAT, .real = value};
}

static inline hdi_metric hdi_metric_string(const char *name, const char *value)
{
    return (hdi_metric){.name = name, .type = HDI_METRIC_STRING, .text = value};
}

typedef struct hdi_metrics hdi_metrics;

/* Open for appending; a torn last line is cut off first. Errors: IO, MEMORY, ARGUMENT. */
hd_status hdi_metrics_open(const char *path, hdi_metrics **out);
void hdi_metrics_close(hdi_metrics *metrics); /* takes NULL */

/* Append one record. Allocates nothing. Errors: ARGUMENT (record over 4 KiB), IO (disk full: the
 * file keeps whole records only). */
hd_status hdi_metrics_append(hdi_metrics *metrics, const hdi_metric *fields, int count);

/* Drop the records whose "step" is above `step`, and torn lines, by atomic replacement: a resumed
 * run writes them anew. Records without a step stay. Not while the file is open for appending. A
 * missing file is fine. */
hd_status hdi_metrics_drop_after(const char *path, int64_t step);

/* The number `field` of the last record that has it. *found is false if none or no file. */
hd_status hdi_metrics_last(const char *path, const char *field, double *value, bool *found);

typedef struct hdi_point {
    double x, y;
} hdi_point;

/* (x, y) of every record that has both as numbers, in file order; a null y is NaN. `out` is owned
 * by the caller (hdi_free), NULL when the count is 0. */
hd_status hdi_metrics_series(const char *path, const char *x, const char *y, hdi_point **out,
                             int64_t *count);

/* Write all records as CSV (RFC 4180): columns in order of first appearance, absent fields and
 * nulls empty. */
hd_status hdi_metrics_export_csv(const char *jsonl_path, const char *csv_path);

#endif
