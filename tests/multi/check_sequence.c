/* ranks: 2 3 4 5, at most 5 */
/* Sequences split over ranks by unequal counts give what one rank gives. Attention of each head stays
 * whole, so forward bits are equal; gradients are sums over parts of the rows, and round otherwise. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "jobs/train/trainer.h"
#include "program/plan.h"

#include <heddle/diffusion.h>
#include <heddle/model.h>
#include <heddle/nn.h>
#include <heddle/session.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SEQUENCES = 2, MOST_VALUES = 1 << 18 };

/* A model and what it trains on. */
typedef struct setting {
    const char *name, *json;
    int64_t tokens; /* of a sequence; 0: a video of `frames` patches */
    int64_t frames, text;
    int heads;             /* of keys and values: there cannot be more ranks */
    int64_t height, width; /* of the video; zero means 2 */
    bool masked;
} setting;

static const setting settings[] = {
    {"gpt2",
     "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":30,"
     "\"n_layer\":2,\"n_head\":10}",
     11, 0, 0, 10, 0, 0, false},
    {"llama",
     "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":16,"
     "\"hidden_size\":24,\"intermediate_size\":40,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":6,\"num_key_value_heads\":3,\"rms_norm_eps\":1e-5}",
     7, 0, 0, 3, 0, 0, false},
    {"hunyuan",
     "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
     "\"num_attention_heads\": 6, \"attention_head_dim\": 8, \"num_layers\": 1, "
     "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
     "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}",
     0, 7, 4, 6, 0, 0, false},
    {"open sora",
     "{\"model_type\": \"open_sora_2\", \"in_channels\": 8, \"vec_in_dim\": 5, "
     "\"context_in_dim\": 6, \"hidden_size\": 40, \"mlp_ratio\": 2.0, "
     "\"num_heads\": 5, \"depth\": 1, \"depth_single_blocks\": 1, "
     "\"axes_dim\": [4, 2, 2], \"cond_embed\": true, \"fused_qkv\": false}",
     0, 13, 3, 5, 0, 0, true},
    {"open sora 1.2, given frames",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 40, \"depth\": 1, "
     "\"num_heads\": 10, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"qk_norm\": true}",
     0, 3, 4, 10, 6, 10, true},
    {"open sora 1.3, given frames",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 60, \"depth\": 1, "
     "\"num_heads\": 10, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"qk_norm\": true, \"kernel_size\": [2, 3, -1], \"use_spatial_rope\": true}",
     0, 3, 4, 10, 6, 10, true},
    {"open sora 1.3",
     "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 60, \"depth\": 1, "
     "\"num_heads\": 5, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
     "\"kernel_size\": [2, 4, -1]}",
     0, 2, 4, 5, 6, 10, false},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

/* What one step is worth. */
typedef struct outcome {
    double loss, validation, norm;
    float gradients[MOST_VALUES]; /* of all parameters, one after another */
    int64_t sizes[128];
    int parameters;
    uint64_t weights; /* after the update */
} outcome;

static uint64_t number_of(const char *name)
{
    uint64_t number = 5;
    for (; *name; name++)
        number = number * 31 + (uint64_t)*name;
    return number % 100003;
}

static hd_status feed(void *user, const char *name, int64_t batch, void *out, size_t bytes)
{
    const setting *one = user;
    int32_t *ids = out;
    float *values = out;
    const bool is_ids = strcmp(name, "tokens") == 0 || strcmp(name, "targets") == 0;
    hdt_fill(values, (int64_t)(bytes / sizeof *values), number_of(name) + (uint64_t)batch);
    if (strcmp(name, "text_counts") == 0)
        for (int i = 0; i < SEQUENCES; i++)
            ids[i] = (int32_t)(one->text - i);
    if (strcmp(name, "text_offsets") == 0)
        for (int i = 0; i <= SEQUENCES; i++)
            ids[i] = (int32_t)(i * one->text - (i == SEQUENCES));
    const bool is_entry = strcmp(name, "frame_entries") == 0;
    const bool is_place = strcmp(name, "text_places") == 0;
    for (size_t i = 0; (is_entry || is_place) && i < bytes / sizeof *ids; i++)
        ids[i] = is_place ? (int32_t)(i % (size_t)one->text)
                          : (int32_t)(i / (size_t)one->frames + (i % 2) * SEQUENCES);
    for (size_t i = 0; is_ids && i < bytes / sizeof *ids; i++)
        ids[i] = i % 7 == 6 && *name == 't' && name[1] == 'a' ? -1 : (int32_t)(15 * values[i]) + 15;
    const bool is_positive = strcmp(name, "time") == 0 || strcmp(name, "loss_weight") == 0;
    for (size_t i = 0; is_positive && i < bytes / sizeof *values; i++)
        values[i] = 0.5F + 0.4F * values[i];
    return HD_OK;
}

/* Other values than the first ones, which leave blocks out of what MMDiTs compute. */
static hd_status set_weights(hd_trainer *trainer, const hd_program *program)
{
    static float values[MOST_VALUES];
    for (int u = 0; u < program->use_count; u++) {
        const hd_tensor_info *info = hd_tensor_get(program, program->uses[u].tensor);
        hdt_fill(values, info->elements, number_of(program->uses[u].name));
        for (int64_t i = 0; i < info->elements; i++)
            values[i] *= 0.3F;
        const hd_status status =
            hd_session_write(trainer->session, program, program->uses[u].tensor, 0, values);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

static hd_status read_gradients(hd_trainer *trainer, const hd_program *program, outcome *out)
{
    int64_t at = 0;
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        if (!use->gradient.id) continue;
        out->sizes[u] = hd_tensor_get(program, use->tensor)->elements;
        ck_assert_int_le(at + out->sizes[u], MOST_VALUES);
        const hd_status status =
            hd_session_read(trainer->session, program, use->gradient, 0, out->gradients + at);
        if (status != HD_OK) return status;
        at += out->sizes[u];
    }
    out->parameters = program->use_count;
    return HD_OK;
}

static hd_trainer_shape shape_of(const setting *one, int accumulate)
{
    const int64_t least = one->frames ? 2 : 0;
    return (hd_trainer_shape){.accumulate = accumulate,
                              .sequences = SEQUENCES,
                              .tokens = one->tokens,
                              .video = {.frames = one->frames,
                                        .height = one->height ? one->height : least,
                                        .width = one->width ? one->width : least,
                                        .text = one->text,
                                        .text_counts = one->frames > 0,
                                        .masked_frames = one->masked}};
}

static hd_status run(const setting *one, hd_trainer *trainer, hd_context *context, outcome *out)
{
    hd_step_result step = {0};
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    const hd_program *program = trainer->shapes[0].train[0].program;
    HD_RETURN_IF_ERROR(set_weights(trainer, program));
    HD_RETURN_IF_ERROR(hd_trainer_validate(trainer, feed, (void *)(uintptr_t)one, &step));
    out->validation = step.loss;
    HD_RETURN_IF_ERROR(hd_trainer_step(trainer, 1e-3, feed, (void *)(uintptr_t)one, &step));
    out->loss = step.loss;
    out->norm = step.grad_norm;
    if (!trainer->options.shard_state && trainer->pipeline == 1)
        HD_RETURN_IF_ERROR(read_gradients(trainer, program, out));
    return hd_trainer_weights_hash(trainer, &out->weights);
}

static hd_status train(hd_comm *comm, const setting *one, const hd_mesh_options *layout,
                       hd_trainer_options options, outcome *out)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_model *model = NULL;
    hd_trainer *trainer = NULL;
    const hd_trainer_shape shape = shape_of(one, options.accumulate);
    memset(out, 0, sizeof *out);
    hd_status status = hd_model_create_json(one->json, &model);
    if (status == HD_OK) status = hd_mesh_create(comm, layout, &mesh);
    if (status == HD_OK) status = hdt_open_context(comm, mesh, &context);
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
    if (status == HD_OK) status = run(one, trainer, context, out);
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_model_destroy(model);
    return status;
}

/* BLAS may round a product's rows otherwise where there are fewer of them; beyond that forwards are
 * equal. A gradient is a sum over rows and ranks, which rounds once more for each layer that it has
 * come through; it is held against the largest of its parameter. */
static void compare(const setting *one, const char *what, const outcome *seen, const outcome *alone)
{
    const int64_t places = one->height ? one->height * one->width / 4 : 1;
    const int64_t rows = SEQUENCES * (one->tokens + one->frames * places + one->text);
    const double bound = hdt_tolerance(HD_DTYPE_F32, rows * 8);
    ck_assert_msg(fabs(seen->loss - alone->loss) <= bound * alone->loss &&
                      fabs(seen->validation - alone->validation) <= bound * alone->loss,
                  "%s, %s: loss %.17g, validation %.17g, one rank has %.17g, %.17g", one->name,
                  what, seen->loss, seen->validation, alone->loss, alone->validation);
    ck_assert_msg(fabs(seen->norm - alone->norm) <= bound * alone->norm,
                  "%s, %s: norm %.17g, one rank has %.17g", one->name, what, seen->norm,
                  alone->norm);
    int64_t at = 0;
    for (int u = 0; u < seen->parameters; u++) {
        double largest = 0, error = 0;
        for (int64_t i = at; i < at + seen->sizes[u]; i++) {
            largest = fmax(largest, fabs((double)alone->gradients[i]));
            error = fmax(error, fabs((double)seen->gradients[i] - (double)alone->gradients[i]));
        }
        ck_assert_msg(error <= bound * largest, "%s, %s: gradient %d is off by %g of %g", one->name,
                      what, u, error, largest);
        at += seen->sizes[u];
    }
}

static void check_layout(const setting *one, const hd_mesh_options *layout,
                         const hd_trainer_options *options, const outcome *alone, outcome *seen)
{
    char what[96];
    snprintf(what, sizeof what, "data %d x pipeline %d x sequence %d, heads in %d groups",
             layout->data, layout->pipeline, layout->sequence, options->sequence_groups);
    const hd_status status = train(hdt_world, one, layout, *options, seen);
    if (layout->sequence > one->heads) {
        hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "key and value heads");
        return;
    }
    hdt_assert_ok(status);
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen->loss, sizeof seen->loss, "losses"));
    compare(one, what, seen, alone);
}

static void train_alone(const setting *one, const hd_trainer_options *options, outcome *out)
{
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    const hd_status status = train(self, one, &(hd_mesh_options){0}, *options, out);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    ck_assert_double_gt(out->norm, 1e-3);
}

START_TEST(loss_and_gradients_are_those_of_one_rank)
{
    const setting *one = &settings[_i];
    static outcome alone, groups[3];
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options all = {.data = 1, .pipeline = 1, .sequence = ranks};
    hd_trainer_options options = {.bucket_elements = 3000};
    train_alone(one, &options, &alone);
    for (int g = 0; g < 3; g++) {
        options.sequence_groups = g + 1;
        check_layout(one, &all, &options, &alone, &groups[g]);
        ck_assert_msg(
            groups[g].loss == groups[0].loss && groups[g].validation == groups[0].validation,
            "%s: heads in %d groups: loss %.17g, validation %.17g, in one %.17g, %.17g", one->name,
            g + 1, groups[g].loss, groups[g].validation, groups[0].loss, groups[0].validation);
    }
    options.recompute = true;
    options.shard_state = 3;
    check_layout(one, &all, &options, &alone, &groups[0]);
}
END_TEST

START_TEST(sequence_goes_with_data_and_pipeline)
{
    const setting *one = &settings[_i];
    static outcome alone, seen;
    if (hd_comm_size(hdt_world) != 4) return;
    hd_trainer_options options = {.bucket_elements = 3000, .accumulate = 2, .sequence_groups = 2};
    train_alone(one, &options, &alone);
    check_layout(one, &(hd_mesh_options){.data = 1, .pipeline = 2, .sequence = 2}, &options, &alone,
                 &seen);
    options.accumulate = 1;
    check_layout(one, &(hd_mesh_options){.data = 2, .pipeline = 1, .sequence = 2}, &options, &alone,
                 &seen);
}
END_TEST

/* A model that says nothing of sequences. */
static hd_tensor build_unaware(void *user, hd_program *program, const hd_stage *stage, hd_tensor x)
{
    (void)user;
    const int64_t dims[] = {3, 4};
    if (stage->first) x = hd_input(program, "latents", HD_DTYPE_F32, 2, dims);
    if (stage->layers)
        x = hd_linear(program, x, &(hd_linear_options){.name = "layer", .outputs = 4});
    if (!stage->last) return x;
    return hd_squared_error(program, x, hd_input(program, "target", HD_DTYPE_F32, 2, dims),
                            (hd_tensor){0});
}

START_TEST(what_cannot_be_split_is_refused_with_the_reason)
{
    static outcome out;
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options all = {.sequence = ranks};
    const hd_trainer_options none = {0}, exact = {.exact = true};
    setting one = settings[0];
    hdt_assert_status(train(hdt_world, &one, &all, exact, &out), HD_ERROR_UNSUPPORTED,
                      "reduction exact with sequence");
    one.tokens = ranks - 1;
    hdt_assert_status(train(hdt_world, &one, &all, none, &out), HD_ERROR_UNSUPPORTED,
                      "tokens of a sequence");
    hd_mesh *mesh;
    hd_trainer *trainer;
    const hd_trainer_shape shape = {.sequences = 1, .tokens = 3};
    const hd_backend *backend;
    hdt_assert_ok(hd_backend_find("cpu", &backend));
    hdt_assert_ok(hd_mesh_create(hdt_world, &all, &mesh));
    const hd_status status = hd_trainer_create(&(hd_trainer_options){.build = build_unaware,
                                                                     .layers = 1,
                                                                     .mesh = mesh,
                                                                     .backend = backend,
                                                                     .shapes = &shape,
                                                                     .shape_count = 1},
                                               &trainer);
    hd_mesh_destroy(mesh);
    hdt_assert_status(status, HD_ERROR_UNSUPPORTED, "does not split its sequences");
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("sequence");
    tcase_add_loop_test(tests, loss_and_gradients_are_those_of_one_rank, 0, SETTINGS);
    tcase_add_loop_test(tests, sequence_goes_with_data_and_pipeline, 0, SETTINGS);
    tcase_add_test(tests, what_cannot_be_split_is_refused_with_the_reason);
    return hdt_main_ranks(argc, argv, "sequence", tests);
}
