/* The configuration's table: creation, overrides, getters. */
#include "core/config.h"

#include <stdlib.h>
#include <string.h>

#include "core/config_value.h"
#include "core/error.h"
#include "core/memory.h"

enum { KEY_BYTES = 128 }; /* longest key that a schema may have, with its NUL */

int hdi_config_find(const hdi_config *config, const char *key)
{
    for (int row = 0; row < config->rows; row++)
        if (strcmp(config->schema[row].key, key) == 0) return row;
    return -1;
}

bool hdi_config_is_section(const hdi_config *config, const char *name)
{
    size_t length = strlen(name);
    for (int row = 0; row < config->rows; row++) {
        const char *key = config->schema[row].key;
        if (strncmp(key, name, length) == 0 && key[length] == '.') return true;
    }
    return false;
}

/* True if `limit` is absent or reads as an element of the row's type. */
static bool is_limit(const hdi_config_row *row, const char *limit)
{
    hdi_config_row bare = {.key = row->key, .type = row->type};
    hdi_config_value value;
    bool out_of_memory = false;
    if (!limit) return true;
    if (row->type == HDI_CONFIG_INT_LIST) bare.type = HDI_CONFIG_INT;
    return (bare.type == HDI_CONFIG_INT || bare.type == HDI_CONFIG_FLOAT ||
            bare.type == HDI_CONFIG_BYTES) &&
           hdi_config_value_from_text(&bare, limit, &value, &out_of_memory);
}

static hd_status check_row(const hdi_config *config, int index)
{
    const hdi_config_row *row = &config->schema[index];
    size_t length = strlen(row->key);
    if (length == 0 || length >= KEY_BYTES ||
        strspn(row->key, "abcdefghijklmnopqrstuvwxyz0123456789_.") != length)
        return hdi_error(HD_ERROR_INTERNAL,
                         "config schema: key '%s', wanted 1 to %d of a-z, 0-9, _ and points",
                         row->key, KEY_BYTES - 1);
    if (hdi_config_find(config, row->key) != index || hdi_config_is_section(config, row->key))
        return hdi_error(HD_ERROR_INTERNAL, "config schema: %s is there twice", row->key);
    if (row->type == HDI_CONFIG_ENUM && (!row->names || !row->names[0]))
        return hdi_error(HD_ERROR_INTERNAL, "config schema: %s has no names", row->key);
    if (!is_limit(row, row->min) || !is_limit(row, row->max))
        return hdi_error(HD_ERROR_INTERNAL, "config schema: %s cannot have its limits", row->key);
    return HD_OK;
}

/* The default, which has to pass the row's own rules. */
static hd_status set_default(hdi_config *config, int index)
{
    const hdi_config_row *row = &config->schema[index];
    if (!row->fallback && row->type != HDI_CONFIG_STRING) return HD_OK;
    bool out_of_memory = false;
    if (hdi_config_value_from_text(row, row->fallback ? row->fallback : "", &config->values[index],
                                   &out_of_memory))
        return HD_OK;
    if (out_of_memory) return hdi_error(HD_ERROR_MEMORY, "config: out of host memory");
    return hdi_error(HD_ERROR_INTERNAL, "config schema: %s cannot have its default '%s'", row->key,
                     row->fallback);
}

static int compare_keys(const void *left, const void *right, void *schema)
{
    const hdi_config_row *rows = schema;
    return strcmp(rows[*(const int *)left].key, rows[*(const int *)right].key);
}

hd_status hdi_config_create(const hdi_config_row *schema, int rows, hdi_config **out)
{
    *out = NULL;
    hdi_config *config = hdi_alloc(sizeof *config);
    if (!config) return hdi_error(HD_ERROR_MEMORY, "config: out of host memory");
    size_t count = (size_t)rows;
    config->schema = schema;
    config->rows = rows;
    config->values = hdi_alloc_array(count, sizeof *config->values);
    config->origins = hdi_alloc_array(count, sizeof *config->origins);
    config->seen = hdi_alloc_array(count, sizeof *config->seen);
    config->sorted = hdi_alloc_array(count, sizeof *config->sorted);
    config->misused_key = hdi_alloc(KEY_BYTES);
    hd_status status = HD_OK;
    if (!config->values || !config->origins || !config->seen || !config->sorted ||
        !config->misused_key)
        status = hdi_error(HD_ERROR_MEMORY, "config: out of host memory");
    for (int row = 0; row < rows && status == HD_OK; row++) {
        config->sorted[row] = row;
        status = check_row(config, row);
        if (status == HD_OK) status = set_default(config, row);
    }
    if (status != HD_OK) {
        hdi_config_destroy(config);
        return status;
    }
    qsort_r(config->sorted, count, sizeof *config->sorted, compare_keys, (void *)(uintptr_t)schema);
    *out = config;
    return HD_OK;
}

void hdi_config_destroy(hdi_config *config)
{
    if (!config) return;
    for (int row = 0; row < config->rows; row++) {
        if (config->values) hdi_config_value_clear(&config->values[row]);
        if (config->origins) hdi_free(config->origins[row]);
    }
    hdi_free(config->values);
    hdi_free(config->origins);
    hdi_free(config->seen);
    hdi_free(config->sorted);
    hdi_free(config->misused_key);
    hdi_free(config);
}

hd_status hdi_config_store(hdi_config *config, int row, hdi_config_value *value, const char *where)
{
    char *origin = hdi_strdup(where);
    if (!origin) {
        hdi_config_value_clear(value);
        return hdi_error(HD_ERROR_MEMORY, "config: out of host memory");
    }
    hdi_config_value_clear(&config->values[row]);
    config->values[row] = *value;
    *value = (hdi_config_value){0};
    hdi_free(config->origins[row]);
    config->origins[row] = origin;
    return HD_OK;
}

hd_status hdi_config_set_from(hdi_config *config, const char *key, const char *text,
                              const char *where)
{
    int index = hdi_config_find(config, key);
    if (index < 0) return hdi_config_refuse_key(config, where, key, false);
    const hdi_config_row *row = &config->schema[index];
    hdi_config_value value;
    bool out_of_memory = false;
    if (hdi_config_value_from_text(row, text, &value, &out_of_memory))
        return hdi_config_store(config, index, &value, where);
    hdi_config_value_clear(&value);
    if (out_of_memory) return hdi_error(HD_ERROR_MEMORY, "config: out of host memory");

    hdi_text seen = {0};
    hdi_text_append_json(&seen, text);
    hd_status status = hdi_config_refuse_value(row, where, seen.data);
    hdi_text_free(&seen);
    return status;
}

hd_status hdi_config_set(hdi_config *config, const char *key, const char *text)
{
    return hdi_config_set_from(config, key, text, "command line");
}

/* The value of a key that must have one of two types; NULL and a note of it otherwise. */
static const hdi_config_value *get(const hdi_config *config, const char *key, hdi_config_type type,
                                   hdi_config_type or_type)
{
    int row = hdi_config_find(config, key);
    if (row >= 0 && (config->schema[row].type == type || config->schema[row].type == or_type))
        return &config->values[row];
    if (config->misused_key[0] == '\0') {
        size_t length = strnlen(key, KEY_BYTES - 1);
        memcpy(config->misused_key, key, length); /* the last byte stays zero */
    }
    return NULL;
}

hd_status hdi_config_misuse(const hdi_config *config)
{
    if (config->misused_key[0] == '\0') return HD_OK;
    return hdi_error(
        HD_ERROR_INTERNAL, "config: %s was asked for, but the schema %s", config->misused_key,
        hdi_config_find(config, config->misused_key) < 0 ? "lacks it" : "has another type for it");
}

bool hdi_config_bool(const hdi_config *config, const char *key)
{
    const hdi_config_value *value = get(config, key, HDI_CONFIG_BOOL, HDI_CONFIG_BOOL);
    return value && value->integer;
}

int64_t hdi_config_int(const hdi_config *config, const char *key)
{
    const hdi_config_value *value = get(config, key, HDI_CONFIG_INT, HDI_CONFIG_INT);
    return value ? value->integer : 0;
}

double hdi_config_float(const hdi_config *config, const char *key)
{
    const hdi_config_value *value = get(config, key, HDI_CONFIG_FLOAT, HDI_CONFIG_FLOAT);
    return value ? value->number : 0;
}

const char *hdi_config_string(const hdi_config *config, const char *key)
{
    const hdi_config_value *value = get(config, key, HDI_CONFIG_STRING, HDI_CONFIG_ENUM);
    if (!value) return "";
    const hdi_config_row *row = &config->schema[hdi_config_find(config, key)];
    return row->type == HDI_CONFIG_ENUM ? row->names[value->integer] : value->string;
}

int64_t hdi_config_bytes(const hdi_config *config, const char *key)
{
    const hdi_config_value *value = get(config, key, HDI_CONFIG_BYTES, HDI_CONFIG_BYTES);
    return value ? value->integer : 0;
}

int hdi_config_enum(const hdi_config *config, const char *key)
{
    const hdi_config_value *value = get(config, key, HDI_CONFIG_ENUM, HDI_CONFIG_ENUM);
    return value ? (int)value->integer : 0;
}

const int64_t *hdi_config_int_list(const hdi_config *config, const char *key, int *count)
{
    const hdi_config_value *value = get(config, key, HDI_CONFIG_INT_LIST, HDI_CONFIG_INT_LIST);
    *count = value ? value->count : 0;
    return value ? value->integers : NULL;
}

const char *const *hdi_config_string_list(const hdi_config *config, const char *key, int *count)
{
    const hdi_config_value *value =
        get(config, key, HDI_CONFIG_STRING_LIST, HDI_CONFIG_STRING_LIST);
    *count = value ? value->count : 0;
    return value ? (const char *const *)value->strings : NULL;
}

int hdi_config_rows(const hdi_config *config)
{
    return config->rows;
}

const hdi_config_row *hdi_config_row_at(const hdi_config *config, int index)
{
    return &config->schema[index];
}

const char *hdi_config_origin(const hdi_config *config, const char *key)
{
    int row = hdi_config_find(config, key);
    return row >= 0 && config->origins[row] ? config->origins[row] : "default";
}
