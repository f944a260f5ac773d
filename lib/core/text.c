/* A string that grows. */
#include "core/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "core/number.h"

/* Make room for `extra` more bytes and the final NUL. */
static bool reserve(hdi_text *text, size_t extra)
{
    if (text->failed) return false;
    size_t wanted;
    if (__builtin_add_overflow(text->length, extra, &wanted) || wanted > SIZE_MAX / 2 - 1) {
        text->failed = true;
        return false;
    }
    if (wanted < text->capacity) return true;
    size_t capacity = text->capacity ? text->capacity : 64;
    while (capacity <= wanted)
        capacity *= 2;
    char *grown = hdi_realloc_array(text->data, text->capacity, capacity, 1);
    if (!grown) {
        text->failed = true;
        return false;
    }
    text->data = grown;
    text->capacity = capacity;
    return true;
}

void hdi_text_append_bytes(hdi_text *text, const char *bytes, size_t length)
{
    if (!reserve(text, length)) return;
    memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = '\0';
}

void hdi_text_append(hdi_text *text, const char *string)
{
    hdi_text_append_bytes(text, string, strlen(string));
}

void hdi_text_printf(hdi_text *text, const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) text->failed = true;
    if (reserve(text, length < 0 ? 0 : (size_t)length)) {
        vsnprintf(text->data + text->length, (size_t)length + 1, format, again);
        text->length += (size_t)length;
    }
    va_end(again);
}

/* Bytes of the UTF-8 character at `at`, 0 if there is none: no overlong forms, no surrogates. */
static size_t utf8_length(const unsigned char *at)
{
    if (at[0] < 0x80) return 1;
    size_t length = at[0] >= 0xF0 ? 4 : at[0] >= 0xE0 ? 3 : 2;
    if (at[0] < 0xC2 || at[0] > 0xF4) return 0;
    for (size_t i = 1; i < length; i++)
        if ((at[i] & 0xC0) != 0x80) return 0; /* the final NUL stops this too */
    if (at[0] == 0xE0 && at[1] < 0xA0) return 0;
    if (at[0] == 0xED && at[1] > 0x9F) return 0;
    if (at[0] == 0xF0 && at[1] < 0x90) return 0;
    if (at[0] == 0xF4 && at[1] > 0x8F) return 0;
    return length;
}

void hdi_text_append_json(hdi_text *text, const char *string)
{
    hdi_text_append(text, "\"");
    const unsigned char *at = (const unsigned char *)string;
    while (*at) {
        size_t length = utf8_length(at);
        if (length == 0)
            hdi_text_append(text, "\\ufffd");
        else if (*at == '"' || *at == '\\')
            hdi_text_printf(text, "\\%c", *at);
        else if (*at == '\n')
            hdi_text_append(text, "\\n");
        else if (*at == '\t')
            hdi_text_append(text, "\\t");
        else if (*at < 0x20 || *at == 0x7F)
            hdi_text_printf(text, "\\u%04x", (unsigned)*at);
        else
            hdi_text_append_bytes(text, (const char *)at, length);
        at += length ? length : 1;
    }
    hdi_text_append(text, "\"");
}

void hdi_text_append_float(hdi_text *text, double value)
{
    char number[HDI_NUMBER_TEXT];
    hdi_print_float(value, number);
    hdi_text_append(text, number);
}

char *hdi_text_take(hdi_text *text)
{
    reserve(text, 0);
    char *taken = text->failed ? NULL : text->data;
    if (!taken) hdi_free(text->data);
    *text = (hdi_text){0};
    return taken;
}

void hdi_text_clear(hdi_text *text)
{
    text->length = 0;
    text->failed = false;
    if (text->data) text->data[0] = '\0';
}

void hdi_text_free(hdi_text *text)
{
    hdi_free(text->data);
    *text = (hdi_text){0};
}
