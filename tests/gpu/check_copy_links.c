/* ranks: 2 4 8 */
/* Messages of links by copy engines, straight into the memory of GPUs that reach each other and through the
 * host's, and exchanges of several communicators at once; every byte is compared. */
#include "tests/gpu/hdt_copies.h"

#include <stdlib.h>
#include <string.h>

static hdt_copies *const place = &hdt_place;

static void open_crossed(void)
{
    const int size = hd_comm_size(hdt_world);
    hdt_copies_open(&(hd_mesh_options){.data = 2, .pipeline = size / 2}, HD_AXIS_NONE, true);
}

/* Of the m-th message on a channel; the fourth is larger than all slots. */
enum { MESSAGES = 6, CHANNELS = 2, MESSAGE_ROOM = 36 << 20 };
static const size_t message_bytes[MESSAGES] = {1, 200000, 4194307, 35651584, 131072, 7340033};

static size_t message_at(int channel, int m)
{
    size_t at = (size_t)channel * 80 << 20;
    for (int i = 0; i < m; i++)
        at += message_bytes[i] + 5;
    return at;
}

static void fill_message(char *out, int from, int channel, int m, int round)
{
    for (size_t i = 0; i < message_bytes[m]; i++)
        out[i] = (char)(from * 37 + channel * 11 + m * 5 + round * 3 + (int)(i % 251));
}

/* Receives are posted before anything is sent, as pipelines post them. */
static hd_status pass_messages(int round, hd_request requests[2][CHANNELS][MESSAGES])
{
    static char data[MESSAGE_ROOM];
    const int size = place->comm->size, rank = place->comm->rank;
    const int peers[2][CHANNELS] = {{(rank + size - 1) % size, (rank + 1) % size},
                                    {(rank + 1) % size, (rank + size - 1) % size}};
    hd_status status = HD_OK;
    for (int sends = 0; sends < 2; sends++)
        for (int m = 0; m < MESSAGES; m++)
            for (int channel = 0; channel < CHANNELS && status == HD_OK; channel++) {
                const size_t at = message_at(channel, m), bytes = message_bytes[m];
                const int peer = peers[sends][channel];
                if (sends) {
                    fill_message(data, rank, channel, m, round);
                    (void)cudaMemcpyAsync(place->arena + HDT_SEND_AT + at, data, bytes,
                                          cudaMemcpyHostToDevice, hdt_compute());
                }
                place->way.to[peer] = HDT_RECV_AT + at;
                hd_request *request = &requests[sends][channel][m];
                place->comm->way = &place->way;
                status = sends ? hd_comm_send(place->comm, place->arena + HDT_SEND_AT + at, bytes,
                                              peer, channel, request)
                               : hd_comm_recv(place->comm, place->arena + HDT_RECV_AT + at, bytes,
                                              peer, channel, request);
                place->comm->way = NULL;
            }
    return status;
}

static int wrong_messages(int round)
{
    static char want[MESSAGE_ROOM], got[MESSAGE_ROOM];
    int wrong = 0;
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int m = 0; m < MESSAGES; m++) {
            const int from =
                (place->comm->rank + (channel ? 1 : place->comm->size - 1)) % place->comm->size;
            const size_t bytes = message_bytes[m];
            fill_message(want, from, channel, m, round);
            want[bytes] = 0x55;
            (void)cudaMemcpy(got, place->arena + HDT_RECV_AT + message_at(channel, m), bytes + 1,
                             cudaMemcpyDeviceToHost);
            wrong += memcmp(want, got, bytes + 1) != 0;
        }
    return wrong;
}

START_TEST(messages_of_links_land_in_their_order)
{
    if (!place->way.window) return;
    int wrong = 0;
    hd_status status = HD_OK;
    for (int round = 0; round < 3 && status == HD_OK; round++) {
        hd_request requests[2][CHANNELS][MESSAGES] = {0};
        (void)cudaMemset(place->arena + HDT_RECV_AT, 0x55, HDT_SCRATCH_AT - HDT_RECV_AT);
        (void)cudaDeviceSynchronize();
        status = hd_comm_barrier(hdt_world); /* peers write there */
        if (status == HD_OK) status = pass_messages(round, requests);
        for (int i = 0; i < 2 * CHANNELS * MESSAGES && status == HD_OK; i++)
            status = hdi_comm_order(place->comm, &requests[0][0][0] + i);
        if (status == HD_OK) status = hdi_comm_settle(place->comm);
        (void)cudaStreamSynchronize(hdt_compute());
        wrong += wrong_messages(round);
    }
    hdt_assert_ok(status);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* Of all ranks and of the axes, each behind the other's begin: their mailboxes are their own. */
START_TEST(exchanges_of_several_communicators_pass_each_other)
{
    enum { COMMS = 3, ROUNDS = 4, COUNT = 700001 };
    if (!place->way.window || hd_comm_size(hdt_world) < 4) return;
    hd_comm *comms[COMMS] = {place->comm, hd_mesh_device_comm(place->mesh, HD_AXIS_DATA),
                             hd_mesh_device_comm(place->mesh, HD_AXIS_PIPELINE)};
    const int most = hd_comm_size(hdt_world);
    const size_t block = COUNT * sizeof(int32_t), room = block * (size_t)most;
    int32_t *host = malloc(room);
    hd_status status = HD_OK;
    int64_t wrong = 0;
    for (int round = 0; round < ROUNDS && status == HD_OK; round++) {
        hd_request requests[COMMS] = {0};
        hdi_way ways[COMMS] = {0};
        for (int k = 0; k < COMMS && status == HD_OK; k++) {
            hd_comm *one = comms[k];
            int64_t counts[8], offsets[8];
            for (int r = 0; r < one->size; r++) {
                counts[r] = COUNT;
                offsets[r] = (int64_t)r * COUNT;
                for (int64_t i = 0; i < COUNT; i++)
                    host[offsets[r] + i] =
                        (int32_t)(i + ((k * ROUNDS + round) * 8 + one->world_ranks[one->rank]) * 8 +
                                  one->world_ranks[r]);
            }
            (void)cudaMemcpyAsync(place->arena + HDT_SEND_AT + room * (size_t)k, host,
                                  block * (size_t)one->size, cudaMemcpyHostToDevice, hdt_compute());
            status = one->transport->open_window(one, place->arena, true, &ways[k].window);
            if (!ways[k].window) status = HD_ERROR_UNSUPPORTED;
            one->way = &ways[k];
            if (status == HD_OK)
                status =
                    hd_comm_all_to_all(one, place->arena + HDT_SEND_AT + room * (size_t)k, counts,
                                       offsets, place->arena + HDT_RECV_AT + room * (size_t)k,
                                       counts, offsets, HD_DTYPE_I32, &requests[k]);
            one->way = NULL;
        }
        for (int k = 0; k < COMMS && status == HD_OK; k++)
            status = hdi_comm_order(comms[k], &requests[k]);
        if (status == HD_OK) status = hdi_comm_settle(place->comm);
        (void)cudaStreamSynchronize(hdt_compute());
        for (int k = 0; k < COMMS && status == HD_OK; k++) {
            const hd_comm *one = comms[k];
            (void)cudaMemcpy(host, place->arena + HDT_RECV_AT + room * (size_t)k,
                             block * (size_t)one->size, cudaMemcpyDeviceToHost);
            for (int64_t i = 0; i < (int64_t)COUNT * one->size; i++)
                wrong += host[i] !=
                         (int32_t)(i % COUNT +
                                   ((k * ROUNDS + round) * 8 + one->world_ranks[i / COUNT]) * 8 +
                                   one->world_ranks[one->rank]);
        }
    }
    free(host);
    hdt_assert_ok(status);
    ck_assert_int_eq(wrong, 0);
}
END_TEST

static TCase *cases(const char *name, void (*open)(void))
{
    TCase *tests = tcase_create(name);
    tcase_add_unchecked_fixture(tests, open, hdt_copies_close);
    tcase_add_test(tests, messages_of_links_land_in_their_order);
    return tests;
}

int main(int argc, char **argv)
{
    TCase *crossed = tcase_create("crossed");
    tcase_add_unchecked_fixture(crossed, open_crossed, hdt_copies_close);
    tcase_add_test(crossed, exchanges_of_several_communicators_pass_each_other);
    return hdt_main_ranks(argc, argv, "copy_links", cases("peers", hdt_copies_open_peers),
                          cases("host", hdt_copies_open_host), crossed);
}
