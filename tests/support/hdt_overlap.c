/* Posts and waits of a plan. */
#include "tests/support/hdt_overlap.h"

const char *const hdt_overlap_hunyuan =
    "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
    "\"num_attention_heads\": 6, \"attention_head_dim\": 8, \"num_layers\": 1, "
    "\"num_single_layers\": 2, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
    "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [4, 2, 2]}";
const char *const hdt_overlap_gpt2 =
    "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":16,\"n_embd\":36,"
    "\"n_layer\":2,\"n_head\":6}";

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
