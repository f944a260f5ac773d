/* Which GPU a rank takes. Only MPI's word on local ranks counts: under mpirun a batch system's own local
 * rank is that of the daemon, equal for all ranks of a host. */
#include "runtime/device_choice.h"

#include <stdio.h>
#include <string.h>

#include "core/error.h"

hd_status hdi_choose_device(int local_rank, int local_size, int visible, bool share, int *ordinal)
{
    *ordinal = -1;
    if (visible <= 0)
        return hdi_error(
            HD_ERROR_DEVICE,
            "device 'cuda': this process sees no GPU; is there a driver, and what does "
            "CUDA_VISIBLE_DEVICES say?");
    if (visible == 1)
        *ordinal = 0; /* the launcher gives each rank its own, or they are told to share */
    else if (visible >= local_size)
        *ordinal = local_rank;
    else if (share)
        *ordinal = local_rank % visible;
    else
        return hdi_error(HD_ERROR_CONFIG,
                         "device 'cuda': %d ranks on this host see %d GPUs; start at most %d ranks "
                         "on each host, or share them (run.share_gpu=true, --share-gpu)",
                         local_size, visible, visible);
    return HD_OK;
}

static bool is_same_gpu(const hdi_device_record *a, const hdi_device_record *b)
{
    return a->ordinal >= 0 && b->ordinal >= 0 && memcmp(a->uuid, b->uuid, sizeof a->uuid) == 0;
}

bool hdi_find_shared_device(const hdi_device_record *records, int ranks, hdi_rank_pair *out)
{
    for (int first = 0; first < ranks; first++)
        for (int second = first + 1; second < ranks; second++) {
            if (!is_same_gpu(&records[first], &records[second])) continue;
            *out = (hdi_rank_pair){first, second};
            return true;
        }
    return false;
}

int hdi_count_sharers(const hdi_device_record *records, int ranks, int rank)
{
    int count = 1;
    for (int other = 0; other < ranks; other++)
        count += other != rank && is_same_gpu(&records[rank], &records[other]);
    return count;
}

bool hdi_find_mixed_devices(const hdi_device_record *records, int ranks, hdi_rank_pair *out)
{
    int gpu = -1, cpu = -1;
    for (int r = ranks - 1; r >= 0; r--)
        *(records[r].ordinal >= 0 ? &gpu : &cpu) = r;
    *out = (hdi_rank_pair){gpu, cpu};
    return gpu >= 0 && cpu >= 0;
}

bool hdi_is_one_host(const hdi_device_record *records, int ranks)
{
    for (int r = 1; r < ranks; r++)
        if (records[r].host != records[0].host) return false;
    return true;
}

void hdi_uuid_text(const uint8_t uuid[16], char *text)
{
    int used = snprintf(text, HDI_UUID_TEXT, "GPU");
    for (int i = 0; i < 16; i++) {
        const bool group = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
        used += snprintf(text + used, (size_t)(HDI_UUID_TEXT - used), group ? "-%02x" : "%02x",
                         uuid[i]);
    }
}

hdi_copy_engines hdi_choose_copy_engines(hdi_copy_engines asked, bool is_on_one_host,
                                         bool shares_gpu)
{
    if (!is_on_one_host) return HDI_COPY_ENGINES_OFF;
    return shares_gpu && asked == HDI_COPY_ENGINES_AUTO ? HDI_COPY_ENGINES_OFF : asked;
}
