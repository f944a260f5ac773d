/* Which GPU a rank takes, and whether the ranks' choices go together. Pure; local. */
#ifndef HDI_RUNTIME_DEVICE_CHOICE_H
#define HDI_RUNTIME_DEVICE_CHOICE_H

#include <heddle/status.h>

#include "comm/direct.h"

/* What each rank tells the others about its device. */
typedef struct hdi_device_record {
    uint8_t uuid[16]; /* of the GPU */
    uint64_t host;    /* a hash of its name and boot */
    int32_t ordinal;  /* -1: the CPU */
    int32_t failed;   /* no device could be chosen; the rank reports why */
} hdi_device_record;

/* Two ranks, in order. */
typedef struct hdi_rank_pair {
    int first, second;
} hdi_rank_pair;

/* The device of the rank that is `local_rank` of `local_size` on its host and sees `visible` GPUs: the
 * only one, its own, or, with `share`, any. HD_ERROR_DEVICE without a GPU, HD_ERROR_CONFIG if they do
 * not go round. */
hd_status hdi_choose_device(int local_rank, int local_size, int visible, bool share, int *ordinal);

/* The first two ranks that have one GPU. */
bool hdi_find_shared_device(const hdi_device_record *records, int ranks, hdi_rank_pair *out);

/* How many ranks have the device of `rank`, itself included; the CPU is each rank's own. */
int hdi_count_sharers(const hdi_device_record *records, int ranks, int rank);

/* The first rank on a GPU and the first on the CPU, if there are both. */
bool hdi_find_mixed_devices(const hdi_device_record *records, int ranks, hdi_rank_pair *out);

bool hdi_is_one_host(const hdi_device_record *records, int ranks);

/* What copy engines do, if `asked` for by run.copy_engines: memory is mapped and shared within a host, and ranks of
 * one GPU, which take turns on it, use it only when told to. */
hdi_copy_engines hdi_choose_copy_engines(hdi_copy_engines asked, bool is_on_one_host,
                                         bool shares_gpu);

/* "GPU-0a1b2c3d-...", as nvidia-smi prints it; `text` has HDI_UUID_TEXT bytes. */
enum { HDI_UUID_TEXT = 48 };
void hdi_uuid_text(const uint8_t uuid[16], char *text);

#endif
