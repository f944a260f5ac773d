/* Values of a configuration: reading them from text and JSON, and printing them. */
#include "core/config_value.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "core/number.h"

void hdi_config_value_clear(hdi_config_value *value)
{
    for (int i = 0; value->strings && i < value->count; i++)
        hdi_free(value->strings[i]);
    hdi_free(value->strings);
    hdi_free(value->integers);
    hdi_free(value->string);
    *value = (hdi_config_value){0};
}

static bool integer_in_limits(const hdi_config_row *row, int64_t value)
{
    bool bytes = row->type == HDI_CONFIG_BYTES;
    int64_t limit;
    if (row->min && (bytes ? hdi_parse_bytes : hdi_parse_int)(row->min, &limit) && value < limit)
        return false;
    if (row->max && (bytes ? hdi_parse_bytes : hdi_parse_int)(row->max, &limit) && value > limit)
        return false;
    return true;
}

static bool float_in_limits(const hdi_config_row *row, double value)
{
    double limit;
    if (row->min && hdi_parse_float(row->min, &limit) && value < limit) return false;
    if (row->max && hdi_parse_float(row->max, &limit) && value > limit) return false;
    return true;
}

static bool copy_string(const char *text, char **out, bool *out_of_memory)
{
    *out = hdi_strdup(text);
    if (!*out) *out_of_memory = true;
    return *out;
}

static bool find_name(const hdi_config_row *row, const char *text, int64_t *out)
{
    for (int i = 0; row->names[i]; i++) {
        if (strcmp(row->names[i], text) != 0) continue;
        *out = i;
        return true;
    }
    return false;
}

/* Room for `count` elements of the row's list type, all empty. */
static bool make_list(const hdi_config_row *row, size_t count, hdi_config_value *out,
                      bool *out_of_memory)
{
    if (count > INT32_MAX) return false;
    if (row->type == HDI_CONFIG_INT_LIST)
        out->integers = hdi_alloc_array(count, sizeof *out->integers);
    else
        out->strings = hdi_alloc_array(count, sizeof *out->strings);
    if (!out->integers && !out->strings) {
        *out_of_memory = true;
        return false;
    }
    out->count = (int)count;
    return true;
}

static bool list_from_json(const hdi_config_row *row, json_t *json, hdi_config_value *out,
                           bool *out_of_memory)
{
    if (!json_is_array(json) || !make_list(row, json_array_size(json), out, out_of_memory))
        return false;
    for (int i = 0; i < out->count; i++) {
        json_t *item = json_array_get(json, (size_t)i);
        if (row->type == HDI_CONFIG_INT_LIST) {
            if (!json_is_integer(item)) return false;
            out->integers[i] = json_integer_value(item);
            if (!integer_in_limits(row, out->integers[i])) return false;
        } else if (!json_is_string(item) ||
                   !copy_string(json_string_value(item), &out->strings[i], out_of_memory)) {
            return false;
        }
    }
    return true;
}

static bool list_from_text(const hdi_config_row *row, const char *text, hdi_config_value *out,
                           bool *out_of_memory)
{
    if (text[0] == '[') {
        json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
        bool read = list_from_json(row, json, out, out_of_memory);
        json_decref(json);
        return read;
    }
    size_t count = text[0] != '\0';
    for (const char *at = text; *at; at++)
        count += *at == ',';
    if (!make_list(row, count, out, out_of_memory)) return false;

    char *copy, *rest;
    if (!copy_string(text, &copy, out_of_memory)) return false;
    rest = copy;
    bool read = true;
    for (int i = 0; i < out->count && read; i++) {
        const char *item = strsep(&rest, ",");
        if (row->type == HDI_CONFIG_INT_LIST)
            read =
                hdi_parse_int(item, &out->integers[i]) && integer_in_limits(row, out->integers[i]);
        else
            read = *item && copy_string(item, &out->strings[i], out_of_memory);
    }
    hdi_free(copy);
    return read;
}

bool hdi_config_value_from_text(const hdi_config_row *row, const char *text, hdi_config_value *out,
                                bool *out_of_memory)
{
    *out = (hdi_config_value){0};
    switch (row->type) {
    case HDI_CONFIG_BOOL:
        out->integer = strcmp(text, "true") == 0;
        return out->integer || strcmp(text, "false") == 0;
    case HDI_CONFIG_INT:
        return hdi_parse_int(text, &out->integer) && integer_in_limits(row, out->integer);
    case HDI_CONFIG_BYTES:
        return hdi_parse_bytes(text, &out->integer) && integer_in_limits(row, out->integer);
    case HDI_CONFIG_FLOAT:
        return hdi_parse_float(text, &out->number) && float_in_limits(row, out->number);
    case HDI_CONFIG_STRING: return copy_string(text, &out->string, out_of_memory);
    case HDI_CONFIG_ENUM: return find_name(row, text, &out->integer);
    case HDI_CONFIG_INT_LIST:
    case HDI_CONFIG_STRING_LIST: return list_from_text(row, text, out, out_of_memory);
    }
    return false;
}

bool hdi_config_value_from_json(const hdi_config_row *row, json_t *json, hdi_config_value *out,
                                bool *out_of_memory)
{
    *out = (hdi_config_value){0};
    switch (row->type) {
    case HDI_CONFIG_BOOL: out->integer = json_is_true(json); return json_is_boolean(json);
    case HDI_CONFIG_INT:
        out->integer = json_integer_value(json);
        return json_is_integer(json) && integer_in_limits(row, out->integer);
    case HDI_CONFIG_BYTES:
        if (json_is_string(json))
            return hdi_config_value_from_text(row, json_string_value(json), out, out_of_memory);
        out->integer = json_integer_value(json);
        return json_is_integer(json) && out->integer >= 0 && integer_in_limits(row, out->integer);
    case HDI_CONFIG_FLOAT:
        out->number = json_number_value(json);
        return json_is_number(json) && float_in_limits(row, out->number);
    case HDI_CONFIG_ENUM:
        if (json_is_boolean(json))
            return find_name(row, json_is_true(json) ? "true" : "false", &out->integer);
        if (json_is_integer(json)) {
            char digits[32];
            snprintf(digits, sizeof digits, "%" JSON_INTEGER_FORMAT, json_integer_value(json));
            return find_name(row, digits, &out->integer);
        }
        return json_is_string(json) &&
               hdi_config_value_from_text(row, json_string_value(json), out, out_of_memory);
    case HDI_CONFIG_STRING:
        return json_is_string(json) &&
               hdi_config_value_from_text(row, json_string_value(json), out, out_of_memory);
    case HDI_CONFIG_INT_LIST:
    case HDI_CONFIG_STRING_LIST: return list_from_json(row, json, out, out_of_memory);
    }
    return false;
}

void hdi_config_value_print(const hdi_config_row *row, const hdi_config_value *value, hdi_text *out)
{
    switch (row->type) {
    case HDI_CONFIG_BOOL: hdi_text_append(out, value->integer ? "true" : "false"); break;
    case HDI_CONFIG_INT:
    case HDI_CONFIG_BYTES: hdi_text_printf(out, "%" PRId64, value->integer); break;
    case HDI_CONFIG_FLOAT: hdi_text_append_float(out, value->number); break;
    case HDI_CONFIG_STRING: hdi_text_append_json(out, value->string ? value->string : ""); break;
    case HDI_CONFIG_ENUM: hdi_text_append_json(out, row->names[value->integer]); break;
    case HDI_CONFIG_INT_LIST:
    case HDI_CONFIG_STRING_LIST:
        hdi_text_append(out, "[");
        for (int i = 0; i < value->count; i++) {
            if (i) hdi_text_append(out, ", ");
            if (row->type == HDI_CONFIG_INT_LIST)
                hdi_text_printf(out, "%" PRId64, value->integers[i]);
            else
                hdi_text_append_json(out, value->strings[i]);
        }
        hdi_text_append(out, "]");
        break;
    }
}
