/* ranks: 2 4 */
/* device: none */
/* Gates and mailboxes of ranks whose streams are threads: what begins when, what arrives where, and what is left when
 * a rank stays away. */
#include "tests/gpu/fake_nccl.h"

#include "comm/nccl/nccl.h"
#include "comm/nccl/pinned.h"
#include "core/clock.h"
#include "core/error.h"
#include "tests/support/hdt.h"

typedef struct place {
    cudaStream_t compute;
    hdi_nccl_device *device;
    hd_comm *comm;
    void *flags;
    hdi_way way;
} place;
static place it;

static void open_place(hdi_copy_engines copies, bool gate)
{
    static hdi_nccl_pinned shared;
    if (!fake_host)
        hdt_assert_ok(hdi_nccl_pinned_open(hdt_world, sizeof(fake_host_memory), 0, &shared));
    fake_host = shared.shared.memory;
    fake_early = 0;
    (void)snprintf(fake_bus_id, sizeof fake_bus_id, "%02d", hd_comm_rank(hdt_world));
    it = (place){.flags = calloc(1, HDI_DIRECT_FLAG_BYTES)};
    (void)cudaStreamCreateWithPriority(&it.compute, 0, 0);
    hdt_assert_ok(hdi_nccl_device_create(0, it.compute, &it.device));
    const hdi_nccl_options options = {
        .links = true, .copies = copies, .flags = it.flags, .gate = gate};
    hdt_assert_ok(hdi_comm_create_nccl(hdt_world, it.device, &options, &it.comm));
    hdt_assert_ok(it.comm->transport->open_window(it.comm, NULL, true, &it.way.window));
}

static void close_place(void)
{
    if (it.way.window) it.comm->transport->close_window(it.comm, it.way.window);
    hd_comm_destroy(it.comm);
    hdi_nccl_device_destroy(it.device);
    (void)cudaStreamDestroy(it.compute);
    free(it.flags);
    (void)hd_comm_barrier(hdt_world);
}

static hdi_nccl_state *state_of_place(void)
{
    return hdi_nccl_state_of(it.comm);
}

static hdi_nccl_lane *link_of(int channel, bool is_sender)
{
    hdi_nccl_state *state = state_of_place();
    for (int i = HDI_NCCL_FIRST_LINK; i < state->lane_count; i++) {
        hdi_nccl_lane *lane = &state->lanes[i];
        if (lane->channel == channel && (is_sender ? lane->from : lane->to) == it.comm->rank)
            return lane;
    }
    ck_abort_msg("no link of channel %d", channel);
    return NULL;
}

/* Of all ranks together. */
static int64_t sum(int64_t one)
{
    hd_request request;
    hdt_assert_ok(hd_comm_all_reduce(hdt_world, &one, 1, HD_DTYPE_I64, HD_REDUCE_SUM, &request));
    hdt_assert_ok(hd_comm_wait(hdt_world, &request));
    return one;
}

/* Receives are posted before what is sent; another rank is late each round. */
static hd_status post_round(int round, hd_request requests[5])
{
    static char data[64];
    hd_comm *comm = it.comm;
    const int rank = comm->rank, size = comm->size, late = round % size == rank ? 4000 : 0;
    hdi_nccl_lane *lanes = state_of_place()->lanes;
    fake_come(it.compute, link_of(0, false)->nccl, 0);
    HD_RETURN_IF_ERROR(hd_comm_recv(comm, data, 8, (rank + size - 1) % size, 0, &requests[0]));
    fake_come(it.compute, lanes[HDI_NCCL_REDUCE].nccl, late);
    HD_RETURN_IF_ERROR(
        hd_comm_all_reduce(comm, data + 8, 2, HD_DTYPE_F32, HD_REDUCE_SUM, &requests[1]));
    fake_come(it.compute, lanes[HDI_NCCL_GATHER].nccl, late);
    HD_RETURN_IF_ERROR(hd_comm_broadcast(comm, data + 16, 8, 0, &requests[2]));
    fake_come(it.compute, link_of(0, true)->nccl, late);
    HD_RETURN_IF_ERROR(hd_comm_send(comm, data + 24, 8, (rank + 1) % size, 0, &requests[3]));
    fake_come(it.compute, lanes[HDI_NCCL_REDUCE].nccl, 0);
    return hd_comm_all_reduce(comm, data + 32, 1, HD_DTYPE_I32, HD_REDUCE_MAX, &requests[4]);
}

START_TEST(kernels_begin_when_all_their_ranks_have_come)
{
    enum { ROUNDS = 12 };
    const bool gate = _i == 0;
    open_place(HDI_COPY_ENGINES_OFF, gate);
    hdi_nccl_state *state = state_of_place();
    ck_assert_int_eq(state->gate != NULL, gate);
    for (int i = 0; i < state->lane_count; i++)
        state->lanes[i].nccl->unannounced = state->lanes[i].nccl->kernels;
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    for (int round = 0; round < ROUNDS; round++) {
        hd_request requests[5] = {0};
        hdt_assert_ok(post_round(round, requests));
        for (int i = 0; i < 5; i++)
            hdt_assert_ok(hdi_comm_order(it.comm, &requests[i]));
    }
    hdt_assert_ok(hdi_comm_settle(it.comm));
    const int64_t early = sum(fake_early);
    close_place();
    if (gate)
        ck_assert_int_eq(early, 0);
    else
        ck_assert_int_gt(early, 0); /* or nothing was seen here */
}
END_TEST

static void sleep_long(void *user, long microseconds)
{
    (void)user;
    usleep((unsigned)microseconds);
}

/* Behind the first the lane stands still, so that a late word of rank 0 is written between release and gate. */
static hd_status post_some(hd_request *requests, int count, bool stands_still)
{
    static float data[8];
    for (int i = 0; i < count; i++) {
        HD_RETURN_IF_ERROR(
            hd_comm_all_reduce(it.comm, data + i, 1, HD_DTYPE_F32, HD_REDUCE_SUM, &requests[i]));
        if (i == 0 && stands_still)
            (void)fake_put(state_of_place()->lanes[HDI_NCCL_REDUCE].stream,
                           (fake_work){.kind = FAKE_CALL, .call = sleep_long, .number = 1000000});
    }
    for (int i = 0; i < count; i++)
        HD_RETURN_IF_ERROR(hdi_comm_order(it.comm, &requests[i]));
    return hdi_comm_settle(it.comm);
}

/* Rank 0 stays away, or comes once when the others have given up: they say so soon, and nothing of theirs is left
 * on their devices. */
START_TEST(a_missing_rank_holds_nobody_at_the_gate)
{
    enum { LATEST_SECONDS = 5, OPERATIONS = 3 };
    const bool comes_late = _i == 1;
    open_place(HDI_COPY_ENGINES_OFF, true);
    hd_status status = HD_OK;
    hd_request requests[OPERATIONS] = {0};
    hdt_assert_ok(hd_comm_barrier(hdt_world));
    const double begin = hdi_clock_seconds();
    if (it.comm->rank == 0) {
        usleep(1000000);
        if (comes_late) status = post_some(requests, 1, false);
    } else {
        it.comm->deadline_seconds = 0.5;
        status = post_some(requests, OPERATIONS, comes_late);
    }
    const double seconds = hdi_clock_seconds() - begin;
    const bool is_first = it.comm->rank == 0, is_idle = is_first || fake_synchronize(1);
    close_place();
    ck_assert_int_eq(status, is_first ? HD_OK : HD_ERROR_TIMEOUT);
    ck_assert(is_idle);
    ck_assert_double_lt(seconds, LATEST_SECONDS);
}
END_TEST

START_TEST(a_communicator_ends_while_operations_wait_at_the_gate)
{
    open_place(HDI_COPY_ENGINES_OFF, true);
    static float data;
    hd_request request = {0};
    hd_status status = HD_OK;
    if (it.comm->rank != 0)
        status = hd_comm_all_reduce(it.comm, &data, 1, HD_DTYPE_F32, HD_REDUCE_SUM, &request);
    const double begin = hdi_clock_seconds();
    close_place();
    hdt_assert_ok(status);
    ck_assert_double_lt(hdi_clock_seconds() - begin, 8);
}
END_TEST

/* Bytes from one rank to another, in exchange or message `e`. */
static size_t bytes_of(int e, int from, int to)
{
    const unsigned mixed = (unsigned)(e * 64 + from * 8 + to + 1) * 2654435761u;
    return mixed % 3 == 0 ? 0 : (mixed >> 8) % (e == 2 ? 40u << 20 : 3u << 20) + 1;
}

static char value_of(int e, int from, int to, size_t i)
{
    return (char)(e * 13 + from * 29 + to * 7 + (int)(i % 241));
}

typedef struct mail {
    char *send, *recv;
    int64_t send_counts[FAKE_RANKS], recv_counts[FAKE_RANKS];
    int64_t send_offsets[FAKE_RANKS], recv_offsets[FAKE_RANKS];
    hd_request requests[2];
} mail;

static hd_status post_exchange(mail *one, int e)
{
    const int rank = it.comm->rank, size = it.comm->size;
    int64_t sent = 0, received = 0;
    for (int r = 0; r < size; r++) {
        one->send_offsets[r] = sent;
        one->recv_offsets[r] = received;
        sent += one->send_counts[r] = (int64_t)bytes_of(e, rank, r);
        received += one->recv_counts[r] = (int64_t)bytes_of(e, r, rank);
    }
    one->send = calloc(1, (size_t)sent + 1);
    one->recv = calloc(1, (size_t)received + 1);
    for (int r = 0; r < size; r++)
        for (int64_t i = 0; i < one->send_counts[r]; i++)
            one->send[one->send_offsets[r] + i] = value_of(e, rank, r, (size_t)i);
    it.comm->way = &it.way;
    const hd_status status =
        hd_comm_all_to_all(it.comm, one->send, one->send_counts, one->send_offsets, one->recv,
                           one->recv_counts, one->recv_offsets, HD_DTYPE_U8, &one->requests[0]);
    it.comm->way = NULL;
    return status;
}

static int64_t wrong_of_exchange(const mail *one, int e)
{
    int64_t wrong = 0;
    for (int r = 0; r < it.comm->size; r++)
        for (int64_t i = 0; i < one->recv_counts[r]; i++)
            wrong +=
                one->recv[one->recv_offsets[r] + i] != value_of(e, r, it.comm->rank, (size_t)i);
    return wrong;
}

/* Posts it. */
static hd_status pass_message(mail *one, int e, int channel, bool sends)
{
    const int rank = it.comm->rank, size = it.comm->size;
    const int peer = (rank + ((channel == 0) == sends ? 1 : size - 1)) % size;
    const size_t bytes = bytes_of(e, sends ? rank : peer, channel) + 100000;
    char *data = *(sends ? &one->send : &one->recv) = calloc(1, bytes);
    *(sends ? one->send_counts : one->recv_counts) = (int64_t)bytes;
    for (size_t i = 0; i < bytes && sends; i++)
        data[i] = value_of(e, rank, channel, i);
    hd_request *request = &one->requests[sends];
    it.comm->way = &it.way;
    const hd_status status = sends ? hd_comm_send(it.comm, data, bytes, peer, channel, request)
                                   : hd_comm_recv(it.comm, data, bytes, peer, channel, request);
    it.comm->way = NULL;
    return status;
}

static int64_t wrong_of_message(const mail *one, int e, int channel)
{
    const int size = it.comm->size, peer = (it.comm->rank + (channel ? 1 : size - 1)) % size;
    int64_t wrong = one->recv_counts[0] != (int64_t)bytes_of(e, peer, channel) + 100000;
    for (int64_t i = 0; i < one->recv_counts[0]; i++)
        wrong += one->recv[i] != value_of(e, peer, channel, (size_t)i);
    return wrong;
}

/* Unequal and empty parts, of more pieces than slots, all under way at once, messages and NCCL's kernels among them. */
START_TEST(what_passes_through_mailboxes_arrives_whole)
{
    enum { EXCHANGES = 5, CHANNELS = 2 };
    mail exchanges[EXCHANGES] = {0}, messages[EXCHANGES][CHANNELS] = {0};
    open_place(HDI_COPY_ENGINES_HOST, true);
    ck_assert_ptr_nonnull(it.way.window);
    ck_assert(it.comm->through_host);
    hd_status status = HD_OK;
    static float data;
    for (int e = 0; e < EXCHANGES && status == HD_OK; e++) {
        hd_request request = {0};
        for (int k = 0; k < 2 * CHANNELS && status == HD_OK; k++)
            status = pass_message(&messages[e][k % CHANNELS], e, k % CHANNELS, k >= CHANNELS);
        if (status == HD_OK) status = post_exchange(&exchanges[e], e);
        if (status == HD_OK)
            status = hd_comm_all_reduce(it.comm, &data, 1, HD_DTYPE_F32, HD_REDUCE_SUM, &request);
        if (status == HD_OK) status = hdi_comm_order(it.comm, &request);
        if (status == HD_OK) status = hdi_comm_order(it.comm, &exchanges[e].requests[0]);
        for (int k = 0; k < 2 * CHANNELS && status == HD_OK; k++)
            status = hdi_comm_order(it.comm, &messages[e][k % CHANNELS].requests[k / CHANNELS]);
    }
    if (status == HD_OK) status = hdi_comm_settle(it.comm);
    int64_t wrong = 0;
    for (int e = 0; e < EXCHANGES; e++) {
        if (status == HD_OK) wrong += wrong_of_exchange(&exchanges[e], e);
        for (int c = 0; c < CHANNELS && status == HD_OK; c++)
            wrong += wrong_of_message(&messages[e][c], e, c);
    }
    close_place();
    for (int e = 0; e < EXCHANGES; e++)
        for (int i = -1; i < CHANNELS; i++) {
            free(i < 0 ? exchanges[e].send : messages[e][i].send);
            free(i < 0 ? exchanges[e].recv : messages[e][i].recv);
        }
    hdt_assert_ok(status);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(a_missing_rank_leaves_mailboxes_free)
{
    enum { LATEST_SECONDS = 5 };
    mail one = {0}, message = {0};
    open_place(HDI_COPY_ENGINES_HOST, true);
    hd_status status = HD_OK;
    const double begin = hdi_clock_seconds();
    it.comm->deadline_seconds = 0.5;
    if (it.comm->rank != 0) {
        status = post_exchange(&one, 2);
        if (status == HD_OK) status = pass_message(&message, 2, 0, false);
        if (status == HD_OK) status = hdi_comm_order(it.comm, &one.requests[0]);
        if (status == HD_OK) status = hdi_comm_order(it.comm, &message.requests[0]);
        if (status == HD_OK) status = hdi_comm_settle(it.comm);
    }
    const double seconds = hdi_clock_seconds() - begin;
    const bool is_first = it.comm->rank == 0, is_idle = is_first || fake_synchronize(1);
    close_place();
    free(one.send);
    free(one.recv);
    free(message.recv);
    ck_assert_int_eq(status, is_first ? HD_OK : HD_ERROR_TIMEOUT);
    ck_assert(is_idle);
    ck_assert_double_lt(seconds, LATEST_SECONDS);
}
END_TEST

/* No memory of a peer can be mapped here; mailboxes take its place where GPUs do not reach each other, or may not. */
START_TEST(mailboxes_are_for_gpus_that_do_not_reach_each_other)
{
    static const struct {
        hdi_copy_engines asked;
        bool reach, disabled, wanted;
    } ways[] = {{HDI_COPY_ENGINES_AUTO, false, false, true},
                {HDI_COPY_ENGINES_AUTO, true, false, false},
                {HDI_COPY_ENGINES_AUTO, true, true, true},
                {HDI_COPY_ENGINES_HOST, true, false, true},
                {HDI_COPY_ENGINES_OFF, false, false, false}};
    bool found[sizeof ways / sizeof ways[0]];
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        fake_reach = ways[i].reach;
        if (ways[i].disabled) setenv("NCCL_P2P_DISABLE", "1", 1);
        open_place(ways[i].asked, false);
        found[i] = it.way.window && it.comm->through_host;
        close_place();
        unsetenv("NCCL_P2P_DISABLE");
    }
    fake_reach = false;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        ck_assert_int_eq(found[i], ways[i].wanted);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("meetings");
    tcase_add_loop_test(tests, kernels_begin_when_all_their_ranks_have_come, 0, 2);
    tcase_add_loop_test(tests, a_missing_rank_holds_nobody_at_the_gate, 0, 2);
    tcase_add_test(tests, a_communicator_ends_while_operations_wait_at_the_gate);
    tcase_add_test(tests, what_passes_through_mailboxes_arrives_whole);
    tcase_add_test(tests, a_missing_rank_leaves_mailboxes_free);
    tcase_add_test(tests, mailboxes_are_for_gpus_that_do_not_reach_each_other);
    return hdt_main_ranks(argc, argv, "meetings", tests);
}
