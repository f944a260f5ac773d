/* Names inside a folder of checkpoints: parse, list, remove, sweep. */
#include "io/checkpoint_folder.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"

static const char *const endings[] = {
    [HDI_STEP_NONE] = "",          [HDI_STEP_WHOLE] = "",       [HDI_STEP_OLD] = ".old",
    [HDI_STEP_TEMPORARY] = ".tmp", [HDI_STEP_REMOVED] = ".del",
};

hdi_step_name hdi_step_name_parse(const char *name)
{
    static const char prefix[] = "step-";
    const size_t skip = sizeof prefix - 1;
    hdi_step_name result = {-1, HDI_STEP_NONE};
    if (strncmp(name, prefix, skip) != 0) return result;
    const size_t digits = strspn(name + skip, "0123456789");
    /* 18 digits fit an int64_t; a leading zero would give one step two names. */
    if (digits == 0 || digits > 18 || (name[skip] == '0' && digits > 1)) return result;
    for (int kind = HDI_STEP_WHOLE; kind <= HDI_STEP_REMOVED; kind++)
        if (strcmp(name + skip + digits, endings[kind]) == 0)
            result = (hdi_step_name){strtoll(name + skip, NULL, 10), (hdi_step_kind)kind};
    return result;
}

hd_status hdi_step_path(const char *folder, hdi_step_name name, char out[HDI_PATH_BYTES])
{
    int length = snprintf(out, HDI_PATH_BYTES, "%s/step-%" PRId64 "%s", folder, name.step,
                          endings[name.kind]);
    if (length >= 0 && length < HDI_PATH_BYTES) return HD_OK;
    return hdi_error(HD_ERROR_IO, "%.200s...: path is too long, want fewer than %d bytes", folder,
                     HDI_PATH_BYTES);
}

static int compare_steps(const void *left, const void *right)
{
    const hdi_step_name *a = left, *b = right;
    if (a->step != b->step) return a->step > b->step ? -1 : 1;
    return (a->kind > b->kind) - (a->kind < b->kind);
}

hd_status hdi_step_list_read(const char *folder, hdi_step_list *out)
{
    *out = (hdi_step_list){0};
    hdi_name_list names;
    HD_RETURN_IF_ERROR(hdi_directory_list(folder, &names));
    hd_status status = HD_OK;
    for (int i = 0; i < names.count && status == HD_OK; i++) {
        const hdi_step_name name = hdi_step_name_parse(names.names[i]);
        if (name.kind == HDI_STEP_NONE) continue;
        if (HDI_GROW(out->steps, out->count, out->capacity))
            out->steps[out->count++] = name;
        else
            status = hdi_error(HD_ERROR_MEMORY, "%s: no memory to list it", folder);
    }
    hdi_name_list_free(&names);
    if (status != HD_OK) {
        hdi_free(out->steps);
        *out = (hdi_step_list){0};
        return status;
    }
    if (out->count > 0) qsort(out->steps, (size_t)out->count, sizeof *out->steps, compare_steps);
    return HD_OK;
}

hd_status hdi_step_remove(const char *folder, hdi_step_name name)
{
    char path[HDI_PATH_BYTES], removed[HDI_PATH_BYTES];
    const hdi_step_name target = {name.step, HDI_STEP_REMOVED};
    HD_RETURN_IF_ERROR(hdi_step_path(folder, name, path));
    HD_RETURN_IF_ERROR(hdi_step_path(folder, target, removed));
    if (name.kind != HDI_STEP_REMOVED && hdi_file_exists(path)) {
        HD_RETURN_IF_ERROR(hdi_remove_tree(removed));
        HD_RETURN_IF_ERROR(hdi_file_rename(path, removed));
        /* The name is durably gone before the first file is: no power cut leaves half a step-N. */
        HD_RETURN_IF_ERROR(hdi_directory_sync(folder));
    }
    return hdi_remove_tree(removed);
}

static hd_status settle_old(const char *folder, hdi_step_name old)
{
    char old_path[HDI_PATH_BYTES], path[HDI_PATH_BYTES];
    const hdi_step_name whole = {old.step, HDI_STEP_WHOLE};
    HD_RETURN_IF_ERROR(hdi_step_path(folder, old, old_path));
    HD_RETURN_IF_ERROR(hdi_step_path(folder, whole, path));
    hdi_checkpoint *checkpoint;
    if (hdi_checkpoint_open_step(path, NULL, &checkpoint) == HD_OK) {
        hdi_checkpoint_close(checkpoint);
        return hdi_step_remove(folder, old);
    }
    HD_RETURN_IF_ERROR(hdi_step_remove(folder, whole));
    HD_RETURN_IF_ERROR(hdi_file_rename(old_path, path));
    return hdi_directory_sync(folder);
}

hd_status hdi_step_sweep(const char *folder)
{
    hdi_step_list list;
    HD_RETURN_IF_ERROR(hdi_step_list_read(folder, &list));
    hd_status status = HD_OK;
    for (int i = 0; i < list.count && status == HD_OK; i++) {
        const hdi_step_name name = list.steps[i];
        if (name.kind == HDI_STEP_OLD)
            status = settle_old(folder, name);
        else if (name.kind == HDI_STEP_TEMPORARY) {
            char path[HDI_PATH_BYTES];
            status = hdi_step_path(folder, name, path);
            if (status == HD_OK) status = hdi_remove_tree(path);
        } else if (name.kind == HDI_STEP_REMOVED)
            status = hdi_step_remove(folder, name);
    }
    hdi_free(list.steps);
    return status;
}
