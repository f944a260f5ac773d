/* Programs of a rank, and posts and waits of their plans. */
#include "tests/support/hdt_overlap.h"

const char hdt_overlap_gpt2[] =
    "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":36,"
    "\"n_layer\":2,\"n_head\":6}";

static hd_stage whole_stage(const hd_model *model, bool is_video, bool training,
                            const hd_stage *sizes)
{
    hd_stage stage = {.purpose = training   ? HD_PURPOSE_TRAIN
                                 : is_video ? HD_PURPOSE_DENOISE
                                            : HD_PURPOSE_EVALUATE,
                      .layers = hd_model_layers(model),
                      .first = true,
                      .last = true,
                      .sequences = sizes->sequences};
    if (is_video)
        stage.video = sizes->video;
    else
        stage.tokens = sizes->tokens;
    return stage;
}

hdt_overlap hdt_overlap_make(const char *json, hd_mesh *mesh, hd_program_options options,
                             const hd_stage *sizes)
{
    hdt_overlap it = {.mesh = mesh};
    hd_plan_options plan = {0};
    if (options.rates) plan.rates = *options.rates;
    options.mesh = mesh;
    hdt_assert_ok(hd_model_create_json(json, &it.model));
    hdt_assert_ok(hd_program_create(&options, &it.program));
    const hd_stage stage =
        whole_stage(it.model, json == hdt_split_hunyuan, options.training, sizes);
    const hd_tensor out = hd_model_build(it.model, it.program, &stage, (hd_tensor){0});
    if (options.training) hd_program_backward(it.program, out, (hd_tensor){0});
    hdt_assert_ok(hd_program_finish(it.program));
    hdt_assert_ok(hd_plan_create(&plan, &it.plan));
    hdt_assert_ok(hd_plan_add(it.plan, it.program, NULL));
    hdt_assert_ok(hd_plan_finish(it.plan)); /* the verifier has proved its order */
    return it;
}

void hdt_overlap_destroy(hdt_overlap *it)
{
    hd_plan_destroy(it->plan);
    hd_program_destroy(it->program);
    hd_mesh_destroy(it->mesh);
    hd_model_destroy(it->model);
}

static bool waits_for(const hdi_unit *unit, int op, int posted)
{
    for (int w = unit->wait_begin[op]; w < unit->wait_begin[op + 1]; w++)
        if (unit->waits[w] == posted) return true;
    return false;
}

int hdt_overlap_count(const hdt_overlap *it, int posted, uint32_t flags)
{
    const hdi_unit *unit = &it->plan->units[0];
    int count = 0;
    for (int i = posted + 1; i < it->program->op_count && !waits_for(unit, i, posted); i++) {
        const hdi_op *op = it->program->ops[i];
        hd_cost cost;
        hdi_op_cost(op, &cost);
        count += cost.flops > 0 && !(op->op.kind->flags & HD_OP_COMMUNICATES) &&
                 (op->op.kind->flags & flags) == flags;
    }
    return count;
}
