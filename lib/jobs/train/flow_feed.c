/* The thread that makes inputs ahead, and the hand-over to the trainer. */
#include "jobs/train/flow_feed.h"

#include "core/error.h"
#include "core/memory.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* The step that is being taken, and two ahead. */
enum { SLOTS = 3, VALIDATION_STEP = -1 };

typedef struct slot {
    char *block; /* of all micro-batches, owned */
    int shape;
    int batches;
} slot;

struct hdi_flow_feed {
    hdi_flow_feed_options options;
    slot slots[SLOTS], validation;
    const slot *current; /* that fill reads */
    float *scratch, *validation_scratch;
    hdi_video_sampler sampler; /* the thread's */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool has_thread, has_locks;

    /* Under the mutex. */
    int64_t made, taken; /* steps before these are made, and over */
    bool stops;
    hd_status status; /* of the thread */
    char error[1024];
};

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "feed: out of host memory");
}

static size_t block_bytes(const hdi_flow_feed *feed, int shape)
{
    return hdi_flow_input_offset(&feed->options.source, feed->options.reads,
                                 &feed->options.source.buckets->items[shape].shape,
                                 HDI_FLOW_INPUTS);
}

/* All micro-batches of this rank. */
static hd_status make(const hdi_flow_feed *feed, slot *into, hdi_flow_batch batch, int batches,
                      float *scratch)
{
    const hdi_flow_source *source = &feed->options.source;
    const int64_t sequences = source->buckets->items[batch.bucket].shape.sequences;
    into->shape = batch.bucket;
    into->batches = batches;
    for (int b = 0; b < batches; b++) {
        batch.first_number = hdi_deal_batch(feed->options.deal, batches, b) * sequences;
        HD_RETURN_IF_ERROR(hdi_flow_fill(source, feed->options.reads, &batch, scratch,
                                         into->block + (size_t)b * block_bytes(feed, into->shape)));
    }
    return HD_OK;
}

static hd_status make_step(hdi_flow_feed *feed, int64_t step)
{
    hdi_flow_batch batch = {.step = step};
    hdi_video_sampler_at(&feed->sampler, step, &batch.bucket, &batch.first);
    const int batches = feed->options.source.buckets->items[batch.bucket].shape.accumulate;
    return make(feed, &feed->slots[step % SLOTS], batch, batches, feed->scratch);
}

static void *run(void *user)
{
    hdi_flow_feed *feed = user;
    pthread_mutex_lock(&feed->mutex);
    while (!feed->stops && feed->status == HD_OK && feed->made < feed->options.end_step) {
        if (feed->made >= feed->taken + SLOTS) {
            pthread_cond_wait(&feed->changed, &feed->mutex);
            continue;
        }
        const int64_t step = feed->made;
        pthread_mutex_unlock(&feed->mutex);
        const hd_status status = make_step(feed, step);
        pthread_mutex_lock(&feed->mutex);
        feed->status = status;
        if (status != HD_OK) snprintf(feed->error, sizeof feed->error, "%s", hd_last_error());
        feed->made += status == HD_OK;
        pthread_cond_broadcast(&feed->changed);
    }
    pthread_mutex_unlock(&feed->mutex);
    return NULL;
}

static hd_status take_memory(hdi_flow_feed *feed)
{
    const hdi_flow_source *source = &feed->options.source;
    size_t most = 1, validation = 1, video = 1;
    for (int i = 0; i < source->buckets->count; i++) {
        const hd_trainer_shape *shape = &source->buckets->items[i].shape;
        const size_t block = block_bytes(feed, i);
        const size_t one =
            hdi_flow_input_bytes(source, shape, HDI_FLOW_LATENTS) / (size_t)shape->sequences;
        if (block * (size_t)shape->accumulate > most) most = block * (size_t)shape->accumulate;
        if (block * (size_t)feed->options.validate_batches > validation)
            validation = block * (size_t)feed->options.validate_batches;
        if (one > video) video = one;
    }
    bool ok = true;
    for (int i = 0; i < SLOTS; i++)
        ok = (feed->slots[i].block = hdi_alloc(most)) && ok;
    feed->validation.block = hdi_alloc(validation);
    feed->scratch = hdi_alloc_array(2, video);
    feed->validation_scratch = hdi_alloc_array(2, video);
    ok = ok && feed->validation.block && feed->scratch && feed->validation_scratch;
    return ok ? HD_OK : out_of_memory();
}

/* Signals are for the threads that ask to stop between steps. */
static hd_status start_thread(hdi_flow_feed *feed)
{
    sigset_t all, before;
    sigfillset(&all);
    feed->has_locks =
        pthread_mutex_init(&feed->mutex, NULL) == 0 && pthread_cond_init(&feed->changed, NULL) == 0;
    if (!feed->has_locks) return hdi_error(HD_ERROR_MEMORY, "feed: no lock to be had");
    pthread_sigmask(SIG_SETMASK, &all, &before);
    feed->has_thread = pthread_create(&feed->thread, NULL, run, feed) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!feed->has_thread) return hdi_error(HD_ERROR_MEMORY, "feed: no thread to be had");
    return HD_OK;
}

hd_status hdi_flow_feed_create(const hdi_flow_feed_options *options, hdi_flow_feed **out)
{
    *out = NULL;
    hdi_flow_feed *feed = hdi_alloc(sizeof *feed);
    if (!feed) return out_of_memory();
    feed->options = *options;
    feed->made = feed->taken = options->first_step;
    hd_status status = take_memory(feed);
    if (status == HD_OK)
        status = hdi_video_sampler_create(options->source.buckets, options->source.flow.seed,
                                          &feed->sampler);
    if (status == HD_OK) status = start_thread(feed);
    if (status != HD_OK) {
        hdi_flow_feed_destroy(feed);
        return status;
    }
    *out = feed;
    return HD_OK;
}

void hdi_flow_feed_destroy(hdi_flow_feed *feed)
{
    if (!feed) return;
    if (feed->has_thread) {
        pthread_mutex_lock(&feed->mutex);
        feed->stops = true;
        pthread_cond_broadcast(&feed->changed);
        pthread_mutex_unlock(&feed->mutex);
        pthread_join(feed->thread, NULL);
    }
    if (feed->has_locks) {
        pthread_cond_destroy(&feed->changed);
        pthread_mutex_destroy(&feed->mutex);
    }
    hdi_video_sampler_release(&feed->sampler);
    for (int i = 0; i < SLOTS; i++)
        hdi_free(feed->slots[i].block);
    hdi_free(feed->validation.block);
    hdi_free(feed->scratch);
    hdi_free(feed->validation_scratch);
    hdi_free(feed);
}

hd_status hdi_flow_feed_begin(hdi_flow_feed *feed, int64_t step, int *shape)
{
    pthread_mutex_lock(&feed->mutex);
    const int64_t wanted = feed->taken;
    while (step == wanted && feed->made <= step && feed->status == HD_OK &&
           step < feed->options.end_step)
        pthread_cond_wait(&feed->changed, &feed->mutex);
    const bool made = step == wanted && feed->made > step;
    const hd_status status = feed->status;
    pthread_mutex_unlock(&feed->mutex);
    if (!made && status != HD_OK) return hdi_error(status, "%s", feed->error);
    if (!made)
        return hdi_error(HD_ERROR_ARGUMENT, "feed: step is %lld, want %lld, before %lld",
                         (long long)step, (long long)wanted, (long long)feed->options.end_step);
    feed->current = &feed->slots[step % SLOTS];
    *shape = feed->current->shape;
    return HD_OK;
}

void hdi_flow_feed_end(hdi_flow_feed *feed)
{
    pthread_mutex_lock(&feed->mutex);
    feed->taken++;
    feed->current = NULL;
    pthread_cond_broadcast(&feed->changed);
    pthread_mutex_unlock(&feed->mutex);
}

hd_status hdi_flow_feed_validate(hdi_flow_feed *feed, int bucket)
{
    feed->current = &feed->validation;
    return make(feed, &feed->validation,
                (hdi_flow_batch){.bucket = bucket, .validates = true, .step = VALIDATION_STEP},
                feed->options.validate_batches, feed->validation_scratch);
}

hd_status hdi_flow_feed_fill(void *user, const char *name, int64_t global_batch, void *out,
                             size_t bytes)
{
    const hdi_flow_feed *feed = user;
    const hdi_flow_source *source = &feed->options.source;
    const slot *from = feed->current;
    if (!from) return hdi_error(HD_ERROR_ARGUMENT, "feed: input '%s' between steps", name);
    const hd_trainer_shape *shape = &source->buckets->items[from->shape].shape;
    int input = 0;
    while (input < HDI_FLOW_INPUTS && strcmp(hdi_flow_input_name((hdi_flow_input)input), name) != 0)
        input++;
    if (input == HDI_FLOW_INPUTS || !(feed->options.reads >> input & 1))
        return hdi_error(HD_ERROR_ARGUMENT, "feed: no input is named '%s'", name);
    const size_t have = hdi_flow_input_bytes(source, shape, (hdi_flow_input)input);
    if (have != bytes)
        return hdi_error(HD_ERROR_ARGUMENT, "feed: input '%s' has %zu bytes, the model wants %zu",
                         name, have, bytes);
    int local = 0;
    while (local < from->batches &&
           hdi_deal_batch(feed->options.deal, from->batches, local) != global_batch)
        local++;
    if (local == from->batches)
        return hdi_error(HD_ERROR_ARGUMENT, "feed: micro-batch %lld is another rank's",
                         (long long)global_batch);
    memcpy(out,
           from->block + (size_t)local * block_bytes(feed, from->shape) +
               hdi_flow_input_offset(source, feed->options.reads, shape, (hdi_flow_input)input),
           bytes);
    return HD_OK;
}
