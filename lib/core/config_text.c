/* The configuration in words: what rows want, refusals with the nearest name, the dump. */
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "core/config_value.h"
#include "core/error.h"
#include "core/memory.h"

enum { COMPARED_BYTES = 64 }; /* of each name when spellings are compared */

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* How many insertions, deletions and replacements turn one word into the other. */
static int edit_distance(const char *a, const char *b)
{
    int a_length = (int)strnlen(a, COMPARED_BYTES), b_length = (int)strnlen(b, COMPARED_BYTES);
    int row[COMPARED_BYTES + 1]; /* row[j]: from the first i bytes of a to the first j of b */
    for (int j = 0; j <= b_length; j++)
        row[j] = j;
    for (int i = 1; i <= a_length; i++) {
        int diagonal = row[0]; /* row[j - 1] as it was for i - 1 */
        row[0] = i;
        for (int j = 1; j <= b_length; j++) {
            int replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = min_int(replaced, min_int(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_length];
}

static const char *last_word(const char *key)
{
    const char *point = strrchr(key, '.');
    return point ? point + 1 : key;
}

/* Spelling mistakes, or a right name in the wrong section, which counts as one. */
static int key_distance(const char *wrong, const char *key)
{
    int whole = edit_distance(wrong, key);
    return min_int(whole, 1 + edit_distance(last_word(wrong), last_word(key)));
}

void hdi_config_append_nearest(const hdi_config *config, const char *key, bool sections,
                               hdi_text *out)
{
    const char *nearest = "";
    size_t nearest_length = 0;
    int nearest_distance = INT32_MAX;
    for (int row = 0; row < config->rows; row++) {
        const char *candidate = config->schema[row].key;
        int distance = key_distance(key, candidate);
        if (distance < nearest_distance) {
            nearest_distance = distance;
            nearest = candidate;
            nearest_length = strlen(candidate);
        }
        char section[COMPARED_BYTES];
        size_t section_length = strcspn(candidate, ".");
        if (!sections || candidate[section_length] == '\0' || section_length >= sizeof section)
            continue;
        memcpy(section, candidate, section_length);
        section[section_length] = '\0';
        distance = edit_distance(key, section);
        if (distance < nearest_distance) {
            nearest_distance = distance;
            nearest = candidate;
            nearest_length = section_length;
        }
    }
    hdi_text_append_bytes(out, nearest, nearest_length);
}

hd_status hdi_config_refuse_key(const hdi_config *config, const char *where, const char *key,
                                bool section)
{
    hdi_text nearest = {0};
    hdi_config_append_nearest(config, key, section, &nearest);
    hd_status status;
    if (!section && hdi_config_is_section(config, key))
        status = hdi_error(HD_ERROR_CONFIG, "%s: %s is a section: seen a value, wanted %s.<name>",
                           where, key, key);
    else
        status = hdi_error(HD_ERROR_CONFIG, "%s: unknown %s %s; nearest is %s", where,
                           section ? "section" : "key", key, nearest.data ? nearest.data : "none");
    hdi_text_free(&nearest);
    return status;
}

hd_status hdi_config_refuse_value(const hdi_config_row *row, const char *where, const char *seen)
{
    hdi_text wanted = {0};
    hdi_config_describe(row, &wanted);
    hd_status status = hdi_error(HD_ERROR_CONFIG, "%s: %s: seen %.200s, wanted %s", where, row->key,
                                 seen ? seen : "", wanted.data ? wanted.data : "");
    hdi_text_free(&wanted);
    return status;
}

void hdi_config_describe(const hdi_config_row *row, hdi_text *out)
{
    bool many = row->type == HDI_CONFIG_INT_LIST;
    switch (row->type) {
    case HDI_CONFIG_BOOL: hdi_text_append(out, "true or false"); break;
    case HDI_CONFIG_INT: hdi_text_append(out, "an integer"); break;
    case HDI_CONFIG_FLOAT: hdi_text_append(out, "a number"); break;
    case HDI_CONFIG_STRING: hdi_text_append(out, "a string"); break;
    case HDI_CONFIG_BYTES: hdi_text_append(out, "bytes such as 1024, 512MiB or 24GiB"); break;
    case HDI_CONFIG_INT_LIST: hdi_text_append(out, "a list of integers"); break;
    case HDI_CONFIG_STRING_LIST: hdi_text_append(out, "a list of strings"); break;
    case HDI_CONFIG_ENUM:
        for (int i = 0; row->names[i]; i++)
            hdi_text_printf(out, "%s%s",
                            i == 0              ? ""
                            : row->names[i + 1] ? ", "
                                                : " or ",
                            row->names[i]);
        break;
    }
    if (row->min && row->max)
        hdi_text_printf(out, "%s from %s to %s", many ? ", each" : "", row->min, row->max);
    else if (row->min)
        hdi_text_printf(out, "%s of at least %s", many ? ", each" : "", row->min);
    else if (row->max)
        hdi_text_printf(out, "%s of at most %s", many ? ", each" : "", row->max);
    if (row->unit) hdi_text_printf(out, " (%s)", row->unit);
}

static void indent(hdi_text *out, int depth)
{
    hdi_text_printf(out, "\n%*s", 2 * depth, "");
}

/* Bytes of the sections that two keys share: 6 for "train.steps" and "train.seed". */
static size_t shared_sections(const char *a, const char *b)
{
    size_t shared = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == '.') shared = i + 1;
    return shared;
}

static int count_points(const char *text)
{
    int points = 0;
    for (; *text; text++)
        points += *text == '.';
    return points;
}

/* All rows that have none of `skipped_flags`, nested. Sorting keeps a section's keys together,
 * because '.' sorts before every other byte of a key but digits and letters, all of them alike. */
static void dump_rows(const hdi_config *config, uint32_t skipped_flags, hdi_text *out)
{
    const char *last = "";
    int depth = 1;
    bool first = true;
    hdi_text_append(out, "{");
    for (int i = 0; i < config->rows; i++) {
        int index = config->sorted[i];
        const hdi_config_row *row = &config->schema[index];
        if (row->flags & skipped_flags) continue;

        size_t shared = shared_sections(last, row->key);
        for (int closing = count_points(last + shared); closing > 0; closing--)
            indent(out, --depth), hdi_text_append(out, "}");
        if (!first) hdi_text_append(out, ",");
        const char *name = row->key + shared;
        for (const char *point; (point = strchr(name, '.')) != NULL; name = point + 1) {
            indent(out, depth++);
            hdi_text_printf(out, "\"%.*s\": {", (int)(point - name), name);
        }
        indent(out, depth);
        hdi_text_printf(out, "\"%s\": ", name);
        hdi_config_value_print(row, &config->values[index], out);
        last = row->key;
        first = false;
    }
    while (depth > 0)
        indent(out, --depth), hdi_text_append(out, "}");
    hdi_text_append(out, "\n");
}

hd_status hdi_config_dump(const hdi_config *config, char **text)
{
    hdi_text out = {0};
    dump_rows(config, 0, &out);
    *text = hdi_text_take(&out);
    return *text ? HD_OK : hdi_error(HD_ERROR_MEMORY, "config: out of host memory");
}

hd_status hdi_config_hash(const hdi_config *config, uint64_t *out)
{
    hdi_text text = {0};
    dump_rows(config, HDI_CONFIG_NO_EFFECT, &text);
    bool failed = text.failed;
    if (!failed) *out = XXH3_64bits(text.data, text.length);
    hdi_text_free(&text);
    return failed ? hdi_error(HD_ERROR_MEMORY, "config: out of host memory") : HD_OK;
}
