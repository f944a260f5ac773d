/* ranks: 1 2 4, at most 4 */
/* Ranks of one host that stream the same weights: one copy of them in the host's memory, the bits of copies of
 * their own, and those where sharing is refused; failures reach all; nothing is left. */
#include <dirent.h>
#include <heddle/log.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

#include "comm/comm.h"
#include "core/error.h"
#include "io/safetensors.h"
#include "jobs/stages.h"
#include "tests/support/hdt_blocks.h"
#include "tests/support/hdt_node.h"
#include "tests/support/hdt_video.h"

enum { BLOCKS = 6, ROWS = 3, WIDTH = 200, ELEMENTS = WIDTH * WIDTH, VIDEOS = 4 };

static hd_status open_node(const hd_mesh_options *sizes, hdt_node *out)
{
    const hdt_matrices of = {.rows = ROWS, .width = WIDTH, .count = BLOCKS};
    const hd_plan_options options = {.residency = HD_RESIDENCY_HOST, .host_blocks = BLOCKS};
    return hdt_node_open(hdt_matrices_program(&of), &options, sizes, out);
}

/* Mappings of shared weights in this process: how many, their file, and their share of memory. */
typedef struct mappings {
    int count;
    uint64_t file, bytes,
        kilobytes; /* kilobytes: pages are divided by the processes that have them */
} mappings;

static mappings look_for_mappings(void)
{
    mappings out = {0};
    char line[512];
    bool is_ours = false;
    FILE *file = fopen("/proc/self/smaps", "r");
    while (file && fgets(line, sizeof line, file)) {
        uint64_t begin, end, number, value;
        char path[256] = "";
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %" SCNu64 " %255s", &begin, &end,
                   &number, path) >= 3) {
            is_ours = strncmp(path, "/memfd:heddle", 13) == 0;
            out.count += is_ours;
            out.bytes += is_ours ? end - begin : 0;
            out.file = is_ours ? number : out.file;
        } else if (is_ours && sscanf(line, "Pss: %" SCNu64, &value) == 1) {
            out.kilobytes += value;
        }
    }
    if (file) fclose(file);
    return out;
}

static int64_t sum(int64_t value)
{
    hd_request request;
    hdt_assert_ok(hdt_finish(
        hdt_world, hd_comm_all_reduce(hdt_world, &value, 1, HD_DTYPE_I64, HD_REDUCE_SUM, &request),
        &request));
    return value;
}

/* The weights of a session with a copy of its own, and what it computes. */
typedef struct values {
    float weights[BLOCKS * ELEMENTS], out[ROWS * WIDTH];
} values;

static hd_status compute(const hdt_node *it, values *out)
{
    float x[ROWS * WIDTH];
    hdt_fill(x, ROWS * WIDTH, 3);
    for (int b = 0; b < BLOCKS; b++) {
        char name[32];
        snprintf(name, sizeof name, "block.%d.w.weight", b);
        const int entry = hdi_layout_find(it->plan->layout, name);
        memcpy(out->weights + (size_t)b * ELEMENTS, hdi_streaming_weights(it->session, entry),
               ELEMENTS * sizeof(float));
    }
    return hdt_node_run(it, &(hd_session_run_options){0}, x, out->out);
}

static values wanted, seen;

static hd_status compute_alone(hdt_node *it)
{
    HD_RETURN_IF_ERROR(hd_session_create(it->context, it->plan, it->mesh, &it->session));
    hd_status status = hd_session_initialize(it->session, 5);
    if (status == HD_OK) status = compute(it, &wanted);
    hdt_node_stop(it);
    return status;
}

static bool is_listed_in_shm(void)
{
    bool found = false;
    DIR *folder = opendir("/dev/shm");
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        found = found || strstr(entry->d_name, "heddle");
    if (folder) closedir(folder);
    return found;
}

/* Every rank on the data axis; half of them on the pipeline: then there are two copies. */
START_TEST(ranks_of_a_host_hold_one_copy)
{
    const int ranks = hd_comm_size(hdt_world), stages = _i && ranks > 1 ? 2 : 1;
    const int sharing = ranks / stages;
    hdt_node it;
    hdt_assert_ok(open_node(&(hd_mesh_options){.data = sharing, .pipeline = stages}, &it));
    hdt_assert_ok(compute_alone(&it));
    hdt_assert_ok(hdt_node_start(&it, false));
    hd_status status = compute(&it, &seen);
    status = hd_comm_agree(hdt_world, status); /* all have touched all of it */
    const mappings mine = look_for_mappings();
    const bool listed = is_listed_in_shm();
    const int64_t kilobytes = sum((int64_t)mine.kilobytes), files = sum((int64_t)mine.file);
    const size_t bytes = it.plan->residency.host_bytes;
    hdt_node_close(&it);
    const int left = look_for_mappings().count;
    hdt_assert_ok(status);
    ck_assert(!listed);
    ck_assert_int_eq(left, 0);
    ck_assert_mem_eq(seen.weights, wanted.weights, sizeof seen.weights);
    ck_assert_mem_eq(seen.out, wanted.out, sizeof seen.out);
    ck_assert_int_eq(mine.count, sharing > 1);
    if (sharing == 1) return;
    ck_assert_uint_ge(mine.bytes, bytes);
    ck_assert_uint_lt(mine.bytes, bytes + 4096);
    if (stages == 1) ck_assert_int_eq(files, (int64_t)mine.file * ranks);
    const int64_t copies = (int64_t)(mine.bytes / 1024) * stages;
    ck_assert_int_le(kilobytes, copies);
    ck_assert_int_ge(kilobytes, copies - ranks); /* each rank's is rounded down */
}
END_TEST

/* Lines of the log. */
static char logged[4096];

static void keep_line(void *user, hd_log_level level, const char *line)
{
    (void)user, (void)level;
    const size_t used = strlen(logged);
    snprintf(logged + used, sizeof logged - used, "%s\n", line);
}

/* The system refuses on one rank: the one that would make the memory, or the last that would find it. */
START_TEST(where_sharing_is_refused_ranks_have_their_own)
{
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    const bool is_refused = rank == (_i ? ranks - 1 : 0);
    hdt_node it;
    hdt_assert_ok(open_node(&(hd_mesh_options){.data = ranks}, &it));
    hdt_assert_ok(compute_alone(&it));
    struct rlimit before, tiny;
    getrlimit(RLIMIT_FSIZE, &before);
    tiny = before;
    tiny.rlim_cur = 8192;
    logged[0] = '\0';
    hd_log_set_sink(keep_line, NULL, HD_LOG_INFO);
    signal(SIGXFSZ, SIG_IGN); /* a device's driver may write files of its own */
    if (is_refused) setrlimit(RLIMIT_FSIZE, &tiny);
    hd_status status = hdt_node_start(&it, false);
    if (is_refused) setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    hd_log_set_sink(NULL, NULL, HD_LOG_NONE);
    if (status == HD_OK) status = compute(&it, &seen);
    status = hd_comm_agree(hdt_world, status);
    const int mapped = look_for_mappings().count;
    const size_t bytes = it.plan->residency.host_bytes;
    hdt_node_close(&it);
    hdt_assert_ok(status);
    ck_assert_int_eq(mapped, 0);
    ck_assert_mem_eq(seen.weights, wanted.weights, sizeof seen.weights);
    ck_assert_mem_eq(seen.out, wanted.out, sizeof seen.out);
    char text[256];
    snprintf(text, sizeof text, "limited to 8192 bytes (ulimit -f), want %zu", bytes);
    if (is_refused && ranks > 1) ck_assert_msg(strstr(logged, text) != NULL, "log: %s", logged);
    snprintf(text, sizeof text, "0 bytes shared (copies: 0, ranks: 0), %zu bytes private",
             bytes * (size_t)ranks);
    if (rank == 0) ck_assert_msg(strstr(logged, text) != NULL, "log: %s", logged);
}
END_TEST

static void write_file(const char *path, int blocks)
{
    static float data[ELEMENTS];
    hdi_safetensors_writer *writer;
    hdt_assert_ok(hdi_safetensors_writer_create(&writer));
    for (int pass = 0; pass < 2; pass++) {
        for (int b = 0; b < blocks; b++) {
            char name[32];
            snprintf(name, sizeof name, "block.%d.w.weight", b);
            hdt_fill(data, ELEMENTS, (uint64_t)b);
            if (pass == 0)
                hdt_assert_ok(hdi_safetensors_writer_tensor(writer, name, HD_DTYPE_F32, 2,
                                                            (int64_t[]){WIDTH, WIDTH}));
            else
                hdt_assert_ok(hdi_safetensors_writer_write(writer, data, sizeof data));
        }
        if (pass) continue;
        hdt_assert_ok(hdi_safetensors_writer_prepare(writer));
        hdt_assert_ok(hdi_safetensors_writer_begin(writer, path));
    }
    hdt_assert_ok(hdi_safetensors_writer_end(writer));
    hdi_safetensors_writer_destroy(writer);
}

/* The last rank's file lacks the last block's weights, which it is to bring. */
START_TEST(a_rank_that_fails_while_it_fills_fails_on_all)
{
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    char whole[512], damaged[512], text[256];
    const char *folder = hdt_shared_temp_dir();
    snprintf(whole, sizeof whole, "%s/whole.safetensors", folder);
    snprintf(damaged, sizeof damaged, "%s/damaged.safetensors", folder);
    if (rank == 0) {
        write_file(whole, BLOCKS);
        write_file(damaged, BLOCKS - 1);
    }
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    hdt_node it;
    hdt_assert_ok(open_node(&(hd_mesh_options){.data = ranks}, &it));
    hdt_assert_ok(hdt_node_start(&it, false));
    const hd_status failed = hdi_stage_load(it.session, it.plan->layout, hdt_world,
                                            rank == ranks - 1 ? damaged : whole, "weights");
    snprintf(text, sizeof text, "%s", hd_last_error());
    hdt_node_stop(&it);
    const int left = look_for_mappings().count;
    hd_status status = hdt_node_start(&it, false);
    if (status == HD_OK)
        status = hdi_stage_load(it.session, it.plan->layout, hdt_world, whole, "weights");
    if (status == HD_OK) status = compute(&it, &seen);
    status = hd_comm_agree(hdt_world, status);
    hdt_node_close(&it);
    ck_assert_int_eq(failed, rank == ranks - 1 ? HD_ERROR_FORMAT : HD_ERROR_COMM);
    ck_assert_msg(strstr(text, "block.5.w") != NULL, "text is '%s'", text);
    ck_assert_int_eq(left, 0);
    hdt_assert_ok(status);
    for (int b = 0; b < BLOCKS; b++) {
        hdt_fill(wanted.weights, ELEMENTS, (uint64_t)b);
        ck_assert_mem_eq(seen.weights + (size_t)b * ELEMENTS, wanted.weights,
                         ELEMENTS * sizeof(float));
    }
}
END_TEST

/* What a rank saw when its videos went a step further. */
typedef struct watched {
    float *out;
    mappings mapped;
} watched;

static hd_status watch(void *user, const hd_sampler_event *event)
{
    watched *it = user;
    it->mapped = look_for_mappings();
    if (event->is_last_stage && event->step == event->steps)
        memcpy(it->out + (int64_t)event->video * HDT_VIDEO_ELEMENTS, event->latents,
               HDT_VIDEO_ELEMENTS * sizeof(float));
    return HD_OK;
}

/* All ranks on the data axis, or two stages. */
START_TEST(a_sampler_shares_and_gives_the_same_videos)
{
    const int ranks = hd_comm_size(hdt_world), stages = _i && ranks > 1 ? 2 : 1;
    static float resident[VIDEOS * HDT_VIDEO_ELEMENTS], got[VIDEOS * HDT_VIDEO_ELEMENTS];
    hd_sampler_video videos[VIDEOS];
    for (int v = 0; v < VIDEOS; v++)
        videos[v] = (hd_sampler_video){.text = {v % 2, 3, 2}, .seed = 5, .number = (uint64_t)v};
    watched it = {.out = got};
    hdt_sampling with = {.run = {.shift = 3, .branches = 2, .guidance = 4},
                         .videos = videos,
                         .count = VIDEOS,
                         .dtype = HD_DTYPE_BF16,
                         .mesh = {.data = ranks / stages, .pipeline = stages}};
    hdt_assert_ok(hdt_sample(hdt_world, &with, resident, NULL));
    with.residency = HD_RESIDENCY_HOST;
    with.run.event = watch;
    with.run.user = &it;
    hdt_assert_ok(hdt_sample(hdt_world, &with, got, NULL));
    ck_assert_mem_eq(got, resident, sizeof got);
    ck_assert_int_eq(it.mapped.count, ranks / stages > 1);
    ck_assert_int_eq(look_for_mappings().count, 0);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *copies = tcase_create("copies");
    tcase_add_loop_test(copies, ranks_of_a_host_hold_one_copy, 0, 2);
    tcase_add_loop_test(copies, where_sharing_is_refused_ranks_have_their_own, 0, 2);
    tcase_add_test(copies, a_rank_that_fails_while_it_fills_fails_on_all);
    TCase *videos = tcase_create("videos");
    tcase_add_loop_test(videos, a_sampler_shares_and_gives_the_same_videos, 0, 2);
    return hdt_main_ranks(argc, argv, "node_copy", copies, videos);
}
