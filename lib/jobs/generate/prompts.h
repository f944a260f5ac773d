/* Prompts of a generation: from the configuration to tokens, and tokens as text again. */
#ifndef HDI_JOBS_GENERATE_PROMPTS_H
#define HDI_JOBS_GENERATE_PROMPTS_H

#include "core/text.h"
#include "jobs/config.h"

#include <heddle/generator.h>

/* A vocabulary of this size is taken for bytes. */
enum { HDI_BYTE_VOCAB = 256 };

/* Zeroed is empty. */
typedef struct hdi_prompts {
    hd_prompt *prompts; /* owned, as are their tokens */
    int count, capacity;
    int64_t longest;
} hdi_prompts;

/* generate.prompts, the lines of generate.prompt_file, generate.ids; in this order. HD_ERROR_CONFIG
 * if there are none, or texts although the vocabulary is not bytes. After a failure free what is
 * there. Local. */
hd_status hdi_prompts_read(const hd_config *config, int64_t vocab, hdi_prompts *out);
void hdi_prompts_free(hdi_prompts *prompts);

/* Append bytes as text that a terminal may be given: what is no UTF-8, and control characters but
 * newline and tab, become U+FFFD. */
void hdi_append_bytes(hdi_text *text, const int32_t *tokens, int64_t count);

/* Append numbers with commas. */
void hdi_append_ids(hdi_text *text, const int32_t *tokens, int64_t count);

#endif
