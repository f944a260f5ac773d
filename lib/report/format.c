/* Text of numbers and names for reports. printf's decimal point depends on the locale of the
 * program that links us, so fractions are printed as integers. */
#include "report/format.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { REPLACEMENT = 0xFFFD };

uint32_t hdi_utf8_next(const char **text)
{
    const unsigned char *bytes = (const unsigned char *)*text;
    if (bytes[0] == 0) return 0;
    *text += 1;
    if (bytes[0] < 0x80) return bytes[0];

    int more = bytes[0] >= 0xF0 ? 3 : bytes[0] >= 0xE0 ? 2 : 1;
    if (bytes[0] < 0xC2 || bytes[0] > 0xF4) return REPLACEMENT;
    uint32_t code = bytes[0] & (0x3Fu >> more);
    for (int i = 1; i <= more; i++) {
        if ((bytes[i] & 0xC0) != 0x80) return REPLACEMENT; /* stops at the NUL too */
        code = code << 6 | (bytes[i] & 0x3Fu);
    }
    static const uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
    if (code < smallest[more] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
        return REPLACEMENT;
    *text += more;
    return code;
}

size_t hdi_utf8_count(const char *text)
{
    size_t count = 0;
    while (hdi_utf8_next(&text))
        count++;
    return count;
}

static size_t encode(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    int more = code >= 0x10000 ? 3 : code >= 0x800 ? 2 : 1;
    static const uint32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
    out[0] = (char)(lead[more] | code >> (6 * more));
    for (int i = 1; i <= more; i++)
        out[i] = (char)(0x80 | (code >> (6 * (more - i)) & 0x3F));
    return (size_t)more + 1;
}

static size_t copy(const char *text, char *out)
{
    size_t bytes = strlen(text);
    memcpy(out, text, bytes);
    return bytes;
}

size_t hdi_escape_json(const char **text, char out[HDI_ESCAPE_TEXT])
{
    uint32_t code = hdi_utf8_next(text);
    switch (code) {
    case 0: return 0;
    case '"': return copy("\\\"", out);
    case '\\': return copy("\\\\", out);
    case '\n': return copy("\\n", out);
    case '\t': return copy("\\t", out);
    }
    if (code < 0x20) {
        static const char digits[] = "0123456789abcdef";
        memcpy(out, "\\u00", 4);
        out[4] = digits[code >> 4];
        out[5] = digits[code & 15];
        return 6;
    }
    return encode(code, out);
}

size_t hdi_escape_xml(const char **text, char out[HDI_ESCAPE_TEXT])
{
    uint32_t code = hdi_utf8_next(text);
    switch (code) {
    case 0: return 0;
    case '&': return copy("&amp;", out);
    case '<': return copy("&lt;", out);
    case '>': return copy("&gt;", out);
    case '"': return copy("&quot;", out);
    case '\'': return copy("&#39;", out);
    }
    /* XML has no way at all to write these. */
    if ((code < 0x20 && code != '\t' && code != '\n') || code == 0xFFFE || code == 0xFFFF)
        code = REPLACEMENT;
    return encode(code, out);
}

void hdi_format_fixed(double value, int decimals, char out[HDI_NUMBER_TEXT])
{
    static const long long scales[] = {1, 10, 100, 1000};
    if (isnan(value)) value = 0;
    value = fmin(fmax(value, -1e15), 1e15);
    long long scaled = llround(value * (double)scales[decimals]);
    const char *sign = scaled < 0 ? "-" : "";
    scaled = scaled < 0 ? -scaled : scaled;
    while (decimals > 0 && scaled % 10 == 0) {
        scaled /= 10;
        decimals--;
    }
    if (decimals == 0)
        snprintf(out, HDI_NUMBER_TEXT, "%s%lld", sign, scaled);
    else
        snprintf(out, HDI_NUMBER_TEXT, "%s%lld.%0*lld", sign, scaled / scales[decimals], decimals,
                 scaled % scales[decimals]);
}

static void format_scaled(double bytes, int decimals, char out[HDI_NUMBER_TEXT])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 5; unit++)
        bytes /= 1024;
    char number[HDI_NUMBER_TEXT];
    hdi_format_fixed(bytes, unit == 0 ? 0 : decimals, number);
    snprintf(out, HDI_NUMBER_TEXT, "%.20s %s", number, units[unit]);
}

void hdi_format_bytes(double bytes, char out[HDI_NUMBER_TEXT])
{
    format_scaled(bytes, 1, out);
}

hdi_bytes_text hdi_bytes(size_t bytes)
{
    hdi_bytes_text out;
    char scaled[HDI_NUMBER_TEXT] = "";
    if (bytes >= 1024) format_scaled((double)bytes, 2, scaled);
    snprintf(out.text, sizeof out.text, "%zu bytes%s%s%s", bytes, *scaled ? " (" : "", scaled,
             *scaled ? ")" : "");
    return out;
}

hdi_bytes_text hdi_bytes_row(const char *name, size_t bytes)
{
    hdi_bytes_text out;
    char scaled[HDI_NUMBER_TEXT];
    format_scaled((double)bytes, 2, scaled);
    snprintf(out.text, sizeof out.text, "%-18.24s %16zu bytes %11s", name, bytes,
             bytes < 1024 ? "" : scaled);
    for (size_t end = strlen(out.text); end && out.text[end - 1] == ' '; end--)
        out.text[end - 1] = '\0';
    return out;
}

void hdi_format_rate(double value, char out[HDI_NUMBER_TEXT])
{
    static const char *const units[] = {"", "k", "M", "G", "T"};
    int unit = 0;
    for (; value >= 1000 && unit < 4; unit++)
        value /= 1000;
    char number[HDI_NUMBER_TEXT];
    hdi_format_fixed(value, value < 100 ? 1 : 0, number);
    snprintf(out, HDI_NUMBER_TEXT, "%.20s%s", number, units[unit]);
}

void hdi_format_duration(double seconds, char out[HDI_NUMBER_TEXT])
{
    if (!(seconds >= 0) || seconds > 1e9) {
        memcpy(out, "?", 2);
        return;
    }
    int64_t whole = llround(seconds);
    int days = (int)(whole / 86400), hours = (int)(whole / 3600 % 24);
    int minutes = (int)(whole / 60 % 60), rest = (int)(whole % 60);
    if (days > 0)
        snprintf(out, HDI_NUMBER_TEXT, "%dd%02dh", days, hours);
    else if (hours > 0)
        snprintf(out, HDI_NUMBER_TEXT, "%dh%02dm", hours, minutes);
    else if (minutes > 0)
        snprintf(out, HDI_NUMBER_TEXT, "%dm%02ds", minutes, rest);
    else
        snprintf(out, HDI_NUMBER_TEXT, "%ds", rest);
}
