/* Tensors of a file as fp32. */
#include <inttypes.h>
#include <string.h>

#include "core/error.h"
#include "core/half.h"
#include "io/safetensors.h"

static void widen(hd_dtype dtype, const unsigned char *data, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++) {
        if (dtype == HD_DTYPE_F64) {
            double value;
            memcpy(&value, data + 8 * i, sizeof value);
            out[i] = (float)value;
        } else {
            uint16_t word;
            memcpy(&word, data + 2 * i, sizeof word);
            out[i] = hdi_half_to_float(dtype, word);
        }
    }
}

hd_status hdi_safetensors_read_f32(const hdi_safetensors *file,
                                   const hdi_safetensors_tensor *tensor, int64_t first,
                                   int64_t count, float *out)
{
    const hd_dtype dtype = tensor->dtype;
    if (dtype != HD_DTYPE_F32 && dtype != HD_DTYPE_BF16 && dtype != HD_DTYPE_F16 &&
        dtype != HD_DTYPE_F64)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "%s: tensor \"%s\": dtype is %s, want F32, BF16, F16 or F64",
                         hdi_safetensors_path(file), tensor->name, hd_dtype_name(dtype));
    if (first < 0 || count < 0 || first > tensor->elements || count > tensor->elements - first)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "%s: tensor \"%s\": asked for %" PRId64 " elements at %" PRId64
                         ", it has %" PRId64,
                         hdi_safetensors_path(file), tensor->name, count, first, tensor->elements);
    const int64_t element_bytes = (int64_t)hd_dtype_bytes(dtype);
    if (dtype == HD_DTYPE_F32)
        return hdi_safetensors_pread(file, tensor, first * element_bytes, count * element_bytes,
                                     out);

    unsigned char buffer[16384];
    const int64_t most = (int64_t)sizeof buffer / element_bytes;
    while (count > 0) {
        const int64_t piece = count < most ? count : most;
        HD_RETURN_IF_ERROR(hdi_safetensors_pread(file, tensor, first * element_bytes,
                                                 piece * element_bytes, buffer));
        widen(dtype, buffer, piece, out);
        first += piece;
        count -= piece;
        out += piece;
    }
    return HD_OK;
}
