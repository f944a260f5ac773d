/* Two sides of a backend test: memory, numbers, comparison. */
#include "tests/gpu/hdt_gpu.h"

#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda/attention.h"

const hd_backend *hdt_sides[HDT_SIDES] = {&hdi_backend_cpu, &hdi_backend_cuda};
hd_stream *hdt_streams[HDT_SIDES];
const hd_dtype hdt_dtypes[3] = {HD_DTYPE_F32, HD_DTYPE_F16, HD_DTYPE_BF16};

static hdi_device *devices[HDT_SIDES];
static void *arena;
static size_t used;
static void *held[1024];
static int held_count;

/* False if there is no device. */
static bool open_gpu(void)
{
    if (hdi_cuda_device_count() == 0) {
        printf("skipped: no CUDA device\n100%%: Checks: 0, Failures: 0, Errors: 0\n");
        return false;
    }
    for (int side = 0; side < HDT_SIDES; side++) {
        if (hdt_sides[side]->open(0, &devices[side]) != HD_OK) {
            printf("%s\n", hd_last_error());
            exit(EXIT_FAILURE);
        }
        hdt_streams[side] = hdt_sides[side]->stream(devices[side]);
    }
    if (hdt_sides[1]->reserve(devices[1], HDT_ARENA, &arena) != HD_OK) {
        printf("%s\n", hd_last_error());
        exit(EXIT_FAILURE);
    }
    return true;
}

int hdt_main_gpu(const char *name, TCase *tests)
{
    setenv("CK_FORK", "no", 1);
    if (!open_gpu()) return EXIT_SUCCESS;
    Suite *suite = suite_create(name);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}

void hdt_gpu_reset(void)
{
    while (held_count > 0)
        free(held[--held_count]);
    used = 0;
}

static void *take_host(size_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);
    ck_assert_ptr_nonnull(memory);
    ck_assert_int_lt(held_count, 1024);
    return held[held_count++] = memory;
}

static void *take_device(size_t bytes)
{
    char *memory = (char *)arena + used;
    used += (bytes + 255) / 256 * 256;
    ck_assert_uint_le(used, HDT_ARENA);
    hdt_assert_ok(hdt_sides[1]->zero(hdt_streams[1], memory, bytes));
    return memory;
}

void *hdt_scratch(int side, size_t bytes)
{
    if (bytes == 0) return NULL;
    return side ? take_device(bytes) : take_host(bytes);
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* To nearest, ties to even. Normal and subnormal numbers only. */
static uint16_t encode_half(float x)
{
    int exponent;
    if (x == 0) return 0;
    (void)frexpf(x, &exponent);
    const int lowest = exponent - 11 > -24 ? exponent - 11 : -24;
    const int steps = (int)nearbyintf(ldexpf(fabsf(x), -lowest));
    const uint32_t magnitude =
        lowest == -24 ? (uint32_t)steps : (uint32_t)((lowest + 24) * 1024 + steps);
    return (uint16_t)((x < 0 ? 0x8000u : 0u) | magnitude);
}

static float decode_half(uint16_t bits)
{
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float x = exponent == 0    ? ldexpf((float)mantissa, -24)
              : exponent == 31 ? (mantissa ? NAN : INFINITY)
                               : ldexpf((float)(1024 + mantissa), exponent - 25);
    return bits & 0x8000 ? -x : x;
}

static uint16_t encode(hd_dtype dtype, float x)
{
    if (dtype == HD_DTYPE_F16) return encode_half(x);
    const uint32_t bits = bits_of(x);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float decode(hd_dtype dtype, uint16_t bits)
{
    return dtype == HD_DTYPE_F16 ? decode_half(bits) : float_of((uint32_t)bits << 16);
}

static void upload(hdt_pair *pair, int offset)
{
    const size_t size = hd_dtype_bytes(pair->dtype), bytes = (size_t)pair->count * size;
    void *source = pair->host;
    if (size == 2) {
        uint16_t *codes = take_host(bytes);
        for (int64_t i = 0; i < pair->count; i++) {
            codes[i] = encode(pair->dtype, pair->host[i]);
            pair->host[i] = decode(pair->dtype, codes[i]);
        }
        source = codes;
    }
    pair->device = (char *)take_device(bytes + (size_t)offset * size) + (size_t)offset * size;
    hdt_assert_ok(hdt_sides[1]->copy_in(hdt_streams[1], pair->device, source, bytes));
    hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
}

hdt_pair hdt_pair_make(hd_dtype dtype, int64_t count, uint64_t seed, float scale, int offset)
{
    hdt_pair pair = {dtype, count, take_host((size_t)count * sizeof(float)), NULL};
    hdt_fill(pair.host, count, seed);
    for (int64_t i = 0; i < count; i++)
        pair.host[i] *= scale;
    upload(&pair, offset);
    return pair;
}

hdt_pair hdt_pair_zero(hd_dtype dtype, int64_t count)
{
    return hdt_pair_make(dtype, count, 1, 0, 0);
}

hdt_pair hdt_pair_ints(int64_t count, const int32_t *values)
{
    hdt_pair pair = {HD_DTYPE_I32, count, take_host((size_t)count * sizeof(int32_t)), NULL};
    memcpy(pair.host, values, (size_t)count * sizeof *values);
    upload(&pair, 0);
    return pair;
}

hdt_pair hdt_pair_ids(int64_t count, int32_t entries, uint64_t seed)
{
    float *draws = take_host((size_t)count * sizeof *draws);
    int32_t *ids = take_host((size_t)count * sizeof *ids);
    hdt_fill(draws, count, seed);
    for (int64_t i = 0; i < count; i++)
        ids[i] = (int32_t)((draws[i] + 1) / 2 * (float)entries) % entries;
    return hdt_pair_ints(count, ids);
}

float *hdt_fetch(hdt_pair pair)
{
    const size_t size = hd_dtype_bytes(pair.dtype), bytes = (size_t)pair.count * size;
    float *out = take_host((size_t)pair.count * sizeof *out);
    void *raw = size == 2 ? take_host(bytes) : out;
    hdt_assert_ok(hdt_sides[1]->copy_out(hdt_streams[1], raw, pair.device, bytes));
    hdt_assert_ok(hdt_sides[1]->synchronize(hdt_streams[1]));
    for (int64_t i = 0; size == 2 && i < pair.count; i++)
        out[i] = decode(pair.dtype, ((const uint16_t *)raw)[i]);
    return out;
}

void hdt_pair_check_each(const char *what, hdt_pair pair, const float *magnitudes, int roundings,
                         int64_t terms)
{
    const float *got = hdt_fetch(pair);
    const double factor =
        roundings * hdt_tolerance(pair.dtype, 1) + 2 * hdt_tolerance(HD_DTYPE_F32, terms);
    for (int64_t i = 0; i < pair.count; i++) {
        const double want = (double)pair.host[i], bound = factor * (double)magnitudes[i];
        if (got[i] == pair.host[i] || (isnan(got[i]) && isnan(want))) continue;
        if (!(fabs((double)got[i] - want) <= bound))
            ck_abort_msg("%s, %s, [%lld] is %.9g, want %.9g within %.3g", what,
                         hd_dtype_name(pair.dtype), (long long)i, (double)got[i], want, bound);
    }
}

void hdt_pair_check(const char *what, hdt_pair pair, double magnitude, int roundings, int64_t terms)
{
    float *magnitudes = take_host((size_t)pair.count * sizeof *magnitudes);
    for (int64_t i = 0; i < pair.count && magnitude == 0; i++)
        if (isfinite(pair.host[i]) && fabs((double)pair.host[i]) > magnitudes[0])
            magnitudes[0] = fabsf(pair.host[i]);
    const float bound = magnitude > 0 ? (float)magnitude : magnitudes[0];
    for (int64_t i = 0; i < pair.count; i++)
        magnitudes[i] = bound;
    hdt_pair_check_each(what, pair, magnitudes, roundings, terms);
}

void hdt_run_attention(int side, hdi_attention_args *args, bool gradient, bool tiled)
{
    const hd_backend *backend = hdt_sides[side];
    args->workspace = hdt_scratch(side, gradient ? backend->attention_gradient_workspace(args)
                                                 : backend->attention_workspace(args));
    if (side && tiled)
        hdt_assert_ok(gradient ? hdi_cuda_tiled_attention_gradient(hdt_streams[1], args)
                               : hdi_cuda_tiled_attention(hdt_streams[1], args));
    else if (gradient)
        HDT_CALL(side, attention_gradient, args);
    else
        HDT_CALL(side, attention, args);
}
