/* Text of numbers and names for reports, the same in every locale. Allocates nothing. */
#ifndef HDI_REPORT_FORMAT_H
#define HDI_REPORT_FORMAT_H

#include "core/number.h"

enum { HDI_ESCAPE_TEXT = 8 };

/* The code point at *text, which advances past it; 0 at the end. Bytes that are not UTF-8 read as
 * U+FFFD, one byte at a time. */
uint32_t hdi_utf8_next(const char **text);

/* Code points in `text`: what it takes on a line. */
size_t hdi_utf8_count(const char *text);

/* The next character of *text as it stands in a JSON string, or in XML content and attributes.
 * Returns the bytes written to `out` (not NUL-terminated), 0 at the end. */
size_t hdi_escape_json(const char **text, char out[HDI_ESCAPE_TEXT]);
size_t hdi_escape_xml(const char **text, char out[HDI_ESCAPE_TEXT]);

/* At most `decimals` (0..3) decimals, trailing zeros cut; 0 for NaN; clamped to +-1e15. */
void hdi_format_fixed(double value, int decimals, char out[HDI_NUMBER_TEXT]);

/* "123.4 MiB", "12.3k", "1h02m". */
void hdi_format_bytes(double bytes, char out[HDI_NUMBER_TEXT]);
void hdi_format_rate(double value, char out[HDI_NUMBER_TEXT]);
void hdi_format_duration(double seconds, char out[HDI_NUMBER_TEXT]);

/* "6576668672 bytes (6.13 GiB)", for messages: exact, and to be read. By value, so that its text is an
 * argument of a call that needs several. */
typedef struct hdi_bytes_text {
    char text[3 * HDI_NUMBER_TEXT];
} hdi_bytes_text;
hdi_bytes_text hdi_bytes(size_t bytes);

/* The same in columns: "transients               2503999488 bytes   2.33 GiB". */
hdi_bytes_text hdi_bytes_row(const char *name, size_t bytes);

#endif
