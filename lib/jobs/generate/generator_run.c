/* The token loop. All ranks of a pipeline walk the same list of passes: in every wave, each slot in
 * turn takes one run of its prompt's tokens or one generated token, and a slot whose text is done
 * takes the next prompt. Lengths alone decide the list, so nobody has to announce anything. A slot's
 * next receive is posted when its pass is over, its sends and the sampled token travel while other
 * slots compute. Allocates nothing. */
#include "jobs/generate/generator.h"
#include "jobs/generate/sampling.h"
#include "jobs/stages.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/half.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <xxhash.h>

typedef struct call {
    hd_generator *generator;
    const hd_prompt *prompts;
    int count;
    int64_t tokens;
    const hd_sampling_options *sampling;
    int32_t *out;
    hd_comm *comm;   /* along the pipeline; NULL on one rank */
    hd_comm *device; /* the same for device memory: what stages pass on; tokens travel on comm */
    int next;        /* prompt that the next free slot takes */
    int bad_prompt;  /* whose logits left no choice; -1: none */
    int64_t bad_position;
    double busy;
    int64_t settled; /* tokens of this line that are there */
    int64_t runs,
        most; /* runs so far, and those of the longest of the lines that gather weights from
                           each other */
} call;

/* One step of a slot. */
typedef struct turn {
    hdi_generator_pass pass;
    int64_t count; /* valid tokens */
    bool samples;  /* its logits decide a token */
} turn;

static turn turn_of(const call *it, const hdi_generator_slot *slot)
{
    const int64_t prefill = it->generator->options.prefill;
    const int64_t left = it->prompts[slot->prompt].length - slot->done;
    turn now = {.count = left > prefill ? prefill : left};
    if (now.count < 1) now.count = 1;
    now.pass = now.count > 1 ? HDI_PASS_PREFILL : HDI_PASS_DECODE;
    now.samples = left <= now.count;
    return now;
}

static void take_prompt(call *it, hdi_generator_slot *slot)
{
    slot->prompt = it->next < it->count ? it->next : -1;
    slot->done = 0;
    it->next += hd_mesh_size(it->generator->options.mesh, HD_AXIS_DATA);
}

/* Move on to what the slot does next. The last token of a text is never fed. */
static void advance(call *it, hdi_generator_slot *slot, int64_t count)
{
    slot->done += count;
    if (slot->done >= it->prompts[slot->prompt].length + it->tokens - 1) take_prompt(it, slot);
}

static void *address(const call *it, const hdi_generator_program *program, hd_tensor tensor,
                     int index)
{
    const hd_session *session = it->generator->session;
    return hdi_session_address(session, hdi_session_unit(session, program->program), tensor, index);
}

/* Receives are posted in the order of the passes, which is the order of the sends. */
static hd_status post_receive(call *it, int index)
{
    hdi_generator_slot *slot = &it->generator->slots[index];
    if (slot->prompt < 0 || it->generator->stage == 0) return HD_OK;
    const hdi_generator_program *program = &it->generator->programs[turn_of(it, slot).pass];
    return hd_comm_recv(it->device, address(it, program, program->x, index),
                        hd_tensor_get(program->program, program->x)->bytes,
                        it->generator->stage - 1, HDI_CHANNEL_X, &slot->receive);
}

/* Of all prompts of this line of ranks. */
static int64_t own_tokens(const call *it)
{
    const hd_mesh *mesh = it->generator->options.mesh;
    const int lines = hd_mesh_size(mesh, HD_AXIS_DATA), first = hd_mesh_index(mesh, HD_AXIS_DATA);
    return it->count > first ? (it->count - first + lines - 1) / lines * it->tokens : 0;
}

/* The token that was under way for the slot is needed now. */
static hd_status settle_token(call *it, hdi_generator_slot *slot)
{
    if (slot->token_place < 0) return HD_OK;
    HD_RETURN_IF_ERROR(hdi_stage_wait(it->comm, &slot->token_request));
    if (it->generator->stage == 0) {
        it->out[slot->token_place] = slot->token;
        it->settled++;
        if (it->generator->tell)
            it->generator->tell(it->generator->tell_user, it->settled, own_tokens(it));
    }
    slot->token_place = -1;
    return HD_OK;
}

static hd_status write_ids(call *it, const hdi_generator_program *program,
                           const hdi_generator_slot *slot, int index, int64_t count)
{
    hd_generator *generator = it->generator;
    const hd_prompt *prompt = &it->prompts[slot->prompt];
    memset(generator->ids, 0, (size_t)program->tokens * sizeof *generator->ids);
    if (slot->done < prompt->length)
        memcpy(generator->ids, prompt->tokens + slot->done, (size_t)count * sizeof *generator->ids);
    else
        generator->ids[0] =
            it->out[(int64_t)slot->prompt * it->tokens + slot->done - prompt->length];
    return hd_session_write(generator->session, program->program, program->ids, index,
                            generator->ids);
}

static hd_status write_scalar(call *it, const hdi_generator_program *program, hd_tensor tensor,
                              int index, int64_t value)
{
    const int32_t narrow = (int32_t)value;
    if (!tensor.id) return HD_OK;
    return hd_session_write(it->generator->session, program->program, tensor, index, &narrow);
}

static hd_status read_logits(hd_generator *generator, const hdi_generator_program *program,
                             int index)
{
    const hd_dtype dtype = generator->options.dtype;
    if (dtype == HD_DTYPE_F32)
        return hd_session_read(generator->session, program->program, program->logits, index,
                               generator->logits);
    HD_RETURN_IF_ERROR(hd_session_read(generator->session, program->program, program->logits, index,
                                       generator->rounded));
    for (int64_t i = 0; i < generator->facts.vocab; i++)
        generator->logits[i] = hdi_half_to_float(dtype, generator->rounded[i]);
    return HD_OK;
}

static hd_status compute(call *it, const hdi_generator_program *program, int index, const turn *now)
{
    hd_generator *generator = it->generator;
    const hdi_generator_slot *slot = &generator->slots[index];
    const double begin = hdi_clock_seconds();
    if (program->ids.id) HD_RETURN_IF_ERROR(write_ids(it, program, slot, index, now->count));
    HD_RETURN_IF_ERROR(write_scalar(it, program, program->position, index, slot->done));
    HD_RETURN_IF_ERROR(write_scalar(it, program, program->count, index, now->count));
    const hd_session_run_options run = {.micro_batch = index, .no_next = ++it->runs == it->most};
    HD_RETURN_IF_ERROR(hd_session_run(generator->session, program->program, &run));
    if (now->samples && program->logits.id)
        HD_RETURN_IF_ERROR(read_logits(generator, program, index));
    it->busy += hdi_clock_seconds() - begin;
    hdi_glance_at_memory(generator->session->context, HDI_WORK_STEPS);
    return HD_OK;
}

/* Logits that leave no choice give token 0 here and an error at the end, so that no rank waits for
 * one that has given up. */
static int32_t choose(call *it, const hdi_generator_slot *slot, int64_t position)
{
    const double begin = hdi_clock_seconds();
    int32_t token = hdi_sample(it->sampling, it->generator->logits, it->generator->facts.vocab,
                               (uint64_t)slot->prompt, (uint64_t)position, it->generator->heap);
    it->busy += hdi_clock_seconds() - begin;
    if (token >= 0) return token;
    if (it->bad_prompt < 0) {
        it->bad_prompt = slot->prompt;
        it->bad_position = position;
    }
    return 0;
}

/* The last stage chooses the token, the first one needs it. */
static hd_status pass_token(call *it, hdi_generator_slot *slot, const turn *now)
{
    hd_generator *generator = it->generator;
    const int last = generator->stages - 1;
    const int64_t position = slot->done + now->count;
    if (!now->samples || (generator->stage != 0 && generator->stage != last)) return HD_OK;
    slot->token_place =
        (int64_t)slot->prompt * it->tokens + position - it->prompts[slot->prompt].length;
    if (generator->stage == last) slot->token = choose(it, slot, position);
    if (last == 0) return HD_OK;
    return generator->stage == last ? hd_comm_send(it->comm, &slot->token, sizeof slot->token, 0,
                                                   HDI_CHANNEL_BACK, &slot->token_request)
                                    : hd_comm_recv(it->comm, &slot->token, sizeof slot->token, last,
                                                   HDI_CHANNEL_BACK, &slot->token_request);
}

static hd_status run_slot(call *it, int index)
{
    hd_generator *generator = it->generator;
    hdi_generator_slot *slot = &generator->slots[index];
    const turn now = turn_of(it, slot);
    const hdi_generator_program *program = &generator->programs[now.pass];
    HD_RETURN_IF_ERROR(settle_token(it, slot));
    HD_RETURN_IF_ERROR(hdi_stage_wait(it->device, &slot->receive));
    HD_RETURN_IF_ERROR(hdi_stage_wait(it->device, &slot->send[now.pass]));
    HD_RETURN_IF_ERROR(compute(it, program, index, &now));
    if (program->out.id)
        HD_RETURN_IF_ERROR(hd_comm_send(it->device, address(it, program, program->out, index),
                                        hd_tensor_get(program->program, program->out)->bytes,
                                        generator->stage + 1, HDI_CHANNEL_X,
                                        &slot->send[now.pass]));
    HD_RETURN_IF_ERROR(pass_token(it, slot, &now));
    advance(it, slot, now.count);
    return post_receive(it, index);
}

static hd_status run_waves(call *it)
{
    hd_generator *generator = it->generator;
    for (int s = 0; s < generator->slot_count; s++) {
        generator->slots[s] = (hdi_generator_slot){.token_place = -1};
        take_prompt(it, &generator->slots[s]);
        HD_RETURN_IF_ERROR(post_receive(it, s));
    }
    for (bool any = true; any;) {
        any = false;
        for (int s = 0; s < generator->slot_count; s++) {
            const hdi_generator_slot *slot = &generator->slots[s];
            if (slot->prompt < 0) continue;
            any = true;
            hd_status status = run_slot(it, s);
            if (status != HD_OK)
                return hdi_error_context(status,
                                         "generation, stage %d, prompt %d, position %" PRId64,
                                         generator->stage, slot->prompt, slot->done);
        }
    }
    for (int s = 0; s < generator->slot_count; s++) {
        HD_RETURN_IF_ERROR(settle_token(it, &generator->slots[s]));
        for (int pass = 0; pass < HDI_PASSES; pass++)
            HD_RETURN_IF_ERROR(hdi_stage_wait(it->device, &generator->slots[s].send[pass]));
    }
    return hdi_stage_idle(generator->session, generator->programs[HDI_PASS_DECODE].program,
                          &it->runs, it->most);
}

/* A prompt takes passes for runs of its tokens, the last of which decides one, and one for each other. */
static int64_t count_runs(const call *it)
{
    const hd_mesh *mesh = it->generator->options.mesh;
    const int64_t prefill = it->generator->options.prefill;
    int64_t runs = 0;
    for (int p = hd_mesh_index(mesh, HD_AXIS_DATA); p < it->count;
         p += hd_mesh_size(mesh, HD_AXIS_DATA))
        runs += (it->prompts[p].length + prefill - 1) / prefill + it->tokens - 1;
    return runs;
}

static hd_status check_prompts(const call *it)
{
    const hd_generator *generator = it->generator;
    const int64_t capacity = generator->options.capacity, vocab = generator->facts.vocab;
    for (int p = 0; p < it->count; p++) {
        const hd_prompt *prompt = &it->prompts[p];
        if (prompt->length < 1 || !prompt->tokens)
            return hdi_error(HD_ERROR_ARGUMENT, "prompt %d is empty, want at least one token", p);
        if (prompt->length > capacity || it->tokens > capacity - prompt->length)
            return hdi_error(HD_ERROR_ARGUMENT,
                             "prompt %d: %" PRId64 " tokens and %" PRId64
                             " to generate exceed the capacity of %" PRId64,
                             p, prompt->length, it->tokens, capacity);
        for (int64_t i = 0; i < prompt->length; i++)
            if (prompt->tokens[i] < 0 || prompt->tokens[i] >= vocab)
                return hdi_error(HD_ERROR_ARGUMENT,
                                 "prompt %d: token %" PRId64 " is %d, want 0..%" PRId64
                                 " (the model's vocabulary)",
                                 p, i, prompt->tokens[i], vocab - 1);
    }
    return HD_OK;
}

static hd_status check_call(const call *it)
{
    const hd_sampling_options *sampling = it->sampling;
    if (!it->generator->session) return hdi_error(HD_ERROR_ARGUMENT, "generator: run before start");
    if (it->count < 1 || !it->prompts || !it->out || it->tokens < 1 || !sampling)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "generator: %d prompts, %" PRId64
                         " tokens to generate; want at least one of each, options and an output",
                         it->count, it->tokens);
    if (!isfinite(sampling->temperature) || sampling->temperature < 0 || sampling->top_k < 0)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "sampling: temperature %g, top_k %" PRId64 ", want both at least 0",
                         sampling->temperature, sampling->top_k);
    return check_prompts(it);
}

/* Ranks that were asked for different texts would wait for each other. */
static hd_status check_equal(const call *it, hd_comm *world)
{
    const hd_sampling_options *sampling = it->sampling;
    const int64_t numbers[] = {it->count, it->tokens, sampling->top_k, (int64_t)sampling->seed};
    uint64_t hash = XXH3_64bits_withSeed(numbers, sizeof numbers, 0);
    hash = XXH3_64bits_withSeed(&sampling->temperature, sizeof sampling->temperature, hash);
    for (int p = 0; p < it->count; p++)
        hash = XXH3_64bits_withSeed(it->prompts[p].tokens,
                                    (size_t)it->prompts[p].length * sizeof(int32_t), hash);
    return hd_comm_check_equal(world, &hash, sizeof hash, "what to generate");
}

/* Each token is on one rank, the first stage of its data line, and of ranks that share layers on each, of
 * which the first counts; the others add zero. */
static hd_status gather(const call *it, hd_comm *world)
{
    hd_request request;
    if (hd_mesh_index(it->generator->options.mesh, HD_AXIS_TENSOR) > 0)
        memset(it->out, 0, (size_t)(it->count * it->tokens) * sizeof *it->out);
    HD_RETURN_IF_ERROR(hd_comm_all_reduce(world, it->out, it->count * it->tokens, HD_DTYPE_I32,
                                          HD_REDUCE_SUM, &request));
    return hd_comm_wait(world, &request);
}

static void cut_texts(const call *it)
{
    for (int p = 0; p < it->count && it->sampling->stop; p++) {
        bool ended = false;
        for (int64_t i = 0; i < it->tokens; i++) {
            int32_t *token = &it->out[p * it->tokens + i];
            if (ended) *token = it->sampling->end;
            ended = ended || *token == it->sampling->end;
        }
    }
}

static hd_status run_call(call *it)
{
    hd_comm *world = hd_mesh_comm(it->generator->options.mesh, HD_AXIS_NONE);
    hd_status status = check_call(it);
    if (world) status = hd_comm_agree(world, status);
    if (status == HD_OK && world) status = check_equal(it, world);
    HD_RETURN_IF_ERROR(status);
    memset(it->out, 0, (size_t)(it->count * it->tokens) * sizeof *it->out);
    HD_RETURN_IF_ERROR(hdi_stage_most_runs(it->generator->options.mesh, it->generator->plan,
                                           count_runs(it), &it->most));
    HD_RETURN_IF_ERROR(run_waves(it));
    hdi_watch_memory(it->generator->session->context, HDI_WORK_STEPS);
    if (it->bad_prompt >= 0)
        status = hdi_error(HD_ERROR_ARGUMENT,
                           "prompt %d: the logits at position %" PRId64
                           " are not finite; the weights are damaged or another model's",
                           it->bad_prompt, it->bad_position);
    if (world) {
        HD_RETURN_IF_ERROR(hd_comm_agree(world, status));
        status = gather(it, world);
    }
    if (status == HD_OK) cut_texts(it);
    return status;
}

hd_status hd_generator_run(hd_generator *generator, const hd_prompt *prompts, int count,
                           int64_t tokens, const hd_sampling_options *sampling, int32_t *out,
                           hd_generator_result *result)
{
    const hd_mesh *mesh = generator->options.mesh;
    const double begin = hdi_clock_seconds();
    call it = {.generator = generator,
               .prompts = prompts,
               .count = count,
               .tokens = tokens,
               .sampling = sampling,
               .out = out,
               .comm = hd_mesh_comm(mesh, HD_AXIS_PIPELINE),
               .device = hd_mesh_device_comm(mesh, HD_AXIS_PIPELINE),
               .next = hd_mesh_index(mesh, HD_AXIS_DATA),
               .bad_prompt = -1};
    HD_RETURN_IF_ERROR(run_call(&it));
    if (result)
        *result = (hd_generator_result){.tokens = count * tokens,
                                        .seconds = hdi_clock_seconds() - begin,
                                        .busy_seconds = it.busy};
    return HD_OK;
}
