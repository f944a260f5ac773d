/* safetensors files made from raw text, and out of golden ones. */
#include "tests/support/hdt_safetensors.h"

#include <stdio.h>
#include <stdlib.h>

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

static void *take(int64_t bytes)
{
    void *memory = calloc((size_t)bytes + 1, 1);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

hdi_weights *hdt_extract(const hdi_safetensors *file, const char *prefix, const char *cut)
{
    static int files;
    char base[32];
    snprintf(base, sizeof base, "extract-%d.safetensors", files++);
    const char *path = hdt_temp_path(base);
    hdi_safetensors_writer *writer;
    hdi_weights *weights;
    hdt_assert_ok(hdi_safetensors_writer_create(&writer));
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < hdi_safetensors_count(file); i++) {
            const hdi_safetensors_tensor *tensor = hdi_safetensors_get(file, i);
            const char *name = tensor->name;
            if (strncmp(name, prefix, strlen(prefix)) != 0) continue;
            name += strlen(prefix);
            if (strncmp(name, cut, strlen(cut)) == 0) name += strlen(cut);
            if (pass == 0) {
                hdt_assert_ok(hdi_safetensors_writer_tensor(writer, name, tensor->dtype,
                                                            tensor->rank, tensor->dims));
                continue;
            }
            char *bytes = take(tensor->bytes);
            hdt_assert_ok(hdi_safetensors_pread(file, tensor, 0, tensor->bytes, bytes));
            hdt_assert_ok(hdi_safetensors_writer_write(writer, bytes, (size_t)tensor->bytes));
            free(bytes);
        }
        if (pass) continue;
        hdt_assert_ok(hdi_safetensors_writer_prepare(writer));
        hdt_assert_ok(hdi_safetensors_writer_begin(writer, path));
    }
    hdt_assert_ok(hdi_safetensors_writer_end(writer));
    hdi_safetensors_writer_destroy(writer);
    hdt_assert_ok(hdi_weights_open(path, &weights));
    return weights;
}

double *hdt_values(const hdi_safetensors *file, const char *name, int64_t *count)
{
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(file, name);
    ck_assert_msg(tensor != NULL, "golden tensor %s is missing", name);
    double *out = take(tensor->elements * (int64_t)sizeof *out);
    char *bytes = take(tensor->bytes);
    hdt_assert_ok(hdi_safetensors_pread(file, tensor, 0, tensor->bytes, bytes));
    for (int64_t i = 0; i < tensor->elements; i++) {
        float narrow;
        int64_t whole;
        switch (tensor->dtype) {
        case HD_DTYPE_F32:
            memcpy(&narrow, bytes + 4 * i, 4);
            out[i] = (double)narrow;
            break;
        case HD_DTYPE_F64: memcpy(&out[i], bytes + 8 * i, 8); break;
        case HD_DTYPE_I64:
            memcpy(&whole, bytes + 8 * i, 8);
            out[i] = (double)whole;
            break;
        case HD_DTYPE_BOOL: out[i] = bytes[i]; break;
        default: ck_abort_msg("golden tensor %s is %s", name, hd_dtype_name(tensor->dtype));
        }
    }
    free(bytes);
    if (count) *count = tensor->elements;
    return out;
}
