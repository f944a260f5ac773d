/* Rows travel on the tensor axis under products: on the plans of ranks that share layers, without any of them
 * running. */
#include "ops/tensor_axis.h"
#include "ops/tensor_pieces.h"
#include "program/plan.h"
#include "tests/support/hdt.h"

#include <heddle/model.h>
#include <string.h>
#include <stdio.h>

static const char *const hunyuan =
    "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
    "\"num_attention_heads\": 6, \"attention_head_dim\": 8, \"num_layers\": 1, "
    "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
    "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}";
static const char *const gpt2 =
    "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":36,"
    "\"n_layer\":2,\"n_head\":6}";

/* A program of the last of some ranks, planned. */
typedef struct planned {
    hd_model *model;
    hd_mesh *mesh;
    hd_program *program;
    hd_plan *plan;
} planned;

/* Of a device on which what travels takes as long as the products beside it. */
static const hd_rates rates = {.compute = 1e9, .memory = 1e12, .peer = 24e6};

static planned make(const char *json, bool training, int ranks, int groups, int slices)
{
    planned it;
    hdt_assert_ok(hd_model_create_json(json, &it.model));
    hdt_assert_ok(
        hd_mesh_create_fake(ranks - 1, ranks, &(hd_mesh_options){.tensor = ranks}, &it.mesh));
    hdt_assert_ok(hd_program_create(&(hd_program_options){.name = "part",
                                                          .mesh = it.mesh,
                                                          .training = training,
                                                          .slices = slices,
                                                          .tensor_groups = groups,
                                                          .rates = &rates},
                                    &it.program));
    const bool is_video = json == hunyuan;
    const hd_stage stage = {.purpose = training   ? HD_PURPOSE_TRAIN
                                       : is_video ? HD_PURPOSE_DENOISE
                                                  : HD_PURPOSE_EVALUATE,
                            .layers = hd_model_layers(it.model),
                            .first = true,
                            .last = true,
                            .sequences = 1,
                            .tokens = is_video ? 0 : 13,
                            .video = {.frames = is_video ? 13 : 0,
                                      .height = is_video ? 2 : 0,
                                      .width = is_video ? 2 : 0,
                                      .text = is_video ? 4 : 0}};
    const hd_tensor out = hd_model_build(it.model, it.program, &stage, (hd_tensor){0});
    if (training) hd_program_backward(it.program, out, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(it.program));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){.rates = rates}, &it.plan));
    hdt_assert_ok(hd_plan_add(it.plan, it.program, NULL));
    hdt_assert_ok(hd_plan_finish(it.plan)); /* the verifier has proved its order */
    return it;
}

static void destroy(planned *it)
{
    hd_plan_destroy(it->plan);
    hd_program_destroy(it->program);
    hd_mesh_destroy(it->mesh);
    hd_model_destroy(it->model);
}

START_TEST(show)
{
    for (int training = 0; training < 2; training++)
        for (int groups = 1; groups <= 3; groups++)
            for (int m = 0; m < 2; m++) {
            planned it = make(m ? gpt2 : hunyuan, training, 2, groups, 1);
            double s;
            hdt_assert_ok(hd_plan_seconds(it.plan, it.program, &s));
            printf("model %d training %d groups %d: %g s, %zu bytes, %d ops\n", m, training, groups, s, hd_plan_total_bytes(it.plan), it.program->op_count);
            if (groups != 2) { destroy(&it); continue; }
            const hdi_unit *unit = &it.plan->units[0];
            for (int i = 0; i < it.program->op_count; i++) {
                char label[256];
                const hdi_op *op = it.program->ops[i];
                printf("%3d %d %-50s", i, op->phase, hdi_op_label(it.program, op, label, sizeof label));
                for (int k = 0; k < op->op.inputs; k++) {
                    int w = it.program->tensors[op->op.in[k].id] ? it.program->tensors[op->op.in[k].id]->within.id : 0;
                    printf(" %d", op->op.in[k].id); if (w) printf("(%d)", w); }
                printf(" ->");
                for (int k = 0; k < op->op.outputs; k++) {
                    int w = it.program->tensors[op->op.out[k].id]->within.id;
                    printf(" %d", op->op.out[k].id); if (w) printf("(%d)", w); }
                printf(" waits");
                for (int w = unit->wait_begin[i]; w < unit->wait_begin[i + 1]; w++) printf(" %d", unit->waits[w]);
                printf("\n");
            }
            destroy(&it);
        }
}
END_TEST

int main(void)
{
    TCase *tests = tcase_create("tensor overlap");
    tcase_add_test(tests, show);
    Suite *suite = suite_create("tensor overlap");
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
