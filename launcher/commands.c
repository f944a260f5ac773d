/* The table of commands, and what each does with its words. */
#include "command.h"

#include "report.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static hd_status run_train(const job_request *request)
{
    hd_train_result result;
    const bool shows = own_rank() == 0 && !request->quiet;
    const hd_status status =
        hd_train_run(request->config, shows ? show_progress : NULL, NULL, &result);
    end_progress();
    if (status != HD_OK || !shows) return status;
    if (result.first_step_seconds == 0) {
        printf("%" PRId64 " steps were done already (train.steps, run.directory)\n"
               "everything is in %s\n",
               result.steps, result.directory);
        return HD_OK;
    }
    printf("%" PRId64 " steps, loss %.4f", result.steps, result.loss);
    if (!isnan(result.validation_loss)) printf(", validation %.4f", result.validation_loss);
    if (!isnan(result.entropy))
        printf(" (guessing by how often each token occurs: %.4f)", result.entropy);
    putchar('\n');
    printf("%.0f tokens/s, first step after %.2f s, weights %016" PRIx64 "\n",
           result.tokens_per_second, result.first_step_seconds, result.weights_hash);
    if (!isnan(result.exposed_copies))
        printf(
            "exposed: copies %.1f %%, communication %.1f %%, host %.1f %% of the steps' time, in "
            "which computation waited for them\n",
            100 * result.exposed_copies, 100 * result.exposed_communication,
            100 * result.exposed_host);
    const bool is_text = !isnan(result.entropy);
    printf("everything is in %s\nnext: heddle %s.checkpoint=%s %s\n", result.directory,
           is_text ? "generate --generate" : "sample --sample", result.directory,
           is_text ? "--prompt=TEXT"
                   : "--sample.inputs=TEXTS --sample.frames=N --sample.height=N --sample.width=N");
    return HD_OK;
}

static hd_status run_generate(const job_request *request)
{
    const bool shows = own_rank() == 0 && !request->quiet;
    const hd_status status =
        hd_generate_run(request->config, shows ? show_progress : NULL, write_output, NULL);
    end_progress();
    return status;
}

static hd_status run_sample(const job_request *request)
{
    hd_sample_result result;
    const bool shows = own_rank() == 0 && !request->quiet;
    const hd_status status =
        hd_sample_run(request->config, shows ? show_progress : NULL, NULL, &result);
    end_progress();
    if (status != HD_OK || !shows) return status;
    printf("%d videos, %" PRId64 " steps in %.2f s; ranks computed for %.0f %% of it\n",
           result.videos, result.steps, result.seconds, 100 * result.utilisation);
    printf("everything is in %s\n", result.directory);
    return HD_OK;
}

static hd_status run_plan(const job_request *request)
{
    if (request->sample)
        return hd_sample_plan_run(request->config, request->ranks, request->print, write_output,
                                  NULL);
    return hd_plan_run(request->config, request->ranks, request->directory, request->print,
                       write_output, NULL);
}

static hd_status run_inspect(const job_request *request)
{
    for (int i = 0; i < request->argument_count; i++) {
        if (i) write_output(NULL, "\n");
        const hd_status status = hd_inspect_run(request->arguments[i], write_output, NULL);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

static hd_status run_convert(const job_request *request)
{
    const hd_convert_options options = {.shard_bytes = request->shard_bytes,
                                        .ema = request->ema,
                                        .progress = request->quiet ? NULL : show_progress};
    const hd_status status =
        hd_convert_run(request->arguments[0], request->arguments[1], &options, write_output, NULL);
    end_progress();
    return status;
}

static hd_status run_data(const job_request *request)
{
    hd_data_options options = request->data;
    options.kind = request->arguments[0];
    options.inputs = (const char *const *)request->arguments + 1;
    options.input_count = request->argument_count - 2;
    options.output = request->arguments[request->argument_count - 1];
    options.shard_bytes = request->shard_bytes;
    return hd_data_run(&options, write_output, NULL);
}

const struct argp_option common_options[] = {
    {.name = "quiet", .key = 'q', .doc = "no progress, no log but errors"},
    {.name = "verbose", .key = 'v', .doc = "log what each object of the run is made of"},
    {0}};

const struct argp_option config_options[] = {
    {.name = "show-config",
     .key = KEY_SHOW_CONFIG,
     .doc = "print the configuration as it would be used, and stop"},
    {.name = "memory",
     .key = KEY_OF_CONFIG,
     .arg = "BYTES",
     .doc = "memory.budget: device memory of a rank, such as 24GiB"},
    {.name = "device", .key = KEY_OF_CONFIG, .arg = "NAME", .doc = "run.device: auto, cpu or cuda"},
    {.name = "share-gpu", .key = KEY_OF_CONFIG, .doc = "run.share_gpu=true"},
    {0}};

static const struct argp_option generate_options[] = {
    {.name = "prompt",
     .key = KEY_PROMPT,
     .arg = "TEXT",
     .doc = "a text to continue, in place of generate.prompts; may be given again"},
    {0}};

static const struct argp_option plan_options[] = {
    {.name = "sample", .key = KEY_SAMPLE, .doc = "of a sampling (heddle sample), not a training"},
    {.name = "ranks", .key = KEY_RANKS, .arg = "N", .doc = "plan for so many ranks (default 1)"},
    {.name = "print", .key = KEY_PRINT, .doc = "list every op with shapes and addresses"},
    {.name = "directory",
     .key = KEY_DIRECTORY,
     .arg = "DIR",
     .doc = "write plan.json and plan.svg there"},
    {0}};

static const struct argp_option convert_options[] = {
    {.name = "shard-bytes",
     .key = KEY_SHARD_BYTES,
     .arg = "BYTES",
     .doc = "largest size of one safetensors file, such as 2GiB (default 5GB)"},
    {.name = "ema",
     .key = KEY_EMA,
     .doc = "the average of the weights (train.ema) in place of them"},
    {0}};

static const struct argp_option data_options[] = {
    {.name = "width",
     .key = KEY_WIDTH,
     .arg = "N",
     .doc = "pictures are scaled and cut to this width (default: images as they are, shapes 24)"},
    {.name = "height",
     .key = KEY_HEIGHT,
     .arg = "N",
     .doc = "pictures are scaled and cut to this height, too"},
    {.name = "frames", .key = KEY_FRAMES, .arg = "N", .doc = "frames of a clip (default 8)"},
    {.name = "stride",
     .key = KEY_STRIDE,
     .arg = "N",
     .doc = "videos: take each Nth frame (default 1)"},
    {.name = "fps",
     .key = KEY_FPS,
     .arg = "X",
     .doc = "frames a second; videos are resampled to it before the stride"},
    {.name = "samples", .key = KEY_SAMPLES, .arg = "N", .doc = "shapes: clips (default 1024)"},
    {.name = "seed", .key = KEY_SEED, .arg = "N", .doc = "shapes: other clips (default 0)"},
    {.name = "text-columns",
     .key = KEY_TEXT_COLUMNS,
     .arg = "N",
     .doc = "size of the embeddings made of the words of classes' names (default 32)"},
    {.name = "shard-bytes",
     .key = KEY_SHARD_BYTES,
     .arg = "BYTES",
     .doc = "largest size of one safetensors file, such as 2GiB (default 512MiB)"},
    {0}};

static const struct argp_option no_options[] = {{0}};

const command_row commands[] = {
    {.name = "train",
     .arguments = "[CONFIG]",
     .summary = "train a model on all ranks",
     .details = "Trains as the JSON file CONFIG and the overrides say. Everything that is written "
                "goes to run.directory: metrics, logs, the plan, pictures, checkpoints. Started "
                "again, it goes on from the newest good checkpoint there, on any layout.",
     .sections = "model data train video optimizer layout memory checkpoint run",
     .options = no_options,
     .most = 1,
     .run = run_train},
    {.name = "generate",
     .arguments = "[CONFIG]",
     .summary = "continue prompts with the ranks as pipeline stages",
     .details = "Loads the newest good checkpoint of a run (or Hugging Face weights) and writes "
                "each prompt's continuation to standard output, in the prompts' order. The text "
                "does not depend on the number of ranks.",
     .sections = "generate model layout memory run",
     .options = generate_options,
     .most = 1,
     .run = run_generate},
    {.name = "sample",
     .arguments = "[CONFIG]",
     .summary = "make videos with the ranks as pipeline stages",
     .details =
         "Loads the newest good checkpoint of a run (or published weights) and makes a video "
         "of every input and seed: latents as safetensors, and pictures where the model "
         "works on pixels. They do not depend on the number of ranks. Started again, it "
         "takes up what it has begun, on any layout.",
     .sections = "sample model layout memory run",
     .options = no_options,
     .most = 1,
     .run = run_sample},
    {.name = "plan",
     .arguments = "[CONFIG]",
     .summary = "place every byte of a job without running it",
     .details = "Shows for each pipeline stage what memory holds, the costs and the schedule's "
                "bubble, and checks that the ranks' communication matches. Needs neither MPI nor "
                "the memory that it plans. What does not fit is named with the cheapest remedy.",
     .sections = "model data train video optimizer layout memory sample run",
     .options = plan_options,
     .most = 1,
     .is_local = true,
     .run = run_plan},
    {.name = "inspect",
     .arguments = "FILE...",
     .summary = "describe weights, checkpoints and runs",
     .details = "FILE is a safetensors file or a folder of them, a checkpoint, or a run's folder.",
     .options = no_options,
     .least = 1,
     .most = 1 << 20,
     .is_local = true,
     .run = run_inspect},
    {.name = "convert",
     .arguments = "CHECKPOINT FOLDER",
     .summary = "write a checkpoint's weights as a Hugging Face folder",
     .details = "CHECKPOINT is a step-N folder or a run, of which the newest is taken. FOLDER gets "
                "config.json and safetensors files.",
     .options = convert_options,
     .least = 2,
     .most = 2,
     .is_local = true,
     .run = run_convert},
    {.name = "data",
     .arguments = "KIND [INPUT...] FOLDER",
     .summary = "make a data set of videos, images, arrays or generated shapes",
     .details =
         "FOLDER gets index.json and safetensors files. KIND is images (PNG files), videos (what "
         "ffmpeg reads, cut into clips of some frames), arrays (safetensors files of latents or "
         "pixels with text embeddings) or shapes (generated clips of coloured shapes in motion, no "
         "INPUT). INPUT is a file or a folder; of images and videos the names of its sub-folders "
         "are classes, whose words become text embeddings.",
     .options = data_options,
     .least = 2,
     .most = 1 << 20,
     .is_local = true,
     .run = run_data},
    {0}};

const command_row *find_command(const char *name)
{
    for (const command_row *one = commands; one->name; one++)
        if (strcmp(one->name, name) == 0) return one;
    return NULL;
}
