/* Host allocation with a count of calls. */
#include "core/memory.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_uint_fast64_t allocations;
static atomic_size_t largest;
static atomic_int_fast64_t requests_left = -1; /* before the one that is refused */

/* False: it is refused. */
static bool count_request(size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    size_t seen = atomic_load(&largest);
    while (bytes > seen && !atomic_compare_exchange_weak(&largest, &seen, bytes))
        ;
    return atomic_load(&requests_left) < 0 || atomic_fetch_sub(&requests_left, 1) != 0;
}

uint64_t hdi_alloc_count(void)
{
    return atomic_load(&allocations);
}

size_t hdi_alloc_take_largest(void)
{
    return atomic_exchange(&largest, 0);
}

void hdi_alloc_refuse(int64_t after)
{
    atomic_store(&requests_left, after);
}

void *hdi_alloc(size_t bytes)
{
    if (!count_request(bytes)) return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *hdi_alloc_array(size_t count, size_t element_bytes)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, element_bytes, &bytes)) return NULL;
    return hdi_alloc(bytes);
}

void *hdi_realloc_array(void *pointer, size_t old_count, size_t count, size_t element_bytes)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, element_bytes, &bytes)) return NULL;
    if (!count_request(bytes)) return NULL;
    char *grown = realloc(pointer, bytes ? bytes : 1);
    if (grown && count > old_count)
        memset(grown + old_count * element_bytes, 0, (count - old_count) * element_bytes);
    return grown;
}

void hdi_free(void *pointer)
{
    free(pointer);
}

void *hdi_map(size_t bytes)
{
    if (!bytes) bytes = 1;
    if (!count_request(bytes)) return NULL;
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    (void)madvise(mapped, bytes, MADV_HUGEPAGE); /* a hint: fewer page faults and TLB misses */
    return mapped;
}

void hdi_unmap(void *pointer, size_t bytes)
{
    if (pointer) munmap(pointer, bytes ? bytes : 1);
}

void hdi_free_foreign(void *pointer)
{
    free(pointer);
}

char *hdi_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = hdi_alloc(bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

char *hdi_format(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    char *text = length < 0 ? NULL : hdi_alloc((size_t)length + 1);
    if (text) vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

_Bool hdi_grow(void **items, int *capacity, size_t element_bytes)
{
    int wanted = *capacity ? *capacity * 2 : 16;
    void *grown = hdi_realloc_array(*items, (size_t)*capacity, (size_t)wanted, element_bytes);
    if (!grown) return 0;
    *items = grown;
    *capacity = wanted;
    return 1;
}
