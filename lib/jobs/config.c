/* The public configuration: hd_config over the typed configuration of core and the jobs' schema. */
#include "jobs/config.h"

#include "core/error.h"
#include "core/memory.h"
#include "core/number.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

hd_status hd_config_create(hd_config **out)
{
    if (!out) return hdi_error(HD_ERROR_ARGUMENT, "config_create: out is NULL");
    *out = NULL;
    hd_config *config = hdi_alloc(sizeof *config);
    if (!config) return hdi_error(HD_ERROR_MEMORY, "config: out of host memory");
    hd_status status = hdi_config_create(hdi_job_schema, hdi_job_schema_rows, &config->values);
    if (status != HD_OK) {
        hdi_free(config);
        return status;
    }
    *out = config;
    return HD_OK;
}

void hd_config_destroy(hd_config *config)
{
    if (!config) return;
    hdi_config_destroy(config->values);
    hdi_free(config);
}

hd_status hd_config_load(hd_config *config, const char *path)
{
    if (!config || !path)
        return hdi_error(HD_ERROR_ARGUMENT, "config_load: config or path is NULL");
    return hdi_config_load_file(config->values, path);
}

hd_status hd_config_set(hd_config *config, const char *key, const char *text)
{
    if (!config || !key || !text)
        return hdi_error(HD_ERROR_ARGUMENT, "config_set: config, key or text is NULL");
    return hdi_config_set(config->values, key, text);
}

hd_status hd_config_print(const hd_config *config, hd_write_fn write, void *user)
{
    if (!config || !write)
        return hdi_error(HD_ERROR_ARGUMENT, "config_print: config or write is NULL");
    char *text;
    HD_RETURN_IF_ERROR(hdi_config_dump(config->values, &text));
    write(user, text);
    hdi_free(text);
    return HD_OK;
}

/* Options are made once from the schema into static memory, so that borrowed pointers stay good and
 * asking for them cannot fail. A test checks that every row has its place and no text is cut. */
enum { MOST_OPTIONS = 192, VALUE_BYTES = 80 };
static hd_config_option options[MOST_OPTIONS];
static char values[MOST_OPTIONS][VALUE_BYTES];
static pthread_once_t options_made = PTHREAD_ONCE_INIT;

static void append(char value[VALUE_BYTES], const char *lead, const char *word)
{
    const size_t used = strlen(value);
    if (word) snprintf(value + used, VALUE_BYTES - used, "%s%s", lead, word);
}

static void append_limits(char value[VALUE_BYTES], const hdi_config_row *row)
{
    append(value, row->max ? " " : " >= ", row->min);
    append(value, row->min ? ".." : " <= ", row->max);
    append(value, " ", row->unit);
}

static void describe(const hdi_config_row *row, char value[VALUE_BYTES])
{
    switch (row->type) {
    case HDI_CONFIG_BOOL: append(value, "", "true|false"); break;
    case HDI_CONFIG_INT: append(value, "", "integer"); break;
    case HDI_CONFIG_FLOAT: append(value, "", "number"); break;
    case HDI_CONFIG_STRING: append(value, "", "text"); break;
    case HDI_CONFIG_BYTES: append(value, "", "bytes (512MiB, 24GiB)"); break;
    case HDI_CONFIG_INT_LIST: append(value, "", "integers with commas, each"); break;
    case HDI_CONFIG_STRING_LIST: append(value, "", "texts with commas, or a JSON list"); break;
    case HDI_CONFIG_ENUM:
        for (int i = 0; row->names[i]; i++)
            append(value, i ? "|" : "", row->names[i]);
        break;
    }
    append_limits(value, row);
}

static void make_options(void)
{
    for (int i = 0; i < hd_config_options(); i++) {
        const hdi_config_row *row = &hdi_job_schema[i];
        describe(row, values[i]);
        options[i] = (hd_config_option){.key = row->key,
                                        .value = values[i],
                                        .fallback = row->fallback ? row->fallback : "",
                                        .help = row->help};
    }
}

int hd_config_options(void)
{
    return hdi_job_schema_rows < MOST_OPTIONS ? hdi_job_schema_rows : MOST_OPTIONS;
}

hd_status hd_bytes_parse(const char *text, int64_t *out)
{
    if (hdi_parse_bytes(text, out)) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "'%s' is no size, want bytes such as 1024, 512MiB or 24GiB",
                     text);
}

const hd_config_option *hd_config_option_at(int index)
{
    pthread_once(&options_made, make_options);
    return index >= 0 && index < hd_config_options() ? &options[index] : NULL;
}
