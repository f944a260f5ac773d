/* Training steps on ranks that split what one rank does. */
#include "tests/support/hdt_split.h"

#include "core/error.h"
#include "program/layout.h"
#include "program/plan.h"
#include "program/shard.h"
#include "tests/support/hdt_device.h"

#include <heddle/model.h>
#include <heddle/session.h>
#include <math.h>
#include <stdio.h>

static uint64_t number_of(const char *name)
{
    uint64_t number = 5;
    for (; *name; name++)
        number = number * 31 + (uint64_t)*name;
    return number % 100003;
}

const char hdt_split_gpt2[] =
    "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":30,"
    "\"n_layer\":2,\"n_head\":5}";
const char hdt_split_hunyuan[] =
    "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
    "\"num_attention_heads\": 6, \"attention_head_dim\": 8, \"num_layers\": 1, "
    "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
    "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}";
const char hdt_split_open_sora[] =
    "{\"model_type\": \"open_sora_2\", \"in_channels\": 8, \"vec_in_dim\": 5, "
    "\"context_in_dim\": 6, \"hidden_size\": 40, \"mlp_ratio\": 2.0, "
    "\"num_heads\": 5, \"depth\": 1, \"depth_single_blocks\": 1, "
    "\"axes_dim\": [4, 2, 2], \"cond_embed\": true, \"fused_qkv\": false}";

int hdt_split_sequences = HDT_SPLIT_SEQUENCES;

hd_status hdt_split_feed(void *user, const char *name, int64_t batch, void *out, size_t bytes)
{
    const hdt_split *one = user;
    int32_t *ids = out;
    float *values = out;
    const bool is_ids = strcmp(name, "tokens") == 0 || strcmp(name, "targets") == 0;
    hdt_fill(values, (int64_t)(bytes / sizeof *values), number_of(name) + (uint64_t)batch);
    if (strcmp(name, "text_counts") == 0)
        for (int i = 0; i < hdt_split_sequences; i++)
            ids[i] = (int32_t)(one->text - i * (one->text / 2));
    if (strcmp(name, "text_offsets") == 0)
        for (int i = 0; i <= hdt_split_sequences; i++)
            ids[i] = (int32_t)(i * one->text - (i == hdt_split_sequences));
    const bool is_entry = strcmp(name, "frame_entries") == 0;
    const bool is_place = strcmp(name, "text_places") == 0;
    for (size_t i = 0; (is_entry || is_place) && i < bytes / sizeof *ids; i++)
        ids[i] = is_place
                     ? (int32_t)(i % (size_t)one->text)
                     : (int32_t)(i / (size_t)one->frames) + (int32_t)(i % 2) * hdt_split_sequences;
    for (size_t i = 0; is_ids && i < bytes / sizeof *ids; i++)
        ids[i] = i % 7 == 6 && *name == 't' && name[1] == 'a' ? -1 : (int32_t)(15 * values[i]) + 15;
    const bool is_positive = strcmp(name, "time") == 0 || strcmp(name, "loss_weight") == 0;
    for (size_t i = 0; is_positive && i < bytes / sizeof *values; i++)
        values[i] = 0.5F + 0.4F * values[i];
    return HD_OK;
}

/* Other values than the first ones, which leave blocks out of what MMDiTs compute. */
hd_status hdt_split_set_weights(hd_trainer *trainer)
{
    static float whole[HDT_SPLIT_VALUES], own[HDT_SPLIT_VALUES];
    const hdi_layout *layout = trainer->plan->layout;
    for (int e = 0; e < layout->entry_count; e++) {
        const hdi_entry *entry = &layout->entries[e];
        hdt_fill(whole, hdi_shard_whole(entry->options), number_of(entry->name));
        for (int64_t i = 0, at; i < entry->elements; i++) {
            hdi_shard_run(entry->options, i, &at);
            own[i] = 0.3F * whole[at];
        }
        HD_RETURN_IF_ERROR(hdi_trainer_write(trainer, entry, 0, entry->elements, own));
    }
    return HD_OK;
}

static hd_status read_program(hd_trainer *trainer, const hd_program *program, int64_t *end,
                              hdt_split_gradients *out)
{
    static float own[HDT_SPLIT_VALUES];
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        if (!use->gradient.id) continue;
        const int64_t elements = hd_tensor_get(program, use->tensor)->elements;
        const int p = out->parameters++;
        ck_assert_int_lt(p, HDT_SPLIT_PARAMETERS);
        out->firsts[p] = *end;
        out->sizes[p] = hdi_shard_whole(&use->options);
        snprintf(out->names[p], sizeof out->names[p], "%s", use->name);
        float *whole = out->values + *end;
        *end += out->sizes[p];
        ck_assert_int_le(*end, HDT_SPLIT_VALUES);
        for (int64_t i = 0; i < out->sizes[p]; i++)
            whole[i] = NAN;
        HD_RETURN_IF_ERROR(hd_session_read(trainer->session, program, use->gradient, 0, own));
        for (int64_t i = 0, at; i < elements; i++) {
            hdi_shard_run(&use->options, i, &at);
            whole[at] = own[i];
        }
    }
    return HD_OK;
}

hd_status hdt_split_read_gradients(hd_trainer *trainer, hdt_split_gradients *out)
{
    int64_t end = 0;
    out->parameters = 0;
    for (int c = 0; c < trainer->chunks; c++)
        HD_RETURN_IF_ERROR(read_program(trainer, trainer->shapes[0].train[c].program, &end, out));
    return HD_OK;
}

hd_trainer_shape hdt_split_shape(const hdt_split *one, int accumulate)
{
    const int64_t least = one->frames ? 2 : 0;
    return (hd_trainer_shape){.accumulate = accumulate,
                              .sequences = hdt_split_sequences,
                              .tokens = one->tokens,
                              .video = {.frames = one->frames,
                                        .height = one->height ? one->height : least,
                                        .width = one->width ? one->width : least,
                                        .text = one->text,
                                        .text_counts = one->frames > 0,
                                        .masked_frames = one->masked}};
}

static hd_status run(const hdt_split *one, hd_trainer *trainer, hd_context *context, void *result)
{
    hdt_split_outcome *out = result;
    hd_step_result step = {0};
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    HD_RETURN_IF_ERROR(hdt_split_set_weights(trainer));
    HD_RETURN_IF_ERROR(hd_trainer_validate(trainer, hdt_split_feed, (void *)(uintptr_t)one, &step));
    out->validation = step.loss;
    HD_RETURN_IF_ERROR(
        hd_trainer_step(trainer, 1e-3, hdt_split_feed, (void *)(uintptr_t)one, &step));
    out->loss = step.loss;
    out->norm = step.grad_norm;
    if (!trainer->options.shard_state)
        HD_RETURN_IF_ERROR(hdt_split_read_gradients(trainer, &out->gradients));
    return hd_trainer_weights_hash(trainer, &out->weights);
}

hd_status hdt_split_with_trainer(hd_comm *comm, const hdt_split *one, const hd_mesh_options *layout,
                                 hd_trainer_options options, hdt_split_run each, void *out)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_model *model = NULL;
    hd_trainer *trainer = NULL;
    const hd_trainer_shape shape = hdt_split_shape(one, options.accumulate);
    hd_status status = hd_model_create_json(one->json, &model);
    if (status == HD_OK) status = hdt_open_place(comm, layout, &mesh, &context);
    if (status == HD_OK) {
        options.build = hd_model_build;
        options.user = model;
        options.layers = hd_model_layers(model);
        options.mesh = mesh;
        options.backend = hd_context_backend(context);
        options.shapes = &shape;
        options.shape_count = 1;
        options.validate_batches = options.accumulate ? options.accumulate : 1;
        status = hd_trainer_create(&options, &trainer);
    }
    if (status == HD_OK) status = each(one, trainer, context, out);
    hd_trainer_destroy(trainer);
    hdt_close_place(mesh, context);
    hd_model_destroy(model);
    return status;
}

hd_status hdt_split_train(hd_comm *comm, const hdt_split *one, const hd_mesh_options *layout,
                          hd_trainer_options options, hdt_split_outcome *out)
{
    memset(out, 0, sizeof *out);
    return hdt_split_with_trainer(comm, one, layout, options, run, out);
}

void hdt_split_compare_gradients(const hdt_split *one, const char *what, double bound,
                                 const hdt_split_gradients *seen, const hdt_split_gradients *alone)
{
    for (int u = 0; u < seen->parameters; u++) {
        int v = 0;
        while (v < alone->parameters && strcmp(alone->names[v], seen->names[u]) != 0)
            v++;
        ck_assert_int_lt(v, alone->parameters);
        ck_assert_int_eq(seen->sizes[u], alone->sizes[v]);
        const float *own = seen->values + seen->firsts[u],
                    *whole = alone->values + alone->firsts[v];
        double largest = 0, error = 0;
        for (int64_t i = 0; i < seen->sizes[u]; i++) {
            largest = fmax(largest, fabs((double)whole[i]));
            if (!isnan(own[i])) error = fmax(error, fabs((double)own[i] - (double)whole[i]));
        }
        ck_assert_msg(error <= bound * largest, "%s, %s: gradient of %s is off by %g of %g",
                      one->name, what, seen->names[u], error, largest);
    }
}

void hdt_split_compare(const hdt_split *one, const char *what, const hdt_split_outcome *seen,
                       const hdt_split_outcome *alone)
{
    const int64_t places = one->height ? one->height * one->width / 4 : 1;
    const int64_t rows = HDT_SPLIT_SEQUENCES * (one->tokens + one->frames * places + one->text);
    const double bound = hdt_tolerance(HD_DTYPE_F32, rows * (one->roundings ? one->roundings : 8));
    ck_assert_msg(fabs(seen->loss - alone->loss) <= bound * alone->loss &&
                      fabs(seen->validation - alone->validation) <= bound * alone->loss,
                  "%s, %s: loss %.17g, validation %.17g, one rank has %.17g, %.17g", one->name,
                  what, seen->loss, seen->validation, alone->loss, alone->validation);
    ck_assert_msg(fabs(seen->norm - alone->norm) <= bound * alone->norm,
                  "%s, %s: norm %.17g, one rank has %.17g", one->name, what, seen->norm,
                  alone->norm);
    hdt_split_compare_gradients(one, what, bound, &seen->gradients, &alone->gradients);
}

void hdt_split_train_alone(const hdt_split *one, const hd_trainer_options *options,
                           hdt_split_outcome *out)
{
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    const hd_status status = hdt_split_train(self, one, &(hd_mesh_options){0}, *options, out);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    ck_assert_double_gt(out->norm, 1e-3);
}
