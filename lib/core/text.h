/* A string that grows. Failure is sticky: appends after it do nothing and take returns NULL, so
 * that only the end has to be checked. */
#ifndef HDI_CORE_TEXT_H
#define HDI_CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed is empty and ready. `data` is NUL-terminated, NULL while nothing was appended. */
typedef struct hdi_text {
    char *data; /* owned */
    size_t length, capacity;
    bool failed; /* memory ran out */
} hdi_text;

void hdi_text_append(hdi_text *text, const char *string);
void hdi_text_append_bytes(hdi_text *text, const char *bytes, size_t length);
void hdi_text_printf(hdi_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The string as JSON, quotes included. Bytes that are not UTF-8 become U+FFFD. */
void hdi_text_append_json(hdi_text *text, const char *string);

/* The number as JSON: the shortest text that reads back equal; null if it is not finite. */
void hdi_text_append_float(hdi_text *text, double value);

/* The string, owned by the caller (hdi_free), and an empty builder; NULL if any append failed. */
char *hdi_text_take(hdi_text *text);

/* Keep the memory, drop the content and the failure. */
void hdi_text_clear(hdi_text *text);
void hdi_text_free(hdi_text *text);

#endif
