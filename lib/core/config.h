/* Typed configuration. A const table of rows (the schema) names every key with its type, default,
 * limits and help; values come from JSON files and from dotted overrides ("train.steps", "500").
 * Errors are HD_ERROR_CONFIG and say where, which key, what was seen and what is wanted. */
#ifndef HDI_CORE_CONFIG_H
#define HDI_CORE_CONFIG_H

#include <heddle/status.h>

#include "core/text.h"

/* How a value is written: in JSON, and as override text. */
typedef enum hdi_config_type {
    HDI_CONFIG_BOOL,        /* true                 true */
    HDI_CONFIG_INT,         /* 500                  500             exact, 64 bits */
    HDI_CONFIG_FLOAT,       /* 1e-3, 2              1e-3, 2         finite */
    HDI_CONFIG_STRING,      /* "text"               text */
    HDI_CONFIG_BYTES,       /* 1024, "24GiB"        1024, 24GiB     see hdi_parse_bytes */
    HDI_CONFIG_ENUM,        /* "name", true, 2      name, true, 2   true and 2 if they are names */
    HDI_CONFIG_INT_LIST,    /* [1, 2]               1,2 or [1, 2] */
    HDI_CONFIG_STRING_LIST, /* ["a", "b"]           a,b or ["a", "b"] */
} hdi_config_type;

enum {
    HDI_CONFIG_NO_EFFECT = 1 /* on results: not part of the hash (paths, log level) */
};

/* One key. Texts are borrowed for the life of the configuration. */
typedef struct hdi_config_row {
    const char *key; /* "section.name" in a-z, 0-9 and _ */
    hdi_config_type type;
    const char *fallback;     /* the default, as override text; NULL: empty, zero, false */
    const char *min, *max;    /* as override text, of each element of a list; NULL: no limit */
    const char *const *names; /* ENUM: its names, NULL at the end */
    const char *unit;         /* "steps", "seconds"; may be NULL */
    const char *help;
    uint32_t flags;
} hdi_config_row;

typedef struct hdi_config hdi_config;

/* A configuration that holds the defaults. `schema` is borrowed. A schema that contradicts itself
 * is HD_ERROR_INTERNAL. */
hd_status hdi_config_create(const hdi_config_row *schema, int rows, hdi_config **out);
void hdi_config_destroy(hdi_config *config); /* takes NULL */

/* Set what the JSON file or text holds. Sections nest; "a.b": 1 is the same as "a": {"b": 1}, and
 * giving a key twice is refused. `name` stands for the text in errors. After an error the
 * configuration is partly changed: destroy it. */
hd_status hdi_config_load_file(hdi_config *config, const char *path);
hd_status hdi_config_load_text(hdi_config *config, const char *text, size_t bytes,
                               const char *name);

/* Set one key from override text; `where` stands for its place in errors (hdi_config_set says
 * "command line"). On an error the old value stays. */
hd_status hdi_config_set(hdi_config *config, const char *key, const char *text);
hd_status hdi_config_set_from(hdi_config *config, const char *key, const char *text,
                              const char *where);

/* Values; strings and lists are borrowed until the key is set again. A key that the schema lacks
 * or has with another type is the caller's bug: it reads as zero, "" or an empty list, and
 * hdi_config_misuse reports the first such key as HD_ERROR_INTERNAL. */
bool hdi_config_bool(const hdi_config *config, const char *key);
int64_t hdi_config_int(const hdi_config *config, const char *key);
double hdi_config_float(const hdi_config *config, const char *key);
const char *hdi_config_string(const hdi_config *config, const char *key); /* ENUM too */
int64_t hdi_config_bytes(const hdi_config *config, const char *key);
int hdi_config_enum(const hdi_config *config, const char *key); /* index into the row's names */
const int64_t *hdi_config_int_list(const hdi_config *config, const char *key, int *count);
const char *const *hdi_config_string_list(const hdi_config *config, const char *key, int *count);
hd_status hdi_config_misuse(const hdi_config *config);

/* For --help and the manual: rows in the schema's order, and what a row wants in words: "an integer
 * from 1 to 64". */
int hdi_config_rows(const hdi_config *config);
const hdi_config_row *hdi_config_row_at(const hdi_config *config, int index);
void hdi_config_describe(const hdi_config_row *row, hdi_text *out);

/* Where a key's value came from: "default", "config.json:3", "command line". */
const char *hdi_config_origin(const hdi_config *config, const char *key);

/* All values as JSON with sorted keys: equal values make equal text, and loading it gives the same
 * values. `text` is owned by the caller (hdi_free). */
hd_status hdi_config_dump(const hdi_config *config, char **text);

/* XXH3 of the dump without the rows marked HDI_CONFIG_NO_EFFECT. */
hd_status hdi_config_hash(const hdi_config *config, uint64_t *out);

#endif
