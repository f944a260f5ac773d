/* POSIX file helpers: every loop here exists because a call may do less than it was asked. */
#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"

/* Linux moves at most 2 GiB - 4 KiB in one call; smaller pieces also keep interruptions cheap. */
enum { TRANSFER_BYTES = 1 << 30, TREE_DEPTH = 32 };

static hd_status system_error(const char *path, const char *what)
{
    return hdi_error(HD_ERROR_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

hd_status hdi_file_open(const char *path, int flags, int *out)
{
    int descriptor;
    do
        descriptor = open(path, flags | O_CLOEXEC, 0666);
    while (descriptor < 0 && errno == EINTR);
    *out = descriptor;
    if (descriptor < 0) return system_error(path, flags & O_CREAT ? "create" : "open");
    return HD_OK;
}

hd_status hdi_file_close(int descriptor, const char *path)
{
    /* Linux has released the descriptor even when close was interrupted: never try again. */
    if (close(descriptor) != 0 && errno != EINTR) return system_error(path, "close");
    return HD_OK;
}

hd_status hdi_file_read_at(int descriptor, const char *path, void *out, size_t bytes,
                           int64_t offset)
{
    char *cursor = out;
    while (bytes > 0) {
        size_t piece = bytes < TRANSFER_BYTES ? bytes : TRANSFER_BYTES;
        ssize_t got = pread(descriptor, cursor, piece, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return system_error(path, "read");
        if (got == 0)
            return hdi_error(HD_ERROR_IO, "%s: ends at byte %" PRId64 ", want %zu bytes more", path,
                             offset, bytes);
        cursor += got;
        offset += got;
        bytes -= (size_t)got;
    }
    return HD_OK;
}

/* One write of at most TRANSFER_BYTES, at `offset` or, if that is negative, at the file position. */
static hd_status write_some(int descriptor, const char *path, const void *data, size_t bytes,
                            int64_t offset, size_t *out_done)
{
    size_t piece = bytes < TRANSFER_BYTES ? bytes : TRANSFER_BYTES;
    ssize_t put;
    do
        put = offset < 0 ? write(descriptor, data, piece)
                         : pwrite(descriptor, data, piece, (off_t)offset);
    while (put < 0 && errno == EINTR);
    if (put < 0) return system_error(path, "write");
    if (put == 0)
        return hdi_error(HD_ERROR_IO, "%s: cannot write: the system took 0 of %zu bytes", path,
                         piece);
    *out_done = (size_t)put;
    return HD_OK;
}

hd_status hdi_file_write_at(int descriptor, const char *path, const void *data, size_t bytes,
                            int64_t offset)
{
    const char *cursor = data;
    for (size_t done = 0; bytes > 0; cursor += done, offset += (int64_t)done, bytes -= done)
        HD_RETURN_IF_ERROR(write_some(descriptor, path, cursor, bytes, offset, &done));
    return HD_OK;
}

hd_status hdi_file_write(int descriptor, const char *path, const void *data, size_t bytes)
{
    const char *cursor = data;
    for (size_t done = 0; bytes > 0; cursor += done, bytes -= done)
        HD_RETURN_IF_ERROR(write_some(descriptor, path, cursor, bytes, -1, &done));
    return HD_OK;
}

hd_status hdi_file_sync(int descriptor, const char *path)
{
    int result;
    do
        result = fsync(descriptor);
    while (result != 0 && errno == EINTR);
    return result == 0 ? HD_OK : system_error(path, "sync");
}

hd_status hdi_file_read_all(const char *path, size_t max_bytes, char **out_data, size_t *out_bytes)
{
    *out_data = NULL;
    *out_bytes = 0;
    int descriptor;
    HD_RETURN_IF_ERROR(hdi_file_open(path, O_RDONLY | O_NONBLOCK, &descriptor));

    struct stat info;
    hd_status status = HD_OK;
    char *data = NULL;
    if (fstat(descriptor, &info) != 0)
        status = system_error(path, "stat");
    else if (!S_ISREG(info.st_mode))
        status = hdi_error(HD_ERROR_IO, "%s: is not a regular file", path);
    else if ((uint64_t)info.st_size > max_bytes)
        status = hdi_error(HD_ERROR_FORMAT, "%s: has %lld bytes, want at most %zu", path,
                           (long long)info.st_size, max_bytes);
    else if (!(data = hdi_alloc((size_t)info.st_size + 1)))
        status = hdi_error(HD_ERROR_MEMORY, "%s: no memory for %lld bytes", path,
                           (long long)info.st_size);
    else
        status = hdi_file_read_at(descriptor, path, data, (size_t)info.st_size, 0);
    close(descriptor);
    if (status != HD_OK) {
        hdi_free(data);
        return status;
    }
    *out_data = data;
    *out_bytes = (size_t)info.st_size;
    return HD_OK;
}

/* The folder part of a path, "." if it has none. */
static hd_status parent_of(const char *path, char out[HDI_PATH_BYTES])
{
    size_t length = strlen(path);
    if (length >= HDI_PATH_BYTES)
        return hdi_error(HD_ERROR_IO, "%.200s...: path of %zu bytes, want fewer than %d", path,
                         length, HDI_PATH_BYTES);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    memcpy(out, path, length);
    out[length] = '\0';
    if (length == 0) memcpy(out, ".", 2);
    return HD_OK;
}

hd_status hdi_file_write_text(const char *path, const char *text)
{
    char parent[HDI_PATH_BYTES], temporary[HDI_PATH_BYTES + 8];
    HD_RETURN_IF_ERROR(parent_of(path, parent));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);

    int descriptor;
    HD_RETURN_IF_ERROR(hdi_file_open(temporary, O_WRONLY | O_CREAT | O_TRUNC, &descriptor));
    hd_status status = hdi_file_write(descriptor, temporary, text, strlen(text));
    if (status == HD_OK) status = hdi_file_sync(descriptor, temporary);
    if (status == HD_OK)
        status = hdi_file_close(descriptor, temporary);
    else
        close(descriptor);
    if (status == HD_OK) status = hdi_file_rename(temporary, path);
    if (status != HD_OK) {
        unlink(temporary);
        return status;
    }
    return hdi_directory_sync(parent);
}

hd_status hdi_file_rename(const char *from, const char *to)
{
    if (rename(from, to) == 0) return HD_OK;
    return hdi_error(HD_ERROR_IO, "%s: cannot rename to %s: %s", from, to, strerror(errno));
}

bool hdi_file_exists(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0;
}

bool hdi_is_directory(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

hd_status hdi_directory_create(const char *path)
{
    char partial[HDI_PATH_BYTES], parent[HDI_PATH_BYTES];
    HD_RETURN_IF_ERROR(parent_of(path, parent)); /* checks the length */
    size_t length = strlen(path);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(partial, path, i);
        partial[i] = '\0';
        if (hdi_is_directory(partial)) continue;
        if (mkdir(partial, 0777) == 0) {
            HD_RETURN_IF_ERROR(parent_of(partial, parent));
            HD_RETURN_IF_ERROR(hdi_directory_sync(parent));
        } else if (errno != EEXIST || !hdi_is_directory(partial)) { /* another rank may be first */
            return system_error(partial, "create the folder");
        }
    }
    return HD_OK;
}

hd_status hdi_directory_sync(const char *path)
{
    int descriptor;
    HD_RETURN_IF_ERROR(hdi_file_open(path, O_RDONLY | O_DIRECTORY, &descriptor));
    hd_status status = hdi_file_sync(descriptor, path);
    /* Some file systems refuse to sync folders and need no such call. */
    if (status != HD_OK && errno == EINVAL) status = HD_OK;
    close(descriptor);
    return status;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

hd_status hdi_directory_list(const char *path, hdi_name_list *out)
{
    *out = (hdi_name_list){0};
    DIR *folder = opendir(path);
    if (!folder) return system_error(path, "list the folder");

    hd_status status = HD_OK;
    struct dirent *entry;
    while (status == HD_OK && (errno = 0, entry = readdir(folder)) != NULL) {
        if (is_dots(entry->d_name)) continue;
        char *name = hdi_strdup(entry->d_name);
        if (name && HDI_GROW(out->names, out->count, out->capacity)) {
            out->names[out->count++] = name;
        } else {
            hdi_free(name);
            status = hdi_error(HD_ERROR_MEMORY, "%s: no memory to list the folder", path);
        }
    }
    if (status == HD_OK && errno != 0) status = system_error(path, "list the folder");
    closedir(folder);
    if (status != HD_OK) {
        hdi_name_list_free(out);
        return status;
    }
    if (out->count > 0) qsort(out->names, (size_t)out->count, sizeof *out->names, compare_names);
    return HD_OK;
}

void hdi_name_list_free(hdi_name_list *list)
{
    for (int i = 0; i < list->count; i++)
        hdi_free(list->names[i]);
    hdi_free(list->names);
    *list = (hdi_name_list){0};
}

/* Remove `name` inside the open folder `parent`. `path` names the whole tree in messages. */
static hd_status remove_at(int parent, const char *name, const char *path, int depth)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) return HD_OK;
    if (errno != EISDIR && errno != EPERM) return system_error(path, "remove");

    if (depth == 0)
        return hdi_error(HD_ERROR_IO, "%s: cannot remove: deeper than %d folders", path,
                         TREE_DEPTH);
    int descriptor = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0) return system_error(path, "remove");
    DIR *folder = fdopendir(descriptor);
    if (!folder) {
        close(descriptor);
        return system_error(path, "remove");
    }
    hd_status status = HD_OK;
    struct dirent *entry;
    while (status == HD_OK && (entry = readdir(folder)) != NULL)
        if (!is_dots(entry->d_name)) status = remove_at(descriptor, entry->d_name, path, depth - 1);
    closedir(folder);
    if (status == HD_OK && unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        status = system_error(path, "remove");
    return status;
}

hd_status hdi_remove_tree(const char *path)
{
    return remove_at(AT_FDCWD, path, path, TREE_DEPTH);
}

hd_status hdi_free_space(const char *path, int64_t *out_bytes)
{
    struct statvfs info;
    int result;
    do
        result = statvfs(path, &info);
    while (result != 0 && errno == EINTR);
    if (result != 0) return system_error(path, "ask for the free space");
    int64_t bytes;
    bool too_many = __builtin_mul_overflow(info.f_bavail, info.f_frsize, &bytes);
    /* A file system that counts no blocks cannot tell. */
    *out_bytes = too_many || info.f_blocks == 0 ? INT64_MAX : bytes;
    return HD_OK;
}

char *hdi_path_join(const char *folder, const char *name)
{
    size_t length = strlen(folder);
    if (length == 0) return hdi_strdup(name);
    return hdi_format(folder[length - 1] == '/' ? "%s%s" : "%s/%s", folder, name);
}
