/* Report files: buffered writes, sticky errors, rename at the end. */
#include "report/output.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "report/format.h"

/* Keep the first failure. */
static void note(hdi_output *output, hd_status status)
{
    if (output->status == HD_OK) output->status = status;
}

hd_status hdi_output_open(hdi_output *output, const char *path)
{
    output->status = HD_OK;
    output->fd = -1;
    output->used = 0;
    snprintf(output->path, sizeof output->path, "%s", path);
    int length =
        snprintf(output->temporary, sizeof output->temporary, "%s.tmp.%ld", path, (long)getpid());
    if (length < 0 || (size_t)length >= sizeof output->temporary) {
        output->status = hdi_error(HD_ERROR_ARGUMENT, "report: path of %zu bytes, want < %d",
                                   strlen(path), HDI_PATH_BYTES - 32);
        return output->status;
    }
    note(output, hdi_file_open(output->temporary, O_WRONLY | O_CREAT | O_TRUNC, &output->fd));
    if (output->status != HD_OK) output->fd = -1;
    return output->status;
}

static void flush(hdi_output *output)
{
    if (output->status == HD_OK)
        note(output, hdi_file_write(output->fd, output->temporary, output->buffer, output->used));
    output->used = 0;
}

void hdi_output_bytes(hdi_output *output, const void *data, size_t bytes)
{
    const char *from = data;
    while (bytes > 0 && output->status == HD_OK) {
        if (output->used == sizeof output->buffer) flush(output);
        size_t room = sizeof output->buffer - output->used;
        size_t part = bytes < room ? bytes : room;
        memcpy(output->buffer + output->used, from, part);
        output->used += part;
        from += part;
        bytes -= part;
    }
}

void hdi_output_text(hdi_output *output, const char *text)
{
    hdi_output_bytes(output, text, strlen(text));
}

void hdi_output_format(hdi_output *output, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length >= 0 && (size_t)length < sizeof text)
        hdi_output_bytes(output, text, (size_t)length);
    else if (output->status == HD_OK)
        output->status = hdi_error(HD_ERROR_INTERNAL, "%s: a piece of %d bytes, want < %zu",
                                   output->path, length, sizeof text);
}

void hdi_output_fixed(hdi_output *output, double value, int decimals)
{
    char text[HDI_NUMBER_TEXT];
    hdi_format_fixed(value, decimals, text);
    hdi_output_text(output, text);
}

void hdi_output_json(hdi_output *output, const char *text)
{
    char piece[HDI_ESCAPE_TEXT];
    hdi_output_text(output, "\"");
    for (size_t bytes; (bytes = hdi_escape_json(&text, piece)) > 0;)
        hdi_output_bytes(output, piece, bytes);
    hdi_output_text(output, "\"");
}

void hdi_output_xml(hdi_output *output, const char *text)
{
    char piece[HDI_ESCAPE_TEXT];
    for (size_t bytes; (bytes = hdi_escape_xml(&text, piece)) > 0;)
        hdi_output_bytes(output, piece, bytes);
}

hd_status hdi_output_commit(hdi_output *output)
{
    flush(output);
    if (output->status == HD_OK) note(output, hdi_file_sync(output->fd, output->temporary));
    if (output->fd >= 0) note(output, hdi_file_close(output->fd, output->temporary));
    if (output->status == HD_OK) note(output, hdi_file_rename(output->temporary, output->path));
    if (output->status != HD_OK && output->fd >= 0) unlink(output->temporary);
    output->fd = -1;
    return output->status;
}

void hdi_output_abandon(hdi_output *output)
{
    if (output->fd < 0) return;
    close(output->fd);
    unlink(output->temporary);
    output->fd = -1;
}
