/* The generation job: weights and prompts in, texts out. */
#include "backend/backend.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "jobs/generate/generator.h"
#include "jobs/generate/prompts.h"
#include "jobs/job_model.h"
#include "jobs/progress.h"
#include "jobs/setup.h"

#include <inttypes.h>
#include <string.h>

/* What a generation holds, in the order in which it is made. */
typedef struct job {
    const hd_config *config;
    hdi_teller teller;
    const char *path; /* of the weights */
    hd_comm *world;
    hd_mesh *mesh;
    hd_context *context;
    hd_model *model;
    hdi_prompts prompts;
    int64_t tokens;
    hd_dtype dtype;
    hd_generator *generator;
    int32_t *out; /* [prompts * tokens] */
} job;

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "generate: out of host memory");
}

static hd_status choose_dtype(job *it, const hd_backend *backend)
{
    const hd_dtype names[] = {HD_DTYPE_F32, HD_DTYPE_F32, HD_DTYPE_BF16, HD_DTYPE_F16};
    const int chosen = hdi_config_enum(it->config->values, "generate.dtype");
    it->dtype = names[chosen];
    const bool is_given = chosen != 0 || backend == &hdi_backend_cpu;
    return is_given ? HD_OK : hdi_job_stored_dtype(it->path, &it->dtype);
}

/* Of each text, where generate.tokens is zero and the model takes so many. */
enum { USUAL_TOKENS = 200 };

static hd_status make_generator(job *it)
{
    const hdi_config *values = it->config->values;
    const int64_t most = hd_model_max_tokens(it->model), left = most - it->prompts.longest;
    if (it->tokens == 0) it->tokens = left < 1 ? 1 : left < USUAL_TOKENS ? left : USUAL_TOKENS;
    if (it->tokens > left)
        return hdi_error(HD_ERROR_CONFIG,
                         "generate.tokens: %" PRId64 " after a prompt of %" PRId64
                         " tokens exceed the %" PRId64
                         " that the model takes; want at most %" PRId64,
                         it->tokens, it->prompts.longest, most, left > 0 ? left : 0);
    const int data = hd_mesh_size(it->mesh, HD_AXIS_DATA);
    const int share = (it->prompts.count + data - 1) / data;
    const int busy = 2 * hd_mesh_size(it->mesh, HD_AXIS_PIPELINE);
    const hd_backend *backend;
    HD_RETURN_IF_ERROR(hd_backend_find(hdi_config_string(values, "run.device"), &backend));
    HD_RETURN_IF_ERROR(choose_dtype(it, backend));
    size_t foreign, transport;
    HD_RETURN_IF_ERROR(hdi_job_foreign(it->config, it->mesh, it->context, &foreign, &transport));
    return hd_generator_create(
        &(hd_generator_options){.build = hd_model_build,
                                .user = it->model,
                                .layers = hd_model_layers(it->model),
                                .mesh = it->mesh,
                                .backend = backend,
                                .dtype = it->dtype,
                                .capacity = it->prompts.longest + it->tokens,
                                .prefill = hdi_config_int(values, "generate.prefill"),
                                .slots = share < busy ? share : busy,
                                .budget = (size_t)hdi_config_bytes(values, "memory.budget"),
                                .foreign = foreign + transport,
                                .residency =
                                    (hd_residency)hdi_config_enum(values, "generate.residency")},
        &it->generator);
}

/* All that a rank can do by itself before weights are read. */
static hd_status prepare(job *it)
{
    HD_RETURN_IF_ERROR(hdi_job_model_of(it->config, it->path, "generate.checkpoint", &it->model));
    HD_RETURN_IF_ERROR(hdi_prompts_read(it->config, hd_model_vocab(it->model), &it->prompts));
    HD_RETURN_IF_ERROR(make_generator(it));
    it->out = hdi_alloc_array((size_t)it->prompts.count * (size_t)it->tokens, sizeof *it->out);
    return it->out ? HD_OK : out_of_memory();
}

static hd_status write_texts(const job *it, hd_write_fn write, void *user)
{
    const bool bytes = hd_model_vocab(it->model) == HDI_BYTE_VOCAB;
    hdi_text text = {0};
    hd_status status = HD_OK;
    for (int p = 0; p < it->prompts.count && status == HD_OK; p++) {
        const hd_prompt *prompt = &it->prompts.prompts[p];
        const int32_t *added = it->out + p * it->tokens;
        hdi_text_clear(&text);
        hdi_text_printf(&text, "=== prompt %d of %d\n", p + 1, it->prompts.count);
        if (bytes) {
            /* In one piece: a character may begin in the prompt and end in what follows. */
            int32_t *whole = hdi_alloc_array((size_t)(prompt->length + it->tokens), sizeof *whole);
            if (whole) {
                memcpy(whole, prompt->tokens, (size_t)prompt->length * sizeof *whole);
                memcpy(whole + prompt->length, added, (size_t)it->tokens * sizeof *whole);
                hdi_append_bytes(&text, whole, prompt->length + it->tokens);
            }
            text.failed = text.failed || !whole;
            hdi_free(whole);
        } else {
            hdi_append_ids(&text, prompt->tokens, prompt->length);
            hdi_text_append(&text, " -> ");
            hdi_append_ids(&text, added, it->tokens);
        }
        hdi_text_append(&text, "\n");
        if (text.failed)
            status = out_of_memory();
        else if (!write(user, text.data))
            break;
    }
    hdi_text_free(&text);
    return status;
}

static void tell(void *user, int64_t done, int64_t all)
{
    const hd_progress progress = {.unit = "token", .step = done, .steps = all};
    hdi_tell(user, &progress, 1, all - done);
}

/* Tokens per second, and for how much of the time each rank computed. */
static hd_status report_speed(const job *it, const hd_generator_result *result)
{
    const int ranks = hd_comm_size(it->world);
    double *busy = hdi_alloc_array((size_t)ranks, sizeof *busy);
    HD_RETURN_IF_ERROR(hd_comm_agree(it->world, busy ? HD_OK : out_of_memory()));
    busy[hd_comm_rank(it->world)] = 100 * result->busy_seconds / result->seconds;
    hd_request request;
    hd_status status =
        hd_comm_all_reduce(it->world, busy, ranks, HD_DTYPE_F64, HD_REDUCE_SUM, &request);
    if (status == HD_OK) status = hd_comm_wait(it->world, &request);
    hdi_text text = {0};
    for (int r = 0; r < ranks; r++)
        hdi_text_printf(&text, "%s%.0f", r ? ", " : "", busy[r]);
    if (status == HD_OK && hd_comm_rank(it->world) == 0)
        hdi_log(HD_LOG_INFO,
                "generated %" PRId64 " tokens for %d prompts in %.2f s: %.1f tokens/s; %d "
                "sequences in flight; ranks computed for %s %% of the time",
                result->tokens, it->prompts.count, result->seconds,
                (double)result->tokens / result->seconds, hd_generator_slots(it->generator),
                text.data ? text.data : "");
    hdi_text_free(&text);
    hdi_free(busy);
    return status;
}

static hd_status run_job(job *it, hd_write_fn write, void *user)
{
    const hdi_config *values = it->config->values;
    HD_RETURN_IF_ERROR(hdi_job_open_world(it->config, &it->world));
    HD_RETURN_IF_ERROR(hdi_job_open_mesh(it->config, it->world, &it->mesh));
    HD_RETURN_IF_ERROR(hdi_job_open_device(it->config, it->world, it->mesh, &it->context));
    HD_RETURN_IF_ERROR(hd_comm_agree(it->world, prepare(it)));
    HD_RETURN_IF_ERROR(hd_comm_check_equal(it->world, &it->dtype, sizeof it->dtype,
                                           "the dtype of generation (generate.dtype)"));
    HD_RETURN_IF_ERROR(hd_generator_start(it->generator, it->context, 0));
    HD_RETURN_IF_ERROR(hd_generator_load(it->generator, it->path));
    const hd_sampling_options sampling = {
        .temperature = hdi_config_float(values, "generate.temperature"),
        .top_k = hdi_config_int(values, "generate.top_k"),
        .seed = (uint64_t)hdi_config_int(values, "generate.seed")};
    if (it->teller.progress && hd_comm_rank(it->world) == 0) {
        it->teller.last = hdi_clock_seconds();
        it->generator->tell = tell;
        it->generator->tell_user = &it->teller;
    }
    hd_generator_result result;
    HD_RETURN_IF_ERROR(hd_generator_run(it->generator, it->prompts.prompts, it->prompts.count,
                                        it->tokens, &sampling, it->out, &result));
    size_t planned = hd_plan_total_bytes(hd_generator_plan(it->generator));
    HD_RETURN_IF_ERROR(hdi_job_most_memory(it->world, it->context, &planned));
    hdi_job_log_memory(it->context, planned);
    HD_RETURN_IF_ERROR(report_speed(it, &result));
    return hd_comm_rank(it->world) == 0 ? write_texts(it, write, user) : HD_OK;
}

hd_status hd_generate_run(const hd_config *config, hd_progress_fn progress, hd_write_fn write,
                          void *user)
{
    const char *path = hdi_config_string(config->values, "generate.checkpoint");
    job it = {.config = config,
              .teller = {.progress = progress, .user = user},
              .path = *path ? path : hdi_config_string(config->values, "run.directory"),
              .tokens = hdi_config_int(config->values, "generate.tokens")};
    hd_status status = run_job(&it, write, user);
    hdi_free(it.out);
    hd_generator_destroy(it.generator);
    hdi_prompts_free(&it.prompts);
    hd_model_destroy(it.model);
    hd_context_destroy(it.context);
    hd_mesh_destroy(it.mesh);
    hd_comm_destroy(it.world);
    return status;
}
