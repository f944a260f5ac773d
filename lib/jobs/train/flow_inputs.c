/* Filling a micro-batch: latents, texts, masks, sample by sample. */
#include "jobs/train/flow_inputs.h"

#include "core/checked.h"
#include "core/error.h"

#include <string.h>

enum { ALIGNMENT = 64 };

static const char *const names[HDI_FLOW_INPUTS] = {
    [HDI_FLOW_LATENTS] = "latents",
    [HDI_FLOW_TIME] = "time",
    [HDI_FLOW_TEXTS] = "text",
    [HDI_FLOW_TEXT_COUNTS] = "text_counts",
    [HDI_FLOW_TEXT_OFFSETS] = "text_offsets",
    [HDI_FLOW_TEXT_PLACES] = "text_places",
    [HDI_FLOW_POOLED] = "pooled",
    [HDI_FLOW_GUIDANCE] = "guidance",
    [HDI_FLOW_FPS] = "fps",
    [HDI_FLOW_CONDITION] = "condition",
    [HDI_FLOW_FRAME_ENTRIES] = "frame_entries",
    [HDI_FLOW_TARGET] = "target",
    [HDI_FLOW_LOSS_WEIGHT] = "loss_weight",
};

const char *hdi_flow_input_name(hdi_flow_input input)
{
    return names[input];
}

static int64_t pixels_of(const hd_video_shape *video)
{
    return video->frames * video->height * video->width;
}

static int64_t patch_frames(const hd_video_model *model, const hd_video_shape *video)
{
    return hdi_ceil_div(video->frames, model->patch[0]);
}

/* Elements of one sequence; each is 4 bytes. */
static int64_t elements_of(const hd_video_model *model, const hd_video_shape *video,
                           hdi_flow_input input)
{
    switch (input) {
    case HDI_FLOW_LATENTS:
    case HDI_FLOW_TARGET: return model->channels * pixels_of(video);
    case HDI_FLOW_TEXTS: return video->text * model->text_columns;
    case HDI_FLOW_TEXT_PLACES: return video->text;
    case HDI_FLOW_POOLED: return model->pooled_columns;
    case HDI_FLOW_CONDITION: return model->condition_channels * pixels_of(video);
    case HDI_FLOW_FRAME_ENTRIES:
    case HDI_FLOW_LOSS_WEIGHT: return patch_frames(model, video);
    case HDI_FLOW_TIME:
    case HDI_FLOW_TEXT_COUNTS:
    case HDI_FLOW_TEXT_OFFSETS:
    case HDI_FLOW_GUIDANCE:
    case HDI_FLOW_FPS:
    case HDI_FLOW_INPUTS: break;
    }
    return 1;
}

size_t hdi_flow_input_bytes(const hdi_flow_source *source, const hd_trainer_shape *shape,
                            hdi_flow_input input)
{
    const int64_t more = input == HDI_FLOW_TEXT_OFFSETS;
    return (size_t)(shape->sequences * elements_of(source->model, &shape->video, input) + more) *
           sizeof(float);
}

size_t hdi_flow_input_offset(const hdi_flow_source *source, unsigned reads,
                             const hd_trainer_shape *shape, hdi_flow_input input)
{
    size_t offset = 0;
    for (int i = 0; i < (int)input; i++)
        if (reads >> i & 1)
            offset += (hdi_flow_input_bytes(source, shape, (hdi_flow_input)i) + ALIGNMENT - 1) /
                      ALIGNMENT * ALIGNMENT;
    return offset;
}

/* One micro-batch under way. */
typedef struct filling {
    const hdi_flow_source *source;
    const hd_trainer_shape *shape;
    float *in[HDI_FLOW_INPUTS]; /* of the block; NULL: not read */
    float *data, *noise;
    int64_t text_rows; /* packed so far */
} filling;

/* A sequence's part of an input, NULL if it is not read. */
static float *part(const filling *f, hdi_flow_input input, int64_t sequence)
{
    if (!f->in[input]) return NULL;
    return f->in[input] + sequence * elements_of(f->source->model, &f->shape->video, input);
}

/* One element that is a float, or an integer. */
static void put(const filling *f, hdi_flow_input input, int64_t index, double value)
{
    if (f->in[input]) f->in[input][index] = (float)value;
}

static void put_integer(const filling *f, hdi_flow_input input, int64_t index, int64_t value)
{
    if (f->in[input]) ((int32_t *)(void *)f->in[input])[index] = (int32_t)value;
}

/* Patches' frames are given if all latent frames in them are. */
static bool is_patch_given(const filling *f, hdi_flow_task task, int64_t patch)
{
    const int64_t depth = f->source->model->patch[0], frames = f->shape->video.frames;
    bool given = true;
    for (int64_t frame = patch * depth; frame < (patch + 1) * depth && frame < frames; frame++)
        given = given && hdi_flow_is_given(task, frame, frames);
    return given;
}

static void put_frames(const filling *f, const hdi_flow_draw *draw, int64_t sequence)
{
    const hd_video_model *model = f->source->model;
    const int64_t patches = patch_frames(model, &f->shape->video);
    for (int64_t p = 0; p < patches; p++) {
        const bool given = is_patch_given(f, draw->task, p);
        const bool counts = !given || (f->source->given_loss && !model->frame_times);
        put_integer(f, HDI_FLOW_FRAME_ENTRIES, sequence * patches + p,
                    given ? f->shape->sequences + sequence : sequence);
        put(f, HDI_FLOW_LOSS_WEIGHT, sequence * patches + p, counts ? 1 : 0);
    }
}

/* Which frames are given, and what is in them. */
static void put_condition(const filling *f, const hdi_flow_draw *draw, float *out)
{
    const hd_video_shape *video = &f->shape->video;
    const hd_video_model *model = f->source->model;
    const int64_t frame_pixels = video->height * video->width;
    for (int64_t c = 0; c < model->condition_channels; c++)
        for (int64_t frame = 0; frame < video->frames; frame++) {
            float *to = out + (c * video->frames + frame) * frame_pixels;
            const int64_t from =
                ((c - model->condition_masks) * video->frames + frame) * frame_pixels;
            const bool given = hdi_flow_is_given(draw->task, frame, video->frames);
            if (c >= model->condition_masks && given)
                memcpy(to, f->data + from, (size_t)frame_pixels * sizeof *to);
            else
                for (int64_t i = 0; i < frame_pixels; i++)
                    to[i] = given ? 1 : 0;
        }
}

/* Models that mark given frames by their time see them clean in the latents. */
static void keep_given(const filling *f, const hdi_flow_draw *draw, float *latents)
{
    const hd_video_shape *video = &f->shape->video;
    const int64_t frame_pixels = video->height * video->width;
    for (int64_t c = 0; c < f->source->model->channels; c++)
        for (int64_t frame = 0; frame < video->frames; frame++) {
            const int64_t at = (c * video->frames + frame) * frame_pixels;
            if (hdi_flow_is_given(draw->task, frame, video->frames))
                memcpy(latents + at, f->data + at, (size_t)frame_pixels * sizeof *latents);
        }
}

static hd_status put_video(const filling *f, const hdi_flow_draw *draw, int64_t sample,
                           const hdi_flow_batch *batch, int64_t sequence)
{
    const hdi_flow_source *source = f->source;
    const hd_video_shape *video = &f->shape->video;
    float *latents = part(f, HDI_FLOW_LATENTS, sequence);
    float *target = part(f, HDI_FLOW_TARGET, sequence);
    float *condition = part(f, HDI_FLOW_CONDITION, sequence);
    if (!latents && !target && !condition) return HD_OK;
    const int64_t elements = source->model->channels * pixels_of(video);
    HD_RETURN_IF_ERROR(
        hdi_video_dataset_read_latents(source->dataset, sample, 0, video->frames, f->data));
    if (latents || target) {
        hdi_flow_noise(&source->flow, batch->step, batch->first_number + sequence, elements,
                       f->noise);
        hdi_flow_mix(&source->flow, draw->time, elements, f->data, f->noise, latents, target);
    }
    if (condition) put_condition(f, draw, condition);
    if (latents && source->model->frame_times) keep_given(f, draw, latents);
    return HD_OK;
}

/* Tokens of a sequence's text: of the model's own null text as many as of the text it stands in for, or
 * where there is none the most. */
static int64_t count_tokens(const filling *f, const hdi_video_text *found, int64_t text)
{
    if (found) return found->tokens;
    if (!f->source->null_text) return 0;
    const hdi_video_text *dropped = hdi_video_dataset_text(f->source->dataset, text);
    return dropped ? dropped->tokens : f->shape->video.text;
}

/* The text of a sequence; without one there are no valid rows, and zeros. */
static hd_status put_text(filling *f, const hdi_flow_draw *draw, int64_t text, int64_t null_text,
                          int64_t sequence)
{
    const hdi_flow_source *source = f->source;
    const hd_video_model *model = source->model;
    const int64_t words = draw->drops_text || text < 0 ? null_text : text;
    const int64_t pooled = draw->drops_pooled || text < 0 ? null_text : text;
    const hdi_video_text *found = hdi_video_dataset_text(source->dataset, words);
    const int64_t tokens = count_tokens(f, found, text);
    const int64_t row = model->text_packed ? f->text_rows : sequence * f->shape->video.text;
    float *out = f->in[HDI_FLOW_TEXTS];
    put_integer(f, HDI_FLOW_TEXT_COUNTS, sequence, tokens);
    put_integer(f, HDI_FLOW_TEXT_OFFSETS, sequence + 1, f->text_rows + tokens);
    for (int64_t r = 0; r < tokens; r++)
        put_integer(f, HDI_FLOW_TEXT_PLACES, row + r, r);
    f->text_rows += tokens;
    if (out && tokens && !found)
        memcpy(out + row * model->text_columns, source->null_text,
               (size_t)(tokens * model->text_columns) * sizeof *out);
    else if (out && tokens)
        HD_RETURN_IF_ERROR(
            hdi_video_dataset_read_text(source->dataset, words, out + row * model->text_columns));
    out = part(f, HDI_FLOW_POOLED, sequence);
    if (out && pooled >= 0) return hdi_video_dataset_read_pooled(source->dataset, pooled, out);
    return HD_OK;
}

static hd_status put_sequence(filling *f, const hdi_flow_batch *batch, int64_t sequence,
                              double shift, int64_t null_text)
{
    const hdi_flow_source *source = f->source;
    const hdi_video_bucket *bucket = &source->buckets->items[batch->bucket];
    const int64_t number = batch->first_number + sequence, index = batch->first + number;
    const int64_t sample = batch->validates
                               ? bucket->samples[bucket->train + index % bucket->validate]
                               : hdi_video_bucket_sample(bucket, source->flow.seed, index);
    const hdi_video_sample *is = hdi_video_dataset_sample(source->dataset, sample);
    hdi_flow_draw draw;
    const int64_t givable = f->shape->video.masked_frames ? f->shape->video.frames : 1;
    hdi_flow_draw_sample(&source->flow, shift, givable, batch->step, number, &draw);
    put(f, HDI_FLOW_TIME, sequence, draw.time);
    put(f, HDI_FLOW_GUIDANCE, sequence, 1000 * source->guidance);
    put(f, HDI_FLOW_FPS, sequence, is->fps > 0 ? is->fps : 24);
    put_frames(f, &draw, sequence);
    HD_RETURN_IF_ERROR(put_video(f, &draw, sample, batch, sequence));
    return put_text(f, &draw, is->text, null_text, sequence);
}

hd_status hdi_flow_fill(const hdi_flow_source *source, unsigned reads, const hdi_flow_batch *batch,
                        float *scratch, char *block)
{
    const hd_trainer_shape *shape = &source->buckets->items[batch->bucket].shape;
    filling f = {.source = source, .shape = shape};
    for (int i = 0; i < HDI_FLOW_INPUTS; i++)
        if (reads >> i & 1)
            f.in[i] = (float *)(void *)(block + hdi_flow_input_offset(source, reads, shape,
                                                                      (hdi_flow_input)i));
    memset(block, 0, hdi_flow_input_offset(source, reads, shape, HDI_FLOW_INPUTS));
    f.data = scratch;
    f.noise = scratch + source->model->channels * pixels_of(&shape->video);
    hdi_video_dataset_info info;
    hdi_video_dataset_get_info(source->dataset, &info);
    const double shift = hdi_flow_shift(&source->flow, source->model, &shape->video);
    for (int64_t s = 0; s < shape->sequences; s++)
        HD_RETURN_IF_ERROR(put_sequence(&f, batch, s, shift, info.null_text));
    return HD_OK;
}
