/* Tolerances, files and data for tests. */
#include "tests/support/hdt.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Half a unit in the last place of 1.0. */
static double unit_roundoff(hd_dtype dtype)
{
    switch (dtype) {
    case HD_DTYPE_F64: return ldexp(1, -53);
    case HD_DTYPE_F32: return ldexp(1, -24);
    case HD_DTYPE_F16: return ldexp(1, -11);
    case HD_DTYPE_BF16: return ldexp(1, -8);
    case HD_DTYPE_F8_E4M3: return ldexp(1, -4);
    case HD_DTYPE_F8_E5M2: return ldexp(1, -3);
    default: return 0;
    }
}

/* Higham's gamma for the sum, one rounding for each product, one for storing. */
double hdt_tolerance(hd_dtype dtype, int64_t terms)
{
    const double stored = unit_roundoff(dtype);
    if (stored == 0) return 0;
    const double step = unit_roundoff(dtype == HD_DTYPE_F64 ? HD_DTYPE_F64 : HD_DTYPE_F32);
    const double sum = (double)terms * step;
    return sum / (1 - sum) + stored;
}

/* A few buffers in turn, so that two paths can be arguments of one call. */
static const char *join(const char *base, const char *folder, const char *name)
{
    static char paths[8][8192];
    static int turn;
    char *path = paths[turn++ % 8];
    const int length = snprintf(path, sizeof paths[0], "%s%s/%s", base, folder, name);
    if (length < 0 || (size_t)length >= sizeof paths[0]) abort();
    return path;
}

static const char *source_folder(void)
{
    const char *source = getenv("HEDDLE_SOURCE");
    return source && *source ? source : ".";
}

const char *hdt_source_path(const char *path)
{
    return join(source_folder(), "", path);
}

const char *hdt_golden_path(const char *name)
{
    return join(source_folder(), "/tests/golden", name);
}

typedef struct temp_dir {
    char path[4096];
    pid_t owner; /* who removes it: not a child that Check forked */
} temp_dir;

static temp_dir own_dir, shared_dir;

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

static void remove_temp_dirs(void)
{
    const temp_dir *dirs[] = {&own_dir, &shared_dir};
    for (int i = 0; i < 2; i++)
        if (dirs[i]->owner == getpid()) nftw(dirs[i]->path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void make_temp_dir(temp_dir *dir)
{
    static pid_t registered;
    const char *base = getenv("TMPDIR");
    snprintf(dir->path, sizeof dir->path, "%s/heddle-test-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(dir->path)) {
        perror(dir->path);
        abort();
    }
    dir->owner = getpid();
    if (registered != getpid()) atexit(remove_temp_dirs);
    registered = getpid();
}

const char *hdt_temp_dir(void)
{
    if (own_dir.owner != getpid()) make_temp_dir(&own_dir);
    return own_dir.path;
}

const char *hdt_temp_path(const char *name)
{
    return join(hdt_temp_dir(), "", name);
}

const char *hdt_shared_temp_dir(void)
{
    if (!*shared_dir.path && hd_comm_rank(hdt_world) == 0) make_temp_dir(&shared_dir);
    if (!hdt_world) return shared_dir.path;
    hd_request request;
    hdt_assert_ok(
        hd_comm_broadcast(hdt_world, shared_dir.path, sizeof shared_dir.path, 0, &request));
    hdt_assert_ok(hd_comm_wait(hdt_world, &request));
    return shared_dir.path;
}

/* splitmix64: the tests' numbers must not depend on the library's. */
static uint64_t scramble(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

void hdt_fill(float *data, int64_t count, uint64_t seed)
{
    for (int64_t i = 0; i < count; i++)
        data[i] = (float)(scramble(scramble(seed) + (uint64_t)i) >> 40) / 0x1p23f - 1;
}

void hdt_fill_whole(float *data, int64_t count, int range, uint64_t seed)
{
    const uint64_t values = 2 * (uint64_t)range + 1;
    for (int64_t i = 0; i < count; i++)
        data[i] = (float)((int)(scramble(scramble(seed) + (uint64_t)i) % values) - range);
}

hd_mesh_options hdt_deepest(const hd_comm *comm, int layers)
{
    const int ranks = hd_comm_size(comm);
    int pipeline = layers < ranks ? layers : ranks;
    while (ranks % pipeline != 0)
        pipeline--;
    return (hd_mesh_options){.data = ranks / pipeline, .pipeline = pipeline};
}
