/* The reading end of metrics.jsonl: whole files, when a run starts, resumes or ends. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"
#include "report/format.h"
#include "report/metrics.h"
#include "report/output.h"

/* A whole file in memory and a walk over its records. */
typedef struct reader {
    char *data;
    size_t bytes, next;
    const char *line; /* of the current record, with its newline */
    size_t line_bytes;
} reader;

/* A missing file reads as an empty one if `optional`. */
static hd_status read_all(const char *path, bool optional, reader *out)
{
    *out = (reader){0};
    if (optional && !hdi_file_exists(path)) return HD_OK;
    return hdi_file_read_all(path, SIZE_MAX / 2, &out->data, &out->bytes);
}

/* The next record, owned by the caller; NULL at the end. Torn and foreign lines are passed over. */
static json_t *next_record(reader *from)
{
    while (from->next < from->bytes) {
        from->line = from->data + from->next;
        size_t left = from->bytes - from->next;
        const char *end = memchr(from->line, '\n', left);
        if (!end) break; /* torn: the writer ends every record */
        from->line_bytes = (size_t)(end - from->line) + 1;
        from->next += from->line_bytes;
        json_t *record = json_loadb(from->line, from->line_bytes, 0, NULL);
        if (json_is_object(record)) return record;
        json_decref(record);
    }
    return NULL;
}

hd_status hdi_metrics_drop_after(const char *path, int64_t step)
{
    reader from;
    HD_RETURN_IF_ERROR(read_all(path, true, &from));
    if (from.bytes == 0) {
        hdi_free(from.data);
        return HD_OK;
    }
    hdi_output output;
    hd_status status = hdi_output_open(&output, path);
    for (json_t *record; status == HD_OK && (record = next_record(&from)); json_decref(record)) {
        json_t *at = json_object_get(record, "step");
        if (!json_is_number(at) || json_number_value(at) <= (double)step)
            hdi_output_bytes(&output, from.line, from.line_bytes);
    }
    hdi_free(from.data);
    return hdi_output_commit(&output);
}

hd_status hdi_metrics_last(const char *path, const char *field, double *value, bool *found)
{
    *found = false;
    *value = 0;
    reader from;
    HD_RETURN_IF_ERROR(read_all(path, true, &from));
    for (json_t *record; (record = next_record(&from)); json_decref(record)) {
        json_t *number = json_object_get(record, field);
        if (!json_is_number(number)) continue;
        *value = json_number_value(number);
        *found = true;
    }
    hdi_free(from.data);
    return HD_OK;
}

hd_status hdi_metrics_series(const char *path, const char *x, const char *y, hdi_point **out,
                             int64_t *count)
{
    *out = NULL;
    *count = 0;
    reader from;
    HD_RETURN_IF_ERROR(read_all(path, false, &from));
    int used = 0, capacity = 0;
    hd_status status = HD_OK;
    for (json_t *record; status == HD_OK && (record = next_record(&from)); json_decref(record)) {
        json_t *x_value = json_object_get(record, x), *y_value = json_object_get(record, y);
        if (!json_is_number(x_value) || !(json_is_number(y_value) || json_is_null(y_value)))
            continue;
        if (!HDI_GROW(*out, used, capacity)) {
            status = hdi_error(HD_ERROR_MEMORY, "%s: out of host memory at %d points", path, used);
            continue;
        }
        double seen = json_is_null(y_value) ? (double)NAN : json_number_value(y_value);
        (*out)[used++] = (hdi_point){json_number_value(x_value), seen};
    }
    hdi_free(from.data);
    *count = used;
    if (status != HD_OK) {
        hdi_free(*out);
        *out = NULL;
        *count = 0;
    }
    return status;
}

static void put_csv_text(hdi_output *output, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        hdi_output_text(output, text);
        return;
    }
    hdi_output_text(output, "\"");
    for (; *text; text++) {
        if (*text == '"') hdi_output_text(output, "\"");
        hdi_output_bytes(output, text, 1);
    }
    hdi_output_text(output, "\"");
}

static void put_csv_value(hdi_output *output, const json_t *value)
{
    char number[HDI_NUMBER_TEXT];
    if (json_is_integer(value)) {
        hdi_output_format(output, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_real(value)) {
        hdi_print_float(json_real_value(value), number);
        hdi_output_text(output, number);
    } else if (json_is_string(value)) {
        put_csv_text(output, json_string_value(value));
    } else if (json_is_boolean(value)) {
        hdi_output_text(output, json_is_true(value) ? "true" : "false");
    }
}

hd_status hdi_metrics_export_csv(const char *jsonl_path, const char *csv_path)
{
    reader from;
    HD_RETURN_IF_ERROR(read_all(jsonl_path, false, &from));
    json_t *columns = json_object(); /* an ordered set of names */
    const char *name;
    json_t *value;
    for (json_t *record; (record = next_record(&from)); json_decref(record))
        json_object_update_missing(columns, record);

    hdi_output output;
    if (hdi_output_open(&output, csv_path) == HD_OK) {
        const char *comma = "";
        json_object_foreach(columns, name, value)
        {
            hdi_output_text(&output, comma);
            put_csv_text(&output, name);
            comma = ",";
        }
        hdi_output_text(&output, "\r\n");
        from.next = 0;
        for (json_t *record; (record = next_record(&from)); json_decref(record)) {
            comma = "";
            json_object_foreach(columns, name, value)
            {
                hdi_output_text(&output, comma);
                put_csv_value(&output, json_object_get(record, name));
                comma = ",";
            }
            hdi_output_text(&output, "\r\n");
        }
    }
    json_decref(columns);
    hdi_free(from.data);
    return hdi_output_commit(&output);
}
