/* llm.c token shards: 256 int32 of header (magic, version, token count), then the tokens. */
#include <inttypes.h>

#include "core/error.h"
#include "core/file.h"
#include "io/token_source.h"

enum { HEADER_INTS = 256, HEADER_BYTES = HEADER_INTS * 4 };

static const struct {
    int32_t magic, version;
    int token_bytes;
} formats[] = {
    {20240520, 1, 2},
    {20240801, 7, 4},
};

hd_status hdi_token_segment_read_header(hdi_token_segment *segment, int64_t file_bytes)
{
    const char *path = segment->path;
    int32_t header[HEADER_INTS];
    if (file_bytes < HEADER_BYTES)
        return hdi_error(HD_ERROR_FORMAT, "%s: has %" PRId64 " bytes, wanted a header of %d", path,
                         file_bytes, HEADER_BYTES);
    HD_RETURN_IF_ERROR(hdi_file_read_at(segment->file, path, header, HEADER_BYTES, 0));

    segment->token_bytes = 0;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (header[0] != formats[i].magic) continue;
        if (header[1] != formats[i].version)
            return hdi_error(HD_ERROR_FORMAT,
                             "%s: version %" PRId32 " at byte 4, wanted %" PRId32
                             " behind magic %" PRId32,
                             path, header[1], formats[i].version, header[0]);
        segment->token_bytes = formats[i].token_bytes;
    }
    if (segment->token_bytes == 0)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: magic %" PRId32 " at byte 0, wanted %" PRId32 " (uint16 tokens) or"
                         " %" PRId32 " (uint32)",
                         path, header[0], formats[0].magic, formats[1].magic);

    const int32_t count = header[2];
    if (count <= 0)
        return hdi_error(HD_ERROR_FORMAT, "%s: %" PRId32 " tokens at byte 8, wanted at least 1",
                         path, count);
    const int64_t wanted = HEADER_BYTES + (int64_t)count * segment->token_bytes;
    if (file_bytes != wanted)
        return hdi_error(HD_ERROR_FORMAT,
                         "%s: has %" PRId64 " bytes, wanted %" PRId64 " for the %" PRId32
                         " tokens that its header promises",
                         path, file_bytes, wanted, count);
    segment->offset = HEADER_BYTES;
    segment->count = count;
    return HD_OK;
}
