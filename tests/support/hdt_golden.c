/* Training a golden model: its weights through the model's reader, its tokens through the feed. */
#include "tests/support/hdt_golden.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <heddle/model.h>

#include "io/safetensors.h"
#include "jobs/train/trainer.h"
#include "models/weights.h"
#include "runtime/session.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_safetensors.h"

typedef struct golden {
    hdi_safetensors *file;
    hdi_weights *weights;
    hd_model *model;
    int64_t *ids, sequences, tokens;
    int64_t rows; /* sequences of a micro-batch */
} golden;

static void *take(int64_t count, size_t bytes)
{
    void *memory = calloc((size_t)count + 1, bytes);
    if (!memory) abort();
    return memory;
}

static golden open_golden(const char *family)
{
    golden g = {0};
    char name[64];
    snprintf(name, sizeof name, "%s_tiny.safetensors", family);
    hdt_assert_ok(hdi_safetensors_open(hdt_golden_path(name), &g.file));
    json_t *config = json_loads(hdi_safetensors_metadata(g.file, "config"), 0, NULL);
    json_object_set_new(config, "model_type", json_string(family));
    char *text = json_dumps(config, 0);
    hdt_assert_ok(hd_model_create_json(text, &g.model));
    free(text);
    json_decref(config);
    g.weights = hdt_extract(g.file, "weights.", "");
    const hdi_safetensors_tensor *ids = hdi_safetensors_find(g.file, "in.ids");
    g.sequences = ids->dims[0];
    g.tokens = ids->dims[1];
    g.ids = take(ids->elements, sizeof *g.ids);
    hdt_assert_ok(hdi_safetensors_pread(g.file, ids, 0, ids->bytes, g.ids));
    return g;
}

static void close_golden(golden *g)
{
    free(g->ids);
    hd_model_destroy(g->model);
    hdi_weights_close(g->weights);
    hdi_safetensors_close(g->file);
}

static void read_wanted(const golden *g, const char *name, double *out)
{
    const hdi_safetensors_tensor *tensor = hdi_safetensors_find(g->file, name);
    ck_assert_ptr_nonnull(tensor);
    ck_assert_int_eq(tensor->elements, HDT_GOLDEN_STEPS);
    hdt_assert_ok(hdi_safetensors_pread(g->file, tensor, 0, tensor->bytes, out));
}

static double reference_error(const golden *g, const char *key)
{
    const char *text = hdi_safetensors_metadata(g->file, key);
    ck_assert_ptr_nonnull(text);
    return strtod(text, NULL);
}

static void read_reference(const golden *g, hdt_golden_run *out)
{
    read_wanted(g, "out64.train_loss", out->wanted_loss);
    read_wanted(g, "out64.train_grad_norm", out->wanted_norm);
    out->loss_tolerance = 2e-5;
    out->norm_tolerance = out->loss_tolerance /
                          reference_error(g, "fp32_vs_fp64_max_abs.train_loss") *
                          reference_error(g, "fp32_vs_fp64_max_abs.train_grad_norm");
}

/* The target of a token is the next one of its sequence; the last has none. */
static hd_status feed(void *user, const char *name, int64_t global_batch, void *out, size_t bytes)
{
    const golden *g = user;
    const int shift = strcmp(name, "targets") == 0;
    int32_t *ids = out;
    for (int64_t i = 0; i < (int64_t)(bytes / sizeof *ids); i++) {
        const int64_t at = global_batch * g->rows * g->tokens + i;
        ids[i] = shift && (i + 1) % g->tokens == 0 ? -1 : (int32_t)g->ids[at + shift];
    }
    return HD_OK;
}

typedef struct loading {
    const golden *golden;
    hd_session *session;
} loading;

static hd_status load_part(void *user, const hdi_trainer_part *part)
{
    const loading *from = user;
    float *values = take(part->count, sizeof *values);
    hd_status status = hdi_model_read_parameter(from->golden->weights, part->entry->options,
                                                part->begin, part->count, values);
    if (status == HD_OK)
        status = hdi_session_write_flat(from->session, part->entry->first + part->begin,
                                        part->count, values);
    free(values);
    return status;
}

static hd_status run(hd_trainer *trainer, hd_context *context, golden *g, hdt_golden_run *out)
{
    hd_status status = hd_trainer_start(trainer, context, 1);
    loading from = {g, hd_trainer_session(trainer)};
    if (status == HD_OK) status = hdi_trainer_loaded_parts(trainer, load_part, &from);
    for (int i = 0; i < HDT_GOLDEN_STEPS && status == HD_OK; i++) {
        hd_step_result result;
        status = hd_trainer_step(trainer, 1e-3, feed, g, &result);
        out->loss[i] = result.loss;
        out->norm[i] = result.grad_norm;
    }
    return status;
}

hd_status hdt_golden_train(hd_comm *comm, const char *family, const hdt_golden_layout *layout,
                           hdt_golden_run *out)
{
    *out = (hdt_golden_run){0};
    golden g = open_golden(family);
    read_reference(&g, out);
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_trainer *trainer = NULL;
    hd_status status = hdt_open_place(comm, &layout->mesh, &mesh, &context);
    const int accumulate = layout->accumulate ? layout->accumulate : 1;
    g.rows = g.sequences / (accumulate * hd_mesh_size(mesh, HD_AXIS_DATA));
    if (status == HD_OK)
        status = hd_trainer_create(&(hd_trainer_options){.build = hd_model_build,
                                                         .user = g.model,
                                                         .layers = hd_model_layers(g.model),
                                                         .mesh = mesh,
                                                         .backend = hd_context_backend(context),
                                                         .sequences = g.rows,
                                                         .tokens = g.tokens,
                                                         .accumulate = accumulate,
                                                         .chunks = layout->chunks,
                                                         .exact = layout->exact,
                                                         .shard_state = layout->shard_state,
                                                         .recompute = layout->recompute,
                                                         .bucket_elements = 20000,
                                                         .adamw = {.beta1 = 0.9F,
                                                                   .beta2 = 0.95F,
                                                                   .epsilon = 1e-8F,
                                                                   .weight_decay = 0.1F,
                                                                   .decay_all = true},
                                                         .clip_norm = 1},
                                   &trainer);
    if (status == HD_OK) status = run(trainer, context, &g, out);
    hd_trainer_destroy(trainer);
    hdt_close_place(mesh, context);
    close_golden(&g);
    return status;
}

void hdt_golden_compare(const hdt_golden_run *run, const char *what)
{
    for (int i = 0; i < HDT_GOLDEN_STEPS; i++) {
        /* Written so that NaN fails. */
        ck_assert_msg(fabs(run->loss[i] - run->wanted_loss[i]) <= run->loss_tolerance,
                      "%s: loss of step %d is %.9g, want %.9g within %.2g", what, i, run->loss[i],
                      run->wanted_loss[i], run->loss_tolerance);
        ck_assert_msg(fabs(run->norm[i] - run->wanted_norm[i]) <= run->norm_tolerance,
                      "%s: gradient norm of step %d is %.9g, want %.9g within %.2g", what, i,
                      run->norm[i], run->wanted_norm[i], run->norm_tolerance);
    }
}
