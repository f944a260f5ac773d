/* ranks: 2 4 */
/* Videos of layers that are split over ranks, whose weights each rank reads its part of, are those of one
 * rank. */
#include "tests/support/hdt_device.h"

#include "tests/support/hdt_mmdit.h"

#include <heddle/sampler.h>
#include <math.h>

enum { MOST_VALUES = 4096 };

/* A video of golden weights, as the rank that hears of its steps has it. */
typedef struct sampling {
    hdt_mmdit file;
    float text[512], seen[MOST_VALUES];
    size_t bytes, weights; /* of the latents; of the weights region of this rank */
} sampling;

static hd_status keep_last(void *user, const hd_sampler_event *event)
{
    sampling *it = user;
    if (event->is_last_stage && event->step == event->steps)
        memcpy(it->seen, event->latents, it->bytes);
    return HD_OK;
}

static hd_status sample(sampling *it, hd_comm *comm, const hd_mesh_options *layout,
                        hd_residency residency, int slices, int groups)
{
    hd_mesh *mesh = NULL;
    hd_context *context = NULL;
    hd_sampler *sampler = NULL;
    const int64_t *dims = it->file.dims;
    const hd_sampler_text text = {.text = it->text, .tokens = it->file.valid};
    const hd_sampler_video video = {.seed = 2};
    const hd_sampler_run_options options = {.embedded = 6, .event = keep_last, .user = it};
    hd_status status = hd_mesh_create(comm, layout, &mesh);
    if (status == HD_OK) status = hdt_open_context(comm, mesh, &context);
    if (status == HD_OK)
        status = hd_sampler_create(
            &(hd_sampler_options){
                .build = hd_model_build,
                .user = it->file.model,
                .layers = hd_model_layers(it->file.model),
                .model = hd_model_video(it->file.model),
                .mesh = mesh,
                .backend = hd_context_backend(context),
                .shape = {.frames = dims[1], .height = dims[2], .width = dims[3], .steps = 3},
                .texts = &it->file.valid,
                .text_lengths = 1,
                .residency = residency,
                .slices = slices,
                .tensor_groups = groups},
            &sampler);
    if (status == HD_OK) {
        it->weights =
            hd_plan_region_bytes(hd_sampler_plan(sampler, HD_PURPOSE_DENOISE), HD_REGION_WEIGHTS);
        status = hd_sampler_start(
            sampler, context, &(hd_sampler_weights){.path = hdi_weights_path(it->file.weights)});
    }
    if (status == HD_OK) status = hd_sampler_run(sampler, &text, 1, &video, 1, &options, NULL);
    hd_sampler_destroy(sampler);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    return status;
}

START_TEST(videos_are_those_of_one_rank)
{
    static sampling it;
    static float alone[MOST_VALUES];
    const int ranks = hd_comm_size(hdt_world), which = _i;
    if (ranks != 2 && ranks != 4) return; /* the golden models have two heads, or four */
    it = (sampling){.file = hdt_mmdit_open(which, NULL)};
    const int64_t *dims = it.file.dims, elements = dims[0] * dims[1] * dims[2] * dims[3];
    ck_assert_int_le(elements, MOST_VALUES);
    it.bytes = (size_t)elements * sizeof *it.seen;
    hdt_fill(it.text, it.file.valid * hd_model_video(it.file.model)->text_columns, 4);
    hd_comm *self = NULL;
    hdt_assert_ok(hd_comm_split(hdt_world, hd_comm_rank(hdt_world), 0, &self));
    hd_status status = sample(&it, self, &(hd_mesh_options){0}, HD_RESIDENCY_RESIDENT, 1, 0);
    hd_comm_destroy(self);
    hdt_assert_ok(status);
    memcpy(alone, it.seen, it.bytes);
    const size_t weights = it.weights;
    const hd_mesh_options layouts[] = {{.tensor = 2, .pipeline = ranks / 2}, {.tensor = ranks}};
    const bool has_two_heads = which != HDT_OPEN_SORA;
    /* Resident; streamed from one copy on the host; in slices; each at once and in pieces of rows. */
    for (int way = 0; way < 12; way++) {
        const int l = way % 2, how = way / 2 % 3, groups = way < 6 ? 1 : 2 + how;
        const hd_residency residency = how == 1 ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT;
        if (layouts[l].tensor > 2 && has_two_heads) continue;
        const bool hears = hd_comm_rank(hdt_world) == ranks - layouts[l].tensor;
        double error = 0;
        memset(it.seen, 0, it.bytes);
        hdt_assert_ok(sample(&it, hdt_world, &layouts[l], residency, how == 2 ? 2 : 1, groups));
        for (int64_t i = 0; hears && i < elements; i++)
            error = fmax(error, fabs((double)it.seen[i] - (double)alone[i]));
        ck_assert_msg(error <= it.file.tolerance, "tensor %d: latents are off by %g, want %g",
                      layouts[l].tensor, error, it.file.tolerance);
        ck_assert_uint_lt(it.weights, weights * 3 / 4);
    }
    hdt_mmdit_close(&it.file);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("tensor sample");
    tcase_add_loop_test(tests, videos_are_those_of_one_rank, 0, HDT_MMDITS);
    return hdt_main_ranks(argc, argv, "tensor sample", tests);
}
