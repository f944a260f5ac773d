/* Rectified flow. */
#include "optim/flow.h"

#include "core/half.h"

#include <math.h>

double hdi_flow_shifted(double t, double shift)
{
    return shift * t / (1 + (shift - 1) * t);
}

void hdi_flow_levels(int64_t steps, double shift, double *out)
{
    for (int64_t i = 0; i <= steps; i++)
        out[i] = hdi_flow_shifted((double)(steps - i) / (double)steps, shift);
}

double hdi_flow_open_sora_2_shift(double frame_tokens, double latent_frames)
{
    return (1 + (frame_tokens - 256) * 2 / (4096 - 256)) * sqrt(latent_frames);
}

double hdi_flow_open_sora_1_shift(double pixels, double latent_frames)
{
    return sqrt(pixels / (512 * 512)) * sqrt(latent_frames);
}

void hdi_flow_step(float *latents, const float *velocity, int64_t count, double now, double next)
{
    const float change = (float)next - (float)now;
    for (int64_t i = 0; i < count; i++)
        latents[i] += velocity[i] * change;
}

hdi_guidance_step hdi_guidance_at(const hdi_guidance *guidance, int64_t step, int64_t steps)
{
    enum { FIRST_OSCILLATION = 10 };
    const bool rests = guidance->oscillate && step >= FIRST_OSCILLATION && step % 2 == 1;
    hdi_guidance_step out = {.branches = guidance->branches,
                             .text = rests ? 1 : guidance->text,
                             .first_image = rests ? 1 : guidance->image};
    out.last_image = out.first_image;
    if (guidance->ramp && out.first_image > 1) {
        out.first_image = 1;
        out.last_image = guidance->image + (1 - guidance->image) * (double)step / (double)steps;
    }
    const bool image_is_one = out.first_image == 1 && out.last_image == 1;
    if (out.text == 1 && (guidance->branches == 2 || image_is_one)) out.branches = 1;
    return out;
}

static void combine_two(float *text, const float *negative, int64_t count, float scale)
{
    for (int64_t i = 0; i < count; i++)
        text[i] = negative[i] + scale * (text[i] - negative[i]);
}

static void combine_three(float *text, const float *negative, const float *nothing, int64_t count,
                          float text_scale, float image_scale)
{
    for (int64_t i = 0; i < count; i++)
        text[i] = nothing[i] + image_scale * (negative[i] - nothing[i]) +
                  text_scale * (text[i] - negative[i]);
}

void hdi_guidance_combine(const hdi_guidance_step *step, float *const velocity[HDI_FLOW_BRANCHES],
                          int64_t channels, int64_t frames, int64_t plane)
{
    if (step->branches == 2)
        combine_two(velocity[0], velocity[1], channels * frames * plane, (float)step->text);
    if (step->branches != 3) return;
    for (int64_t at = 0; at < channels * frames; at++) {
        const double along = frames > 1 ? (double)(at % frames) / (double)(frames - 1) : 0;
        const double image = step->first_image + (step->last_image - step->first_image) * along;
        combine_three(velocity[0] + at * plane, velocity[1] + at * plane, velocity[2] + at * plane,
                      plane, (float)step->text, (float)image);
    }
}

float hdi_guidance_embedded(double scale, bool rounded)
{
    if (!rounded) return (float)(scale * 1000);
    const float first = hdi_bf16_to_float(hdi_bf16_from_float((float)scale));
    return hdi_bf16_to_float(hdi_bf16_from_float(first * 1000));
}
