/* The appending end of metrics.jsonl. */
#include "report/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"
#include "report/format.h"

enum { RECORD_BYTES = 4096, PATH_BYTES = 1024 };

struct hdi_metrics {
    int fd;
    char path[PATH_BYTES];
    char record[RECORD_BYTES];
};

static hd_status io_error(const hdi_metrics *metrics, const char *what)
{
    return hdi_error(HD_ERROR_IO, "%s: cannot %s: %s", metrics->path, what, strerror(errno));
}

/* A process that died in a write leaves a line without its end: cut it, or the next record would be
 * lost with it. No whole record is longer than the buffer. */
static hd_status cut_torn_line(hdi_metrics *metrics)
{
    off_t size = lseek(metrics->fd, 0, SEEK_END);
    if (size < 0) return io_error(metrics, "seek");
    off_t from = size > RECORD_BYTES ? size - RECORD_BYTES : 0;
    ssize_t read_bytes = pread(metrics->fd, metrics->record, RECORD_BYTES, from);
    if (read_bytes < 0) return io_error(metrics, "read");
    if (read_bytes == 0) return HD_OK;

    const char *last = memrchr(metrics->record, '\n', (size_t)read_bytes);
    const char *tail = last ? last + 1 : metrics->record;
    size_t tail_bytes = (size_t)(metrics->record + read_bytes - tail);
    if (tail_bytes == 0) return HD_OK;
    if (!last && from > 0)
        return hdi_error(HD_ERROR_FORMAT, "%s: the last line is over %d bytes, want JSON records",
                         metrics->path, RECORD_BYTES);
    if (ftruncate(metrics->fd, size - (off_t)tail_bytes) != 0) return io_error(metrics, "truncate");
    return HD_OK;
}

hd_status hdi_metrics_open(const char *path, hdi_metrics **out)
{
    *out = NULL;
    if (strlen(path) >= PATH_BYTES)
        return hdi_error(HD_ERROR_ARGUMENT, "metrics: path of %zu bytes, want < %d", strlen(path),
                         PATH_BYTES);
    hdi_metrics *metrics = hdi_alloc(sizeof *metrics);
    if (!metrics) return hdi_error(HD_ERROR_MEMORY, "metrics: out of host memory");
    strcpy(metrics->path, path);

    hd_status status = HD_OK;
    metrics->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (metrics->fd < 0) status = io_error(metrics, "open");
    if (status == HD_OK) status = cut_torn_line(metrics);
    if (status != HD_OK) {
        hdi_metrics_close(metrics);
        return status;
    }
    *out = metrics;
    return HD_OK;
}

void hdi_metrics_close(hdi_metrics *metrics)
{
    if (!metrics) return;
    if (metrics->fd >= 0) close(metrics->fd);
    hdi_free(metrics);
}

typedef struct writer {
    char *out;
    size_t used;
    bool full;
} writer;

static void put(writer *to, const char *data, size_t bytes)
{
    to->full = to->full || bytes > RECORD_BYTES - to->used;
    if (to->full) return;
    memcpy(to->out + to->used, data, bytes);
    to->used += bytes;
}

static void put_string(writer *to, const char *text)
{
    char piece[HDI_ESCAPE_TEXT];
    put(to, "\"", 1);
    for (size_t bytes; (bytes = hdi_escape_json(&text, piece)) > 0;)
        put(to, piece, bytes);
    put(to, "\"", 1);
}

static void put_value(writer *to, const hdi_metric *field)
{
    char number[HDI_NUMBER_TEXT];
    switch (field->type) {
    case HDI_METRIC_INT: snprintf(number, sizeof number, "%" PRId64, field->integer); break;
    case HDI_METRIC_FLOAT: hdi_print_float(field->real, number); break;
    case HDI_METRIC_STRING: put_string(to, field->text ? field->text : ""); return;
    }
    put(to, number, strlen(number));
}

hd_status hdi_metrics_append(hdi_metrics *metrics, const hdi_metric *fields, int count)
{
    writer to = {.out = metrics->record};
    for (int i = 0; i < count; i++) {
        put(&to, i == 0 ? "{" : ", ", i == 0 ? 1 : 2);
        put_string(&to, fields[i].name);
        put(&to, ": ", 2);
        put_value(&to, &fields[i]);
    }
    put(&to, count > 0 ? "}\n" : "{}\n", count > 0 ? 2 : 3);
    if (to.full)
        return hdi_error(HD_ERROR_ARGUMENT, "%s: a record of %d fields is over %d bytes",
                         metrics->path, count, RECORD_BYTES);

    ssize_t wrote;
    do {
        wrote = write(metrics->fd, metrics->record, to.used);
    } while (wrote < 0 && errno == EINTR);
    if (wrote == (ssize_t)to.used) return HD_OK;
    if (wrote < 0) return io_error(metrics, "append");

    /* The disk filled up within the record: take the part back. */
    off_t size = lseek(metrics->fd, 0, SEEK_END);
    if (size >= wrote && ftruncate(metrics->fd, size - wrote) != 0)
        return io_error(metrics, "take back half a record");
    return hdi_error(HD_ERROR_IO, "%s: only %zd of %zu bytes of a record fit: disk full?",
                     metrics->path, wrote, to.used);
}
