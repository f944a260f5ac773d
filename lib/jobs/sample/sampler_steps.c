/* Phase two of a run: a list of passes that every stage works off in the same order. A pass' input is
 * received while the pass before it computes. The last stage keeps the latents, combines the branches,
 * takes the Euler step, and sends the new latents to the first stage, which needs them for the
 * video's next pass. Allocates nothing once it goes. */
#include "jobs/sample/sampler.h"
#include "jobs/sample/sampler_walk.h"
#include "jobs/stages.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/random.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* A video in flight on the first or the last stage. */
typedef struct flight {
    float *latents;  /* [elements], owned */
    hd_request back; /* latents on their way from the last stage to the first */
    int video;       /* first stage: whose latents are on their way; -1: none */
    int64_t step;    /* and after how many steps */
} flight;

/* What travels for the programs of one length of text. */
typedef struct lane {
    int64_t passes; /* begun or about to: a pass' boundary slot is its number modulo the slots */
    hd_request send[HDI_SAMPLER_SLOTS];
} lane;

/* A pass with its place among those of its programs. */
typedef struct turn {
    hdi_pass pass;
    hdi_sampler_set *set;
    lane *lane;
    int boundary;
    hd_request receive;
} turn;

typedef struct phase {
    hdi_sampler_call *call;
    hd_sampler *sampler;
    hd_comm *comm;   /* along the pipeline; NULL on one rank */
    hd_comm *device; /* the same for device memory */
    bool first, last;
    hdi_walk walk;
    flight *flights;                      /* [walk.slot_count], owned */
    lane *lanes;                          /* [text_lengths], owned */
    float *velocity[HD_SAMPLER_BRANCHES]; /* owned, on the last stage */
    float *zeros;           /* owned: the condition where there is none, pooled likewise */
    float *masks;           /* owned: the condition of which masks alone are left */
    int32_t *frame_entries; /* owned */
    int bad_video;          /* whose latents are not finite; -1: none */
    int64_t runs,
        most; /* runs so far, and those of the longest of the lines that gather weights from
                           each other */
} phase;

static int64_t elements_of(const phase *it)
{
    return hdi_sampler_elements(it->sampler);
}

static void restore_given(const phase *it, const hd_sampler_video *video, float *latents)
{
    const int64_t frames = it->sampler->options.shape.frames;
    const int64_t plane = hdi_sampler_plane(it->sampler);
    if (!video->given || !video->given_frames) return;
    for (int64_t at = 0; at < it->sampler->model.channels * frames; at++)
        if (video->given_frames[at % frames])
            memcpy(latents + at * plane, video->given + at * plane,
                   (size_t)plane * sizeof *latents);
}

static void begin_video(const phase *it, int index, float *latents)
{
    const hd_sampler_video *video = &it->call->videos[index];
    const int64_t elements = elements_of(it);
    const uint64_t stream = hdi_random_stream("noise of videos") + video->number;
    if (video->latents)
        memcpy(latents, video->latents, (size_t)elements * sizeof *latents);
    else
        for (int64_t i = 0; i < elements; i++)
            latents[i] = hdi_random_normal(video->seed, stream, (uint64_t)i);
    restore_given(it, video, latents);
}

static hd_status tell(const phase *it, int video, int64_t step, const float *latents)
{
    const hd_sampler_run_options *o = it->call->options;
    const hd_sampler_event event = {.video = video,
                                    .step = step,
                                    .steps = it->sampler->options.shape.steps,
                                    .latents = latents,
                                    .is_last_stage = it->last};
    const hd_mesh *mesh = it->sampler->options.mesh;
    const bool speaks =
        hd_mesh_index(mesh, HD_AXIS_SEQUENCE) == 0 && hd_mesh_index(mesh, HD_AXIS_TENSOR) == 0;
    return o->event && speaks ? o->event(o->user, &event) : HD_OK;
}

/* The first stage: latents that are on their way must be here now. */
static hd_status settle(const phase *it, flight *at)
{
    if (at->video < 0) return HD_OK;
    const int video = at->video;
    HD_RETURN_IF_ERROR(hdi_stage_wait(it->comm, &at->back));
    at->video = -1;
    return tell(it, video, at->step, at->latents);
}

static const void *fill_frame_entries(const phase *it, const hd_sampler_video *video)
{
    const int64_t frames = it->sampler->options.shape.frames;
    const int64_t patch = it->sampler->model.patch[0] > 0 ? it->sampler->model.patch[0] : 1;
    for (int64_t f = 0; f < frames; f += patch)
        it->frame_entries[f / patch] = video->given_frames && video->given_frames[f];
    return it->frame_entries;
}

/* What a branch sees of given frames; the third one none of their latents. */
static const void *fill_condition(const phase *it, const hd_sampler_video *video, int branch)
{
    const hd_video_model *model = &it->sampler->model;
    if (!video->condition) return it->zeros;
    if (branch < 2) return video->condition;
    if (!model->given_by_mask) return it->zeros;
    const int64_t masks =
        model->condition_masks * it->sampler->options.shape.frames * hdi_sampler_plane(it->sampler);
    memcpy(it->masks, video->condition, (size_t)masks * sizeof *it->masks);
    return it->masks;
}

static hd_status write_input(const phase *it, const turn *now, const hdi_sampler_port *port)
{
    const hdi_sampler_call *call = it->call;
    const hd_sampler_video *video = &call->videos[now->pass.video];
    const int index = video->text[now->pass.branch];
    const hd_sampler_text *text = &call->texts[index];
    const void *values = NULL;
    float scalar;
    switch (port->from) {
    case HDI_FROM_STORE:
        values = call->stores[index] + port->offset +
                 (port->by_step ? (size_t)now->pass.step * port->bytes : 0);
        break;
    case HDI_FROM_LATENTS: values = it->flights[now->pass.slot].latents; break;
    case HDI_FROM_TIME:
        scalar = (float)call->levels[now->pass.step];
        values = &scalar;
        break;
    case HDI_FROM_TEXT: values = text->text; break;
    case HDI_FROM_POOLED: values = text->pooled ? text->pooled : it->zeros; break;
    case HDI_FROM_GUIDANCE:
        scalar = hdi_guidance_embedded(call->options->embedded, call->options->embedded_rounded);
        values = &scalar;
        break;
    case HDI_FROM_FPS:
        scalar = (float)call->options->fps;
        values = &scalar;
        break;
    case HDI_FROM_CONDITION: values = fill_condition(it, video, now->pass.branch); break;
    case HDI_FROM_FRAME_ENTRIES: values = fill_frame_entries(it, video); break;
    }
    return hd_session_write(call->session, now->set->denoise, port->tensor, now->boundary, values);
}

static void *address(const phase *it, const turn *now, hd_tensor tensor)
{
    const hd_session *session = it->call->session;
    return hdi_session_address(session, hdi_session_unit(session, now->set->denoise), tensor,
                               now->boundary);
}

/* The next pass of the list. */
static bool next_turn(phase *it, turn *out)
{
    *out = (turn){0};
    if (!hdi_walk_next(&it->walk, &out->pass)) return false;
    const hd_sampler_video *video = &it->call->videos[out->pass.video];
    out->set =
        hdi_sampler_set_of(it->sampler, it->call->texts[video->text[out->pass.branch]].tokens);
    out->lane = &it->lanes[out->set - it->sampler->sets];
    out->boundary = (int)(out->lane->passes++ % it->sampler->boundary_slots);
    return true;
}

/* Receives are posted in the order of the passes, which is the order of the sends. */
static hd_status post_receive(const phase *it, turn *now)
{
    if (it->first) return HD_OK;
    return hd_comm_recv(it->device, address(it, now, now->set->x),
                        hd_tensor_get(now->set->denoise, now->set->x)->bytes,
                        it->sampler->stage - 1, HDI_CHANNEL_X, &now->receive);
}

static hd_status compute(phase *it, const turn *now)
{
    const hdi_sampler_set *set = now->set;
    hd_session *session = it->call->session;
    const double begin = hdi_clock_seconds();
    for (int i = 0; i < set->input_count; i++)
        HD_RETURN_IF_ERROR(write_input(it, now, &set->inputs[i]));
    const hd_session_run_options run = {.micro_batch = now->boundary,
                                        .no_next = ++it->runs == it->most};
    HD_RETURN_IF_ERROR(hd_session_run(session, set->denoise, &run));
    HD_RETURN_IF_ERROR(it->last ? hd_session_read(session, set->denoise, set->velocity,
                                                  now->boundary, it->velocity[now->pass.branch])
                                : hd_session_drain(session));
    it->call->result.busy_seconds += hdi_clock_seconds() - begin;
    it->call->result.passes++;
    hdi_glance_at_memory(it->sampler->context, HDI_WORK_STEPS);
    return HD_OK;
}

/* Latents that are not finite give an error at the end, so that no rank waits for one that has given
 * up. */
static void check_finite(phase *it, int video, const float *latents)
{
    double sum = 0;
    for (int64_t i = 0; i < elements_of(it); i++)
        sum += fabs((double)latents[i]);
    if (!isfinite(sum) && it->bad_video < 0) it->bad_video = video;
}

/* The last stage, when the branches of a step are there. */
static void take_step(phase *it, const hdi_pass *pass, float *latents)
{
    const double begin = hdi_clock_seconds();
    const hd_sampler *sampler = it->sampler;
    const int64_t frames = sampler->options.shape.frames;
    const double *levels = it->call->levels;
    hdi_guidance_combine(&pass->guidance, it->velocity, sampler->model.channels, frames,
                         hdi_sampler_plane(sampler));
    const bool flip = it->call->options->towards_data;
    hdi_flow_step(latents, it->velocity[0], elements_of(it),
                  levels[flip ? pass->step + 1 : pass->step],
                  levels[flip ? pass->step : pass->step + 1]);
    restore_given(it, &it->call->videos[pass->video], latents);
    if (pass->step + 1 == sampler->options.shape.steps) check_finite(it, pass->video, latents);
    it->call->result.busy_seconds += hdi_clock_seconds() - begin;
}

static hd_status end_step(phase *it, const hdi_pass *pass)
{
    flight *at = &it->flights[pass->slot];
    const size_t bytes = (size_t)elements_of(it) * sizeof(float);
    if (it->last) {
        HD_RETURN_IF_ERROR(hdi_stage_wait(it->comm, &at->back));
        take_step(it, pass, at->latents);
        HD_RETURN_IF_ERROR(tell(it, pass->video, pass->step + 1, at->latents));
        if (!it->first)
            return hd_comm_send(it->comm, at->latents, bytes, 0, HDI_CHANNEL_BACK, &at->back);
    } else if (it->first) {
        at->video = pass->video;
        at->step = pass->step + 1;
        return hd_comm_recv(it->comm, at->latents, bytes, it->sampler->stages - 1, HDI_CHANNEL_BACK,
                            &at->back);
    }
    return HD_OK;
}

static hd_status begin_step(phase *it, const hdi_pass *pass)
{
    flight *at = &it->flights[pass->slot];
    if (!at->latents || pass->branch > 0) return HD_OK;
    if (it->first) HD_RETURN_IF_ERROR(settle(it, at));
    if (!pass->is_first) return HD_OK;
    if (it->last) HD_RETURN_IF_ERROR(hdi_stage_wait(it->comm, &at->back));
    begin_video(it, pass->video, at->latents);
    return HD_OK;
}

static hd_status run_turn(phase *it, turn *now)
{
    hd_request *send = &now->lane->send[now->boundary];
    HD_RETURN_IF_ERROR(begin_step(it, &now->pass));
    HD_RETURN_IF_ERROR(hdi_stage_wait(it->device, &now->receive));
    HD_RETURN_IF_ERROR(hdi_stage_wait(it->device, send));
    HD_RETURN_IF_ERROR(compute(it, now));
    if (now->set->out.id)
        HD_RETURN_IF_ERROR(hd_comm_send(it->device, address(it, now, now->set->out),
                                        hd_tensor_get(now->set->denoise, now->set->out)->bytes,
                                        it->sampler->stage + 1, HDI_CHANNEL_X, send));
    const bool is_over = now->pass.branch + 1 == now->pass.guidance.branches;
    return is_over ? end_step(it, &now->pass) : HD_OK;
}

static hd_status run_turns(phase *it)
{
    const bool early = it->sampler->boundary_slots > 1;
    turn now, next;
    bool any = next_turn(it, &now);
    if (any) HD_RETURN_IF_ERROR(post_receive(it, &now));
    while (any) {
        any = next_turn(it, &next);
        if (any && early) HD_RETURN_IF_ERROR(post_receive(it, &next));
        const hd_status status = run_turn(it, &now);
        if (status != HD_OK)
            return hdi_error_context(status, "sampling, stage %d, video %d, step %" PRId64,
                                     it->sampler->stage, now.pass.video, now.pass.step);
        if (any && !early) HD_RETURN_IF_ERROR(post_receive(it, &next));
        now = next;
    }
    for (int s = 0; s < it->walk.slot_count; s++) {
        if (it->first) HD_RETURN_IF_ERROR(settle(it, &it->flights[s]));
        HD_RETURN_IF_ERROR(hdi_stage_wait(it->comm, &it->flights[s].back));
    }
    for (int l = 0; l < it->sampler->options.text_lengths; l++)
        for (int s = 0; s < HDI_SAMPLER_SLOTS; s++)
            HD_RETURN_IF_ERROR(hdi_stage_wait(it->device, &it->lanes[l].send[s]));
    hdi_watch_memory(it->sampler->context, HDI_WORK_STEPS);
    return hdi_stage_idle(it->call->session, it->sampler->sets[0].denoise, &it->runs, it->most);
}

static hd_status allocate(phase *it)
{
    const hd_sampler *sampler = it->sampler;
    const hd_video_model *model = &sampler->model;
    const size_t elements = (size_t)elements_of(it), slots = (size_t)it->walk.slot_count;
    const int64_t condition =
        model->condition_channels * sampler->options.shape.frames * hdi_sampler_plane(sampler);
    const int64_t zeros = condition > model->pooled_columns ? condition : model->pooled_columns;
    it->walk.slots = hdi_alloc_array(slots, sizeof *it->walk.slots);
    it->flights = hdi_alloc_array(slots, sizeof *it->flights);
    it->lanes = hdi_alloc_array((size_t)sampler->options.text_lengths, sizeof *it->lanes);
    it->zeros = hdi_alloc_array((size_t)zeros + 1, sizeof *it->zeros);
    it->masks = hdi_alloc_array(model->given_by_mask ? (size_t)condition : 1, sizeof *it->masks);
    it->frame_entries =
        hdi_alloc_array((size_t)sampler->options.shape.frames, sizeof *it->frame_entries);
    bool ok =
        it->walk.slots && it->flights && it->lanes && it->zeros && it->masks && it->frame_entries;
    for (size_t s = 0; s < slots && ok; s++) {
        it->flights[s].video = -1;
        if (!it->first && !it->last) continue;
        it->flights[s].latents = hdi_alloc_array(elements, sizeof(float));
        ok = it->flights[s].latents;
    }
    for (int b = 0; b < it->walk.guidance.branches && ok && it->last; b++) {
        it->velocity[b] = hdi_alloc_array(elements, sizeof(float));
        ok = it->velocity[b];
    }
    return ok ? HD_OK : hdi_error(HD_ERROR_MEMORY, "sampler: out of host memory for latents");
}

static void release(phase *it)
{
    for (int s = 0; s < it->walk.slot_count && it->flights; s++)
        hdi_free(it->flights[s].latents);
    for (int b = 0; b < HD_SAMPLER_BRANCHES; b++)
        hdi_free(it->velocity[b]);
    hdi_free(it->walk.slots);
    hdi_free(it->flights);
    hdi_free(it->lanes);
    hdi_free(it->zeros);
    hdi_free(it->masks);
    hdi_free(it->frame_entries);
}

/* Passes of videos with different texts follow each other. */
static hd_status rehearse(const phase *it)
{
    const int count = it->sampler->options.text_lengths;
    hdi_stage_traffic *traffic = hdi_alloc_array((size_t)count, sizeof *traffic);
    if (!traffic) return hdi_error(HD_ERROR_MEMORY, "sampler: out of host memory");
    for (int l = 0; l < count; l++) {
        const hdi_sampler_set *set = &it->sampler->sets[l];
        traffic[l] = (hdi_stage_traffic){.program = set->denoise,
                                         .x = set->x,
                                         .out = set->out,
                                         .count = it->sampler->boundary_slots};
    }
    const hd_status status = hdi_stage_rehearse(it->call->session, traffic, count);
    hdi_free(traffic);
    return status;
}

static hdi_walk make_walk(const hdi_sampler_call *it)
{
    const hd_sampler_run_options *o = it->options;
    const hd_mesh *mesh = it->sampler->options.mesh;
    const int lines = hd_mesh_size(mesh, HD_AXIS_DATA), first = hd_mesh_index(mesh, HD_AXIS_DATA);
    hdi_walk walk = {.videos = it->videos,
                     .count = it->video_count,
                     .stride = lines,
                     .steps = it->sampler->options.shape.steps,
                     .guidance = {.branches = hdi_sampler_branches(o),
                                  .text = o->guidance,
                                  .image = o->image_guidance,
                                  .oscillate = o->oscillate,
                                  .ramp = o->ramp}};
    const int share = (it->video_count - first + lines - 1) / lines;
    walk.slot_count = o->in_flight ? o->in_flight
                                   : hdi_walk_in_flight(&walk.guidance, it->sampler->stages, share);
    if (walk.slot_count > share) walk.slot_count = share;
    if (walk.slot_count < 1) walk.slot_count = 1;
    return walk;
}

hd_status hdi_sampler_take_steps(hdi_sampler_call *call)
{
    const hd_mesh *mesh = call->sampler->options.mesh;
    hd_comm *world = hd_mesh_comm(mesh, HD_AXIS_NONE);
    phase it = {.call = call,
                .sampler = call->sampler,
                .comm = hd_mesh_comm(mesh, HD_AXIS_PIPELINE),
                .device = hd_mesh_device_comm(mesh, HD_AXIS_PIPELINE),
                .first = call->sampler->stage == 0,
                .last = hdi_sampler_is_last(call->sampler),
                .walk = make_walk(call),
                .bad_video = -1};
    const int line = hd_mesh_index(mesh, HD_AXIS_DATA);
    hd_status status = allocate(&it);
    if (status == HD_OK) status = rehearse(&it);
    if (world) status = hd_comm_agree(world, status);
    if (status == HD_OK)
        status = hdi_stage_most_runs(mesh, call->sampler->denoise, hdi_walk_passes(&it.walk, line),
                                     &it.most);
    if (status == HD_OK) {
        const double begin = hdi_clock_seconds();
        hdi_walk_begin(&it.walk, line);
        status = run_turns(&it);
        call->result.seconds = hdi_clock_seconds() - begin;
        if (status == HD_OK && it.bad_video >= 0)
            status = hdi_error(HD_ERROR_ARGUMENT,
                               "video %d: its latents are not finite; the weights are damaged or "
                               "another model's",
                               it.bad_video);
        /* A rank whose steps failed returns at once: the others are in the middle of theirs. */
        if (world && (status == HD_OK || it.bad_video >= 0)) status = hd_comm_agree(world, status);
    }
    release(&it);
    return status;
}
