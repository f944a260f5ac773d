/* Configuration from JSON: jansson reads it, a cursor over the same text tells the lines. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/config_value.h"
#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"

enum { FILE_BYTES_MAX = 16 << 20, PATH_BYTES = 256 };

typedef struct load {
    hdi_config *config;
    const char *name;         /* of the file, for errors */
    const char *cursor, *end; /* the text behind the last key that was visited */
    int line;                 /* of the cursor, from 1 */
    char where[4200];         /* "name:line" of the last key */
} load;

/* Move the cursor behind the next key. Objects keep the order of the text, so the n-th key that
 * is visited is the n-th string of the text with a colon behind it. */
static void advance_to_key(load *state)
{
    int key_line = state->line;
    bool is_key = false;
    while (!is_key && state->cursor < state->end) {
        char c = *state->cursor++;
        if (c == '\n') state->line++;
        if (c != '"') continue;
        key_line = state->line;
        while (state->cursor < state->end && *state->cursor != '"')
            state->cursor += *state->cursor == '\\' ? 2 : 1;
        state->cursor++;
        while (state->cursor < state->end && strchr(" \t\r\n", *state->cursor))
            state->line += *state->cursor++ == '\n';
        is_key = state->cursor < state->end && *state->cursor == ':';
    }
    snprintf(state->where, sizeof state->where, "%s:%d", state->name, key_line);
}

static hd_status load_value(load *state, int index, json_t *json)
{
    const hdi_config_row *row = &state->config->schema[index];
    if (state->config->seen[index])
        return hdi_error(HD_ERROR_CONFIG, "%s: %s is given twice in this file", state->where,
                         row->key);
    state->config->seen[index] = true;

    hdi_config_value value;
    bool out_of_memory = false;
    if (hdi_config_value_from_json(row, json, &value, &out_of_memory))
        return hdi_config_store(state->config, index, &value, state->where);
    hdi_config_value_clear(&value);
    char *seen = out_of_memory ? NULL : json_dumps(json, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    if (!seen) return hdi_error(HD_ERROR_MEMORY, "config: out of host memory");
    hd_status status = hdi_config_refuse_value(row, state->where, seen);
    hdi_free_foreign(seen);
    return status;
}

/* Set what `object` holds; `prefix` is its place, "" or "train.". Recursion is as deep as the
 * file, which jansson and the length of keys limit. */
static hd_status load_object(load *state, json_t *object, const char *prefix)
{
    const char *name;
    json_t *json;
    json_object_foreach(object, name, json)
    {
        advance_to_key(state);
        char key[PATH_BYTES];
        if (snprintf(key, sizeof key, "%s%s", prefix, name) >= (int)sizeof key - 1)
            return hdi_error(HD_ERROR_CONFIG, "%s: key of over %d bytes", state->where,
                             PATH_BYTES - 2);
        int row = hdi_config_find(state->config, key);
        if (row >= 0) {
            HD_RETURN_IF_ERROR(load_value(state, row, json));
        } else if (!json_is_object(json)) {
            return hdi_config_refuse_key(state->config, state->where, key, false);
        } else if (!hdi_config_is_section(state->config, key)) {
            return hdi_config_refuse_key(state->config, state->where, key, true);
        } else {
            strcat(key, ".");
            HD_RETURN_IF_ERROR(load_object(state, json, key));
        }
    }
    return HD_OK;
}

hd_status hdi_config_load_text(hdi_config *config, const char *text, size_t bytes, const char *name)
{
    json_error_t error;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        bool comment = strstr(error.text, "near '/'") || strstr(error.text, "near '#'");
        return hdi_error(HD_ERROR_CONFIG, "%s:%d:%d: %s%s", name, error.line, error.column,
                         error.text, comment ? " (JSON has no comments)" : "");
    }
    load state = {.config = config, .name = name, .cursor = text, .end = text + bytes, .line = 1};
    memset(config->seen, 0, (size_t)config->rows * sizeof *config->seen);
    hd_status status =
        json_is_object(root)
            ? load_object(&state, root, "")
            : hdi_error(HD_ERROR_CONFIG, "%s: seen an array, wanted an object: {\"section\": ...}",
                        name);
    json_decref(root);
    return status;
}

hd_status hdi_config_load_file(hdi_config *config, const char *path)
{
    char *text;
    size_t bytes;
    HD_RETURN_IF_ERROR(hdi_file_read_all(path, FILE_BYTES_MAX, &text, &bytes));
    hd_status status = hdi_config_load_text(config, text, bytes, path);
    hdi_free(text);
    return status;
}
