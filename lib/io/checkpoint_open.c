/* Choosing a checkpoint: the newest that verifies, the same one on all ranks. */
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "io/checkpoint_folder.h"
#include "io/manifest.h"

/* The folder that holds step-N, or step-N itself (*out_single). */
static hd_status resolve(const char *path, char out[HDI_PATH_BYTES], bool *out_single)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    /* Room for what is appended here and by hdi_step_path. */
    if (length + 64 > HDI_PATH_BYTES)
        return hdi_error(HD_ERROR_IO, "%.200s...: path of %zu bytes is too long", path, length);
    memcpy(out, path, length);
    out[length] = '\0';

    const char *slash = strrchr(out, '/');
    memcpy(out + length, "/" HDI_MANIFEST_NAME, sizeof "/" HDI_MANIFEST_NAME);
    *out_single = hdi_file_exists(out);
    out[length] = '\0';
    if (hdi_step_name_parse(slash ? slash + 1 : out).kind == HDI_STEP_WHOLE) *out_single = true;
    if (*out_single) return HD_OK;
    memcpy(out + length, "/checkpoints", sizeof "/checkpoints");
    if (!hdi_is_directory(out)) out[length] = '\0';
    return HD_OK;
}

static bool is_candidate(hdi_step_name name)
{
    return name.kind == HDI_STEP_WHOLE || name.kind == HDI_STEP_OLD;
}

bool hdi_checkpoint_exists(const char *path)
{
    char folder[HDI_PATH_BYTES];
    bool single, found = false;
    if (resolve(path, folder, &single) != HD_OK) return false;
    if (single) return hdi_is_directory(folder);
    hdi_step_list list;
    if (!hdi_is_directory(folder) || hdi_step_list_read(folder, &list) != HD_OK) return false;
    for (int i = 0; i < list.count; i++)
        found = found || is_candidate(list.steps[i]);
    hdi_free(list.steps);
    return found;
}

/* Add "reason" to a list of reasons; a reason that finds no memory is left out. */
static void add_reason(char **reasons, const char *reason)
{
    char *longer = *reasons ? hdi_format("%s; passed over %s", *reasons, reason)
                            : hdi_format("passed over %s", reason);
    if (!longer) return;
    hdi_free(*reasons);
    *reasons = longer;
}

static hd_status open_newest(const char *folder, const hdi_checkpoint_options *options,
                             char **out_warning, hdi_checkpoint **out)
{
    hdi_step_list list;
    HD_RETURN_IF_ERROR(hdi_step_list_read(folder, &list));
    hd_status status = HD_OK, first_failure = HD_OK;
    char *reasons = NULL;
    for (int i = 0; i < list.count && !*out; i++) {
        if (!is_candidate(list.steps[i])) continue;
        char path[HDI_PATH_BYTES];
        status = hdi_step_path(folder, list.steps[i], path);
        if (status == HD_OK) status = hdi_checkpoint_open_step(path, options, out);
        if (status == HD_ERROR_MEMORY) break; /* the checkpoint may be sound */
        if (status == HD_OK) break;
        if (first_failure == HD_OK) first_failure = status;
        add_reason(&reasons, hd_last_error());
    }
    hdi_free(list.steps);
    if (*out) {
        *out_warning = reasons;
        return HD_OK;
    }
    if (status != HD_ERROR_MEMORY)
        status = first_failure == HD_OK
                     ? hdi_error(HD_ERROR_IO, "%s: has no checkpoint, no folder step-N", folder)
                     : hdi_error(first_failure, "%s: no checkpoint verifies: %s", folder,
                                 reasons ? reasons : "");
    hdi_free(reasons);
    return status;
}

hd_status hdi_checkpoint_open(const char *path, const hdi_checkpoint_options *options,
                              char **out_warning, hdi_checkpoint **out)
{
    *out = NULL;
    *out_warning = NULL;
    char folder[HDI_PATH_BYTES];
    bool single;
    HD_RETURN_IF_ERROR(resolve(path, folder, &single));
    if (single) return hdi_checkpoint_open_step(folder, options, out);
    return open_newest(folder, options, out_warning, out);
}

hd_status hdi_checkpoint_open_all(hd_comm *comm, const char *path,
                                  const hdi_checkpoint_options *options, char **out_warning,
                                  hdi_checkpoint **out)
{
    *out = NULL;
    *out_warning = NULL;
    if (!comm) return hdi_checkpoint_open(path, options, out_warning, out);

    const bool chooses = hd_comm_rank(comm) == 0;
    char folder[HDI_PATH_BYTES] = {0};
    hd_status status = HD_OK;
    if (chooses) status = hdi_checkpoint_open(path, options, out_warning, out);
    if (*out) memcpy(folder, hdi_checkpoint_folder(*out), strlen(hdi_checkpoint_folder(*out)) + 1);
    status = hd_comm_agree(comm, status);
    if (status == HD_OK) {
        hd_request request;
        status = hd_comm_broadcast(comm, folder, sizeof folder, 0, &request);
        if (status == HD_OK) status = hd_comm_wait(comm, &request);
        if (status == HD_OK && !chooses) status = hdi_checkpoint_open_step(folder, NULL, out);
        status = hd_comm_agree(comm, status);
    }
    if (status == HD_OK) return HD_OK;
    hdi_checkpoint_close(*out);
    hdi_free(*out_warning);
    *out = NULL;
    *out_warning = NULL;
    return status;
}
