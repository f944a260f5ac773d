/* The `heddle` program: finds the command, runs it, gives the exit status. */
#include "command.h"

#include "report.h"

#include <heddle/version.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

enum { KEY_MAN = 'm', KEY_KEYS = 'k' };

static const struct argp_option options[] = {
    {.name = "man", .key = KEY_MAN, .doc = "print the manual page in man(7)'s format"},
    {.name = "keys", .key = KEY_KEYS, .doc = "print all keys of the configuration in Markdown"},
    {0}};

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    switch (key) {
    case KEY_MAN: print_manual(); exit(flush_output() ? EXIT_SUCCESS : EXIT_FAILURE);
    case KEY_KEYS: print_keys(); exit(flush_output() ? EXIT_SUCCESS : EXIT_FAILURE);
    case ARGP_KEY_ARG: argp_error(state, "options before the command: '%s'", text); return 0;
    case ARGP_KEY_END: argp_usage(state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* What stands before a command, or instead of one. */
static void parse_without_command(int argc, char **argv)
{
    struct argp_option rows[32] = {0}, *row = rows;
    for (const struct argp_option *option = options; option->name; option++)
        *row++ = *option;
    *row++ = (struct argp_option){.doc = "Commands:", .group = 1};
    for (const command_row *one = commands; one->name; one++)
        *row++ = (struct argp_option){.name = one->name,
                                      .flags = OPTION_DOC | OPTION_NO_USAGE,
                                      .doc = one->summary,
                                      .group = 1};
    const struct argp argp = {
        .options = rows,
        .parser = parse_option,
        .args_doc = "COMMAND ...",
        .doc = "Trains transformers and samples videos and texts from them, over many ranks.\v"
               "heddle COMMAND --help tells about a command, man heddle about all. For many ranks, "
               "put heddle-run -np N in front of the command, or mpirun -np N heddle."};
    argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, NULL);
}

static int unknown_command(const char *name)
{
    char names[256] = "";
    size_t used = 0;
    for (const command_row *one = commands; one->name && used < sizeof names; one++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s",
                                 one == commands ? ""
                                 : one[1].name   ? ", "
                                                 : " or ",
                                 one->name);
    return usage_error("unknown command '%s', want %s", name, names);
}

static hd_status run_request(const job_request *request)
{
    if (own_rank() != 0 && (request->show_config || request->command->is_local)) return HD_OK;
    if (request->show_config) return hd_config_print(request->config, write_output, NULL);
    return request->command->run(request);
}

static int run_command(const command_row *command, int argc, char **argv)
{
    job_request request;
    int status = parse_words(command, argc, argv, &request);
    if (status == 0) {
        start_log(request.quiet, request.verbose);
        const hd_status result = run_request(&request);
        if (result != HD_OK) status = report_failure(result);
        if (!flush_output() && status == 0) status = EXIT_FAILURE;
    }
    request_free(&request);
    return status;
}

int main(int argc, char **argv)
{
    argp_program_version = "heddle " HD_VERSION_STRING;
    argp_err_exit_status = EXIT_USAGE;
    /* Writes that fail report it: a closed pipe or a file size limit is no reason to die in the
     * middle of a save. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    if (argc < 2 || argv[1][0] == '-') {
        parse_without_command(argc, argv);
        return EXIT_USAGE;
    }
    const command_row *command = find_command(argv[1]);
    return leave(command ? run_command(command, argc - 1, argv + 1) : unknown_command(argv[1]));
}
