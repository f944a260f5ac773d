/* The version of the headers and of the library that is linked. */
#ifndef HEDDLE_VERSION_H
#define HEDDLE_VERSION_H

#include <heddle/status.h>

#define HD_VERSION_MAJOR 0
#define HD_VERSION_MINOR 1
#define HD_VERSION_PATCH 0
#define HD_VERSION_STRING "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the linked library, "major.minor.patch". Local. */
HD_API const char *hd_version(void);

#ifdef __cplusplus
}
#endif
#endif
