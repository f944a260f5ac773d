/* Normal numbers from the counters of lib/core/random.c: the same words, the same formula in fp64.
 * Only the last bit of the fp64 logarithm and cosine may differ from the C library's, which changes
 * about one fp32 result in 10^8 by one unit in the last place. */
#include "backend/cuda/common.cuh"

namespace
{

constexpr int kThreads = 256;

__device__ void philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t (&out)[2])
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < 10; round++) {
        const uint32_t low0 = 0xD2511F53u * c0, high0 = __umulhi(0xD2511F53u, c0);
        const uint32_t low1 = 0xCD9E8D57u * c2, high1 = __umulhi(0xCD9E8D57u, c2);
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
}

template <typename T>
__global__ void fill_normal(T *out, int64_t elements, uint64_t seed, uint64_t stream, int64_t first,
                            float std)
{
    const double two_pi = 6.283185307179586476925;
    const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= elements) return;
    uint32_t words[2];
    philox(seed, stream, (uint64_t)(first + i), words);
    const double radius = ((double)words[0] + 1) * 0x1p-32, angle = (double)words[1] * 0x1p-32;
    const float normal =
        (float)__dmul_rn(sqrt(__dmul_rn(-2, log(radius))), cos(__dmul_rn(two_pi, angle)));
    out[i] = from_float<T>(std * normal);
}

} // namespace

extern "C" hd_status hdi_cuda_fill_normal(hd_stream *stream, hd_dtype dtype, void *out,
                                          int64_t elements, uint64_t seed, uint64_t stream_number,
                                          int64_t first, float std)
{
    if (elements <= 0) return HD_OK;
    return with_type(dtype, "fill_normal", [&](auto tag) {
        using T = typename decltype(tag)::type;
        fill_normal<<<block_count(elements, kThreads), kThreads, 0, stream->handle>>>(
            (T *)out, elements, seed, stream_number, first, std);
        return launched("fill_normal");
    });
}
