/* Rectified flow (arXiv 2209.03003): noise levels of a sampler's steps, Euler steps, and guidance by
 * several passes. Noise level 1 is pure noise, 0 is data; a velocity is noise minus data. */
#ifndef HDI_OPTIM_FLOW_H
#define HDI_OPTIM_FLOW_H

#include <stdbool.h>
#include <stdint.h>

/* shift * t / (1 + (shift - 1) * t): more of the way at high noise (arXiv 2403.03206, 5.3.2). */
double hdi_flow_shifted(double t, double shift);

/* Levels of `steps` Euler steps: out[steps + 1], from 1 down to 0 evenly, then shifted. HunyuanVideo
 * and diffusers' FlowMatchEulerDiscreteScheduler; Open-Sora with the shifts below. */
void hdi_flow_levels(int64_t steps, double shift, double *out);

/* Open-Sora 2.0: from 1 at 256 tokens a frame to 3 at 4096, along a line, times the root of the latent
 * frames. */
double hdi_flow_open_sora_2_shift(double frame_tokens, double latent_frames);

/* Open-Sora 1.2: the root of the pixels over 512 x 512, times the root of the latent frames. */
double hdi_flow_open_sora_1_shift(double pixels, double latent_frames);

/* latents += velocity * (next - now), in fp32. */
void hdi_flow_step(float *latents, const float *velocity, int64_t count, double now, double next);

enum { HDI_FLOW_BRANCHES = 3 };

/* How velocities of one to three branches become one. Branch 0 sees the text; 1 a negative text; 2
 * a negative text and no given frames.
 *   1 branch: v0      2: v1 + text (v0 - v1)      3: v2 + image (v1 - v2) + text (v0 - v1) */
typedef struct hdi_guidance {
    int branches;
    double text, image;
    bool oscillate; /* from step 10 on, every other step is one without guidance */
    bool ramp; /* image: rises over the frames from 1 to a value that falls to 1 with the steps */
} hdi_guidance;

/* The weights of one step. */
typedef struct hdi_guidance_step {
    int branches; /* that are looked at: 1 where the others' weights are zero */
    double text;
    double first_image, last_image; /* over the frames, along a line */
} hdi_guidance_step;

hdi_guidance_step hdi_guidance_at(const hdi_guidance *guidance, int64_t step, int64_t steps);

/* velocity[b] is that of branch b, [channels, frames, plane]; the result replaces velocity[0]. In
 * fp32. */
void hdi_guidance_combine(const hdi_guidance_step *step, float *const velocity[HDI_FLOW_BRANCHES],
                          int64_t channels, int64_t frames, int64_t plane);

/* The embedded guidance as HunyuanVideo's networks read it: times 1000. `rounded`: made in bf16, as
 * both of its implementations do: 6 is 6016. */
float hdi_guidance_embedded(double scale, bool rounded);

#endif
