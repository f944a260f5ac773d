/* Token sources: which files a path means, and reading tokens across them. */
#include "io/token_source.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"

static void segment_close(hdi_token_segment *segment)
{
    if (!segment->data && segment->file >= 0) close(segment->file);
    hdi_free(segment->data);
    hdi_free(segment->path);
}

void hdi_token_source_close(hdi_token_source *source)
{
    for (int i = 0; i < source->count; i++)
        segment_close(&source->segments[i]);
    hdi_free(source->segments);
    *source = (hdi_token_source){0};
}

hd_status hdi_token_source_append(hdi_token_source *source, hdi_token_segment *segment)
{
    if (!HDI_GROW(source->segments, source->count, source->capacity)) {
        segment_close(segment);
        return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    }
    segment->first = source->tokens;
    source->segments[source->count++] = *segment;
    source->tokens += segment->count;
    return HD_OK;
}

static bool is_shard(const char *path)
{
    size_t length = strlen(path);
    return length > 4 && strcmp(path + length - 4, ".bin") == 0;
}

/* The facts of an open file: regular, and as a shard what its header says. */
static hd_status read_geometry(hdi_token_segment *segment)
{
    struct stat info;
    if (fstat(segment->file, &info) != 0)
        return hdi_error(HD_ERROR_IO, "%s: cannot stat: %s", segment->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return hdi_error(HD_ERROR_IO, "%s: wanted a regular file or a folder", segment->path);
    if (info.st_size == 0) return hdi_error(HD_ERROR_FORMAT, "%s: is empty", segment->path);
    if (is_shard(segment->path)) return hdi_token_segment_read_header(segment, info.st_size);
    segment->token_bytes = 1;
    segment->count = info.st_size;
    return HD_OK;
}

static hd_status append_file(hdi_token_source *source, const char *path)
{
    hdi_token_segment segment = {.path = hdi_strdup(path), .file = -1};
    if (!segment.path) return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    /* A pipe without a writer would block an open without O_NONBLOCK. */
    hd_status status = hdi_file_open(path, O_RDONLY | O_NONBLOCK, &segment.file);
    if (status == HD_OK) status = read_geometry(&segment);
    if (status == HD_OK && source->count > 0 &&
        (source->segments[0].token_bytes == 1) != (segment.token_bytes == 1))
        status = hdi_error(HD_ERROR_CONFIG, "%s: cannot mix text with .bin shards such as %s",
                           is_shard(path) ? source->segments[0].path : path,
                           is_shard(path) ? path : source->segments[0].path);
    if (status != HD_OK) {
        segment_close(&segment);
        return status;
    }
    return hdi_token_source_append(source, &segment);
}

static int compare_paths(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* Files that match the pattern, sorted by bytes: glob's own order depends on the locale. */
static hd_status append_pattern(hdi_token_source *source, const char *pattern)
{
    glob_t found;
    int result = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (result == GLOB_NOMATCH) return hdi_error(HD_ERROR_IO, "%s: matches no file", pattern);
    if (result != 0) return hdi_error(HD_ERROR_IO, "%s: cannot list: %s", pattern, strerror(errno));
    qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, compare_paths);
    hd_status status = HD_OK;
    for (size_t i = 0; i < found.gl_pathc && status == HD_OK; i++)
        status = append_file(source, found.gl_pathv[i]);
    globfree(&found);
    return status;
}

/* A file or a pattern; a name that exists is no pattern, whatever is in it. */
static hd_status append_files(hdi_token_source *source, const char *path)
{
    if (!hdi_file_exists(path) && strpbrk(path, "*?[")) return append_pattern(source, path);
    return append_file(source, path);
}

hd_status hdi_token_source_open(hdi_token_source *source, const char *path)
{
    if (path[0] == '\0') return hdi_error(HD_ERROR_CONFIG, "dataset: no path is given");
    if (hdi_is_directory(path)) return hdi_token_source_append_folder(source, path);
    if (hdi_file_exists(path) || !strchr(path, ',')) return append_files(source, path);

    char *list = hdi_strdup(path), *rest = list;
    if (!list) return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    hd_status status = HD_OK;
    while (rest && status == HD_OK)
        status = append_files(source, strsep(&rest, ","));
    hdi_free(list);
    return status;
}

/* The last segment that begins at or before the token. */
static int find_segment(const hdi_token_source *source, int64_t token)
{
    int low = 0, high = source->count;
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (source->segments[middle].first <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Turn `count` packed tokens at the start of `out` into int32, from the last to the first: a token
 * is written at or behind the bytes that are still to be read. Returns the first token that
 * reaches `vocab_size`, -1 if none does. */
static int64_t widen(int32_t *out, int64_t count, int token_bytes, int64_t vocab_size)
{
    const unsigned char *packed = (const unsigned char *)out;
    int64_t bad = -1;
    for (int64_t i = count - 1; i >= 0; i--) {
        uint32_t token = 0;
        memcpy(&token, packed + i * token_bytes, (size_t)token_bytes);
        if (token >= vocab_size) bad = i;
        out[i] = (int32_t)token;
    }
    return bad;
}

static hd_status read_segment(const hdi_token_segment *segment, int64_t first, int64_t count,
                              int64_t vocab_size, int32_t *out)
{
    const int64_t offset = segment->offset + first * segment->token_bytes;
    const size_t bytes = (size_t)(count * segment->token_bytes);
    if (segment->data) {
        memcpy(out, segment->data + offset, bytes);
    } else {
        hd_status status = hdi_file_read_at(segment->file, segment->path, out, bytes, offset);
        if (status != HD_OK)
            return hdi_error(status, "%s; it had %" PRId64 " bytes when it was opened",
                             hd_last_error(),
                             segment->offset + segment->count * segment->token_bytes);
    }
    int64_t bad = widen(out, count, segment->token_bytes, vocab_size);
    if (bad < 0) return HD_OK;
    return hdi_error(HD_ERROR_FORMAT,
                     "%s: token %" PRIu32 " at byte %" PRId64 ", wanted less than the vocabulary"
                     " of %" PRId64,
                     segment->path, (uint32_t)out[bad], offset + bad * segment->token_bytes,
                     vocab_size);
}

hd_status hdi_token_source_read(const hdi_token_source *source, int64_t first, int64_t count,
                                int32_t *out)
{
    for (int index = find_segment(source, first); count > 0; index++) {
        const hdi_token_segment *segment = &source->segments[index];
        int64_t within = first - segment->first;
        int64_t piece = segment->count - within < count ? segment->count - within : count;
        HD_RETURN_IF_ERROR(read_segment(segment, within, piece, source->vocab_size, out));
        first += piece;
        out += piece;
        count -= piece;
    }
    return HD_OK;
}
