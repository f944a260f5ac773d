/* ranks: 2 4, at most 4 */
/* Weights of which each rank keeps a share, in its device's memory or in what it copies from the host, and which
 * ranks gather block by block: the same bits as with resident weights, whatever each rank has to do. */
#include "core/error.h"
#include "tests/support/hdt_blocks.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_late.h"
#include "tests/support/hdt_node.h"
#include "tests/support/hdt_video.h"

#include <stdlib.h>

static const hd_residency kinds[] = {HD_RESIDENCY_SHARDED, HD_RESIDENCY_HOST_SHARDED};
enum { KINDS = sizeof kinds / sizeof *kinds, BLOCKS = 5, ROWS = 3, WIDTH = 100, VIDEOS = 3 };

/* Matrices that are cut within, and vectors that one rank has; one weight is in no block. On the CPU copies
 * from the host are made at once or, `late`, at the last moment. */
static hd_status open_node(const hd_plan_options *options, bool late, hdt_node *out)
{
    const hdt_matrices of = {
        .rows = ROWS, .width = WIDTH, .count = BLOCKS, .biases = true, .last = true};
    const hd_mesh_options sizes = {.data = hd_comm_size(hdt_world)};
    HD_RETURN_IF_ERROR(hdt_node_open(hdt_matrices_program(&of), options, &sizes, out));
    return hdt_node_start(out, late);
}

typedef struct values {
    float of[ROWS * WIDTH];
} values;

static hd_status run(const hdt_node *it, uint64_t input, const hd_session_run_options *how,
                     values *out)
{
    values x;
    hdt_fill(x.of, ROWS * WIDTH, input);
    return hdt_node_run(it, how, x.of, out->of);
}

/* All runs, of other values on each rank; from number `own` on this rank only lets the others have its
 * share, and still has the result of its last run. Fetches ahead, or nothing behind the last. */
enum { RUNS = 5 };
static hd_status run_all(const hdt_node *it, int own, bool ends, values out[RUNS])
{
    values idle;
    for (int r = 0; r < RUNS; r++) {
        const uint64_t input = (uint64_t)(100 * hd_comm_rank(hdt_world) + r);
        const hd_session_run_options how = {.idle = r >= own, .no_next = ends && r + 1 == RUNS};
        HD_RETURN_IF_ERROR(run(it, input, &how, r < own ? &out[r] : &idle));
    }
    if (own > 0 && own < RUNS) out[own - 1] = idle;
    return hd_session_drain(it->session);
}

/* Other values for matrices, a vector and what is in no block, while nobody runs. */
static hd_status change(const hdt_node *it)
{
    static const char *const names[] = {"block.1.w.weight", "block.2.w.weight", "block.3.w.bias",
                                        "last.weight"};
    enum { NAMES = sizeof names / sizeof *names };
    float weights[WIDTH * WIDTH];
    hd_status status = hd_comm_barrier(hdt_world);
    for (int u = 0; u < it->program->use_count; u++)
        for (int n = 0; n < NAMES && status == HD_OK; n++) {
            const hdi_use *use = &it->program->uses[u];
            if (strcmp(use->name, names[n]) != 0) continue;
            hdt_fill(weights, hd_tensor_get(it->program, use->tensor)->elements, 50 + (uint64_t)n);
            status = hd_session_write(it->session, it->program, use->tensor, 0, weights);
        }
    return hd_comm_agree(hdt_world, status);
}

/* On the staged transport collectives begin on the host's communicator when it comes to them: none may be under
 * way when ranks meet there. */
static bool is_staged(void)
{
    const char *transport = getenv("HEDDLE_TRANSPORT");
    return transport && strcmp(transport, "staged") == 0;
}

static hd_status compute(const hd_plan_options *options, bool late, int own, values first[RUNS],
                         values second[RUNS], hdt_node *it)
{
    HD_RETURN_IF_ERROR(open_node(options, late, it));
    HD_RETURN_IF_ERROR(run_all(it, own, is_staged(), first));
    HD_RETURN_IF_ERROR(change(it));
    return run_all(it, own, true, second);
}

START_TEST(any_rank_may_idle)
{
    static values wanted[2][RUNS], seen[2][RUNS];
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    hdt_node it;
    const hd_status status = compute(&(hd_plan_options){0}, false, RUNS, wanted[0], wanted[1], &it);
    const size_t resident = hd_plan_total_bytes(it.plan);
    hdt_node_close(&it);
    hdt_assert_ok(status);
    ck_assert_mem_ne(wanted[0], wanted[1], sizeof wanted[0]);
    for (int trial = 0; trial < 2 * 3 * BLOCKS; trial++) {
        const int slots = 1 + trial % 3, blocks = 1 + trial / 3 % BLOCKS;
        const int own = (rank + blocks) % ranks ? RUNS : (rank + slots) % RUNS;
        const hd_plan_options options = {.residency = kinds[_i],
                                         .host_blocks = blocks,
                                         .stream_slots = slots,
                                         .shards = ranks,
                                         .shard = rank};
        const bool late = trial >= 3 * BLOCKS, on_host = kinds[_i] == HD_RESIDENCY_HOST_SHARDED;
        const hd_status got = compute(&options, late, own, seen[0], seen[1], &it);
        const size_t bytes = hd_plan_total_bytes(it.plan);
        const size_t high_water = it.session ? hd_session_high_water(it.session) : 0;
        const hdi_residency is = it.plan->residency;
        const int copies_of = it.session ? it.session->streaming.copy.ranks : 0;
        bool same = true;
        for (int half = 0; half < 2; half++)
            same = same && !memcmp(seen[half], wanted[half], (size_t)own * sizeof(values));
        hdt_node_close(&it);
        hdt_assert_ok(hd_comm_agree(hdt_world, got));
        same = hd_comm_agree(hdt_world, same ? HD_OK : HD_ERROR_INTERNAL) == HD_OK;
        ck_assert_msg(same, "%d slots, %d blocks, late %d: other bits", slots, blocks, late);
        ck_assert(is.gathers && is.host_blocks == blocks && (is.host_bytes > 0) == on_host);
        ck_assert_int_eq(copies_of, on_host ? ranks : 0); /* one copy for all ranks of the host */
        ck_assert_uint_lt(is.shard_bytes, is.slot_bytes);
        ck_assert_uint_le(high_water, bytes);
        if (on_host && blocks == BLOCKS && slots < 3) ck_assert_uint_lt(bytes, resident);
        if (late && strcmp(hdt_device(), "cpu") == 0) ck_assert_int_eq(hdt_late_pending(), 0);
    }
}
END_TEST

/* Three videos on two lines or four, which have two, one or none; one of them is taken up in its midst. */
START_TEST(videos_have_the_same_bits)
{
    float resident[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    float begun[HDT_VIDEO_ELEMENTS];
    const int ranks = hd_comm_size(hdt_world);
    hd_sampler_video videos[VIDEOS];
    hdt_fill(begun, HDT_VIDEO_ELEMENTS, 8);
    for (int v = 0; v < VIDEOS; v++) /* texts of both lengths: two programs in turn */
        videos[v] = (hd_sampler_video){.text = {v % 2, 3, 2}, .seed = 5, .number = (uint64_t)v};
    videos[1].step = 2;
    videos[1].latents = begun;
    const hd_mesh_options layouts[] = {
        {.data = ranks}, {.data = ranks / 2, .pipeline = 2}, {.data = ranks, .shard_group = 2}};
    for (int l = 0; l < 3; l++) {
        if (layouts[l].data < 2) continue;
        hdt_sampling with = {.run = {.shift = 3, .branches = 2, .guidance = 4},
                             .videos = videos,
                             .count = VIDEOS,
                             .dtype = _i ? HD_DTYPE_BF16 : HD_DTYPE_F32,
                             .mesh = layouts[l]};
        hdt_assert_ok(hdt_sample(hdt_world, &with, resident, NULL));
        for (int k = 0; k < KINDS; k++) {
            with.residency = kinds[k];
            for (with.host_blocks = 0; with.host_blocks < HDT_VIDEO_LAYERS; with.host_blocks++) {
                hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
                ck_assert_msg(memcmp(got, resident, sizeof got) == 0,
                              "layout %d, kind %d, %d blocks: other bits", l, k, with.host_blocks);
            }
        }
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *sessions = tcase_create("sessions");
    tcase_add_loop_test(sessions, any_rank_may_idle, 0, KINDS);
    TCase *videos = tcase_create("videos");
    tcase_add_loop_test(videos, videos_have_the_same_bits, 0, 2);
    return hdt_main_ranks(argc, argv, "gathered_weights", sessions, videos);
}
