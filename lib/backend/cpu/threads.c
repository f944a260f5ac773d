/* The pool: threads sleep on a condition after a brief spin, items are taken from one counter. */
#include "backend/cpu/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "backend/backend.h"
#include "backend/cpu/blas.h"

enum { MAX_THREADS = 256, SPINS = 4000 };

static struct pool {
    pthread_mutex_t busy;  /* held by the host thread whose call runs on the pool */
    pthread_mutex_t mutex; /* guards sleeping */
    pthread_cond_t wake;
    int sleeping;
    int started; /* threads made so far; they live as long as the process */
    atomic_int lanes;
    /* Call number times MAX_THREADS plus the lanes that take part: one word, so that a thread which
     * wakes late cannot mix two calls. */
    atomic_uint_fast64_t call;
    atomic_int pending;
    atomic_int_fast64_t next;
    int64_t count;
    hdi_cpu_work work;
    void *context;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .mutex = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .lanes = 1};

static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void take_items(int lane)
{
    for (;;) {
        int64_t index = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
        if (index >= pool.count) return;
        pool.work(pool.context, index, lane);
    }
}

static uint64_t wait_for_call(uint64_t seen)
{
    for (int spin = 0; spin < SPINS; spin++) {
        uint64_t call = atomic_load_explicit(&pool.call, memory_order_acquire);
        if (call != seen) return call;
        pause_briefly();
    }
    pthread_mutex_lock(&pool.mutex);
    pool.sleeping++;
    while (atomic_load(&pool.call) == seen)
        pthread_cond_wait(&pool.wake, &pool.mutex);
    pool.sleeping--;
    pthread_mutex_unlock(&pool.mutex);
    return atomic_load(&pool.call);
}

static void *serve(void *argument)
{
    const int lane = (int)(intptr_t)argument;
    (void)hdi_cpu_blas_enter(); /* this thread is ours: never left */
    uint64_t seen = 0;
    for (;;) {
        seen = wait_for_call(seen);
        if (lane >= (int)(seen % MAX_THREADS)) continue;
        take_items(lane);
        atomic_fetch_sub_explicit(&pool.pending, 1, memory_order_release);
    }
    return NULL;
}

void hdi_cpu_set_threads(int threads)
{
    if (threads < 1) threads = 1;
    if (threads >= MAX_THREADS) threads = MAX_THREADS - 1;
    pthread_mutex_lock(&pool.busy);
    pthread_attr_t attributes;
    if (threads - 1 > pool.started && pthread_attr_init(&attributes) == 0) {
        /* Signals are not for threads inside the BLAS, whose kernels move the stack pointer. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        while (pool.started < threads - 1) {
            pthread_t thread;
            void *lane = (void *)(intptr_t)(pool.started + 1);
            if (pthread_create(&thread, &attributes, serve, lane) != 0) break;
            pool.started++;
        }
        pthread_attr_destroy(&attributes);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    /* Fewer threads than asked for only cost time: results do not depend on them. */
    atomic_store(&pool.lanes, threads - 1 < pool.started ? threads : pool.started + 1);
    pthread_mutex_unlock(&pool.busy);
}

int hdi_cpu_lanes(void)
{
    return atomic_load_explicit(&pool.lanes, memory_order_relaxed);
}

void hdi_cpu_parallel(int64_t count, hdi_cpu_work work, void *context)
{
    if (count <= 1 || hdi_cpu_lanes() == 1 || pthread_mutex_trylock(&pool.busy) != 0) {
        for (int64_t i = 0; i < count; i++)
            work(context, i, 0);
        return;
    }
    const int lanes = hdi_cpu_lanes();
    pool.count = count;
    pool.work = work;
    pool.context = context;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool.pending, lanes - 1, memory_order_relaxed);

    const uint64_t number = atomic_load(&pool.call) / MAX_THREADS + 1;
    pthread_mutex_lock(&pool.mutex);
    atomic_store_explicit(&pool.call, number * MAX_THREADS + (uint64_t)lanes, memory_order_release);
    if (pool.sleeping > 0) pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);

    take_items(0);
    for (int spin = 0; atomic_load_explicit(&pool.pending, memory_order_acquire) > 0; spin++) {
        if (spin < SPINS)
            pause_briefly();
        else
            sched_yield(); /* another process has our core */
    }
    pthread_mutex_unlock(&pool.busy);
}
