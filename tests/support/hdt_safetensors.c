/* safetensors files made from raw text. */
#include "tests/support/hdt_safetensors.h"

#include <stdio.h>

const char *hdt_raw_safetensors(const char *name, uint64_t claimed, const char *header,
                                size_t data_bytes)
{
    const char *path = hdt_temp_path(name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 8; i++)
        fputc((int)(claimed >> 8 * i & 255), file);
    fputs(header, file);
    for (size_t i = 0; i < data_bytes; i++)
        fputc((int)(i & 255), file);
    ck_assert_int_eq(fclose(file), 0);
    return path;
}

const char *hdt_text_safetensors(const char *name, const char *header, size_t data_bytes)
{
    return hdt_raw_safetensors(name, strlen(header), header, data_bytes);
}
