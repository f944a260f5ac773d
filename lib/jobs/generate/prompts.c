/* Prompts: bytes of texts, or numbers. */
#include "jobs/generate/prompts.h"

#include "core/error.h"
#include "core/file.h"
#include "core/memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST_FILE = 1 << 26 };

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "prompts: out of host memory");
}

/* Add a prompt of `length` tokens; they are the caller's to fill. */
static hd_status add_prompt(hdi_prompts *list, int64_t length, int32_t **out)
{
    if (!HDI_GROW(list->prompts, list->count, list->capacity)) return out_of_memory();
    int32_t *tokens = hdi_alloc_array((size_t)length, sizeof *tokens);
    if (!tokens) return out_of_memory();
    list->prompts[list->count++] = (hd_prompt){.tokens = tokens, .length = length};
    if (length > list->longest) list->longest = length;
    *out = tokens;
    return HD_OK;
}

static hd_status add_text(hdi_prompts *list, const char *where, const char *text, size_t length,
                          int64_t vocab)
{
    if (vocab != HDI_BYTE_VOCAB)
        return hdi_error(HD_ERROR_CONFIG,
                         "%s: a text, but the model's vocabulary of %" PRId64
                         " tokens is not bytes (%d); give the tokens' numbers in generate.ids",
                         where, vocab, HDI_BYTE_VOCAB);
    if (length == 0)
        return hdi_error(HD_ERROR_CONFIG, "%s: prompt %d is empty, want at least one character",
                         where, list->count);
    int32_t *tokens = NULL;
    HD_RETURN_IF_ERROR(add_prompt(list, (int64_t)length, &tokens));
    for (size_t i = 0; i < length; i++)
        tokens[i] = (unsigned char)text[i];
    return HD_OK;
}

static hd_status add_lines(hdi_prompts *list, const char *path, int64_t vocab)
{
    char *data;
    size_t bytes;
    HD_RETURN_IF_ERROR(hdi_file_read_all(path, LARGEST_FILE, &data, &bytes));
    hd_status status = HD_OK;
    for (size_t at = 0; at < bytes && status == HD_OK;) {
        const char *end = memchr(data + at, '\n', bytes - at);
        const size_t next = end ? (size_t)(end - data) : bytes;
        size_t length = next - at;
        if (length && data[at + length - 1] == '\r') length--;
        if (length) status = add_text(list, path, data + at, length, vocab);
        at = next + 1;
    }
    hdi_free(data);
    return status;
}

static hd_status add_ids(hdi_prompts *list, const char *text)
{
    int64_t count = 1;
    for (const char *c = text; *c; c++)
        count += *c == ',';
    int32_t *tokens = NULL;
    HD_RETURN_IF_ERROR(add_prompt(list, count, &tokens));
    const char *at = text;
    for (int64_t i = 0; i < count; i++) {
        char *end;
        const long long value = strtoll(at, &end, 10);
        while (*end == ' ')
            end++;
        if (end == at || value < 0 || value > INT32_MAX || (*end && *end != ','))
            return hdi_error(HD_ERROR_CONFIG,
                             "generate.ids: entry %" PRId64 " of '%s' is no token, want numbers "
                             "from 0 on with commas between",
                             i, text);
        tokens[i] = (int32_t)value;
        at = *end ? end + 1 : end;
    }
    return HD_OK;
}

hd_status hdi_prompts_read(const hd_config *config, int64_t vocab, hdi_prompts *out)
{
    int count;
    const char *const *texts = hdi_config_string_list(config->values, "generate.prompts", &count);
    for (int i = 0; i < count; i++)
        HD_RETURN_IF_ERROR(add_text(out, "generate.prompts", texts[i], strlen(texts[i]), vocab));
    const char *file = hdi_config_string(config->values, "generate.prompt_file");
    if (*file) HD_RETURN_IF_ERROR(add_lines(out, file, vocab));
    const char *ids = hdi_config_string(config->values, "generate.ids");
    if (*ids) HD_RETURN_IF_ERROR(add_ids(out, ids));
    if (out->count) return HD_OK;
    return hdi_error(HD_ERROR_CONFIG, "generate: no prompt; give --prompt TEXT, generate.prompts, "
                                      "generate.prompt_file or generate.ids");
}

void hdi_prompts_free(hdi_prompts *prompts)
{
    for (int i = 0; i < prompts->count; i++)
        hdi_free((void *)(uintptr_t)prompts->prompts[i].tokens);
    hdi_free(prompts->prompts);
    *prompts = (hdi_prompts){0};
}

/* Bytes of the character at tokens[0], 0 if it is none that may be shown. */
static int character_bytes(const int32_t *tokens, int64_t left)
{
    const int32_t lead = tokens[0];
    if (lead == '\n' || lead == '\t' || (lead >= ' ' && lead < 0x7f)) return 1;
    const int bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || bytes > left) return 0;
    for (int i = 1; i < bytes; i++)
        if (tokens[i] < 0x80 || tokens[i] > 0xbf) return 0;
    const int32_t second = tokens[1];
    const bool is_control = lead == 0xc2 && second < 0xa0;
    const bool is_overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
    const bool is_surrogate = lead == 0xed && second > 0x9f;
    const bool is_beyond = lead == 0xf4 && second > 0x8f;
    return is_control || is_overlong || is_surrogate || is_beyond ? 0 : bytes;
}

void hdi_append_bytes(hdi_text *text, const int32_t *tokens, int64_t count)
{
    for (int64_t i = 0; i < count;) {
        const int bytes = character_bytes(tokens + i, count - i);
        if (!bytes) hdi_text_append(text, "\xef\xbf\xbd");
        for (int b = 0; b < bytes; b++) {
            const char byte = (char)(unsigned char)tokens[i + b];
            hdi_text_append_bytes(text, &byte, 1);
        }
        i += bytes ? bytes : 1;
    }
}

void hdi_append_ids(hdi_text *text, const int32_t *tokens, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        hdi_text_printf(text, "%s%" PRId32, i ? "," : "", tokens[i]);
}
