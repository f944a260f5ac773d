/* Video files through ffmpeg, which scales and cuts the frames and writes them to a pipe. */
#include "jobs/data/data.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "core/memory.h"

extern char **environ;

enum { PIPE_READ, PIPE_WRITE };

typedef struct decoder {
    pid_t process;
    int pipe; /* frames */
} decoder;

static hd_status spawn(const char *path, const char *filter, decoder *out)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return hdi_error(HD_ERROR_IO, "%s: no pipe for ffmpeg: %s", path, strerror(errno));
    /* An input that begins with a hyphen or names a protocol is a file all the same. */
    char *input = hdi_format("file:%s", path);
    if (!input) {
        close(ends[PIPE_READ]);
        close(ends[PIPE_WRITE]);
        return hdi_error(HD_ERROR_MEMORY, "%s: no memory for its name", path);
    }
    char *const words[] = {
        "ffmpeg", "-nostdin",     "-hide_banner", "-loglevel", "error",    "-i",    input,    "-an",
        "-vf",    (char *)filter, "-f",           "rawvideo",  "-pix_fmt", "rgb24", "pipe:1", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int failed = posix_spawn_file_actions_init(&actions);
    if (failed == 0) {
        posix_spawn_file_actions_adddup2(&actions, ends[PIPE_WRITE], STDOUT_FILENO);
        if ((failed = posix_spawnattr_init(&attributes)) == 0) {
            /* What the program ignores (SIGPIPE) must end ffmpeg. */
            sigset_t defaults;
            sigemptyset(&defaults);
            sigaddset(&defaults, SIGPIPE);
            posix_spawnattr_setsigdefault(&attributes, &defaults);
            posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
            failed = posix_spawnp(&out->process, words[0], &actions, &attributes, words, environ);
            posix_spawnattr_destroy(&attributes);
        }
        posix_spawn_file_actions_destroy(&actions);
    }
    hdi_free(input);
    close(ends[PIPE_WRITE]);
    out->pipe = ends[PIPE_READ];
    if (failed == 0) return HD_OK;
    close(out->pipe);
    if (failed == ENOENT)
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "%s: reading videos needs ffmpeg in PATH (Debian, Ubuntu: ffmpeg)", path);
    return hdi_error(HD_ERROR_IO, "%s: cannot start ffmpeg: %s", path, strerror(failed));
}

/* Whole frames come until the pipe ends; *out_bytes < bytes tells that it has. */
static hd_status read_frame(const char *path, int descriptor, unsigned char *out, size_t bytes,
                            size_t *out_bytes)
{
    for (*out_bytes = 0; *out_bytes < bytes;) {
        const ssize_t got = read(descriptor, out + *out_bytes, bytes - *out_bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return hdi_error(HD_ERROR_IO, "%s: cannot read from ffmpeg: %s", path, strerror(errno));
        if (got == 0) break;
        *out_bytes += (size_t)got;
    }
    return HD_OK;
}

static hd_status stop(const char *path, const decoder *it, bool wanted)
{
    close(it->pipe);
    int ended;
    while (waitpid(it->process, &ended, 0) < 0)
        if (errno != EINTR)
            return hdi_error(HD_ERROR_IO, "%s: lost ffmpeg: %s", path, strerror(errno));
    if (!wanted || (WIFEXITED(ended) && WEXITSTATUS(ended) == 0)) return HD_OK;
    return hdi_error(HD_ERROR_FORMAT, "%s: ffmpeg failed on it (status %d); its reason is above",
                     path, WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended));
}

/* Cuts frames into clips one after another; what is left of the last one is dropped. */
static hd_status append_clips(hdi_data_job *job, const hdi_data_file *file, int descriptor,
                              unsigned char *frame, float *clip)
{
    const hd_data_options *options = job->options;
    const int64_t frames = options->frames, area = options->height * options->width;
    const int64_t before = job->samples;
    int64_t in_clip = 0;
    for (int64_t number = 0;; number++) {
        size_t got;
        const size_t bytes = 3 * (size_t)area;
        HD_RETURN_IF_ERROR(read_frame(file->path, descriptor, frame, bytes, &got));
        if (got < bytes) break;
        if (number % options->stride) continue;
        for (int64_t p = 0; p < area; p++)
            for (int64_t c = 0; c < 3; c++)
                clip[(c * frames + in_clip) * area + p] = (float)frame[3 * p + c] / 127.5f - 1;
        if (++in_clip < frames) continue;
        in_clip = 0;
        HD_RETURN_IF_ERROR(hdi_data_append(job, frames, options->height, options->width,
                                           file->class_index,
                                           options->fps / (double)options->stride, clip));
    }
    if (job->samples == before)
        hdi_list(job->listing, "%s: shorter than a clip of %" PRId64 " frames, passed over\n",
                 file->path, frames);
    return HD_OK;
}

static hd_status append_video(hdi_data_job *job, const hdi_data_file *file, const char *filter,
                              unsigned char *frame, float *clip)
{
    decoder it;
    HD_RETURN_IF_ERROR(spawn(file->path, filter, &it));
    const hd_status status = append_clips(job, file, it.pipe, frame, clip);
    const hd_status stopped = stop(file->path, &it, status == HD_OK);
    return status == HD_OK ? stopped : status;
}

hd_status hdi_data_videos(hdi_data_job *job)
{
    static const char *const endings[] = {"mp4", "mkv", "webm", "mov", "avi", "gif",
                                          "m4v", "mpg", "mpeg", "flv", "ts",  NULL};
    const hd_data_options *options = job->options;
    if (!options->width)
        return hdi_error(HD_ERROR_ARGUMENT, "data videos: want the width and height of the clips");
    char rate[64] = "";
    if (options->fps > 0) snprintf(rate, sizeof rate, "fps=%.9g,", options->fps);
    char *filter =
        hdi_format("%sscale=%" PRId64 ":%" PRId64 ":force_original_aspect_ratio=increase"
                   ":flags=area,crop=%" PRId64 ":%" PRId64,
                   rate, options->width, options->height, options->width, options->height);
    const size_t bytes = 3 * (size_t)(options->height * options->width);
    unsigned char *frame = hdi_alloc(bytes);
    float *clip = hdi_alloc_array((size_t)options->frames, bytes * sizeof *clip);
    hdi_data_files files = {0};
    hd_status status = filter && frame && clip
                           ? hdi_data_find_files(job, endings, &files)
                           : hdi_error(HD_ERROR_MEMORY, "data videos: no memory for a clip");
    if (status == HD_OK) status = hdi_data_begin_pixels(job);
    for (int i = 0; i < files.count && status == HD_OK; i++)
        status = append_video(job, &files.files[i], filter, frame, clip);
    hdi_data_files_free(&files);
    hdi_free(filter);
    hdi_free(frame);
    hdi_free(clip);
    return status;
}
