/* The inputs of video training steps, made two steps ahead by a thread of its own, in memory that is
 * there from the start. */
#ifndef HDI_JOBS_TRAIN_FLOW_FEED_H
#define HDI_JOBS_TRAIN_FLOW_FEED_H

#include "jobs/train/flow.h"
#include "jobs/train/flow_inputs.h"
#include "jobs/train/video_buckets.h"
#include "parallel/data.h"

typedef struct hdi_flow_feed hdi_flow_feed;

typedef struct hdi_flow_feed_options {
    hdi_flow_source source;
    unsigned reads;       /* bits of hdi_flow_input: what this rank's stages declare */
    hdi_deal deal;        /* which micro-batches are this rank's */
    int validate_batches; /* micro-batches of a validation of a bucket on each data rank */
    int64_t first_step, end_step;
} hdi_flow_feed_options;

/* Take the memory and start the thread, which allocates nothing. Local, as all of these. */
hd_status hdi_flow_feed_create(const hdi_flow_feed_options *options, hdi_flow_feed **out);
void hdi_flow_feed_destroy(hdi_flow_feed *feed); /* takes NULL */

/* Wait for the inputs of a step, which follows the last one that ended (the first: first_step), and
 * say which shape it has. Reading that failed is reported here. */
hd_status hdi_flow_feed_begin(hdi_flow_feed *feed, int64_t step, int *shape);

/* Between begin and the next call of this, fills inputs: a hd_feed_fn. */
hd_status hdi_flow_feed_fill(void *feed, const char *name, int64_t global_batch, void *out,
                             size_t bytes);
void hdi_flow_feed_end(hdi_flow_feed *feed);

/* Make the inputs of a validation on a bucket's samples that are kept for it, the same ones with the
 * same noise every time; for hdi_flow_feed_fill from now on until the next begin. Between steps. */
hd_status hdi_flow_feed_validate(hdi_flow_feed *feed, int bucket);

#endif
