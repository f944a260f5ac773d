/* The run directory. */
#include "jobs/train/run_files.h"

#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/memory.h"
#include "report/loss_curve.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static hd_status out_of_memory(void)
{
    return hdi_error(HD_ERROR_MEMORY, "run: out of host memory");
}

char *hdi_run_files_path(const hdi_run_files *files, const char *name)
{
    return hdi_path_join(files->directory, name);
}

static void write_line(int descriptor, const char *line)
{
    char text[4200];
    size_t length = strlen(line) < sizeof text - 1 ? strlen(line) : sizeof text - 1;
    memcpy(text, line, length);
    text[length++] = '\n';
    if (descriptor >= 0 && write(descriptor, text, length) < 0)
        return; /* a log has nowhere to complain */
}

static void log_sink(void *user, hd_log_level level, const char *line)
{
    const hdi_run_files *files = user;
    write_line(files->log, line);
    if (level <= HD_LOG_WARN) write_line(files->rank_log, line);
}

static hd_status open_log(const hdi_run_files *files, const char *name, int *descriptor)
{
    char *path = hdi_run_files_path(files, name);
    if (!path) return out_of_memory();
    hd_status status = hdi_file_open(path, O_WRONLY | O_CREAT | O_APPEND, descriptor);
    hdi_free(path);
    return status;
}

static hd_status open_on_rank(hdi_run_files *files)
{
    if (files->rank == 0) HD_RETURN_IF_ERROR(open_log(files, "log.txt", &files->log));
    char name[32];
    snprintf(name, sizeof name, "ranks/%04d.log", files->rank);
    return open_log(files, name, &files->rank_log);
}

hd_status hdi_run_files_open(const hd_config *config, hd_comm *world, hdi_run_files *out)
{
    *out = (hdi_run_files){.log = -1, .rank_log = -1, .rank = hd_comm_rank(world)};
    out->directory = hdi_strdup(hdi_config_string(config->values, "run.directory"));
    if (!out->directory) return out_of_memory();
    out->checkpoints = hdi_run_files_path(out, "checkpoints");
    char *ranks = hdi_run_files_path(out, "ranks");
    hd_status status = out->checkpoints && ranks ? HD_OK : out_of_memory();
    if (status == HD_OK) status = hdi_directory_create(ranks);
    hdi_free(ranks);
    if (status == HD_OK) status = open_on_rank(out);
    status = hd_comm_agree(world, status);
    if (status == HD_OK) hdi_log_attach(log_sink, out, HD_LOG_INFO);
    return status;
}

void hdi_run_files_close(hdi_run_files *files)
{
    hdi_log_attach(NULL, NULL, HD_LOG_NONE);
    hdi_metrics_close(files->metrics);
    if (files->directory && files->log >= 0) close(files->log);
    if (files->directory && files->rank_log >= 0) close(files->rank_log);
    hdi_free(files->directory);
    hdi_free(files->checkpoints);
    *files = (hdi_run_files){.log = -1, .rank_log = -1};
}

static hd_status write_config(const hdi_run_files *files, const hd_config *config)
{
    char *text = NULL, *path = hdi_run_files_path(files, "config.json");
    hd_status status = path ? hdi_config_dump(config->values, &text) : out_of_memory();
    if (status == HD_OK) status = hdi_file_write_text(path, text);
    hdi_free(text);
    hdi_free(path);
    return status;
}

hd_status hdi_run_files_start(hdi_run_files *files, const hd_config *config, int64_t resumed)
{
    if (files->rank != 0) return HD_OK;
    HD_RETURN_IF_ERROR(write_config(files, config));
    char *path = hdi_run_files_path(files, "metrics.jsonl");
    if (!path) return out_of_memory();
    hd_status status = HD_OK;
    if (hdi_file_exists(path)) status = hdi_metrics_drop_after(path, resumed);
    if (status == HD_OK) status = hdi_metrics_open(path, &files->metrics);
    hdi_free(path);
    return status;
}

hd_status hdi_run_files_loss_curve(const hdi_run_files *files, double entropy)
{
    if (files->rank != 0) return HD_OK;
    char *path = hdi_run_files_path(files, "metrics.jsonl");
    char *picture = hdi_run_files_path(files, "loss.svg");
    hdi_loss_curve curve = {.title = "loss (nats per token)",
                            .reference = entropy,
                            .reference_label = isnan(entropy) ? NULL : "unigram entropy"};
    hdi_point *train = NULL, *validation = NULL;
    hd_status status = path && picture ? HD_OK : out_of_memory();
    if (status == HD_OK)
        status = hdi_metrics_series(path, "step", "loss", &train, &curve.train_count);
    if (status == HD_OK)
        status = hdi_metrics_series(path, "step", "validation_loss", &validation,
                                    &curve.validation_count);
    curve.train = train;
    curve.validation = validation;
    if (status == HD_OK) status = hdi_loss_curve_write(picture, &curve);
    hdi_free(train);
    hdi_free(validation);
    hdi_free(path);
    hdi_free(picture);
    return status;
}
