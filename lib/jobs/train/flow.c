/* Draws and mixtures of rectified flow. */
#include "jobs/train/flow.h"

#include "core/random.h"
#include "optim/flow.h"

#include <math.h>

/* Streams of random numbers are (name, step); an index is (sample, number within it). */
enum { SAMPLE_SHIFT = 40 };

static uint64_t stream_of(const char *name, int64_t step)
{
    return hdi_random_stream(name) + (uint64_t)step;
}

double hdi_flow_shift(const hdi_flow_options *options, const hd_video_model *model,
                      const hd_video_shape *shape)
{
    const double across =
        (double)(shape->height / model->patch[1]) * (double)(shape->width / model->patch[2]);
    const double frames = (double)shape->frames;
    const double pixels = (double)(shape->height * model->compression[1]) *
                          (double)(shape->width * model->compression[2]);
    switch (options->shift) {
    case HDI_FLOW_SHIFT_OPEN_SORA_2:
        return options->shift_factor * hdi_flow_open_sora_2_shift(across, frames);
    case HDI_FLOW_SHIFT_OPEN_SORA_1:
        return options->shift_factor * hdi_flow_open_sora_1_shift(pixels, frames);
    case HDI_FLOW_SHIFT_CONSTANT: break;
    }
    return options->shift_factor;
}

static double uniform(const hdi_flow_options *options, const char *name, int64_t step,
                      int64_t sample)
{
    return (double)hdi_random_uniform(options->seed, stream_of(name, step), (uint64_t)sample);
}

static double draw_time(const hdi_flow_options *options, double shift, int64_t step, int64_t sample)
{
    double time;
    if (options->uniform_time) {
        time = uniform(options, "flow.time", step, sample);
    } else {
        const double normal = (double)hdi_random_normal(options->seed, stream_of("flow.time", step),
                                                        (uint64_t)sample);
        time = 1 / (1 + exp(-(options->time_mean + options->time_std * normal)));
    }
    return hdi_flow_shifted(time, shift);
}

/* A clip of one frame has none to give; one of two would be given whole by a loop. */
static hdi_flow_task draw_task(const hdi_flow_options *options, int64_t frames, int64_t step,
                               int64_t sample)
{
    double sum = 0;
    for (int i = 0; i < HDI_FLOW_TASKS; i++)
        sum += options->task_ratio[i];
    if (frames < 2 || sum <= 0) return HDI_FLOW_TEXT;
    double left = sum * uniform(options, "flow.task", step, sample);
    int task = 0;
    while (task < HDI_FLOW_TASKS - 1 && left >= options->task_ratio[task])
        left -= options->task_ratio[task++];
    return frames == 2 && task == HDI_FLOW_LOOP ? HDI_FLOW_HEAD : (hdi_flow_task)task;
}

void hdi_flow_draw_sample(const hdi_flow_options *options, double shift, int64_t frames,
                          int64_t step, int64_t sample, hdi_flow_draw *out)
{
    *out = (hdi_flow_draw){
        .time = draw_time(options, shift, step, sample),
        .drops_text = uniform(options, "flow.drop_text", step, sample) < options->text_dropout,
        .drops_pooled = uniform(options, "flow.drop_pooled", step, sample) < options->text_dropout,
        .task = draw_task(options, frames, step, sample)};
}

bool hdi_flow_is_given(hdi_flow_task task, int64_t frame, int64_t frames)
{
    const bool head = task == HDI_FLOW_HEAD || task == HDI_FLOW_LOOP;
    const bool tail = task == HDI_FLOW_TAIL || task == HDI_FLOW_LOOP;
    return (head && frame == 0) || (tail && frame == frames - 1);
}

/* Two numbers of each uniform pair (Box and Muller), four of each counter. */
void hdi_flow_noise(const hdi_flow_options *options, int64_t step, int64_t sample, int64_t elements,
                    float *out)
{
    const double two_pi = 6.283185307179586476925;
    const uint64_t stream = stream_of("flow.noise", step);
    for (int64_t i = 0; i < elements; i += 4) {
        uint32_t words[4];
        double four[4];
        hdi_random_words(options->seed, stream,
                         (uint64_t)sample << SAMPLE_SHIFT | (uint64_t)(i / 4), words);
        for (int pair = 0; pair < 4; pair += 2) {
            const double radius = sqrt(-2 * log(((double)words[pair] + 1) * 0x1p-32));
            const double angle = two_pi * (double)words[pair + 1] * 0x1p-32;
            four[pair] = radius * cos(angle);
            four[pair + 1] = radius * sin(angle);
        }
        for (int64_t k = i; k < elements && k < i + 4; k++)
            out[k] = (float)four[k - i];
    }
}

void hdi_flow_mix(const hdi_flow_options *options, double time, int64_t elements, const float *data,
                  const float *noise, float *noisy, float *target)
{
    const double kept = 1 - options->sigma_min, sign = options->towards_data ? -1 : 1;
    const float data_part = (float)(1 - time), noise_part = (float)(1 - kept * (1 - time));
    const float target_noise = (float)(sign * kept), target_data = (float)-sign;
    for (int64_t i = 0; i < elements && noisy; i++)
        noisy[i] = data_part * data[i] + noise_part * noise[i];
    for (int64_t i = 0; i < elements && target; i++)
        target[i] = target_noise * noise[i] + target_data * data[i];
}
