/* ranks: 2 4, at most 4 */
/* Exchanges that go straight to their peers: in real trainings each rank is asked, at every exchange, where
 * it waits for what its peers would write, and by its communicator to tell them so. */
#include <stdio.h>
#include <string.h>

#include "comm/direct.h"
#include "core/error.h"
#include "runtime/session.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_device.h"
#include "tests/support/hdt_split.h"

static const hdt_split model = {
    .name = "gpt2",
    .json = "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":20,\"n_embd\":128,"
            "\"n_layer\":2,\"n_head\":4}",
    .tokens = 17,
    .heads = 4};

/* The transport that moves the bytes, one that asks first, and what was seen of those with a way. */
static const hdi_transport *moves;
static hdi_transport asks;
static const char *arena;
static int opened, closed, direct, wrong;

/* Peers' word for where they would write, against where it is awaited. */
static hd_status compare(hd_comm *comm, const void *recv, const int64_t *counts,
                         const int64_t *offsets, size_t element)
{
    int64_t given[HDI_DIRECT_RANKS], got[HDI_DIRECT_RANKS], ones[HDI_DIRECT_RANKS],
        places[HDI_DIRECT_RANKS];
    for (int r = 0; r < comm->size; r++) {
        given[r] = (int64_t)comm->way->to[r];
        ones[r] = 1;
        places[r] = r;
    }
    direct++;
    hd_request request = {0};
    HD_RETURN_IF_ERROR(
        moves->all_to_all(comm, given, ones, places, got, ones, places, HD_DTYPE_I64, &request));
    HD_RETURN_IF_ERROR(hd_comm_wait(comm, &request));
    for (int r = 0; r < comm->size; r++)
        wrong += counts[r] && (const char *)recv + (size_t)offsets[r] * element != arena + got[r];
    return HD_OK;
}

static hd_status ask_all_to_all(hd_comm *comm, const void *send, const int64_t *send_counts,
                                const int64_t *send_offsets, void *recv, const int64_t *recv_counts,
                                const int64_t *recv_offsets, hd_dtype dtype, hd_request *out)
{
    if (comm->way)
        HD_RETURN_IF_ERROR(compare(comm, recv, recv_counts, recv_offsets, hd_dtype_bytes(dtype)));
    return moves->all_to_all(comm, send, send_counts, send_offsets, recv, recv_counts, recv_offsets,
                             dtype, out);
}

static hd_status ask_all_gather(hd_comm *comm, void *inout, const int64_t *counts,
                                const int64_t *offsets, hd_dtype dtype, hd_request *out)
{
    if (comm->way) HD_RETURN_IF_ERROR(compare(comm, inout, counts, offsets, hd_dtype_bytes(dtype)));
    return moves->all_gather(comm, inout, counts, offsets, dtype, out);
}

static hd_status open_window(hd_comm *comm, void *memory, bool fits, void **window)
{
    (void)fits;
    arena = memory;
    opened++;
    *window = comm;
    return HD_OK;
}

static void close_window(hd_comm *comm, void *window)
{
    closed += window == comm;
}

/* In the order of posting: where a sender would write, where a receiver waits. */
typedef struct messages {
    int64_t count, at[31];
} messages;
enum { CHANNELS = 2, MOST = sizeof(messages) / sizeof(int64_t) };
static messages sent[4][CHANNELS], awaited[4][CHANNELS]; /* by peers */

static void record(messages *it, int64_t at)
{
    if (it->count < MOST - 1) it->at[it->count++] = at;
}

static hd_status note_send(hd_comm *comm, const void *data, size_t bytes, int peer, int channel,
                           hd_request *out)
{
    if (comm->way) record(&sent[peer][channel], (int64_t)comm->way->to[peer]);
    return moves->send(comm, data, bytes, peer, channel, out);
}

static hd_status note_recv(hd_comm *comm, void *data, size_t bytes, int peer, int channel,
                           hd_request *out)
{
    if (comm->way) record(&awaited[peer][channel], (const char *)data - arena);
    return moves->recv(comm, data, bytes, peer, channel, out);
}

/* Until the end the communicator, which `moves`, is asked. */
static void begin_asking(hd_comm *comm)
{
    moves = comm->transport;
    asks = *moves;
    asks.send = note_send;
    asks.recv = note_recv;
    asks.all_to_all = ask_all_to_all;
    asks.all_gather = ask_all_gather;
    asks.open_window = open_window;
    asks.close_window = close_window;
    comm->transport = &asks;
    opened = closed = direct = wrong = 0;
    memset(sent, 0, sizeof sent);
    memset(awaited, 0, sizeof awaited);
}

static void end_asking(hd_comm *comm, hd_session *session)
{
    hdi_session_end_sharing(session);
    comm->transport = moves;
}

typedef struct outcome {
    int found; /* exchanges that go directly */
    bool has_window;
    uint64_t weights;
    size_t high_water;
} outcome;

static const struct {
    const char *name;
    hd_mesh_options two, four; /* layouts */
    hd_axis axis;
    hd_trainer_options options;
} cases[] = {
    {"data", {.data = 2}, {.data = 4}, HD_AXIS_DATA, {.accumulate = 2}},
    {"exact sums", {.data = 2}, {.data = 4}, HD_AXIS_DATA, {.accumulate = 2, .exact = true}},
    {"state in shards",
     {.data = 2},
     {.data = 4},
     HD_AXIS_DATA,
     {.accumulate = 2, .shard_state = 1}},
    {"gradients in shards",
     {.data = 2},
     {.data = 2, .pipeline = 2},
     HD_AXIS_DATA,
     {.accumulate = 2, .shard_state = 2, .bucket_elements = 100000}},
};
static int which;
static bool goes_directly;

/* Some steps, then the weights. */
static hd_status take_steps(const hdt_split *one, hd_trainer *trainer, int steps, outcome *out)
{
    hd_step_result result;
    for (int step = 0; step < steps; step++)
        HD_RETURN_IF_ERROR(
            hd_trainer_step(trainer, 0.1, hdt_split_feed, (void *)(uintptr_t)one, &result));
    return hd_trainer_weights_hash(trainer, &out->weights);
}

static hd_status train(const hdt_split *one, hd_trainer *trainer, hd_context *context, void *out)
{
    outcome *it = out;
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    const hd_mesh *mesh = trainer->options.mesh;
    hd_comm *comm = hd_mesh_device_comm(mesh, cases[which].axis);
    hd_status status = HD_OK;
    begin_asking(comm);
    if (goes_directly)
        status = hdi_session_share_axis(trainer->session, mesh, cases[which].axis, &it->found);
    if (status == HD_OK) status = take_steps(one, trainer, 2, it);
    it->high_water = hd_session_high_water(trainer->session);
    end_asking(comm, trainer->session);
    return status;
}

START_TEST(peers_write_where_a_rank_waits_in_every_micro_batch)
{
    const bool is_two = hd_comm_size(hdt_world) == 2;
    if (strcmp(hdt_device(), "cpu")) return; /* this window is none of a device's */
    outcome directly = {0}, before = {0};
    which = _i;
    for (int i = 0; i < 2; i++) {
        goes_directly = i == 1;
        hdt_assert_ok(
            hdt_split_with_trainer(hdt_world, &model, is_two ? &cases[_i].two : &cases[_i].four,
                                   cases[_i].options, train, goes_directly ? &directly : &before));
    }
    ck_assert_int_gt(directly.found, 0);
    ck_assert_int_eq(opened, 1);
    ck_assert_int_eq(closed, 1);
    ck_assert_int_gt(direct, directly.found); /* again in the second step */
    ck_assert_msg(wrong == 0, "%s: %d of %d exchanges come elsewhere", cases[_i].name, wrong,
                  direct);
    ck_assert_uint_eq(directly.weights, before.weights);
    ck_assert_uint_eq(directly.high_water, before.high_water);
}
END_TEST

static hd_status train_by_device(const hdt_split *one, hd_trainer *trainer, hd_context *context,
                                 void *out)
{
    outcome *it = out;
    const hdi_copy_engines kept = context->copy_engines;
    if (!goes_directly) context->copy_engines = HDI_COPY_ENGINES_OFF;
    hd_status status = hd_trainer_start(trainer, context, 1);
    context->copy_engines = kept;
    if (status == HD_OK) status = take_steps(one, trainer, 4, it);
    for (int axis = HD_AXIS_NONE; axis < HD_AXES; axis++)
        it->has_window = it->has_window || trainer->session->windows.handles[axis];
    const hd_plan *plan = hd_trainer_plan(trainer);
    for (int u = 0; u < plan->unit_count && status == HD_OK; u++)
        for (int i = 0; i < plan->units[u].program->op_count; i++)
            it->found += trainer->session->posted[u][i].direct != NULL;
    return status;
}

/* A pipeline of as many ranks as there are, of one or two chunks, with messages of more than 128 KiB. */
static const hdt_split staged_model = {
    .name = "gpt2 in stages",
    .json = "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":70,\"n_embd\":256,"
            "\"n_layer\":8,\"n_head\":4}",
    .tokens = 65,
    .heads = 4};

static hd_status train_stages(const hdt_split *one, hd_trainer *trainer, hd_context *context,
                              void *out)
{
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    hd_comm *comm = hd_mesh_device_comm(trainer->options.mesh, HD_AXIS_PIPELINE);
    begin_asking(comm);
    hd_status status = hdi_pipeline_share(trainer->shapes[0].train_run, trainer->session);
    if (status == HD_OK) status = take_steps(one, trainer, 2, out);
    end_asking(comm, trainer->session);
    return status;
}

START_TEST(messages_of_stages_land_where_they_are_awaited)
{
    const int ranks = hd_comm_size(hdt_world), chunks = 1 + _i;
    if (strcmp(hdt_device(), "cpu")) return;
    outcome it = {0};
    const hd_mesh_options layout = {.pipeline = ranks};
    const hd_trainer_options options = {.accumulate = 5, .chunks = chunks};
    hdt_assert_ok(
        hdt_split_with_trainer(hdt_world, &staged_model, &layout, options, train_stages, &it));
    static messages told[4][CHANNELS];
    int64_t counts[4], offsets[4], all = 0;
    for (int r = 0; r < ranks; r++) {
        counts[r] = CHANNELS * MOST;
        offsets[r] = r * counts[r];
    }
    hd_request request;
    hdt_assert_ok(hd_comm_all_to_all(hdt_world, sent, counts, offsets, told, counts, offsets,
                                     HD_DTYPE_I64, &request));
    hdt_assert_ok(hd_comm_wait(hdt_world, &request));
    ck_assert_int_eq(opened, 1);
    ck_assert_int_eq(closed, 1);
    for (int r = 0; r < ranks; r++)
        for (int channel = 0; channel < CHANNELS; channel++) {
            const messages *here = &awaited[r][channel], *there = &told[r][channel];
            ck_assert_int_eq(here->count, there->count);
            for (int64_t i = 0; i < here->count; i++)
                ck_assert_int_eq(here->at[i], there->at[i]);
            all += here->count;
        }
    ck_assert_int_gt(all, 9);
}
END_TEST

/* Rank 0 says that less comes to it than rank 1 has for it, which rank 1 alone sees. */
static hd_status share_unequal(const hdt_split *one, hd_trainer *trainer, hd_context *context,
                               void *out)
{
    (void)one, (void)out;
    HD_RETURN_IF_ERROR(hd_trainer_start(trainer, context, 1));
    hd_comm *comm = hd_mesh_device_comm(trainer->options.mesh, HD_AXIS_PIPELINE);
    const hdi_pipeline_chunk *chunk = &trainer->shapes[0].train[0];
    size_t none = 0, *bytes = &none;
    if (comm->rank == 0) bytes = &hdi_tensor_of(chunk->program, chunk->out_gradient)->info.bytes;
    begin_asking(comm);
    *bytes -= sizeof(float);
    const hd_status status = hdi_pipeline_share(trainer->shapes[0].train_run, trainer->session);
    *bytes += sizeof(float);
    end_asking(comm, trainer->session);
    return status;
}

START_TEST(one_message_that_does_not_fit_keeps_all_to_the_transport)
{
    if (strcmp(hdt_device(), "cpu")) return;
    const hd_mesh_options layout = {.pipeline = hd_comm_size(hdt_world)};
    const hd_trainer_options options = {.accumulate = 5};
    hdt_assert_ok(
        hdt_split_with_trainer(hdt_world, &staged_model, &layout, options, share_unequal, NULL));
    ck_assert_int_eq(opened, 0);
}
END_TEST

/* On GPUs that reach each other; elsewhere both go the old way. */
START_TEST(copy_engines_leave_the_same_bits)
{
    const bool is_two = hd_comm_size(hdt_world) == 2;
    outcome directly = {0}, before = {0};
    for (int i = 0; i < 2; i++) {
        goes_directly = i == 1;
        hdt_assert_ok(hdt_split_with_trainer(
            hdt_world, &model, is_two ? &cases[_i].two : &cases[_i].four, cases[_i].options,
            train_by_device, goes_directly ? &directly : &before));
    }
    if (strcmp(hdt_device(), "cpu") && hd_comm_rank(hdt_world) == 0)
        printf("%s: %d exchanges by copy engines\n", cases[_i].name, directly.found);
    ck_assert_int_eq(before.found, 0);
    ck_assert_uint_eq(directly.weights, before.weights);
}
END_TEST

START_TEST(messages_by_copy_engines_leave_the_same_bits)
{
    const hd_mesh_options layout = {.pipeline = hd_comm_size(hdt_world)};
    const hd_trainer_options options = {.accumulate = 5, .chunks = 1 + _i};
    outcome directly = {0}, before = {0};
    for (int i = 0; i < 2; i++) {
        goes_directly = i == 1;
        hdt_assert_ok(hdt_split_with_trainer(hdt_world, &staged_model, &layout, options,
                                             train_by_device, goes_directly ? &directly : &before));
    }
    if (strcmp(hdt_device(), "cpu") && hd_comm_rank(hdt_world) == 0)
        printf("stages of %d chunks: %s\n", 1 + _i,
               directly.has_window ? "by copy engines" : "skipped: no window");
    ck_assert(!before.has_window);
    ck_assert_uint_eq(directly.weights, before.weights);
}
END_TEST

/* Rank 0 counts one more, or the last waits for other bytes than rank 0 has for it: of the first nothing goes
 * directly, of the second all but that. */
START_TEST(what_ranks_see_differently_goes_the_old_way)
{
    enum { COUNT = 3 };
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    hdi_landing own[4 * COUNT], theirs[4 * COUNT];
    size_t go[COUNT * 4];
    int64_t fits[COUNT] = {1, 1, 1};
    for (int i = 0; i < COUNT * ranks; i++) {
        go[i] = 100;
        own[i] = (hdi_landing){.at = 1000 * rank + i, .bytes = 100, .slots = 1};
    }
    if (rank == ranks - 1) own[1].bytes = 99; /* of rank 0, in the second exchange */
    hd_status status = hdi_direct_agree(hdt_world, COUNT, own, theirs, go, fits);
    hdt_assert_ok(status);
    ck_assert(fits[0] == 1 && fits[1] == 0 && fits[2] == 1);
    for (int r = 0; r < ranks; r++)
        ck_assert_int_eq(theirs[r * COUNT + 2].at, 1000 * r + rank * COUNT + 2);
    int64_t others[COUNT] = {1, 1, 1};
    status = hdi_direct_agree(hdt_world, rank ? COUNT - 1 : COUNT, own, theirs, go, others);
    hdt_assert_ok(status);
    ck_assert(!others[0] && !others[1]);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("direct");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, peers_write_where_a_rank_waits_in_every_micro_batch, 0,
                        sizeof cases / sizeof cases[0]);
    tcase_add_loop_test(tests, copy_engines_leave_the_same_bits, 0,
                        strcmp(hdt_device(), "cpu") ? sizeof cases / sizeof cases[0] : 1);
    tcase_add_loop_test(tests, messages_of_stages_land_where_they_are_awaited, 0, 2);
    tcase_add_loop_test(tests, messages_by_copy_engines_leave_the_same_bits, 0,
                        strcmp(hdt_device(), "cpu") ? 2 : 0);
    tcase_add_test(tests, one_message_that_does_not_fit_keeps_all_to_the_transport);
    tcase_add_test(tests, what_ranks_see_differently_goes_the_old_way);
    return hdt_main_ranks(argc, argv, "direct", tests);
}
