/* Numbers by name. */
#include "core/names.h"

#include "core/memory.h"

#include <stdint.h>
#include <string.h>

/* FNV-1a. */
static uint64_t hash_of(const char *name)
{
    uint64_t hash = 14695981039346656037U;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 1099511628211U;
    return hash;
}

/* Where the name is, or would be; at least one place is free. */
static hdi_name *place_of(const hdi_names *names, const char *name)
{
    const uint64_t mask = (uint64_t)names->capacity - 1;
    uint64_t at = hash_of(name) & mask;
    while (names->places[at].name && strcmp(names->places[at].name, name) != 0)
        at = (at + 1) & mask;
    return &names->places[at];
}

static bool grow(hdi_names *names)
{
    hdi_names larger = {.count = names->count,
                        .capacity = names->capacity ? 2 * names->capacity : 64};
    larger.places = hdi_alloc_array((size_t)larger.capacity, sizeof *larger.places);
    if (!larger.places) return false;
    for (int i = 0; i < names->capacity; i++)
        if (names->places[i].name) *place_of(&larger, names->places[i].name) = names->places[i];
    hdi_free(names->places);
    *names = larger;
    return true;
}

bool hdi_names_put(hdi_names *names, const char *name, int number)
{
    if (2 * (names->count + 1) > names->capacity && !grow(names)) return false;
    hdi_name *place = place_of(names, name);
    if (!place->name) names->count++;
    *place = (hdi_name){name, number};
    return true;
}

int hdi_names_find(const hdi_names *names, const char *name)
{
    if (!names->capacity) return -1;
    const hdi_name *found = place_of(names, name);
    return found->name ? found->number : -1;
}

void hdi_names_free(hdi_names *names)
{
    hdi_free(names->places);
    *names = (hdi_names){0};
}
