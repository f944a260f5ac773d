/* Text folders: every text file below a folder, links resolved, each file once. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "io/token_source.h"

enum { PEEK_BYTES = 4096 };
static const int64_t folder_bytes_max = INT64_C(1) << 30; /* of text, all in memory */

typedef struct path_list {
    char **paths; /* owned, as is each */
    int count, capacity;
} path_list;

static void path_list_free(path_list *list)
{
    for (int i = 0; i < list->count; i++)
        hdi_free(list->paths[i]);
    hdi_free(list->paths);
}

static hd_status path_list_add(path_list *list, const char *path)
{
    char *copy = hdi_strdup(path);
    if (!copy || !HDI_GROW(list->paths, list->count, list->capacity)) {
        hdi_free(copy);
        return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    }
    list->paths[list->count++] = copy;
    return HD_OK;
}

static bool path_list_has(const path_list *list, const char *path)
{
    for (int i = 0; i < list->count; i++)
        if (strcmp(list->paths[i], path) == 0) return true;
    return false;
}

/* Note one entry of a folder under its resolved path, as a file or as a folder to be walked; links
 * may point back up, so a folder is walked once. */
static hd_status visit(hdi_token_source *source, const char *path, path_list *folders,
                       path_list *files)
{
    struct stat info;
    char resolved[PATH_MAX];
    if (!realpath(path, resolved) || stat(resolved, &info) != 0) {
        if (errno != ENOENT && errno != ELOOP)
            return hdi_error(HD_ERROR_IO, "%s: cannot resolve: %s", path, strerror(errno));
        source->skipped++;
        hdi_log(HD_LOG_INFO, "dataset: %s is skipped: it is a dead link", path);
        return HD_OK;
    }
    if (S_ISREG(info.st_mode)) return path_list_add(files, resolved);
    if (S_ISDIR(info.st_mode) && !path_list_has(folders, resolved))
        return path_list_add(folders, resolved);
    return HD_OK;
}

static hd_status walk(hdi_token_source *source, path_list *folders, path_list *files)
{
    for (int i = 0; i < folders->count; i++) { /* visit() appends folders while this goes on */
        hdi_name_list names = {0};
        hd_status status = hdi_directory_list(folders->paths[i], &names);
        for (int j = 0; j < names.count && status == HD_OK; j++) {
            char *path = hdi_path_join(folders->paths[i], names.names[j]);
            status = path ? visit(source, path, folders, files)
                          : hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
            hdi_free(path);
        }
        hdi_name_list_free(&names);
        HD_RETURN_IF_ERROR(status);
    }
    return HD_OK;
}

/* Text has no NUL. Looking at the first bytes alone spares reading a large binary file. */
static hd_status begins_like_text(const char *path, bool *out)
{
    int file;
    char block[PEEK_BYTES];
    HD_RETURN_IF_ERROR(hdi_file_open(path, O_RDONLY, &file));
    ssize_t length = pread(file, block, sizeof block, 0);
    int reason = errno;
    close(file);
    if (length < 0) return hdi_error(HD_ERROR_IO, "%s: cannot read: %s", path, strerror(reason));
    *out = memchr(block, '\0', (size_t)length) == NULL;
    return HD_OK;
}

static hd_status append_text(hdi_token_source *source, const char *folder, const char *path)
{
    bool is_text;
    char *data = NULL;
    size_t bytes = 0;
    HD_RETURN_IF_ERROR(begins_like_text(path, &is_text));
    if (is_text) {
        hd_status status =
            hdi_file_read_all(path, (size_t)(folder_bytes_max - source->tokens), &data, &bytes);
        if (status == HD_ERROR_FORMAT)
            return hdi_error(HD_ERROR_CONFIG,
                             "%s: more than %" PRId64 " bytes of text; give it as one file or as"
                             " .bin shards, which are not held in memory",
                             folder, folder_bytes_max);
        HD_RETURN_IF_ERROR(status);
        is_text = memchr(data, '\0', bytes) == NULL;
    }
    if (!is_text) {
        source->skipped++;
        hdi_log(HD_LOG_INFO, "dataset: %s is skipped: it is binary", path);
    }
    if (!is_text || bytes == 0) {
        hdi_free(data);
        return HD_OK;
    }
    char *name = hdi_strdup(path);
    if (!name) {
        hdi_free(data);
        return hdi_error(HD_ERROR_MEMORY, "dataset: out of host memory");
    }
    return hdi_token_source_append(
        source,
        &(hdi_token_segment){
            .path = name, .data = data, .file = -1, .token_bytes = 1, .count = (int64_t)bytes});
}

static int compare_paths(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

hd_status hdi_token_source_append_folder(hdi_token_source *source, const char *path)
{
    path_list folders = {0}, files = {0};
    hd_status status = visit(source, path, &folders, &files);
    if (status == HD_OK) status = walk(source, &folders, &files);
    if (files.count > 0)
        qsort(files.paths, (size_t)files.count, sizeof *files.paths, compare_paths);
    for (int i = 0; i < files.count && status == HD_OK; i++)
        if (i == 0 || strcmp(files.paths[i - 1], files.paths[i]) != 0)
            status = append_text(source, path, files.paths[i]);
    path_list_free(&folders);
    path_list_free(&files);
    if (status == HD_OK && source->tokens == 0)
        status = hdi_error(HD_ERROR_FORMAT,
                           "%s: no text below it (%d binary files skipped; .bin shards are given"
                           " as a pattern such as '%s/*.bin')",
                           path, source->skipped, path);
    return status;
}
