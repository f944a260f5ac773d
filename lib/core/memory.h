/* Host memory: the only place that allocates, so that "nothing after step 0" can be counted. */
#ifndef HDI_CORE_MEMORY_H
#define HDI_CORE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* Zeroed memory, NULL if there is none. Released by hdi_free. Thread-safe. */
void *hdi_alloc(size_t bytes);
void *hdi_alloc_array(size_t count, size_t element_bytes); /* NULL on overflow too */

/* Grow `pointer` to `count` elements, new part zeroed; NULL leaves the old block valid. */
void *hdi_realloc_array(void *pointer, size_t old_count, size_t count, size_t element_bytes);
void hdi_free(void *pointer); /* takes NULL */

/* Zeroed memory from the system, page-aligned (4096 at least), touched only when used; NULL if
 * refused. Counted as one allocation. Released by hdi_unmap with the same size; takes NULL. */
void *hdi_map(size_t bytes);
void hdi_unmap(void *pointer, size_t bytes);

/* Release what another library took by malloc (jansson's texts); takes NULL. */
void hdi_free_foreign(void *pointer);

char *hdi_strdup(const char *text);
char *hdi_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Allocations made by this process through these calls since it began. */
uint64_t hdi_alloc_count(void);

/* Bytes of the largest request since this was last asked: for tests of what is refused in time. */
size_t hdi_alloc_take_largest(void);

/* The request behind so many from here on is refused, and no other; negative: none is. For tests of what is said
 * and released then. */
void hdi_alloc_refuse(int64_t after);

/* Make room for one more element in a growing array: count and capacity are the caller's.
 * Returns false when memory is out. Usage: if (!HDI_GROW(a->items, a->count, a->capacity)) ... */
#define HDI_GROW(items, count, capacity) \
    ((count) < (capacity) || hdi_grow((void **)&(items), &(capacity), sizeof *(items)))
_Bool hdi_grow(void **items, int *capacity, size_t element_bytes);

#endif
