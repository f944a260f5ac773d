/* Phase one of a run: what depends on time and text only, for all steps at once, into host memory. */
#include "jobs/sample/sampler.h"

#include "core/error.h"
#include "core/memory.h"
#include "optim/flow.h"

#include <string.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "sampler: out of host memory for conditions");
}

/* The texts of the videos that this line of ranks makes. */
static bool needs_text(const hdi_sampler_call *it, int text)
{
    const hd_mesh *mesh = it->sampler->options.mesh;
    const int lines = hd_mesh_size(mesh, HD_AXIS_DATA);
    for (int v = hd_mesh_index(mesh, HD_AXIS_DATA); v < it->video_count; v += lines)
        for (int b = 0; b < hdi_sampler_branches(it->options); b++)
            if (it->videos[v].text[b] == text) return true;
    return false;
}

/* The input's values; in `room`, which holds `bytes` zeros, where they are not the caller's. */
static const void *input_values(const hdi_sampler_call *it, const hdi_sampler_port *port,
                                const hd_sampler_text *text, float *room)
{
    const int64_t steps = it->sampler->options.shape.steps;
    switch (port->from) {
    case HDI_FROM_TEXT: return text->text;
    case HDI_FROM_POOLED: return text->pooled ? text->pooled : room;
    case HDI_FROM_TIME:
        for (int64_t i = 0; i < steps; i++)
            room[i] = (float)it->levels[i];
        return room;
    case HDI_FROM_GUIDANCE:
        room[0] = hdi_guidance_embedded(it->options->embedded, it->options->embedded_rounded);
        return room;
    case HDI_FROM_FPS: room[0] = (float)it->options->fps; return room;
    case HDI_FROM_STORE:
    case HDI_FROM_LATENTS:
    case HDI_FROM_CONDITION:
    case HDI_FROM_FRAME_ENTRIES: break;
    }
    return NULL;
}

static hd_status write_input(const hdi_sampler_call *it, const hdi_sampler_set *set,
                             const hdi_sampler_port *port, hd_session *session,
                             const hd_sampler_text *text)
{
    float *room = hdi_alloc(port->bytes);
    if (!room) return out_of_memory();
    const void *values = input_values(it, port, text, room);
    hd_status status =
        values ? hd_session_write(session, set->condition, port->tensor, 0, values)
               : hdi_error(HD_ERROR_ARGUMENT,
                           "sampler: a condition program reads '%s', which changes with the step",
                           hd_tensor_get(set->condition, port->tensor)->name);
    hdi_free(room);
    return status;
}

static const hdi_sampler_set *set_of(const hdi_sampler_call *it, int text)
{
    return hdi_sampler_set_of(it->sampler, it->texts[text].tokens);
}

static hd_status make_store(hdi_sampler_call *it, hd_session *session, int index, bool is_last)
{
    const hd_sampler_text *text = &it->texts[index];
    const hdi_sampler_set *set = set_of(it, index);
    it->stores[index] = hdi_alloc(set->store_bytes);
    if (!it->stores[index]) return out_of_memory();
    for (int i = 0; i < set->condition_input_count; i++)
        HD_RETURN_IF_ERROR(write_input(it, set, &set->condition_inputs[i], session, text));
    HD_RETURN_IF_ERROR(
        hd_session_run(session, set->condition, &(hd_session_run_options){.no_next = is_last}));
    for (int i = 0; i < set->output_count; i++)
        HD_RETURN_IF_ERROR(hd_session_read(session, set->condition, set->outputs[i].tensor, 0,
                                           it->stores[index] + set->outputs[i].offset));
    hdi_glance_at_memory(it->sampler->context, HDI_WORK_CONDITIONS);
    return HD_OK;
}

/* Those of this line's texts; lines that gather weights from each other go on until all are through. */
static hd_status make_stores(hdi_sampler_call *it, hd_session *session)
{
    const hd_plan *plan = it->sampler->condition;
    int64_t runs = 0, most, run = 0;
    const hd_program *any = NULL;
    for (int t = 0; t < it->text_count; t++) {
        any = any ? any : set_of(it, t)->condition;
        runs += set_of(it, t)->condition && needs_text(it, t);
    }
    HD_RETURN_IF_ERROR(hdi_stage_most_runs(it->sampler->options.mesh, plan, runs, &most));
    for (int t = 0; t < it->text_count; t++)
        if (set_of(it, t)->condition && needs_text(it, t))
            HD_RETURN_IF_ERROR(make_store(it, session, t, ++run == most));
    return hdi_stage_idle(session, any, &run, most);
}

hd_status hdi_sampler_make_conditions(hdi_sampler_call *it)
{
    hd_comm *world = hd_mesh_comm(it->sampler->options.mesh, HD_AXIS_NONE);
    hd_session *session;
    hd_status status = hdi_sampler_open_session(it->sampler, it->sampler->condition, &session);
    if (status == HD_OK) status = make_stores(it, session);
    if (session) it->result.condition_high_water = hd_session_high_water(session);
    hdi_watch_memory(it->sampler->context, HDI_WORK_CONDITIONS);
    hd_session_destroy(session);
    return world ? hd_comm_agree(world, status) : status;
}
