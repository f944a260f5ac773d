/* Numbers by name: a table of open addressing. Names are borrowed and unique. */
#ifndef HDI_CORE_NAMES_H
#define HDI_CORE_NAMES_H

#include <stdbool.h>

typedef struct hdi_name {
    const char *name; /* NULL: the place is free */
    int number;
} hdi_name;

/* Zeros: none yet. */
typedef struct hdi_names {
    hdi_name *places; /* [capacity], owned */
    int count, capacity;
} hdi_names;

/* A name that is there gets the new number. False: out of host memory. */
bool hdi_names_put(hdi_names *names, const char *name, int number);

/* -1 if there is no such name. */
int hdi_names_find(const hdi_names *names, const char *name);
void hdi_names_free(hdi_names *names);

#endif
