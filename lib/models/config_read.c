/* Values of a config.json, with refusals that say key, seen and wanted. */
#include "models/model.h"

#include "core/error.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const char *hdi_model_json_text(const json_t *value, char out[HDI_JSON_TEXT])
{
    switch (json_typeof(value)) {
    case JSON_STRING: snprintf(out, HDI_JSON_TEXT, "\"%.80s\"", json_string_value(value)); break;
    case JSON_INTEGER:
        snprintf(out, HDI_JSON_TEXT, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL: snprintf(out, HDI_JSON_TEXT, "%g", json_real_value(value)); break;
    case JSON_TRUE: snprintf(out, HDI_JSON_TEXT, "true"); break;
    case JSON_FALSE: snprintf(out, HDI_JSON_TEXT, "false"); break;
    case JSON_NULL: snprintf(out, HDI_JSON_TEXT, "null"); break;
    case JSON_OBJECT: snprintf(out, HDI_JSON_TEXT, "an object"); break;
    case JSON_ARRAY: snprintf(out, HDI_JSON_TEXT, "a list"); break;
    }
    return out;
}

static const json_t *value_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value) ? value : NULL;
}

static hd_status refuse(const char *key, const json_t *value, const char *wanted)
{
    char seen[HDI_JSON_TEXT];
    return hdi_error(HD_ERROR_CONFIG, "model config: \"%s\" is %s, want %s", key,
                     hdi_model_json_text(value, seen), wanted);
}

hd_status hdi_model_read_int(const json_t *object, const char *key, bool required, int64_t *out)
{
    const json_t *value = value_of(object, key);
    if (!value && required)
        return hdi_error(HD_ERROR_CONFIG, "model config: \"%s\" is missing, want an integer > 0",
                         key);
    if (!value) return HD_OK;
    /* A dim beyond 2^31 is a mistake, and keeps products of two within 64 bits. */
    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > INT32_MAX)
        return refuse(key, value, "an integer from 1 to 2147483647");
    *out = json_integer_value(value);
    return HD_OK;
}

hd_status hdi_model_read_positive(const json_t *object, const char *key, double *out)
{
    const json_t *value = value_of(object, key);
    if (!value) return HD_OK;
    if (!json_is_number(value) || !(json_number_value(value) > 0))
        return refuse(key, value, "a number > 0");
    *out = json_number_value(value);
    return HD_OK;
}

hd_status hdi_model_read_bool(const json_t *object, const char *key, bool *out)
{
    const json_t *value = value_of(object, key);
    if (!value) return HD_OK;
    if (!json_is_boolean(value)) return refuse(key, value, "true or false");
    *out = json_is_true(value);
    return HD_OK;
}

hd_status hdi_model_read_string(const json_t *object, const char *key, const char **out)
{
    const json_t *value = value_of(object, key);
    if (!value) return HD_OK;
    if (!json_is_string(value)) return refuse(key, value, "a string");
    *out = json_string_value(value);
    return HD_OK;
}

hd_status hdi_model_require_bool(const json_t *object, const char *key, bool wanted)
{
    bool seen = wanted;
    HD_RETURN_IF_ERROR(hdi_model_read_bool(object, key, &seen));
    if (seen == wanted) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED, "model config: \"%s\" is %s, heddle computes %s only",
                     key, seen ? "true" : "false", wanted ? "true" : "false");
}

hd_status hdi_model_read_ints(const json_t *object, const char *key, int count, int64_t *out)
{
    const json_t *value = value_of(object, key);
    if (!value) return HD_OK;
    bool good = json_is_array(value) && json_array_size(value) == (size_t)count;
    for (int i = 0; i < count && good; i++) {
        const json_t *element = json_array_get(value, (size_t)i);
        good = json_is_integer(element) && json_integer_value(element) > 0 &&
               json_integer_value(element) <= INT32_MAX;
        if (good) out[i] = json_integer_value(element);
    }
    if (good) return HD_OK;
    char wanted[64];
    snprintf(wanted, sizeof wanted, "a list of %d integers > 0", count);
    return refuse(key, value, wanted);
}

hd_status hdi_model_require_string(const json_t *object, const char *key, const char *wanted)
{
    const char *seen = wanted;
    HD_RETURN_IF_ERROR(hdi_model_read_string(object, key, &seen));
    if (strcmp(seen, wanted) == 0) return HD_OK;
    return hdi_error(HD_ERROR_UNSUPPORTED, "model config: \"%s\" is \"%s\", want \"%s\"", key, seen,
                     wanted);
}
