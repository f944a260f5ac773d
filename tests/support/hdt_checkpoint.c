/* Checkpoints to save, damage and compare. */
#include "tests/support/hdt_checkpoint.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/memory.h"

float hdt_weights[HDT_ELEMENTS];
uint8_t hdt_flags[HDT_BYTES];

void hdt_checkpoint_fill(int64_t step)
{
    for (int i = 0; i < HDT_ELEMENTS; i++)
        hdt_weights[i] = (float)(step * 10000 + i);
    for (int i = 0; i < HDT_BYTES; i++)
        hdt_flags[i] = (uint8_t)(step + i);
}

/* Both tensors in pieces, neither in order. */
static const hdi_checkpoint_piece pieces[] = {
    {.name = "weights/a",
     .dtype = HD_DTYPE_F32,
     .global_elements = HDT_ELEMENTS,
     .begin = 2000,
     .count = 1000,
     .data = hdt_weights + 2000},
    {.name = "flags",
     .dtype = HD_DTYPE_U8,
     .global_elements = HDT_BYTES,
     .begin = 0,
     .count = 699,
     .data = hdt_flags},
    {.name = "weights/a",
     .dtype = HD_DTYPE_F32,
     .global_elements = HDT_ELEMENTS,
     .begin = 0,
     .count = 1,
     .data = hdt_weights},
    {.name = "weights/a",
     .dtype = HD_DTYPE_F32,
     .global_elements = HDT_ELEMENTS,
     .begin = 1,
     .count = 1999,
     .data = hdt_weights + 1},
    {.name = "weights/a",
     .dtype = HD_DTYPE_F32,
     .global_elements = HDT_ELEMENTS,
     .begin = 5,
     .count = 0,
     .data = hdt_weights},
    {.name = "flags",
     .dtype = HD_DTYPE_U8,
     .global_elements = HDT_BYTES,
     .begin = 699,
     .count = 1,
     .data = hdt_flags + 699},
    {.name = "empty",
     .dtype = HD_DTYPE_F32,
     .global_elements = 0,
     .begin = 0,
     .count = 0,
     .data = hdt_weights},
};
enum { PIECES = sizeof pieces / sizeof pieces[0] };

const char *hdt_checkpoint_folder(void)
{
    static char folder[HDI_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", hdt_temp_path("checkpoints"));
    hdt_assert_ok(hdi_remove_tree(folder));
    return folder;
}

const char *hdt_inside(const char *folder, const char *name)
{
    static char path[HDI_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

hdi_checkpoint_writer *hdt_checkpoint_writer(const char *folder, int keep)
{
    hdi_checkpoint_writer *writer;
    hdt_assert_ok(hdi_checkpoint_writer_create(NULL, folder, keep, pieces, PIECES, &writer));
    return writer;
}

hd_status hdt_checkpoint_save(hdi_checkpoint_writer *writer, int64_t step)
{
    char state[64];
    snprintf(state, sizeof state, "{\"step\":%" PRId64 ",\"rate\":0.10000000000000001}", step);
    hdt_checkpoint_fill(step);
    return hdi_checkpoint_save(writer, step, state);
}

void hdt_assert_newest(const char *folder, int64_t step, bool verify_all, const char *warning)
{
    hdi_checkpoint *checkpoint;
    char *text;
    hdt_assert_ok(hdi_checkpoint_open(folder, &(hdi_checkpoint_options){.verify_all = verify_all},
                                      &text, &checkpoint));
    if (warning)
        ck_assert_msg(text && strstr(text, warning), "warning is '%s', want '%s' in it",
                      text ? text : "", warning);
    else
        ck_assert_msg(!text, "%s", text);
    hdi_free(text);
    ck_assert_int_eq(hdi_checkpoint_step(checkpoint), step);
    char state[64];
    snprintf(state, sizeof state, "{\"step\":%" PRId64 ",\"rate\":0.10000000000000001}", step);
    ck_assert_str_eq(hdi_checkpoint_state(checkpoint), state);
    float got[HDT_ELEMENTS];
    uint8_t got_flags[HDT_BYTES];
    hdt_assert_ok(hdi_checkpoint_read(checkpoint, "weights/a", 0, HDT_ELEMENTS, HD_DTYPE_F32, got));
    hdt_assert_ok(hdi_checkpoint_read(checkpoint, "flags", 0, HDT_BYTES, HD_DTYPE_U8, got_flags));
    hdt_checkpoint_fill(step);
    ck_assert_mem_eq(got, hdt_weights, sizeof got);
    ck_assert_mem_eq(got_flags, hdt_flags, sizeof got_flags);
    hdi_checkpoint_close(checkpoint);
}

bool hdt_is_inside(const char *folder, const char *name)
{
    return hdi_file_exists(hdt_inside(folder, name));
}
