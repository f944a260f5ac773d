/* What an open data set of videos holds; shared by the files that open and read it. */
#ifndef HDI_IO_VIDEO_DATASET_FILES_H
#define HDI_IO_VIDEO_DATASET_FILES_H

#include "io/safetensors.h"
#include "io/video_dataset.h"

enum { HDI_VIDEO_DATASET_VERSION = 1 };
#define HDI_VIDEO_DATASET_INDEX "index.json"

typedef struct hdi_video_sample_entry {
    hdi_video_sample view;
    const hdi_safetensors_tensor *tensor; /* of the shard */
    int32_t shard;
} hdi_video_sample_entry;

typedef struct hdi_video_text_entry {
    hdi_video_text view;
    char *name;                                    /* owned; the view's */
    const hdi_safetensors_tensor *tensor, *pooled; /* of the shard; pooled NULL: none */
    int32_t shard;
} hdi_video_text_entry;

struct hdi_video_dataset {
    char *index_path;
    hdi_video_dataset_info info;
    hdi_safetensors **shards; /* [shard_count] */
    int shard_count;
    hdi_video_text_entry *texts;     /* [info.texts] */
    hdi_video_sample_entry *samples; /* [info.count] */
};

#endif
