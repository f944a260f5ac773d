/* Numbers as text: libc's conversions held to the C locale and to the whole string. */
#include "core/number.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t locale_once = PTHREAD_ONCE_INIT;
static locale_t c_locale;

static void make_c_locale(void)
{
    c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

bool hdi_parse_int(const char *text, int64_t *out)
{
    const char *digits = text + (text[0] == '-');
    if (digits[0] == '\0' || digits[strspn(digits, "0123456789")] != '\0') return false;
    errno = 0;
    long long value = strtoll(text, NULL, 10);
    if (errno != 0) return false;
    *out = value;
    return true;
}

/* A number at the start of `text`; `rest` is what follows it. Refuses what strtod would accept
 * beyond decimal numbers: blanks, hexadecimal, "inf" and "nan". */
static bool parse_leading_float(const char *text, double *out, const char **rest)
{
    const char *first = text + (text[0] == '-' || text[0] == '+');
    if (strspn(first, ".0123456789") == 0 || strncmp(first, "0x", 2) == 0 ||
        strncmp(first, "0X", 2) == 0)
        return false;
    pthread_once(&locale_once, make_c_locale);
    char *end;
    double value = strtod_l(text, &end, c_locale);
    if (end == text || !isfinite(value)) return false;
    *out = value;
    *rest = end;
    return true;
}

bool hdi_parse_float(const char *text, double *out)
{
    double value;
    const char *rest;
    if (!parse_leading_float(text, &value, &rest) || *rest != '\0') return false;
    *out = value;
    return true;
}

bool hdi_parse_bytes(const char *text, int64_t *out)
{
    static const struct {
        const char *name;
        int64_t bytes;
    } units[] = {
        {"B", 1},
        {"KiB", INT64_C(1) << 10},
        {"MiB", INT64_C(1) << 20},
        {"GiB", INT64_C(1) << 30},
        {"TiB", INT64_C(1) << 40},
        {"kB", 1000},
        {"MB", 1000000},
        {"GB", 1000000000},
        {"TB", INT64_C(1000000000000)},
    };
    if (hdi_parse_int(text, out)) return *out >= 0;

    double number;
    const char *unit;
    if (!parse_leading_float(text, &number, &unit) || number < 0) return false;
    unit += *unit == ' ';
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(unit, units[i].name) != 0) continue;
        double bytes = number * (double)units[i].bytes;
        if (bytes != floor(bytes) || bytes > 0x1p53) return false; /* exact below 2^53 only */
        *out = (int64_t)bytes;
        return true;
    }
    return false;
}

void hdi_print_float(double value, char out[HDI_NUMBER_TEXT])
{
    char text[HDI_NUMBER_TEXT] = "null";
    if (isfinite(value)) {
        pthread_once(&locale_once, make_c_locale);
        locale_t callers = uselocale(c_locale);
        bool whole = value == floor(value) && fabs(value) < 1e15; /* 100.0 rather than 1e+02 */
        if (whole) snprintf(text, sizeof text, "%.1f", value);
        for (int digits = 1; digits <= 17 && !whole; digits++) {
            snprintf(text, sizeof text, "%.*g", digits, value);
            if (strtod_l(text, NULL, c_locale) == value) break;
        }
        uselocale(callers);
        if (text[strcspn(text, ".e")] == '\0') strcat(text, ".0");
    }
    memcpy(out, text, sizeof text);
}
