/* Element types: sizes and the names that safetensors files use. */
#include <heddle/dtype.h>

#include <string.h>

static const struct {
    const char *name;
    size_t bytes;
} types[] = {
    [HD_DTYPE_NONE] = {"NONE", 0},       [HD_DTYPE_F64] = {"F64", 8},
    [HD_DTYPE_F32] = {"F32", 4},         [HD_DTYPE_F16] = {"F16", 2},
    [HD_DTYPE_BF16] = {"BF16", 2},       [HD_DTYPE_I64] = {"I64", 8},
    [HD_DTYPE_I32] = {"I32", 4},         [HD_DTYPE_I16] = {"I16", 2},
    [HD_DTYPE_I8] = {"I8", 1},           [HD_DTYPE_U64] = {"U64", 8},
    [HD_DTYPE_U32] = {"U32", 4},         [HD_DTYPE_U16] = {"U16", 2},
    [HD_DTYPE_U8] = {"U8", 1},           [HD_DTYPE_BOOL] = {"BOOL", 1},
    [HD_DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [HD_DTYPE_F8_E5M2] = {"F8_E5M2", 1},
};

size_t hd_dtype_bytes(hd_dtype dtype)
{
    return types[dtype].bytes;
}

const char *hd_dtype_name(hd_dtype dtype)
{
    return types[dtype].name;
}

hd_dtype hd_dtype_from_name(const char *name)
{
    for (int i = 1; i < (int)(sizeof types / sizeof types[0]); i++)
        if (strcmp(types[i].name, name) == 0) return (hd_dtype)i;
    return HD_DTYPE_NONE;
}
