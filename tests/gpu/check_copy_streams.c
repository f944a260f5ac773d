/* ranks: 2 4 */
/* device: none */
/* Copies between ranks whose streams are threads, into peers' memory and through mailboxes: which way they go, what
 * arrives where, and what is left when a rank stays away. */
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
    char *arena;
    hdi_way way;
} place;
static place it;

static const hdi_copy_engines both_ways[] = {HDI_COPY_ENGINES_HOST, HDI_COPY_ENGINES_PEERS};

/* Of an arena: where what comes from each rank, and on each channel, in exchange or message `e` has its room. */
enum { EXCHANGES = 5, CHANNELS = 2, LARGEST = 2, ROOMS = FAKE_RANKS + CHANNELS };

static size_t most_of(int e)
{
    return (size_t)(e == LARGEST ? 40 : 3) << 20;
}

static size_t room_of(int e, int which)
{
    size_t at = 0;
    for (int i = 0; i < e; i++)
        at += (most_of(i) + (1 << 20)) * ROOMS;
    return at + (most_of(e) + (1 << 20)) * (size_t)which;
}

static void open_place(hdi_copy_engines copies)
{
    static hdi_nccl_pinned shared;
    if (!fake_host)
        hdt_assert_ok(hdi_nccl_pinned_open(hdt_world, sizeof(fake_host_memory), 0, &shared));
    fake_host = shared.shared.memory;
    (void)snprintf(fake_bus_id, sizeof fake_bus_id, "%02d", hd_comm_rank(hdt_world));
    it = (place){.flags = fake_reserve(HDI_DIRECT_FLAG_BYTES),
                 .arena = fake_reserve(room_of(EXCHANGES, 0))};
    (void)cudaStreamCreateWithPriority(&it.compute, 0, 0);
    hdt_assert_ok(hdi_nccl_device_create(0, it.compute, &it.device));
    const hdi_nccl_options options = {.links = true, .copies = copies, .flags = it.flags};
    hdt_assert_ok(hdi_comm_create_nccl(hdt_world, it.device, &options, &it.comm));
    hdt_assert_ok(it.comm->transport->open_window(it.comm, it.arena, true, &it.way.window));
}

static void close_place(void)
{
    if (it.way.window) it.comm->transport->close_window(it.comm, it.way.window);
    hd_comm_destroy(it.comm);
    hdi_nccl_device_destroy(it.device);
    (void)cudaStreamDestroy(it.compute);
    (void)hd_comm_barrier(hdt_world);
    fake_free(it.flags);
    fake_free(it.arena);
}

/* On two lanes: each is at work until it is aborted, and an abort waits for all that is on the device. */
START_TEST(a_communicator_ends_while_operations_wait_for_a_peer)
{
    open_place(HDI_COPY_ENGINES_OFF);
    static float data[2];
    hd_request requests[2] = {0};
    hd_status status = HD_OK;
    if (it.comm->rank != 0)
        status = hd_comm_all_reduce(it.comm, data, 1, HD_DTYPE_F32, HD_REDUCE_SUM, &requests[0]);
    if (it.comm->rank != 0 && status == HD_OK)
        status = hd_comm_broadcast(it.comm, data + 1, sizeof *data, 0, &requests[1]);
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
    return mixed % 3 == 0 ? 0 : (mixed >> 8) % most_of(e) + 1;
}

static char value_of(int e, int from, int to, size_t i)
{
    return (char)(e * 13 + from * 29 + to * 7 + (int)(i % 241));
}

typedef struct mail {
    char *send;
    const char *recv;
    int64_t send_counts[FAKE_RANKS], recv_counts[FAKE_RANKS];
    int64_t send_offsets[FAKE_RANKS], recv_offsets[FAKE_RANKS];
    hd_request requests[2];
} mail;

static void scribble(void *user, long bytes)
{
    usleep(2000);
    memset(user, -1, (size_t)bytes);
}

/* Until the device comes to what is posted next, it writes into the room itself. */
static void use_room(int e, int which)
{
    (void)fake_put(it.compute, (fake_work){.kind = FAKE_CALL,
                                           .call = scribble,
                                           .user = it.arena + room_of(e, which),
                                           .number = (long)most_of(e)});
}

static hd_status post_exchange(mail *one, int e)
{
    const int rank = it.comm->rank, size = it.comm->size;
    int64_t sent = 0;
    for (int r = 0; r < size; r++) {
        one->send_offsets[r] = sent;
        one->recv_offsets[r] = (int64_t)room_of(e, r);
        it.way.to[r] = room_of(e, rank);
        use_room(e, r);
        sent += one->send_counts[r] = (int64_t)bytes_of(e, rank, r);
        one->recv_counts[r] = (int64_t)bytes_of(e, r, rank);
    }
    one->send = calloc(1, (size_t)sent + 1);
    one->recv = it.arena;
    for (int r = 0; r < size; r++)
        for (int64_t i = 0; i < one->send_counts[r]; i++)
            one->send[one->send_offsets[r] + i] = value_of(e, rank, r, (size_t)i);
    it.comm->way = &it.way;
    const hd_status status =
        hd_comm_all_to_all(it.comm, one->send, one->send_counts, one->send_offsets, it.arena,
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
    const size_t room = room_of(e, FAKE_RANKS + channel);
    char *data = sends ? calloc(1, bytes) : it.arena + room;
    if (sends) {
        one->send = data;
    } else {
        one->recv = data;
        use_room(e, FAKE_RANKS + channel);
    }
    it.way.to[peer] = room;
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
START_TEST(what_is_copied_arrives_whole)
{
    mail exchanges[EXCHANGES] = {0}, messages[EXCHANGES][CHANNELS] = {0};
    fake_maps = both_ways[_i] == HDI_COPY_ENGINES_PEERS;
    open_place(both_ways[_i]);
    ck_assert_ptr_nonnull(it.way.window);
    ck_assert_int_eq(it.comm->through_host, both_ways[_i] == HDI_COPY_ENGINES_HOST);
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
        for (int i = -1; i < CHANNELS; i++)
            free(i < 0 ? exchanges[e].send : messages[e][i].send);
    hdt_assert_ok(status);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(a_missing_rank_leaves_the_device_free)
{
    enum { LATEST_SECONDS = 5 };
    mail one = {0}, message = {0};
    fake_maps = both_ways[_i] == HDI_COPY_ENGINES_PEERS;
    open_place(both_ways[_i]);
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
    ck_assert_int_eq(status, is_first ? HD_OK : HD_ERROR_TIMEOUT);
    ck_assert(is_idle);
    ck_assert_double_lt(seconds, LATEST_SECONDS);
}
END_TEST

typedef enum found { NOTHING, PEERS, HOST } found;

/* Into peers' memory where it can be mapped; mailboxes take its place where GPUs do not reach each other. */
START_TEST(copies_go_the_way_that_is_asked_for_and_there)
{
    static const struct {
        hdi_copy_engines asked;
        bool maps, reach;
        found wanted;
    } ways[] = {{HDI_COPY_ENGINES_AUTO, false, false, HOST},
                {HDI_COPY_ENGINES_AUTO, false, true, NOTHING},
                {HDI_COPY_ENGINES_AUTO, true, false, PEERS},
                {HDI_COPY_ENGINES_AUTO, true, true, PEERS},
                {HDI_COPY_ENGINES_HOST, true, true, HOST},
                {HDI_COPY_ENGINES_PEERS, true, false, PEERS},
                {HDI_COPY_ENGINES_PEERS, false, false, NOTHING},
                {HDI_COPY_ENGINES_OFF, true, true, NOTHING}};
    found got[sizeof ways / sizeof ways[0]];
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        fake_maps = ways[i].maps;
        fake_reach = ways[i].reach;
        open_place(ways[i].asked);
        got[i] = !it.way.window ? NOTHING : it.comm->through_host ? HOST : PEERS;
        close_place();
    }
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        ck_assert_int_eq(got[i], ways[i].wanted);
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("copy_streams");
    tcase_add_test(tests, a_communicator_ends_while_operations_wait_for_a_peer);
    tcase_add_loop_test(tests, what_is_copied_arrives_whole, 0, 2);
    tcase_add_loop_test(tests, a_missing_rank_leaves_the_device_free, 0, 2);
    tcase_add_test(tests, copies_go_the_way_that_is_asked_for_and_there);
    return hdt_main_ranks(argc, argv, "copy_streams", tests);
}
