/* Chrome trace files read back, for charts. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "report/trace.h"

static double number_of(const json_t *object, const char *key, double otherwise)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : otherwise;
}

static int32_t index_of(const json_t *object, const char *key, int32_t otherwise)
{
    double value = number_of(object, key, otherwise);
    return value >= -1 && value <= INT32_MAX ? (int32_t)value : otherwise;
}

static hd_status read_event(const char *path, size_t index, const json_t *from,
                            hdi_trace_event *out)
{
    const char *name = json_string_value(json_object_get(from, "name"));
    const char *category = json_string_value(json_object_get(from, "cat"));
    double begin = number_of(from, "ts", (double)NAN), duration = number_of(from, "dur", 0);
    if (!isfinite(begin) || !(duration >= 0))
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: event %zu (%s): ts or dur missing or negative, want microseconds",
                         path, index, name ? name : "no name");
    const json_t *arguments = json_object_get(from, "args");
    double step = number_of(arguments, "step", -1);
    *out = (hdi_trace_event){
        .name = name ? name : "",
        .category = hdi_trace_category_from_name(category ? category : ""),
        .thread = index_of(from, "tid", 0),
        .micro_batch = index_of(arguments, "micro_batch", -1),
        .chunk = index_of(arguments, "chunk", -1),
        .step = step >= 0 && step < 9e15 ? (int64_t)step : -1,
        .begin_us = begin,
        .end_us = begin + duration,
    };
    return HD_OK;
}

static hd_status read_events(const char *path, const json_t *list, hdi_trace_file *out)
{
    size_t count = json_array_size(list);
    out->events = hdi_alloc_array(count + 1, sizeof *out->events);
    if (!out->events)
        return hdi_error(HD_ERROR_MEMORY, "%s: no host memory for %zu events", path, count);
    size_t index;
    json_t *event;
    json_array_foreach(list, index, event)
    {
        const char *phase = json_string_value(json_object_get(event, "ph"));
        if (!phase || strcmp(phase, "X") != 0) continue;
        out->rank = index_of(event, "pid", 0);
        HD_RETURN_IF_ERROR(read_event(path, index, event, &out->events[out->count]));
        out->count++;
    }
    return HD_OK;
}

hd_status hdi_trace_read(const char *path, hdi_trace_file *out)
{
    *out = (hdi_trace_file){0};
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root && json_error_code(&error) == json_error_cannot_open_file)
        return hdi_error(HD_ERROR_IO, "%s: %s", path, error.text);
    if (!root) return hdi_error(HD_ERROR_FORMAT, "%s: line %d: %s", path, error.line, error.text);
    out->document = root;

    json_t *list = json_is_array(root) ? root : json_object_get(root, "traceEvents");
    hd_status status = HD_OK;
    if (!json_is_array(list))
        status = hdi_error(HD_ERROR_FORMAT, "%s: no traceEvents array, want a Chrome trace", path);
    else
        status = read_events(path, list, out);
    out->rank = index_of(json_object_get(root, "otherData"), "rank", out->rank);
    if (status != HD_OK) hdi_trace_file_free(out);
    return status;
}

void hdi_trace_file_free(hdi_trace_file *file)
{
    hdi_free(file->events);
    json_decref(file->document);
    *file = (hdi_trace_file){0};
}
