/* Data sets of videos (or images: one frame) as pixels or latents, with text embeddings: a folder of
 * index.json and safetensors shards. Floats throughout: pixels are in [-1, 1] whatever their dtype
 * on disk. A text (a caption, or a class) is stored once, however many samples it describes. What
 * is read comes by pread into the caller's memory; nothing but headers is held. All calls are Local.
 *
 * index.json: {"version": 1, "kind": "pixels" | "latents", "channels", "text_columns",
 * "pooled_columns", "null_text": text or absent, "shards": [file names],
 * "texts": [{"shard", "tokens", "name"}], "samples": [{"shard", "dims": [channels, frames, height,
 * width], "text": text or absent, "fps": number or absent}]}. Tensors: "<sample>.latents" (F32, F16,
 * BF16, or U8: 0 is -1, 255 is 1), "text.<text>" [tokens, text_columns] and "pooled.<text>"
 * [pooled_columns], the latter two F32, F16 or BF16. */
#ifndef HDI_IO_VIDEO_DATASET_H
#define HDI_IO_VIDEO_DATASET_H

#include <heddle/dtype.h>

typedef struct hdi_video_dataset hdi_video_dataset;

typedef struct hdi_video_dataset_info {
    bool is_pixels;
    int64_t count;                               /* samples */
    int64_t channels;                            /* of every sample */
    int64_t texts, text_columns, pooled_columns; /* 0: none */
    int64_t most_text_tokens;                    /* of any text */
    int64_t null_text;                           /* the empty prompt's text; -1: none */
    uint64_t fingerprint;                        /* of index.json: equal where the data are */
} hdi_video_dataset_info;

typedef struct hdi_video_sample {
    int64_t dims[4]; /* channels, frames, height, width */
    int64_t text;    /* -1: none */
    double fps;      /* 0: unknown */
} hdi_video_sample;

typedef struct hdi_video_text {
    const char *name; /* caption or class, "" if unnamed; borrowed from the data set */
    int64_t tokens;
} hdi_video_text;

/* Open the folder and check all of it against the shards' headers. HD_ERROR_IO: missing.
 * HD_ERROR_FORMAT names file, sample or text, value seen and wanted. One descriptor a shard. */
hd_status hdi_video_dataset_open(const char *path, hdi_video_dataset **out);
void hdi_video_dataset_close(hdi_video_dataset *dataset); /* takes NULL */

void hdi_video_dataset_get_info(const hdi_video_dataset *dataset, hdi_video_dataset_info *out);

/* Borrowed; NULL if the index is out of range. */
const hdi_video_sample *hdi_video_dataset_sample(const hdi_video_dataset *dataset, int64_t sample);
const hdi_video_text *hdi_video_dataset_text(const hdi_video_dataset *dataset, int64_t text);

/* The first text of that name, -1 if there is none. */
int64_t hdi_video_dataset_find_text(const hdi_video_dataset *dataset, const char *name);

/* Frames first_frame .. first_frame + frames - 1 to out [channels, frames, height, width]. Reads
 * allocate nothing and are thread-safe. HD_ERROR_ARGUMENT: out of range. HD_ERROR_IO: the file
 * shrank or failed. */
hd_status hdi_video_dataset_read_latents(const hdi_video_dataset *dataset, int64_t sample,
                                         int64_t first_frame, int64_t frames, float *out);

/* To out [tokens, text_columns], and out [pooled_columns]. */
hd_status hdi_video_dataset_read_text(const hdi_video_dataset *dataset, int64_t text, float *out);
hd_status hdi_video_dataset_read_pooled(const hdi_video_dataset *dataset, int64_t text, float *out);

typedef struct hdi_video_writer hdi_video_writer;

typedef struct hdi_video_writer_options {
    bool is_pixels;
    int64_t channels;
    int64_t text_columns, pooled_columns; /* 0: none */
    hd_dtype dtype;                       /* of the samples; U8 only for pixels; zero means F32 */
    int64_t shard_bytes;                  /* most bytes of a shard (one sample fits in any); zero
                                             means 512 MiB */
} hdi_video_writer_options;

/* Begin a data set in a folder, which is made if it is missing. HD_ERROR_IO if it holds one
 * already. Samples go to shards as they come; there is no data set before finish has succeeded. */
hd_status hdi_video_writer_create(const char *path, const hdi_video_writer_options *options,
                                  hdi_video_writer **out);

/* Remove what was not finished; takes NULL. */
void hdi_video_writer_destroy(hdi_video_writer *writer);

/* Add a text; `name` may be NULL, `pooled` [pooled_columns] is not read if there are none. *out is
 * its number. */
hd_status hdi_video_writer_text(hdi_video_writer *writer, const char *name, int64_t tokens,
                                const float *text, const float *pooled, int64_t *out);

/* Which text stands for the empty prompt. */
hd_status hdi_video_writer_null_text(hdi_video_writer *writer, int64_t text);

/* Append latents [channels, frames, height, width]. sample->text is -1 or a text added before. */
hd_status hdi_video_writer_append(hdi_video_writer *writer, const hdi_video_sample *sample,
                                  const float *latents);

/* Close the last shard and write the index: from now on the data set is there. */
hd_status hdi_video_writer_finish(hdi_video_writer *writer);

#endif
