/* Text files of tests. */
#include "tests/support/hdt_files.h"

#include <stdio.h>
#include <string.h>

#include "core/file.h"

static char folder[4096];

void hdt_files_reset(void)
{
    snprintf(folder, sizeof folder, "%s", hdt_temp_path("files"));
    hdt_assert_ok(hdi_remove_tree(folder));
    hdt_assert_ok(hdi_directory_create(folder));
}

const char *hdt_file(const char *name)
{
    static char paths[8][4200];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

char *hdt_read_text(const char *path)
{
    char *data;
    size_t bytes;
    hdt_assert_ok(hdi_file_read_all(path, 1 << 26, &data, &bytes));
    ck_assert_uint_eq(strlen(data), bytes);
    return data;
}

void hdt_write_text(const char *path, const char *text)
{
    hdt_assert_ok(hdi_file_write_text(path, text));
}
