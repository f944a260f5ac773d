/* Trainings by a configuration, as `heddle train` runs them: settings, text to learn, directories. */
#ifndef HDT_JOB_H
#define HDT_JOB_H

#include "tests/support/hdt.h"

#include <heddle/job.h>

/* Text that a model can learn a little from, one file for all ranks. The first call is collective.
 * Borrowed. */
const char *hdt_job_text(void);

/* A new run's directory, the same on all ranks if all ask as often. Borrowed; good for seven more
 * calls. */
const char *hdt_job_directory(void);

/* A run on the device of the tests, of all ranks or on one without MPI. Owned by the caller. */
hd_config *hdt_job_config(const char *data, const char *directory, bool is_alone);

/* One setting, or a table of keys and values. */
void hdt_set(hd_config *config, const char *key, const char *value);
void hdt_set_number(hd_config *config, const char *key, int64_t value);
void hdt_set_table(hd_config *config, const char *const settings[][2], size_t count);
#define hdt_set_all(config, settings) \
    hdt_set_table((config), (settings), sizeof(settings) / sizeof *(settings))

/* "KEY=VALUE KEY=VALUE ...", as remedies are named, too, up to a word that is none such. Returns N where that is
 * the first of "on N ranks", else zero. */
int hdt_set_words(hd_config *config, const char *settings);

/* The text of a refusal by memory.budget; "" where all is well. Anything else fails the test. */
enum { HDT_REFUSAL = 4096 };
void hdt_take_refusal(hd_status status, char out[HDT_REFUSAL]);

/* Zero: the default. */
typedef struct hdt_job_layout {
    int data, pipeline, chunks, sequence, ring, tensor, shard_state;
    bool waits; /* what can, on the host */
} hdt_job_layout;

void hdt_set_layout(hd_config *config, const hdt_job_layout *layout);

/* hd_train_run; takes the configuration, and destroys it. */
hd_status hdt_job_train(hd_config *config, hd_train_result *result);

#endif
