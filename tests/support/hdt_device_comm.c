/* Checks of communicators of device memory. */
#include "tests/support/hdt_device_comm.h"

#include <stdlib.h>

#include "comm/comm.h"

static hd_status finish(hdt_device_comm *it, hd_status posted, hd_request *request)
{
    if (posted != HD_OK) return posted;
    return it->order ? hdi_comm_order(it->comm, request) : hd_comm_wait(it->comm, request);
}

static void *host_memory(int64_t count, size_t element)
{
    void *memory = calloc((size_t)count + 1, element);
    if (!memory) abort();
    return memory;
}

static double read_number(const void *data, int64_t i, hd_dtype dtype)
{
    switch (dtype) {
    case HD_DTYPE_F32: return (double)((const float *)data)[i];
    case HD_DTYPE_F64: return ((const double *)data)[i];
    case HD_DTYPE_I32: return ((const int32_t *)data)[i];
    default: return (double)((const int64_t *)data)[i];
    }
}

static void write_number(void *data, int64_t i, hd_dtype dtype, int value)
{
    switch (dtype) {
    case HD_DTYPE_F32: ((float *)data)[i] = (float)value; break;
    case HD_DTYPE_F64: ((double *)data)[i] = value; break;
    case HD_DTYPE_I32: ((int32_t *)data)[i] = value; break;
    default: ((int64_t *)data)[i] = value; break;
    }
}

static int given(int rank, int64_t i)
{
    return (int)((i * 7 + rank * 13) % 101) - 50;
}

static int reduced(int size, int64_t i, hd_reduce op)
{
    int value = given(0, i);
    for (int r = 1; r < size; r++) {
        const int next = given(r, i);
        if (op == HD_REDUCE_SUM)
            value += next;
        else if ((op == HD_REDUCE_MAX) == (next > value))
            value = next;
    }
    return value;
}

hd_status hdt_device_all_reduce(hdt_device_comm *it, int64_t count, hd_dtype dtype, hd_reduce op)
{
    const size_t bytes = (size_t)count * hd_dtype_bytes(dtype);
    void *host = host_memory(count, hd_dtype_bytes(dtype)), *data = it->memory->reserve(bytes);
    for (int64_t i = 0; i < count; i++)
        write_number(host, i, dtype, given(hd_comm_rank(it->comm), i));
    it->memory->put(data, host, bytes);
    hd_request request = {0};
    hd_status status =
        finish(it, hd_comm_all_reduce(it->comm, data, count, dtype, op, &request), &request);
    it->memory->get(host, data, bytes);
    for (int64_t i = 0; i < count; i++)
        it->wrong += read_number(host, i, dtype) != reduced(hd_comm_size(it->comm), i, op);
    it->memory->release(data);
    free(host);
    return status;
}

hd_status hdt_device_all_gather(hdt_device_comm *it, int64_t unit, bool is_even)
{
    const int size = hd_comm_size(it->comm), rank = hd_comm_rank(it->comm);
    int64_t counts[64], offsets[64], total = 3;
    for (int r = 0; r < size; r++) {
        counts[r] = is_even ? unit : r % 3 == 2 ? 0 : unit + r;
        offsets[r] = total;
        total += counts[r] + !is_even;
    }
    int32_t *host = host_memory(total, sizeof *host);
    void *data = it->memory->reserve((size_t)total * sizeof *host);
    for (int64_t i = 0; i < total; i++)
        host[i] = -1;
    for (int64_t i = offsets[rank]; i < offsets[rank] + counts[rank]; i++)
        host[i] = (int32_t)i;
    it->memory->put(data, host, (size_t)total * sizeof *host);
    hd_request request = {0};
    hd_status status = finish(
        it, hd_comm_all_gather(it->comm, data, counts, offsets, HD_DTYPE_I32, &request), &request);
    it->memory->get(host, data, (size_t)total * sizeof *host);
    for (int64_t i = 0; i < total; i++) {
        int32_t want = -1;
        for (int r = 0; r < size; r++)
            if (i >= offsets[r] && i < offsets[r] + counts[r]) want = (int32_t)i;
        it->wrong += host[i] != want;
    }
    it->memory->release(data);
    free(host);
    return status;
}

static int64_t message_count(int from, int to, int64_t unit)
{
    return (from + 2 * to) % 5 == 4 ? 0 : unit + from + 3 * to;
}

static int64_t message_value(int from, int to, int64_t i)
{
    return ((int64_t)from * 64 + to) * 1000003 + i;
}

hd_status hdt_device_all_to_all(hdt_device_comm *it, int64_t unit)
{
    const int size = hd_comm_size(it->comm), rank = hd_comm_rank(it->comm);
    int64_t send_counts[64], send_offsets[64], recv_counts[64], recv_offsets[64];
    int64_t sent = 0, received = 1;
    for (int r = 0; r < size; r++) {
        send_counts[r] = message_count(rank, r, unit);
        recv_counts[r] = message_count(r, rank, unit);
        send_offsets[r] = sent;
        recv_offsets[r] = received;
        sent += send_counts[r];
        received += recv_counts[r] + 1;
    }
    int64_t *send = host_memory(sent, sizeof *send), *recv = host_memory(received, sizeof *recv);
    void *from = it->memory->reserve((size_t)(sent + 1) * sizeof *send);
    void *into = it->memory->reserve((size_t)received * sizeof *recv);
    for (int r = 0; r < size; r++)
        for (int64_t i = 0; i < send_counts[r]; i++)
            send[send_offsets[r] + i] = message_value(rank, r, i);
    for (int64_t i = 0; i < received; i++)
        recv[i] = -1;
    it->memory->put(from, send, (size_t)sent * sizeof *send);
    it->memory->put(into, recv, (size_t)received * sizeof *recv);
    hd_request request = {0};
    hd_status status = finish(it,
                              hd_comm_all_to_all(it->comm, from, send_counts, send_offsets, into,
                                                 recv_counts, recv_offsets, HD_DTYPE_I64, &request),
                              &request);
    it->memory->get(recv, into, (size_t)received * sizeof *recv);
    for (int r = 0; r < size; r++) {
        for (int64_t i = 0; i < recv_counts[r]; i++)
            it->wrong += recv[recv_offsets[r] + i] != message_value(r, rank, i);
        it->wrong += recv[recv_offsets[r] + recv_counts[r]] != -1;
    }
    it->memory->release(from);
    it->memory->release(into);
    free(send);
    free(recv);
    return status;
}

hd_status hdt_device_broadcast(hdt_device_comm *it, int64_t count)
{
    const int size = hd_comm_size(it->comm), rank = hd_comm_rank(it->comm);
    int32_t *host = host_memory(count, sizeof *host);
    void *data = it->memory->reserve((size_t)count * sizeof *host);
    hd_status status = HD_OK;
    for (int root = 0; root < size && status == HD_OK; root++) {
        for (int64_t i = 0; i < count; i++)
            host[i] = given(rank, i);
        it->memory->put(data, host, (size_t)count * sizeof *host);
        hd_request request = {0};
        status = finish(
            it, hd_comm_broadcast(it->comm, data, (size_t)count * sizeof *host, root, &request),
            &request);
        it->memory->get(host, data, (size_t)count * sizeof *host);
        for (int64_t i = 0; i < count; i++)
            it->wrong += host[i] != given(root, i);
    }
    it->memory->release(data);
    free(host);
    return status;
}

typedef struct ring_message {
    void *send, *recv;
    hd_request sent, received;
} ring_message;

hd_status hdt_device_ring(hdt_device_comm *it, int messages, int64_t count)
{
    const int size = hd_comm_size(it->comm), rank = hd_comm_rank(it->comm);
    if (size == 1) return HD_OK;
    const size_t bytes = (size_t)count * sizeof(int64_t);
    ring_message *ring = host_memory((int64_t)2 * messages, sizeof *ring);
    int64_t *host = host_memory(count, sizeof *host);
    hd_status status = HD_OK;
    for (int m = 0; m < 2 * messages && status == HD_OK; m++) {
        const int channel = m & 1;
        const int from = channel == 0 ? (rank + size - 1) % size : (rank + 1) % size;
        const int to = channel == 0 ? (rank + 1) % size : (rank + size - 1) % size;
        ring[m].send = it->memory->reserve(bytes);
        ring[m].recv = it->memory->reserve(bytes);
        for (int64_t i = 0; i < count; i++)
            host[i] = message_value(rank, to, i + m);
        it->memory->put(ring[m].send, host, bytes);
        status = hd_comm_recv(it->comm, ring[m].recv, bytes, from, channel, &ring[m].received);
    }
    for (int m = 0; m < 2 * messages && status == HD_OK; m++) {
        const int channel = m & 1;
        const int to = channel == 0 ? (rank + 1) % size : (rank + size - 1) % size;
        status = hd_comm_send(it->comm, ring[m].send, bytes, to, channel, &ring[m].sent);
    }
    for (int m = 0; m < 2 * messages && status == HD_OK; m++) {
        const int from = (m & 1) == 0 ? (rank + size - 1) % size : (rank + 1) % size;
        status = finish(it, HD_OK, &ring[m].received);
        if (status == HD_OK) status = finish(it, HD_OK, &ring[m].sent);
        if (status != HD_OK) break;
        it->memory->get(host, ring[m].recv, bytes);
        for (int64_t i = 0; i < count; i++)
            it->wrong += host[i] != message_value(from, rank, i + m);
    }
    for (int m = 0; m < 2 * messages; m++) {
        if (ring[m].send) it->memory->release(ring[m].send);
        if (ring[m].recv) it->memory->release(ring[m].recv);
    }
    free(ring);
    free(host);
    return status;
}
