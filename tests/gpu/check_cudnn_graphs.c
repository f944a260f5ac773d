/* device: none */
/* The attention graphs against cuDNN itself, on a machine without a GPU: cuDNN takes the description
 * of a device, accepts a graph and compiles an engine for it; only loading that fails. Where cuDNN or
 * the driver's stub is missing, what needs them is left out. */
#include "tests/support/hdt.h"

#include <dlfcn.h>
#include <stdio.h>

#include "backend/cuda/attention.h"
#include "backend/cuda/attention_graph.h"

typedef struct described_device {
    const char *name;
    int architecture, processors, shared_memory, threads, blocks;
} described_device;

static const described_device devices[] = {
    {"A100", 80, 108, 166912, 2048, 32},
    {"RTX 3090", 86, 82, 101376, 1536, 16},
    {"RTX 4090", 89, 128, 101376, 1536, 24},
    {"H100", 90, 132, 232448, 2048, 32},
};

enum { DEVICES = sizeof devices / sizeof *devices };

static const hdi_cudnn *cudnn;

/* Whoever asks for the driver later finds the one that is already loaded. */
static bool load_driver(void)
{
    static const char *const places[] = {
        "libcuda.so.1", "/usr/local/cuda/targets/x86_64-linux/lib/stubs/libcuda.so",
        "/usr/local/cuda/lib64/stubs/libcuda.so", "/usr/lib/x86_64-linux-gnu/stubs/libcuda.so"};
    for (int i = 0; i < 4; i++)
        if (dlopen(places[i], RTLD_NOW | RTLD_GLOBAL)) return true;
    return false;
}

/* Why no graph can be built, or NULL. */
static const char *missing(void)
{
    if (!load_driver()) return "no CUDA driver and no stub of it";
    return hdi_cudnn_load(&cudnn) == HD_OK ? NULL : hd_last_error();
}

static cudnnBackendDescriptor_t describe(const described_device *device)
{
    char json[1024];
    snprintf(json, sizeof json,
             "{\"deviceName\": \"%s\", \"deviceVer\": %d, \"driverVer\": 13000, "
             "\"cudaDeviceId\": 0, \"pciDeviceId\": 1, \"isTccDriver\": 0, "
             "\"supportCoopLaunch\": 1, \"warpSize\": 32, \"multiProcessorCount\": %d, "
             "\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], "
             "\"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": %d, \"maxCtasPerSM\": %d, "
             "\"regsPerBlock\": 65536, \"maxRegistersPerSM\": 65536, "
             "\"maxSharedMemoryPerBlock\": 49152, \"maxSharedMemoryPerBlockOptin\": %d, "
             "\"reservedSharedMemoryPerBlock\": 1024, \"l2CacheSize\": 41943040, "
             "\"smClockRateKHz\": 1900000, \"memClockRateKHz\": 2600000, "
             "\"totalGlobalMem\": 25000000000}",
             device->name, device->architecture * 10, device->processors, device->threads,
             device->blocks, device->shared_memory);
    cudnnBackendDescriptor_t out = NULL;
    cudnnStatus_t status = cudnn->create_descriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &out);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnn->set(out, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                            (int64_t)strlen(json) + 1, json);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnn->finalize(out);
    char text[512] = "";
    cudnn->last_error(text, sizeof text);
    ck_assert_msg(status == CUDNN_STATUS_SUCCESS, "%s: %s: %s", device->name,
                  cudnn->status_string(status), text);
    return out;
}

typedef struct sample {
    int64_t batch, heads, kv_heads, tokens, head_dim;
    bool causal, exact, counted;
    int64_t kv_tokens, interleave; /* 0: as many as tokens; none */
} sample;

static const sample samples[] = {
    {32, 12, 12, 1024, 64, true, false, false, 0, 0},     /* GPT-2 */
    {2, 32, 8, 2048, 128, true, false, false, 0, 0},      /* Llama: key heads are shared */
    {3, 5, 5, 77, 40, true, true, false, 0, 0},           /* nothing fills a tile */
    {2, 8, 8, 512, 256, false, false, false, 0, 0},       /* backward on Hopper only */
    {1, 24, 24, 25601, 128, false, false, false, 0, 0},   /* a video's tokens */
    {2, 24, 24, 1056, 128, false, false, true, 0, 0},     /* text that is short */
    {1590, 16, 16, 30, 72, false, false, false, 0, 1590}, /* over time */
    {2, 16, 16, 47700, 72, false, false, false, 300, 0},  /* video to text */
    {2, 16, 16, 47700, 72, false, false, true, 384, 0},   /* video to packed texts */
    {2, 16, 16, 47700, 72, false, true, true, 384, 0},
};

enum { SAMPLES = sizeof samples / sizeof *samples };

/* Queries, keys and values side by side in one matrix. */
static hdi_attention_args args_of(const sample *s)
{
    static const int32_t counts = 0; /* that there are some is all that counts */
    const int64_t packed = (s->heads + 2 * s->kv_heads) * s->head_dim;
    return (hdi_attention_args){.dtype = HD_DTYPE_BF16,
                                .batch = s->batch,
                                .tokens = s->tokens,
                                .kv_tokens = s->kv_tokens ? s->kv_tokens : s->tokens,
                                .heads = s->heads,
                                .kv_heads = s->kv_heads,
                                .head_dim = s->head_dim,
                                .q_stride = packed,
                                .k_stride = packed,
                                .v_stride = packed,
                                .out_stride = s->heads * s->head_dim,
                                .causal = s->causal,
                                .exact = s->exact,
                                .interleave = s->interleave,
                                .counts = s->counted ? &counts : NULL,
                                .kv_counts = s->counted && s->kv_tokens ? &counts : NULL};
}

/* Both passes of samples on device _i: what is said about the shapes that cuDNN takes is right, and the
 * workspace that the plan sets aside is enough. */
START_TEST(every_device_takes_what_the_backend_promises)
{
    const int architecture = devices[_i].architecture;
    cudnnBackendDescriptor_t device = describe(&devices[_i]);
    /* A graph takes a third of a second: its brothers get one each. */
    const int count = architecture == 86 || architecture == 90 ? SAMPLES : 1;
    for (int i = 0; i < count; i++) {
        for (int gradient = i == 1 || i == 2; gradient < 2; gradient++) {
            const hdi_attention_args args = args_of(&samples[i]);
            hdi_cudnn_plan plan;
            const hdi_cudnn_shape shape = hdi_cuda_cudnn_shape(&args, gradient);
            const int64_t room = hdi_cuda_cudnn_engine_bytes(&args, gradient, architecture);
            const bool takes = hdi_cuda_cudnn_takes(&args, gradient, architecture);
            const hd_status status = hdi_cudnn_build(cudnn, NULL, device, &shape, room, &plan);
            ck_assert_msg((status == HD_OK) == takes, "%s, sample %d, %s: taken %d, said %d: %s",
                          devices[_i].name, i, gradient ? "backward" : "forward", status == HD_OK,
                          takes, hd_last_error());
            if (status == HD_OK) hdi_cudnn_destroy_plan(cudnn, &plan);
        }
    }
    (void)cudnn->destroy_descriptor(device);
}
END_TEST

START_TEST(a_workspace_that_is_too_small_is_refused_with_both_sizes)
{
    cudnnBackendDescriptor_t device = describe(&devices[0]);
    const hdi_attention_args args = args_of(&samples[0]);
    const hdi_cudnn_shape shape = hdi_cuda_cudnn_shape(&args, true);
    hdi_cudnn_plan plan;
    hdt_assert_status(hdi_cudnn_build(cudnn, NULL, device, &shape, 1000, &plan),
                      HD_ERROR_UNSUPPORTED, "the plan has 1000");
    ck_assert_ptr_null(plan.plan);
    (void)cudnn->destroy_descriptor(device);
}
END_TEST

START_TEST(the_exact_backward_goes_in_slices_that_divide_the_batch)
{
    hdi_attention_args args = args_of(&samples[0]);
    args.exact = true;
    const hdi_cudnn_shape shape = hdi_cuda_cudnn_shape(&args, true);
    ck_assert_int_lt(shape.batch, args.batch);
    ck_assert_int_eq(args.batch % shape.batch, 0);
    ck_assert_int_eq(shape.heads, args.heads);
    args.exact = false;
    ck_assert_int_eq(hdi_cuda_cudnn_shape(&args, true).batch, args.batch);
}
END_TEST

START_TEST(the_exact_backward_of_a_long_sequence_goes_in_slices_of_heads)
{
    hdi_attention_args args = args_of(&samples[4]);
    args.exact = true;
    const hdi_cudnn_shape shape = hdi_cuda_cudnn_shape(&args, true);
    ck_assert_int_eq(shape.batch, 1);
    ck_assert_int_eq(shape.heads, 1);
    ck_assert_int_eq(shape.kv_heads, 1);
    args.exact = false;
    ck_assert_int_eq(hdi_cuda_cudnn_shape(&args, true).heads, args.heads);
}
END_TEST

START_TEST(many_short_sequences_go_in_slices_that_fit)
{
    hdi_attention_args args = args_of(&samples[6]);
    ck_assert_int_eq(hdi_cuda_cudnn_shape(&args, true).batch, 1590);
    args.batch *= 4; /* four videos: a slice never crosses from one to the next */
    ck_assert_int_eq(hdi_cuda_cudnn_shape(&args, true).batch, 1590);
    ck_assert_int_eq(hdi_cuda_cudnn_shape(&args, false).batch, 1590);
    args.batch = 47700, args.interleave = 0;
    ck_assert_int_eq(hdi_cuda_cudnn_shape(&args, false).batch, 47700);
    const int64_t slice = hdi_cuda_cudnn_shape(&args, true).batch;
    ck_assert_int_eq(args.batch % slice, 0);
    ck_assert_uint_lt(hdi_cuda_cudnn_workspace(&args, true, 90), (size_t)2 << 30);
    args.batch = 140000;
    ck_assert_int_le(hdi_cuda_cudnn_shape(&args, false).batch, 65535);
}
END_TEST

START_TEST(a_plan_for_any_device_is_enough_for_each)
{
    for (int i = 0; i < SAMPLES; i++) {
        for (int gradient = 0; gradient < 2; gradient++) {
            const hdi_attention_args args = args_of(&samples[i]);
            const size_t any = hdi_cuda_cudnn_workspace(&args, gradient, 0);
            for (int d = 0; d < DEVICES; d++)
                ck_assert_uint_le(
                    hdi_cuda_cudnn_workspace(&args, gradient, devices[d].architecture), any);
        }
    }
}
END_TEST

START_TEST(packed_keys_get_places_that_fill_tiles)
{
    hdi_cross_attention_args args = {.dtype = HD_DTYPE_BF16,
                                     .sequences = 4,
                                     .tokens = 1000,
                                     .kv_rows = 1200,
                                     .heads = 16,
                                     .head_dim = 72,
                                     .q_stride = 1152,
                                     .k_stride = 2305, /* wherever they lie */
                                     .v_stride = 2305,
                                     .out_stride = 1152,
                                     .most_keys = 300};
    const hdi_attention_args padded = hdi_cuda_padded_attention(&args);
    ck_assert_int_eq(padded.kv_tokens, 384);
    const size_t rows = (size_t)4 * 384 * 2 * 1152 * 2;
    for (int gradient = 0; gradient < 2; gradient++) {
        ck_assert(hdi_cuda_cudnn_takes(&padded, gradient, 0));
        const size_t bytes = gradient ? hdi_cuda_cross_attention_gradient_workspace(&args)
                                      : hdi_cuda_cross_attention_workspace(&args);
        const size_t engine = hdi_cuda_cudnn_workspace(&padded, gradient, 0);
        ck_assert_uint_eq(bytes, 2 * 256 + (gradient ? 2 : 1) * rows + engine);
    }
    args.dtype = HD_DTYPE_F32; /* the own kernels', whose forward needs none */
    ck_assert_uint_eq(hdi_cuda_cross_attention_workspace(&args), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cudnn graphs");
    TCase *graphs = tcase_create("graphs");
    const char *why = missing();
    if (why) {
        printf("skipped: graphs for described devices (%s)\n", why);
    } else {
        tcase_add_loop_test(graphs, every_device_takes_what_the_backend_promises, 0, DEVICES);
        tcase_add_test(graphs, a_workspace_that_is_too_small_is_refused_with_both_sizes);
    }
    tcase_add_test(graphs, the_exact_backward_goes_in_slices_that_divide_the_batch);
    tcase_add_test(graphs, the_exact_backward_of_a_long_sequence_goes_in_slices_of_heads);
    tcase_add_test(graphs, many_short_sequences_go_in_slices_that_fit);
    tcase_add_test(graphs, packed_keys_get_places_that_fill_tiles);
    tcase_add_test(graphs, a_plan_for_any_device_is_enough_for_each);
    suite_add_tcase(suite, graphs);
    return hdt_main(suite);
}
