/* Files and folders by POSIX calls: whole transfers, durable writes. Failures are HD_ERROR_IO (or
 * HD_ERROR_MEMORY) with a text that names the path and the system's reason. All calls are Local. */
#ifndef HDI_CORE_FILE_H
#define HDI_CORE_FILE_H

#include <heddle/status.h>

/* Paths are at most this long, the closing NUL included. */
enum { HDI_PATH_BYTES = 4096 };

/* open(2) with O_CLOEXEC; `flags` are O_RDONLY, O_WRONLY | O_CREAT | O_TRUNC and so on. */
hd_status hdi_file_open(const char *path, int flags, int *out);

/* Close and report what close reports: some file systems say only there that a write was lost. */
hd_status hdi_file_close(int descriptor, const char *path);

/* Transfer exactly `bytes`, through interruptions and short transfers. Reading past the end fails.
 * `path` is for the message. */
hd_status hdi_file_read_at(int descriptor, const char *path, void *out, size_t bytes,
                           int64_t offset);
hd_status hdi_file_write_at(int descriptor, const char *path, const void *data, size_t bytes,
                            int64_t offset);
hd_status hdi_file_write(int descriptor, const char *path, const void *data, size_t bytes);
hd_status hdi_file_sync(int descriptor, const char *path);

/* The whole file, with a NUL after it that is not counted; more than `max_bytes` is
 * HD_ERROR_FORMAT. The caller frees *out_data by hdi_free. */
hd_status hdi_file_read_all(const char *path, size_t max_bytes, char **out_data, size_t *out_bytes);

/* Replace the file's content at once: a reader or a power cut sees the old text or the new one. */
hd_status hdi_file_write_text(const char *path, const char *text);

hd_status hdi_file_rename(const char *from, const char *to);
bool hdi_file_exists(const char *path); /* of any kind, a dangling link included */
bool hdi_is_directory(const char *path);

/* Make the folder and its missing parents; one that is there already is fine. */
hd_status hdi_directory_create(const char *path);

/* Make renames and new names inside the folder durable. */
hd_status hdi_directory_sync(const char *path);

typedef struct hdi_name_list {
    char **names;
    int count, capacity;
} hdi_name_list;

/* Names inside the folder, without "." and "..", sorted by bytes. Free by hdi_name_list_free. */
hd_status hdi_directory_list(const char *path, hdi_name_list *out);
void hdi_name_list_free(hdi_name_list *list);

/* Remove a file or a folder with all that is in it; links are removed, not followed. What is not
 * there is fine. Allocates no memory of ours. */
hd_status hdi_remove_tree(const char *path);

/* Bytes that an ordinary user can still write to the file system that holds `path`. */
hd_status hdi_free_space(const char *path, int64_t *out_bytes);

/* "folder/name", one slash between; hdi_free it. NULL when memory is out. */
char *hdi_path_join(const char *folder, const char *name);

#endif
