/* Memory that processes of one host share. It has no name in any file system, so nothing is left of it when
 * its processes have ended, however they ended; and the size of /dev/shm does not limit it. */
#ifndef HDI_CORE_SHARED_H
#define HDI_CORE_SHARED_H

#include <heddle/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A mapping. Zeroed is closed. */
typedef struct hdi_shared {
    void *memory;
    size_t bytes;
    int descriptor; /* while it can be found */
    bool can_be_found;
} hdi_shared;

/* What another process of the host finds it by, while its maker's descriptor is open. */
typedef struct hdi_shared_name {
    int32_t process, descriptor;
    uint64_t device, file;
} hdi_shared_name;

/* Make and map `bytes` of zeros, which the system has not given yet: hdi_shared_take. */
hd_status hdi_shared_create(size_t bytes, hdi_shared *out, hdi_shared_name *name);

/* Map what another process made. HD_ERROR_IO if that process cannot be looked into, or if what is found
 * there is something else. */
hd_status hdi_shared_open(const hdi_shared_name *name, size_t bytes, hdi_shared *out);

/* Have the system give it the bytes [first, first + bytes) now: HD_ERROR_MEMORY where a later write
 * would kill the process. */
hd_status hdi_shared_take(const hdi_shared *shared, size_t first, size_t bytes);

/* From here on nobody finds it; the mapping stays. */
void hdi_shared_hide(hdi_shared *shared);
void hdi_shared_close(hdi_shared *shared);

#endif
