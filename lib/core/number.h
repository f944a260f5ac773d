/* Numbers as text, the same in every locale. */
#ifndef HDI_CORE_NUMBER_H
#define HDI_CORE_NUMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HDI_NUMBER_TEXT = 32 }; /* bytes that hold any number printed here */

/* The whole of `text` as a decimal integer; false if it is anything else or needs over 64 bits. */
bool hdi_parse_int(const char *text, int64_t *out);

/* The whole of `text` as a finite decimal number such as 0.1 or 1e-3; false otherwise. */
bool hdi_parse_float(const char *text, double *out);

/* The whole of `text` as bytes: an integer, or a number with B, KiB, MiB, GiB, TiB (powers of
 * 1024) or kB, MB, GB, TB (powers of 1000) behind it. False if it is no whole number of bytes. */
bool hdi_parse_bytes(const char *text, int64_t *out);

/* The shortest text that reads back as `value`, with a point or an exponent (whole numbers below
 * 1e15 as 100.0); "null" for NaN and infinities, which JSON does not have. */
void hdi_print_float(double value, char out[HDI_NUMBER_TEXT]);

#endif
