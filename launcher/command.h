/* Commands of the `heddle` program: one table drives parsing, --help and the man page. */
#ifndef HEDDLE_LAUNCHER_COMMAND_H
#define HEDDLE_LAUNCHER_COMMAND_H

#include <argp.h>
#include <heddle/job.h>

typedef struct command_row command_row;

/* What the user asked a command to do. All texts are borrowed from the command line. */
typedef struct job_request {
    const command_row *command;
    hd_config *config; /* owned; NULL if the command takes none */
    char **arguments;
    int argument_count;
    const char **prompts; /* generate --prompt */
    int prompt_count;
    int ranks;             /* plan */
    int64_t shard_bytes;   /* convert */
    bool ema;              /* convert */
    const char *directory; /* plan */
    hd_data_options data;  /* data */
    bool sample;           /* plan */
    bool print, show_config, quiet, verbose;
} job_request;

struct command_row {
    const char *name;
    const char *arguments; /* as usage shows them */
    const char *summary;   /* one line */
    const char *details;   /* a paragraph */
    const char *sections;  /* of the configuration that it reads, with spaces; NULL: takes none */
    const struct argp_option *options; /* its own */
    int least, most;                   /* arguments */
    bool is_local;                     /* one rank does it, however many were started */
    hd_status (*run)(const job_request *request);
};

/* Ends with a row without a name. */
extern const command_row commands[];
const command_row *find_command(const char *name);

/* Keys of options without a short letter. */
enum {
    KEY_RANKS = 256,
    KEY_PRINT,
    KEY_DIRECTORY,
    KEY_PROMPT,
    KEY_SHARD_BYTES,
    KEY_EMA,
    KEY_SAMPLE,
    KEY_SHOW_CONFIG,
    KEY_OF_CONFIG, /* its doc begins with the key that it stands for */
    KEY_WIDTH,
    KEY_HEIGHT,
    KEY_FRAMES,
    KEY_STRIDE,
    KEY_FPS,
    KEY_SAMPLES,
    KEY_SEED,
    KEY_TEXT_COLUMNS
};

/* Options that every command has; those with a configuration have some more. */
extern const struct argp_option common_options[], config_options[];

/* The words of a command line, argv[0] being the command's name: zero, or the exit status after an
 * error that has been reported. --help and --version exit. request_free takes half-filled ones. */
int parse_words(const command_row *command, int argc, char **argv, job_request *out);
void request_free(job_request *request);

/* True if the key belongs to one of the sections. */
bool in_sections(const char *key, const char *sections);

/* manual.c: from the table and the configuration's schema. */
void print_manual(void);
void print_keys(void);

#endif
