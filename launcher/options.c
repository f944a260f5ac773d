/* From words to a request: overrides of the configuration are taken out, argp reads the rest. */
#include "command.h"

#include "report.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --section.key=value, as given. */
typedef struct override {
    char *key; /* owned */
    const char *value;
} override;

typedef struct split_words {
    char **rest; /* for argp; owned */
    int rest_count;
    override *overrides; /* owned */
    int override_count;
} split_words;

static const struct argp_option *find_option(const struct argp_option *options, const char *name,
                                             size_t length)
{
    for (; options->name; options++)
        if (strlen(options->name) == length && strncmp(options->name, name, length) == 0)
            return options;
    return NULL;
}

/* The command's option of that name, or argp's own. */
static const struct argp_option *own_option(const command_row *command, const char *name,
                                            size_t length)
{
    static const struct argp_option of_argp[] = {
        {.name = "help"}, {.name = "usage"}, {.name = "version"}, {0}};
    const struct argp_option *found = find_option(of_argp, name, length);
    if (!found) found = find_option(common_options, name, length);
    if (!found && command->sections) found = find_option(config_options, name, length);
    return found ? found : find_option(command->options, name, length);
}

bool in_sections(const char *key, const char *sections)
{
    const size_t length = strcspn(key, ".");
    for (const char *at = sections; at; at = strchr(at, ' ')) {
        at += *at == ' ';
        if (strncmp(at, key, length) == 0 && (at[length] == ' ' || at[length] == '\0')) return true;
    }
    return false;
}

/* Every long option that is not the command's own is a key of the configuration, so that a mistyped
 * one is refused there, with the nearest key. Some keys have a short name, too. */
static bool split(const command_row *command, int argc, char **argv, split_words *out)
{
    for (int i = 0; i < argc; i++) {
        char *word = argv[i];
        if (strcmp(word, "--") == 0) {
            while (i < argc)
                out->rest[out->rest_count++] = argv[i++];
            break;
        }
        const bool is_long = i > 0 && strncmp(word, "--", 2) == 0;
        const size_t length = is_long ? strcspn(word + 2, "=") : 0;
        const struct argp_option *own = is_long ? own_option(command, word + 2, length) : NULL;
        const bool is_key = own && own->key == KEY_OF_CONFIG;
        if (!is_long || (own && !is_key)) {
            out->rest[out->rest_count++] = word;
            if (own && own->arg && word[2 + length] != '=' && i + 1 < argc)
                out->rest[out->rest_count++] = argv[++i];
            continue;
        }
        if (!command->sections) {
            usage_error("%s: unknown option %s; see heddle %s --help", command->name, word,
                        command->name);
            return false;
        }
        override *it = &out->overrides[out->override_count++];
        it->key = is_key ? strndup(own->doc, strcspn(own->doc, ":=")) : strndup(word + 2, length);
        if (word[2 + length] == '=')
            it->value = word + 3 + length;
        else
            it->value = is_key && !own->arg ? "true" : argv[++i];
        if (i < argc && it->key) continue;
        usage_error("%s lacks its value (%s): %s=VALUE or %s VALUE", word, it->key ? it->key : "",
                    word, word);
        return false;
    }
    return true;
}

static bool parse_count(const char *text, int64_t most, int64_t *out)
{
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    *out = value;
    return errno == 0 && end != text && *end == '\0' && value >= 1 && value <= most;
}

static bool parse_rate(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out > 0 && *out <= 1000;
}

/* An option of `heddle data` into its place; false if it is none. */
static bool parse_data_option(int key, const char *text, struct argp_state *state,
                              hd_data_options *out)
{
    enum { MOST = 1 << 30 };
    int64_t seed = 0, *place = NULL;
    switch (key) {
    case KEY_WIDTH: place = &out->width; break;
    case KEY_HEIGHT: place = &out->height; break;
    case KEY_FRAMES: place = &out->frames; break;
    case KEY_STRIDE: place = &out->stride; break;
    case KEY_SAMPLES: place = &out->samples; break;
    case KEY_TEXT_COLUMNS: place = &out->text_columns; break;
    case KEY_SEED: place = &seed; break;
    case KEY_FPS:
        if (!parse_rate(text, &out->fps))
            argp_error(state, "--fps is '%s', want a number above 0 and up to 1000", text);
        return true;
    default: return false;
    }
    const bool is_zero_seed = key == KEY_SEED && strcmp(text, "0") == 0;
    if (!is_zero_seed && !parse_count(text, MOST, place))
        argp_error(state, "'%s' is not what the option takes, an integer from 1 to %d", text, MOST);
    if (key == KEY_SEED) out->seed = (uint64_t)seed;
    return true;
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    job_request *request = state->input;
    int64_t count = 0;
    switch (key) {
    case 'q': request->quiet = true; return 0;
    case 'v': request->verbose = true; return 0;
    case KEY_SHOW_CONFIG: request->show_config = true; return 0;
    case KEY_PRINT: request->print = true; return 0;
    case KEY_SAMPLE: request->sample = true; return 0;
    case KEY_EMA: request->ema = true; return 0;
    case KEY_DIRECTORY: request->directory = text; return 0;
    case KEY_PROMPT: request->prompts[request->prompt_count++] = text; return 0;
    case KEY_RANKS:
        if (!parse_count(text, 1 << 20, &count))
            argp_error(state, "--ranks is '%s', want an integer from 1 to %d", text, 1 << 20);
        request->ranks = (int)count;
        return 0;
    case KEY_SHARD_BYTES:
        if (hd_bytes_parse(text, &request->shard_bytes) != HD_OK || request->shard_bytes < 1)
            argp_error(state, "--shard-bytes is '%s', want bytes such as 30000, 512MiB or 5GB",
                       text);
        return 0;
    case ARGP_KEY_ARG:
        if (request->argument_count == request->command->most)
            argp_error(state, "one argument too many: '%s'", text);
        request->arguments[request->argument_count++] = text;
        return 0;
    case ARGP_KEY_END:
        if (request->argument_count < request->command->least)
            argp_error(state, "want %s", request->command->arguments);
        return 0;
    default: return parse_data_option(key, text, state, &request->data) ? 0 : ARGP_ERR_UNKNOWN;
    }
}

/* Rows for argp: the command's options, then for --help a list of the keys that it reads. They and
 * their texts are made once, for the life of the process. */
static const struct argp_option *make_rows(const command_row *command)
{
    const struct argp_option *const own[] = {command->options,
                                             command->sections ? config_options : common_options,
                                             command->sections ? common_options : NULL};
    static struct argp_option *rows;
    rows = calloc(2 * (size_t)hd_config_options() + 32, sizeof *rows);
    if (!rows) return NULL;
    struct argp_option *row = rows;
    for (size_t i = 0; i < sizeof own / sizeof own[0] && own[i]; i++)
        for (const struct argp_option *option = own[i]; option->name; option++)
            *row++ = *option;
    int group = 1;
    const char *section = "";
    for (int i = 0; command->sections && i < hd_config_options(); i++) {
        const hd_config_option *option = hd_config_option_at(i);
        if (!in_sections(option->key, command->sections)) continue;
        if (strncmp(section, option->key, strcspn(option->key, ".") + 1) != 0) {
            char *title = NULL;
            if (asprintf(&title, "Keys of %.*s:", (int)strcspn(option->key, "."), option->key) < 0)
                break;
            *row++ = (struct argp_option){.doc = title, .group = ++group};
        }
        section = option->key;
        char *name = NULL, *doc = NULL;
        if (asprintf(&name, "--%s", option->key) < 0 ||
            asprintf(&doc, "%s (%s%s%s)", option->help, option->value,
                     *option->fallback ? "; default " : "", option->fallback) < 0)
            break;
        *row++ = (struct argp_option){
            .name = name, .flags = OPTION_DOC | OPTION_NO_USAGE, .doc = doc, .group = group};
    }
    return rows;
}

static bool parse_rest(const command_row *command, split_words *words, job_request *out)
{
    char program[64], doc[1024], arguments[128];
    snprintf(program, sizeof program, "heddle %s", command->name);
    snprintf(doc, sizeof doc, "%s\v%s%s", command->summary, command->details,
             command->sections ? "\n\nKeys stand in CONFIG as nested objects, and on the command "
                                 "line as --section.key=value or --section.key value."
                               : "");
    snprintf(arguments, sizeof arguments, "%s%s", command->arguments,
             command->sections ? " [--section.key=value ...]" : "");
    const struct argp_option *rows = make_rows(command);
    if (!rows) return false;
    const struct argp argp = {
        .options = rows, .parser = parse_option, .args_doc = arguments, .doc = doc};
    words->rest[0] = program;
    return argp_parse(&argp, words->rest_count, words->rest, 0, NULL, out) == 0;
}

/* generate.prompts as a JSON list, so that commas and quotes in a prompt stay what they are. */
static hd_status set_prompts(const job_request *request)
{
    char *list = NULL;
    size_t bytes;
    FILE *out = open_memstream(&list, &bytes);
    if (!out) return HD_ERROR_MEMORY;
    for (int i = 0; i < request->prompt_count; i++) {
        fprintf(out, "%s\"", i ? "," : "[");
        for (const char *c = request->prompts[i]; *c; c++) {
            const bool is_plain = (unsigned char)*c >= ' ' && *c != '"' && *c != '\\';
            fprintf(out, is_plain ? "%c" : "\\u%04x", *c);
        }
        fputc('"', out);
    }
    fputc(']', out);
    if (fclose(out) != 0) {
        free(list);
        return HD_ERROR_MEMORY;
    }
    const hd_status status = hd_config_set(request->config, "generate.prompts", list);
    free(list);
    return status;
}

static hd_status make_config(const split_words *words, job_request *out)
{
    hd_status status = hd_config_create(&out->config);
    if (status == HD_OK && out->argument_count)
        status = hd_config_load(out->config, out->arguments[0]);
    for (int i = 0; i < words->override_count && status == HD_OK; i++)
        status = hd_config_set(out->config, words->overrides[i].key, words->overrides[i].value);
    if (status == HD_OK && out->prompt_count) status = set_prompts(out);
    return status;
}

int parse_words(const command_row *command, int argc, char **argv, job_request *out)
{
    const size_t count = (size_t)argc + 1;
    *out = (job_request){.command = command, .ranks = 1};
    split_words words = {.rest = calloc(count, sizeof *words.rest),
                         .overrides = calloc(count, sizeof *words.overrides)};
    out->arguments = calloc(count, sizeof *out->arguments);
    out->prompts = calloc(count, sizeof *out->prompts);
    int status = EXIT_USAGE;
    if (!words.rest || !words.overrides || !out->arguments || !out->prompts)
        status = usage_error("out of memory");
    else if (split(command, argc, argv, &words) && parse_rest(command, &words, out))
        status = 0;
    if (status == 0 && command->sections) {
        const hd_status made = make_config(&words, out);
        if (made != HD_OK) {
            report_failure(made);
            status = EXIT_USAGE;
        }
    }
    for (int i = 0; i < words.override_count; i++)
        free(words.overrides[i].key);
    free(words.overrides);
    free(words.rest);
    return status;
}

void request_free(job_request *request)
{
    hd_config_destroy(request->config);
    free(request->arguments);
    free(request->prompts);
}
