/* For programs that measure the CUDA backend: one line per op with its time and GB/s (bytes that must be
 * read and written once) or TFLOP/s. They end at the first error. */
#ifndef HDT_SPEED_H
#define HDT_SPEED_H

#include "backend/backend.h"
#include "backend/cuda/cuda.h"
#include "tests/support/hdt_video_speed.h" /* hdt_must */

/* Opens the device and takes `bytes`, or what there is, for arrays. Ops whose names lack the pattern are
 * left out; NULL: none are. Returns the stream. */
hd_stream *hdt_speed_open(const char *pattern, size_t bytes);
void hdt_speed_close(void);

/* Whether the op is measured; if so, its arrays take the room of the last one's. */
bool hdt_wanted(const char *name);

/* Memory; small random numbers, so that the clocks are those of real work. */
void *hdt_take(size_t bytes);
void *hdt_numbers(hd_dtype dtype, int64_t count);

/* Prints the mean of the middle runs. */
typedef hd_status (*hdt_call)(const void *args);
void hdt_measure(const char *name, hdt_call run, const void *args, double bytes, double flops);

#endif
