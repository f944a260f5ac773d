/* The GEMM cache file: text, a line per shape, a checksum at the end; replaced at once. */
#include "backend/cuda/gemm_cache.h"

#include <ctype.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "core/text.h"

#define HEADER "heddle gemm algorithms 2\n"

enum { LARGEST_FILE = 16 << 20 };

void hdi_gemm_cache_open(hdi_gemm_cache *cache, const char *device, size_t version)
{
    char name[128], folder[2048];
    memset(cache, 0, sizeof *cache);
    cache->lock = -1;
    const char *own = getenv("HEDDLE_CACHE"), *home = getenv("HOME");
    if (own && *own)
        snprintf(folder, sizeof folder, "%s", own);
    else if (home && *home)
        snprintf(folder, sizeof folder, "%s/.cache/heddle", home);
    else
        return;
    snprintf(name, sizeof name, "%s", device);
    for (char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c)) *c = '-';
    if (hdi_directory_create(folder) != HD_OK) {
        hdi_log(HD_LOG_WARN, "GEMM algorithms are timed at each start: %s", hd_last_error());
        return;
    }
    snprintf(cache->path, sizeof cache->path, "%s/gemm-%s-%zu.txt", folder, name, version);
}

void hdi_gemm_cache_close(hdi_gemm_cache *cache)
{
    hdi_gemm_cache_unlock(cache);
    hdi_free(cache->records);
    cache->records = NULL;
    cache->count = cache->capacity = 0;
}

static hd_status append(hdi_gemm_cache *cache, const hdi_gemm_record *record)
{
    if (!HDI_GROW(cache->records, cache->count, cache->capacity))
        return hdi_error(HD_ERROR_MEMORY, "gemm: out of host memory for %d algorithms",
                         cache->count + 1);
    cache->records[cache->count++] = *record;
    return HD_OK;
}

/* The numbers of a line; NULL if it has fewer or one is malformed, else the line's end. */
static const char *parse_record(const char *line, hdi_gemm_record *out)
{
    char *end;
    for (int i = 0; i < HDI_GEMM_KEY_WORDS; i++, line = end) {
        out->key[i] = strtoll(line, &end, 10);
        if (end == line || *end != ' ') return NULL;
    }
    for (int i = 0; i < HDI_GEMM_ALGORITHM_WORDS; i++, line = end) {
        out->algorithm[i] = strtoull(line, &end, 16);
        if (end == line) return NULL;
    }
    return *line == '\n' ? line + 1 : NULL;
}

/* False if the text is not what save wrote. */
static bool parse(hdi_gemm_cache *cache, const char *text, size_t length)
{
    const char *sum = NULL;
    if (strlen(text) != length || strncmp(text, HEADER, strlen(HEADER)) != 0) return false;
    for (const char *at = text; (at = strstr(at, "\nsum ")) != NULL; at++)
        sum = at + 1;
    if (!sum || strtoull(sum + 4, NULL, 16) != XXH3_64bits(text, (size_t)(sum - text)))
        return false;
    hdi_gemm_record record;
    for (const char *line = text + strlen(HEADER); line != sum;) {
        line = parse_record(line, &record);
        if (!line || line > sum || append(cache, &record) != HD_OK) return false;
    }
    return true;
}

void hdi_gemm_cache_load(hdi_gemm_cache *cache)
{
    char *text = NULL;
    size_t length = 0;
    cache->count = 0;
    if (!*cache->path || !hdi_file_exists(cache->path)) return;
    if (hdi_file_read_all(cache->path, LARGEST_FILE, &text, &length) != HD_OK) {
        hdi_log(HD_LOG_WARN, "GEMM algorithms are timed again: %s", hd_last_error());
    } else if (!parse(cache, text, length)) {
        hdi_log(HD_LOG_WARN, "GEMM algorithms are timed again: %s is damaged", cache->path);
        cache->count = 0;
    }
    hdi_free(text);
}

const hdi_gemm_record *hdi_gemm_cache_find(const hdi_gemm_cache *cache, const int64_t *key)
{
    for (int i = 0; i < cache->count; i++)
        if (memcmp(cache->records[i].key, key, sizeof cache->records[i].key) == 0)
            return &cache->records[i];
    return NULL;
}

static hd_status save(const hdi_gemm_cache *cache)
{
    hdi_text text = {0};
    hdi_text_append(&text, HEADER);
    for (int i = 0; i < cache->count; i++) {
        for (int w = 0; w < HDI_GEMM_KEY_WORDS; w++)
            hdi_text_printf(&text, "%" PRId64 " ", cache->records[i].key[w]);
        for (int w = 0; w < HDI_GEMM_ALGORITHM_WORDS; w++)
            hdi_text_printf(&text, "%s%" PRIx64, w ? " " : "", cache->records[i].algorithm[w]);
        hdi_text_append(&text, "\n");
    }
    if (text.data)
        hdi_text_printf(&text, "sum %" PRIx64 "\n", (uint64_t)XXH3_64bits(text.data, text.length));
    char *taken = hdi_text_take(&text);
    if (!taken) return hdi_error(HD_ERROR_MEMORY, "gemm: out of host memory for the cache file");
    const hd_status status = hdi_file_write_text(cache->path, taken);
    hdi_free(taken);
    return status;
}

hd_status hdi_gemm_cache_add(hdi_gemm_cache *cache, const hdi_gemm_record *record)
{
    HD_RETURN_IF_ERROR(append(cache, record));
    if (*cache->path && save(cache) != HD_OK && !cache->warned) {
        hdi_log(HD_LOG_WARN, "GEMM algorithms cannot be kept: %s", hd_last_error());
        cache->warned = true;
    }
    return HD_OK;
}

void hdi_gemm_cache_lock(hdi_gemm_cache *cache)
{
    char path[sizeof cache->path + 8];
    if (!*cache->path || cache->lock >= 0) return;
    snprintf(path, sizeof path, "%s.lock", cache->path);
    cache->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (cache->lock >= 0) (void)flock(cache->lock, LOCK_EX); /* without it: only slower */
}

void hdi_gemm_cache_unlock(hdi_gemm_cache *cache)
{
    if (cache->lock >= 0) (void)close(cache->lock);
    cache->lock = -1;
}
