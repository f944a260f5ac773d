/* libFuzzer target for the safetensors reader; built by hand:
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Iinclude -Ilib \
 *       tests/fuzz/fuzz_safetensors.c lib/io/safetensors_read.c lib/io/safetensors_f32.c \
 *       lib/core/{file,error,memory,dtype}.c -ljansson -o /tmp/fuzz_safetensors
 *   /tmp/fuzz_safetensors -max_total_time=60 -max_len=4096 -rss_limit_mb=256 CORPUS
 *
 * An input is the header's text, then a NUL and the data; the length in front is made here, so that
 * the fuzzer does not spend itself on guessing it. Inputs that begin with a byte below 32 are taken
 * as whole files instead. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void put(int descriptor, const void *data, size_t bytes)
{
    if (bytes > 0 && write(descriptor, data, bytes) != (ssize_t)bytes) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const int descriptor = memfd_create("fuzz", 0);
    if (descriptor < 0) abort();
    if (bytes > 0 && data[0] < 32) {
        put(descriptor, data, bytes);
    } else {
        const uint8_t *end = bytes > 0 ? memchr(data, 0, bytes) : NULL;
        const uint64_t header = end ? (uint64_t)(end - data) : bytes;
        put(descriptor, &header, sizeof header);
        put(descriptor, data, header);
        if (end) put(descriptor, end + 1, bytes - header - 1);
    }
    hdi_safetensors *file;
    if (hdi_safetensors_open_descriptor(descriptor, "fuzz", 0, &file) != HD_OK) return 0;

    /* Whatever was accepted must be readable to its last byte, and nothing may be beyond it. */
    int64_t end = hdi_safetensors_data_offset(file);
    for (int i = 0; i < hdi_safetensors_count(file); i++) {
        const hdi_safetensors_tensor *tensor = hdi_safetensors_get(file, i);
        if (!hdi_safetensors_find(file, tensor->name)) abort();
        char *out = malloc((size_t)tensor->bytes + 1);
        if (hdi_safetensors_pread(file, tensor, 0, tensor->bytes, out) != HD_OK) abort();
        if (hdi_safetensors_pread(file, tensor, 1, tensor->bytes, out) == HD_OK) abort();
        free(out);
        float value;
        if (tensor->elements > 0)
            (void)hdi_safetensors_read_f32(file, tensor, tensor->elements - 1, 1, &value);
        end += tensor->bytes;
    }
    if (end != hdi_safetensors_file_bytes(file)) abort();
    hdi_safetensors_close(file);
    return 0;
}
