/* The manual page and the guide's table of keys, from the table of commands and the schema. */
#include "command.h"

#include "report.h"

#include <heddle/version.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Text for man(7): hyphens that can be copied, no line that is taken for a request. */
static void write_roff(const char *text)
{
    bool starts_line = true;
    for (; *text; text++) {
        if (starts_line && (*text == '.' || *text == '\'')) write_output(NULL, "\\&");
        const char one[] = {*text, '\0'};
        write_output(NULL, *text == '-' ? "\\-" : *text == '\\' ? "\\e" : one);
        starts_line = *text == '\n';
    }
}

static void write_format(const char *format, ...) HD_PRINTF(1, 2);
static void write_format(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    write_roff(text);
}

/* A request such as .SH, which stands as it is. */
static void request_line(const char *line)
{
    write_output(NULL, line);
    write_output(NULL, "\n");
}

static void section(const char *title, const char *text)
{
    write_output(NULL, ".SH ");
    request_line(title);
    if (!text) return;
    write_roff(text);
    write_output(NULL, "\n");
}

/* A term in bold with its explanation. */
static void item(const char *term, const char *value, const char *text)
{
    request_line(".TP");
    write_output(NULL, ".B ");
    write_format("%s%s", term, value);
    write_output(NULL, "\n");
    write_format("%s", text);
    write_output(NULL, "\n");
}

static void write_options(const struct argp_option *options)
{
    for (; options->name; options++) {
        char letter[8] = "", term[128];
        if (options->key > ' ' && options->key < 127)
            snprintf(letter, sizeof letter, "-%c, ", options->key);
        snprintf(term, sizeof term, "%s--%s%s%s", letter, options->name, options->arg ? "=" : "",
                 options->arg ? options->arg : "");
        item(term, "", options->doc);
    }
}

static void write_commands(void)
{
    section("COMMANDS", "Options that all commands have:");
    write_options(common_options);
    request_line(".PP");
    write_roff("Options of commands that read a configuration:\n");
    write_options(config_options);
    for (const command_row *one = commands; one->name; one++) {
        write_output(NULL, ".SS ");
        write_format("heddle %s %s%s\n", one->name, one->arguments,
                     one->sections ? " [--section.key=value ...]" : "");
        write_format("%s\n", one->details);
        if (one->sections) write_format("Reads the sections %s.\n", one->sections);
        write_options(one->options);
    }
}

static void write_keys(void)
{
    section(
        "CONFIGURATION",
        "CONFIG is a JSON file of nested objects, {\"train\": {\"steps\": 500}}. On the command "
        "line the same is --train.steps=500 or --train.steps 500, which wins over the file. "
        "A key that is not known, or a value of another type, is refused. All commands read "
        "the same file; each takes what it needs.");
    for (int i = 0; i < hd_config_options(); i++) {
        const hd_config_option *option = hd_config_option_at(i);
        char value[256];
        snprintf(value, sizeof value, "  %s%s%s", option->value,
                 *option->fallback ? "; default " : "", option->fallback);
        item(option->key, value, option->help);
    }
}

void print_manual(void)
{
    request_line(".\\\" Made by heddle --man.");
    request_line(".TH HEDDLE 1 \"\" \"heddle " HD_VERSION_STRING "\" \"User Commands\"");
    section("NAME",
            "heddle - train transformers, sample videos and texts from them, over many ranks");
    section("SYNOPSIS", "heddle COMMAND [ARGUMENTS] [--section.key=value ...]");
    request_line(".br");
    write_roff("heddle-run -np N COMMAND [ARGUMENTS] [--section.key=value ...]\n");
    section(
        "DESCRIPTION",
        "heddle splits a transformer over ranks (processes), each with a device of its own: its "
        "layers (layout.pipeline), the batch (layout.data), the tokens of a sequence or video "
        "(layout.sequence), each layer (layout.tensor), optimizer states, gradients and weights "
        "(layout.shard_state). Every byte is placed before anything is allocated. The layout "
        "changes speed and memory, not results; with layout.reduction=exact not even the last "
        "bit (of data, pipeline and state sharding). Without heddle-run or mpirun a command runs "
        "as one rank.");
    write_commands();
    write_keys();
    section("ENVIRONMENT", NULL);
    item("OMP_NUM_THREADS", "", "threads of the CPU backend if run.threads is zero");
    section("SIGNALS", NULL);
    item("SIGUSR1, SIGTERM", "",
         "a training saves after the step that is under way and stops with status 75; heddle-run "
         "sends SIGUSR1 to all ranks when it is asked to stop");
    section("EXIT STATUS", NULL);
    item("0", "", "all is done");
    item("1", "", "something failed; the reason is on standard error");
    item("2", "", "the command line or the configuration is wrong");
    item("75", "", "stopped on request after saving; the same command goes on from there");
    section("EXAMPLES", NULL);
    item("heddle-run -np 4 train config.json --layout.data=2 --layout.pipeline=2", "",
         "train with 4 ranks, two pipelines of two stages");
    item("heddle-run -np 4 generate config.json --layout.pipeline=4 --prompt 'Once upon'", "",
         "let the newest checkpoint of that run write");
    item("heddle-run -np 4 sample config.json --layout.pipeline=4 --sample.inputs=texts "
         "--sample.seeds=1,2",
         "",
         "two videos of each text embedding in a folder, with the newest checkpoint of that run");
    item("heddle plan config.json --model.preset=gpt2-xl --ranks 64 --layout.pipeline=16", "",
         "see what each of 64 ranks would hold");
    item("heddle inspect runs/default", "", "what a run has come to");
    section("SEE ALSO", "mpirun(1)");
}

/* A cell of a Markdown table. */
static void write_cell(const char *text)
{
    for (; *text; text++) {
        const char one[] = {*text, '\0'};
        write_output(NULL, *text == '|' ? "\\|" : one);
    }
}

void print_keys(void)
{
    const char *section_name = "";
    write_output(NULL, "<!-- Made by heddle --keys. -->\n# Keys of the configuration\n");
    for (int i = 0; i < hd_config_options(); i++) {
        const hd_config_option *option = hd_config_option_at(i);
        const size_t length = strcspn(option->key, ".");
        if (strncmp(section_name, option->key, length + 1) != 0) {
            char heading[128];
            snprintf(heading, sizeof heading, "\n## %.*s\n\n", (int)length, option->key);
            write_output(NULL, heading);
            write_output(NULL, "| key | takes | default | |\n|---|---|---|---|\n");
        }
        section_name = option->key;
        write_output(NULL, "| `");
        write_cell(option->key);
        write_output(NULL, "` | ");
        write_cell(option->value);
        write_output(NULL, " | ");
        write_cell(option->fallback);
        write_output(NULL, " | ");
        write_cell(option->help);
        write_output(NULL, " |\n");
    }
}
