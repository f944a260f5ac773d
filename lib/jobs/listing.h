/* Text that a job gives out in lines, to a writer that may have enough at any time. */
#ifndef HDI_JOBS_LISTING_H
#define HDI_JOBS_LISTING_H

#include <heddle/program.h>

typedef struct hdi_listing {
    hd_write_fn write;
    void *user;
    bool stopped; /* the writer wants no more */
    bool failed;  /* memory ran out */
} hdi_listing;

void hdi_list(hdi_listing *listing, const char *format, ...) HD_PRINTF(2, 3);

/* Names from files: what a terminal would obey is shown as '?'. Borrowed from `out`. */
const char *hdi_list_safe(const char *name, char *out, size_t bytes);

/* "[50257, 768]". Borrowed from `out`. */
const char *hdi_list_dims(int rank, const int64_t *dims, char *out, size_t bytes);

/* HD_ERROR_MEMORY if a line was lost. */
hd_status hdi_list_end(const hdi_listing *listing);

#endif
