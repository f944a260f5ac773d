/* The promises of a communicator of device memory, checked through functions that move data there and
 * back. Collective; values are whole numbers, so every comparison is exact. */
#ifndef HDT_DEVICE_COMM_H
#define HDT_DEVICE_COMM_H

#include "tests/support/hdt.h"

/* Memory of a device as tests see it. */
typedef struct hdt_memory {
    void *(*reserve)(size_t bytes);
    void (*release)(void *memory);
    void (*put)(void *memory, const void *host, size_t bytes); /* queued where posts look */
    void (*get)(void *host, const void *memory, size_t bytes);
} hdt_memory;

/* Each is HD_OK and counts elements that are not what they should be. `order`: hand the requests
 * over to the device instead of waiting. */
typedef struct hdt_device_comm {
    hd_comm *comm;
    const hdt_memory *memory;
    bool order;
    int64_t wrong;
} hdt_device_comm;

hd_status hdt_device_all_reduce(hdt_device_comm *it, int64_t count, hd_dtype dtype, hd_reduce op);
hd_status hdt_device_all_gather(hdt_device_comm *it, int64_t unit, bool is_even);
hd_status hdt_device_all_to_all(hdt_device_comm *it, int64_t unit);
hd_status hdt_device_broadcast(hdt_device_comm *it, int64_t count);

/* `messages` in flight at once around the ring, upwards on channel 0 and downwards on channel 1, with
 * receives posted before anything is sent. */
hd_status hdt_device_ring(hdt_device_comm *it, int messages, int64_t count);

#endif
