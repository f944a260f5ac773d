/* Whole jobs from a configuration: the one-call tier, and what the `heddle` program runs. */
#ifndef HEDDLE_JOB_H
#define HEDDLE_JOB_H

#include <heddle/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* All settings of a job, each with a dotted key ("train.steps"), a type and a default. */
typedef struct hd_config hd_config;

/* One setting, for help and manuals. Borrowed, static. */
typedef struct hd_config_option {
    const char *key;
    const char *value;    /* what it takes, e.g. "1..1000000 steps" or "fast|exact" */
    const char *fallback; /* default, as text */
    const char *help;
} hd_config_option;

/* All defaults. Owned by the caller. Local. */
HD_API hd_status hd_config_create(hd_config **out);
HD_API void hd_config_destroy(hd_config *config); /* takes NULL */

/* Read a JSON file of nested objects. HD_ERROR_CONFIG names file, line, key, value seen and wanted, and
 * for an unknown key the nearest one. After a failure the config is good for nothing but destroy. Local. */
HD_API hd_status hd_config_load(hd_config *config, const char *path);

/* Set one key from text, as `--key=text` does. Local. */
HD_API hd_status hd_config_set(hd_config *config, const char *key, const char *text);

/* The effective configuration as JSON, in pieces through `write`. Local. */
HD_API hd_status hd_config_print(const hd_config *config, hd_write_fn write, void *user);

/* The settings, in the order of the schema; the count, and one of them. Local. */
HD_API int hd_config_options(void);
HD_API const hd_config_option *hd_config_option_at(int index);

/* The whole of `text` as bytes, as settings of bytes are read: 1024, 512MiB (powers of 1024), 5GB (of 1000).
 * HD_ERROR_ARGUMENT otherwise. Local. */
HD_API hd_status hd_bytes_parse(const char *text, int64_t *out);

/* Called after each step on rank 0, for a progress line. Of a training: return false to stop after saving, as
 * if a signal had asked for it; other jobs do not look at it. */
typedef struct hd_progress {
    const char *unit;           /* of what is counted: "token", ...; NULL: "step" */
    int64_t step, steps;        /* done, and to do in all */
    double loss, learning_rate; /* NaN where a job has none */
    const char *rate_unit;      /* "tokens", "B"; NULL: what is counted */
    double rate, seconds_left;  /* rate: a second; both of the last steps; NaN: not known yet */
} hd_progress;
typedef bool (*hd_progress_fn)(void *user, const hd_progress *progress);

/* One line of text, without a newline, of at most `columns` characters and `bytes` bytes with its
 * NUL: "step 120/2000 [==>   ] 6%  loss 2.3456 ..."; what matters least is left out first. Returns
 * its length. Local. */
HD_API size_t hd_progress_format(const hd_progress *progress, int columns, char *out, size_t bytes);

typedef struct hd_train_result {
    int64_t steps;          /* at the end, those before a resume included */
    double loss;            /* of the last step */
    double validation_loss; /* of the last validation; NaN if there was none */
    double entropy; /* of a corpus: nats per token of its unigram distribution; of videos NaN */
    /* From the start of the process to the end of the first step; 0: there was none to do. */
    double first_step_seconds;
    double tokens_per_second; /* over all steps but the first */
    /* With run.trace the shares of the time of all steps but the first in which devices stood, waiting for
     * copies from or to the host, for other ranks, and for the host; else NaN. */
    double exposed_copies, exposed_communication, exposed_host;
    /* Bytes of a device as planned, and in use: the most that was read while training, in a validation and while
     * saving, of the rank with the most; 0: there was none. All of the process is counted, and other
     * programs; ranks that share a device count alike. On the CPU it is the machine's memory. */
    size_t planned_bytes, training_bytes, validation_bytes, save_bytes;
    uint64_t weights_hash;
    char directory[1024]; /* of the run */
} hd_train_result;

/* Train as configured: data, model, layout, schedule, checkpoints, all outputs in the run
 * directory. Resumes from the newest good checkpoint there unless told otherwise. Collective over
 * all ranks that the launcher started. HD_ERROR_INTERRUPTED after a save on SIGUSR1 or SIGTERM.
 * Handlers of your own for other signals want SA_ONSTACK and a sigaltstack, or a thread that does not
 * compute: oneDNN points the stack pointer into the heap while it multiplies on the CPU. A
 * rank that fails alone returns at once and leaves MPI as it is: end the process with a status that
 * is not zero, and mpirun ends the others, which else fail after run.deadline. */
HD_API hd_status hd_train_run(const hd_config *config, hd_progress_fn progress, void *user,
                              hd_train_result *out);

/* Generate text for every prompt with the ranks as pipeline stages; on rank 0 `write` receives
 * all prompts' texts when they are done, in prompt order. `progress` may be NULL; it is told of the tokens of
 * rank 0's prompts. Collective. */
HD_API hd_status hd_generate_run(const hd_config *config, hd_progress_fn progress,
                                 hd_write_fn write, void *user);

typedef struct hd_sample_result {
    int videos;
    int64_t steps;        /* of all videos together, in this run */
    double seconds;       /* of them */
    double utilisation;   /* share of the steps' time in which ranks computed, over all of them */
    char directory[1024]; /* of the results */
} hd_sample_result;

/* Make a video for every input and seed with the ranks as pipeline stages: latents as safetensors in
 * sample.directory, and pictures where latents are pixels. Takes up what an earlier run, on any layout,
 * has left there of the same videos. `progress` may be NULL; losses in it are NaN, what it returns is
 * not looked at. Collective; ranks that fail alone do as in hd_train_run. */
HD_API hd_status hd_sample_run(const hd_config *config, hd_progress_fn progress, void *user,
                               hd_sample_result *out);

/* Plan the sampling of a video model for `ranks` ranks without running it or reading weights: what memory
 * holds in both phases, and the FLOPs of a step. sample.inputs are not read: texts have
 * sample.text_tokens tokens. `print` also lists every op with its addresses. Local.
 * HD_ERROR_BUDGET if it does not fit. */
HD_API hd_status hd_sample_plan_run(const hd_config *config, int ranks, bool print,
                                    hd_write_fn write, void *user);

/* Plan the training for `ranks` ranks without running it: tables per pipeline stage, costs, the
 * schedule's bubble, collectives of all ranks matched. Writes plan.json and plan.svg into
 * `directory` unless it is NULL. `print` also lists every op with its addresses. Local: no MPI, no memory
 * of that size. HD_ERROR_BUDGET with the remedy if it does not fit. */
HD_API hd_status hd_plan_run(const hd_config *config, int ranks, const char *directory, bool print,
                             hd_write_fn write, void *user);

/* Describe a safetensors file, a folder of them, a checkpoint, or a run directory. Local. */
HD_API hd_status hd_inspect_run(const char *path, hd_write_fn write, void *user);

typedef struct hd_convert_options {
    int64_t shard_bytes;     /* most bytes of a file; zero: 5 GB */
    bool ema;                /* the average of the weights (train.ema) in place of them */
    hd_progress_fn progress; /* is told of tensors, with the user of `write`; NULL: nobody is */
} hd_convert_options;

/* Write the weights of a checkpoint as a Hugging Face folder: config.json and safetensors. `options`
 * may be NULL. Local. */
HD_API hd_status hd_convert_run(const char *checkpoint, const char *directory,
                                const hd_convert_options *options, hd_write_fn write, void *user);

/* What `heddle data` makes a data set of. Zero means default. */
typedef struct hd_data_options {
    const char *kind;          /* "shapes", "images", "videos" or "arrays" */
    const char *const *inputs; /* files and folders; shapes take none */
    int input_count;
    const char *output;    /* folder of the data set; must hold none yet */
    int64_t width, height; /* pictures are scaled and cut to it; default: images as they are, 24 for
                              shapes; videos need it */
    int64_t frames;        /* of a clip; default 8 */
    int64_t stride;        /* videos: each so-manieth frame is taken; default 1 */
    double fps;            /* videos: frames a second before the stride, default those of the file;
                              shapes: 8; arrays: what is noted */
    int64_t samples;       /* shapes: clips; default 1024 */
    uint64_t seed;         /* shapes */
    int64_t text_columns;  /* of the texts made from names of classes; default 32 */
    int64_t shard_bytes;   /* of a file; default 512 MiB */
} hd_data_options;

/* Make a data set (the format is in docs/guide/04-files.md) of
 * "shapes": generated clips of coloured shapes in motion, functions of (seed, index);
 * "images": PNG files; "videos": what ffmpeg reads, cut into clips, for which ffmpeg must be in PATH
 * (HD_ERROR_UNSUPPORTED); sub-folders' names become classes, and their words texts;
 * "arrays": safetensors files of latents or pixels with text embeddings.
 * On success `output` holds the set, on failure nothing of it. Local. */
HD_API hd_status hd_data_run(const hd_data_options *options, hd_write_fn write, void *user);

#ifdef __cplusplus
}
#endif
#endif
