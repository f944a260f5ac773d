/* Finding cuDNN. Its libraries take half a gigabyte on disk, so heddle works without. */
#include "backend/cuda/cudnn_library.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"

typedef struct symbol {
    const char *name;
    void *function; /* where its address goes */
} symbol;

static hd_status find_symbols(void *library, const char *path, const symbol *symbols, int count)
{
    for (int i = 0; i < count; i++) {
        void *found = dlsym(library, symbols[i].name);
        if (!found)
            return hdi_error(HD_ERROR_UNSUPPORTED, "cuDNN: %s has no %s", path, symbols[i].name);
        memcpy(symbols[i].function, &found, sizeof found);
    }
    return HD_OK;
}

static hd_status load(hdi_cudnn *out)
{
    const char *path = getenv("HEDDLE_CUDNN");
    if (!path || !*path) path = "libcudnn.so.9";
    if (strcmp(path, "none") == 0)
        return hdi_error(HD_ERROR_UNSUPPORTED, "cuDNN: switched off by HEDDLE_CUDNN=none");
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return hdi_error(HD_ERROR_UNSUPPORTED, "cuDNN: %s", dlerror());
    size_t (*version)(void) = NULL;
    const symbol symbols[] = {
        {"cudnnGetVersion", &version},
        {"cudnnCreate", &out->create},
        {"cudnnDestroy", &out->destroy},
        {"cudnnSetStream", &out->set_stream},
        {"cudnnGetErrorString", &out->status_string},
        {"cudnnGetLastErrorString", &out->last_error},
        {"cudnnBackendCreateDescriptor", &out->create_descriptor},
        {"cudnnBackendDestroyDescriptor", &out->destroy_descriptor},
        {"cudnnBackendFinalize", &out->finalize},
        {"cudnnBackendSetAttribute", &out->set},
        {"cudnnBackendGetAttribute", &out->get},
        {"cudnnBackendExecute", &out->execute},
    };
    HD_RETURN_IF_ERROR(
        find_symbols(library, path, symbols, (int)(sizeof symbols / sizeof *symbols)));
    out->version = version();
    if (out->version < HDI_CUDNN_OLDEST || out->version >= 100000)
        return hdi_error(HD_ERROR_UNSUPPORTED, "cuDNN: version is %zu, want %d or later of cuDNN 9",
                         out->version, HDI_CUDNN_OLDEST);
    if (out->version < HDI_CUDNN_WANTED)
        hdi_log(HD_LOG_WARN, "cuDNN %zu is slow or wrong for some shapes; %d or later is better",
                out->version, HDI_CUDNN_WANTED);
    return HD_OK;
}

hd_status hdi_cudnn_load(const hdi_cudnn **out)
{
    static hdi_cudnn library;
    static char why[512];
    static int known; /* 1: loaded, -1: not there */
    if (known == 0) {
        known = load(&library) == HD_OK ? 1 : -1;
        if (known < 0) strncpy(why, hd_last_error(), sizeof why - 1);
    }
    *out = known > 0 ? &library : NULL;
    return known > 0 ? HD_OK : hdi_error(HD_ERROR_UNSUPPORTED, "%s", why);
}
