/* Element types. */
#ifndef HEDDLE_DTYPE_H
#define HEDDLE_DTYPE_H

#include <heddle/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hd_dtype {
    HD_DTYPE_NONE = 0,
    HD_DTYPE_F64,
    HD_DTYPE_F32,
    HD_DTYPE_F16,
    HD_DTYPE_BF16,
    HD_DTYPE_I64,
    HD_DTYPE_I32,
    HD_DTYPE_I16,
    HD_DTYPE_I8,
    HD_DTYPE_U64,
    HD_DTYPE_U32,
    HD_DTYPE_U16,
    HD_DTYPE_U8,
    HD_DTYPE_BOOL,
    HD_DTYPE_F8_E4M3,
    HD_DTYPE_F8_E5M2
} hd_dtype;

/* Bytes of one element; 0 for HD_DTYPE_NONE. Local. */
HD_API size_t hd_dtype_bytes(hd_dtype dtype);

/* The name used in safetensors files ("F32", "BF16", ...); "NONE" for HD_DTYPE_NONE. Local. */
HD_API const char *hd_dtype_name(hd_dtype dtype);

/* The dtype of a safetensors name; HD_DTYPE_NONE if unknown. Local. */
HD_API hd_dtype hd_dtype_from_name(const char *name);

#ifdef __cplusplus
}
#endif
#endif
