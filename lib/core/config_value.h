/* Values of a configuration and the table that holds them; shared by the config files only. */
#ifndef HDI_CORE_CONFIG_VALUE_H
#define HDI_CORE_CONFIG_VALUE_H

#include <jansson.h>

#include "core/config.h"

/* One value; the row's type says which fields hold it. */
typedef struct hdi_config_value {
    int64_t integer; /* BOOL, INT, BYTES, ENUM (index) */
    double number;   /* FLOAT */
    char *string;    /* owned; STRING */
    int64_t *integers;
    char **strings; /* owned, as is each string */
    int count;      /* of integers or strings */
} hdi_config_value;

struct hdi_config {
    const hdi_config_row *schema; /* borrowed */
    int rows;
    hdi_config_value *values; /* one per row */
    char **origins;           /* owned; NULL: default */
    bool *seen;               /* scratch of a load: which rows it has set */
    int *sorted;              /* row indices in the order of their keys */
    char *misused_key;        /* of `rows` bytes at least; "" if none; written by getters */
};

/* Read a value of the row's type. False if it is not one, or memory is out (*out_of_memory). */
bool hdi_config_value_from_text(const hdi_config_row *row, const char *text, hdi_config_value *out,
                                bool *out_of_memory);
bool hdi_config_value_from_json(const hdi_config_row *row, json_t *json, hdi_config_value *out,
                                bool *out_of_memory);
void hdi_config_value_clear(hdi_config_value *value);

/* Append the value as JSON. */
void hdi_config_value_print(const hdi_config_row *row, const hdi_config_value *value,
                            hdi_text *out);

/* Index of a key, -1 if there is none. */
int hdi_config_find(const hdi_config *config, const char *key);

/* The key or section that is spelled most like `key`. Appended to `out`; `sections` offers
 * sections too. */
void hdi_config_append_nearest(const hdi_config *config, const char *key, bool sections,
                               hdi_text *out);

/* True if some key begins with `name` and a point. */
bool hdi_config_is_section(const hdi_config *config, const char *name);

/* The refusals. */
hd_status hdi_config_refuse_key(const hdi_config *config, const char *where, const char *key,
                                bool section);
hd_status hdi_config_refuse_value(const hdi_config_row *row, const char *where, const char *seen);

/* Take over `value`, which is emptied, as the value of a row. */
hd_status hdi_config_store(hdi_config *config, int row, hdi_config_value *value, const char *where);

#endif
