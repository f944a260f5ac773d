/* Every setting of every job: key, type, default, limits, help. --help, the manual and the guide's
 * table are made from these rows. */
#include "jobs/config.h"

static const char *const families[] = {"gpt2", "llama", NULL};
static const char *const rates[] = {"constant", "linear", "cosine", "wsd", NULL};
static const char *const schedules[] = {"auto", "gpipe", "1f1b", "interleaved", NULL};
static const char *const reductions[] = {"fast", "exact", NULL};
/* HDI_SHARDINGS levels, and other words for the first two. */
static const char *const shardings[] = {"0", "1", "2", "3", "false", "true", NULL};
static const char *const recomputes[] = {"none", "layer", NULL};
static const char *const dtypes[] = {"f32", "bf16", "f16", NULL};
static const char *const gradient_dtypes[] = {"fp32", "bf16", NULL};
static const char *const masters[] = {"auto", "fp32", "remainder", NULL};
static const char *const decays[] = {"matrices", "all", NULL};
static const char *const transports[] = {"auto", "self", "mpi", NULL};
static const char *const device_transports[] = {"auto", "nccl", "staged", NULL};
static const char *const copy_engines[] = {"auto", "off", "host", NULL}; /* as hdi_copy_engines */
static const char *const times[] = {"logit-normal", "uniform", NULL};
static const char *const time_shifts[] = {"constant", "open-sora-2", "open-sora-1", NULL};
static const char *const schedulers[] = {"auto", "flow", "open-sora-2", "open-sora-1.2", NULL};
static const char *const sample_dtypes[] = {"auto", "f32", "bf16", "f16", NULL};
static const char *const activations[] = {"keep", "recompute", "recompute-host", "host", "int8",
                                          "auto", NULL}; /* as hd_activations */
static const char *const state_residencies[] = {"device", "host", "auto",
                                                NULL}; /* as hd_residency */
static const char *const train_residencies[] = {"resident", "host", "auto",
                                                NULL}; /* as hd_residency */
static const char *const residencies[] = {"resident", "host",         "auto",
                                          "sharded",  "host-sharded", NULL}; /* as hd_residency */
static const char *const resumes[] = {"auto", "never", "require", NULL};

#define BOOL(k, f, h, g)                                                        \
    {                                                                           \
        .key = k, .type = HDI_CONFIG_BOOL, .fallback = f, .help = h, .flags = g \
    }
#define INT(k, f, lo, hi, u, h, g)                                                        \
    {                                                                                     \
        .key = k, .type = HDI_CONFIG_INT, .fallback = f, .min = lo, .max = hi, .unit = u, \
        .help = h, .flags = g                                                             \
    }
#define FLOAT(k, f, lo, hi, u, h, g)                                                        \
    {                                                                                       \
        .key = k, .type = HDI_CONFIG_FLOAT, .fallback = f, .min = lo, .max = hi, .unit = u, \
        .help = h, .flags = g                                                               \
    }
#define STRING(k, f, h, g)                                                        \
    {                                                                             \
        .key = k, .type = HDI_CONFIG_STRING, .fallback = f, .help = h, .flags = g \
    }
#define ENUM(k, f, n, h, g)                                                                 \
    {                                                                                       \
        .key = k, .type = HDI_CONFIG_ENUM, .fallback = f, .names = n, .help = h, .flags = g \
    }
#define BYTES(k, f, h, g)                                                        \
    {                                                                            \
        .key = k, .type = HDI_CONFIG_BYTES, .fallback = f, .help = h, .flags = g \
    }
#define QUIET HDI_CONFIG_NO_EFFECT

const hdi_config_row hdi_job_schema[] = {
    STRING(
        "model.preset", "",
        "a model by name: gpt2, llama-7b, hunyuan-video-13b, open-sora-2-11b, ...; a name that is "
        "not known is answered with all",
        0),
    STRING("model.config", "", "a Hugging Face config.json, or a folder that holds one", 0),
    STRING("model.weights", "",
           "start from these weights: a safetensors file or a Hugging Face folder", 0),
    ENUM("model.family", "gpt2", families, "family of a model given by the sizes below", 0),
    INT("model.layers", "0", "0", "4096", "layers", "zero: the preset's", 0),
    INT("model.hidden", "0", "0", "1048576", NULL,
        "width of the residual stream; zero: the preset's", 0),
    INT("model.heads", "0", "0", "1024", NULL, "attention heads; zero: the preset's", 0),
    INT("model.kv_heads", "0", "0", "1024", NULL,
        "key and value heads (llama); zero: the preset's, or heads", 0),
    INT("model.intermediate", "0", "0", "4194304", NULL,
        "width inside the MLP; zero: the family's rule", 0),
    INT("model.vocab", "0", "0", "2147483647", "tokens",
        "vocabulary; zero: the preset's, or 256 (bytes)", 0),
    INT("model.max_tokens", "0", "0", "16777216", "tokens",
        "longest sequence; zero: the preset's, or train.tokens", 0),

    STRING("data.path", "",
           "a text file, a folder of them, llm.c .bin files (comma list or pattern)", 0),
    FLOAT("data.validation_fraction", "0.05", "0", "0.5", NULL,
          "share of the windows kept for validation", 0),

    INT("train.steps", "100", "0", "1000000000", "steps",
        "steps in all, those before a resume included", QUIET),
    INT("train.micro_batch", "8", "1", "1048576", "sequences", "sequences of one micro-batch", 0),
    INT("train.tokens", "256", "1", "16777216", "tokens", "length of a sequence", 0),
    INT("train.accumulate", "1", "1", "65536", "micro-batches",
        "micro-batches a step on each data rank", 0),
    INT("train.batch", "0", "0", "1073741824", "sequences",
        "sequences a step over all ranks; if given, train.accumulate follows from it", 0),
    ENUM("train.dtype", "f32", dtypes,
         "of weights and activations; sums and the optimizer are fp32", 0),
    ENUM("train.gradients", "fp32", gradient_dtypes,
         "what gradients are summed in over micro-batches and sent in; bf16: half the bytes, for "
         "train.dtype bf16 without layout.reduction exact",
         0),
    INT("train.tokens_per_step", "0", "0", NULL, "tokens",
        "videos: patches and text of a step over all ranks; if given, micro-batches follow from it",
        0),
    FLOAT("train.ema", "0", "0", "0.9999999", NULL,
          "decay of an average of the weights beside them, saved with them; zero: none", 0),
    BOOL("train.ema_warmup", "false", "decay no more than (1 + t) / (10 + t) at update t", 0),
    INT("train.seed", "1", "0", NULL, NULL, "of initial weights and of the data's order", 0),
    ENUM(
        "train.activations", "keep", activations,
        "of blocks, between forward and backward; recompute: made again, a third more computation; "
        "recompute-host: so, and what enters blocks waits in pinned host memory; host: in pinned "
        "host memory; int8: 8 bits each and a scale for 128 of them, off by up to "
        "1/254 of the largest of these; auto: the first of the others but int8 that fits "
        "memory.budget",
        0),
    INT("train.activation_blocks", "0", "0", "4096", "blocks",
        "of each rank's so many are as train.activations says, or all if it has fewer, the others' "
        "activations are kept; zero: all, or, with auto, as few as memory.budget asks for",
        QUIET),
    INT("train.slices", "1", "0", "64", NULL,
        "of rows in which a token model's loss is made, so that there are never more logits than "
        "those of one: their layer's gradient is a sum over them; zero: as few as memory.budget "
        "asks for, without layout.reduction exact and layout.tensor; nothing to video models",
        0),
    INT("train.mlp_slices", "1", "0", "64", NULL,
        "of rows in which blocks' MLPs are made, forward and backward: what lies within one is "
        "never kept, only a slice of it is made at a time, in the backward again (up to a ninth "
        "more computation, none in a token model's blocks that are computed again), and gradients "
        "of the weights are sums over slices; zero: by memory.budget, whatever is predicted to be "
        "fastest, without layout.reduction exact and layout.tensor",
        0),
    ENUM("train.residency", "resident", train_residencies,
         "of weights of blocks: on the device; host: in pinned host memory with the optimizer's "
         "state, copied in beside computing; auto: on the host as few as memory.budget asks for, "
         "if nothing else fits",
         0),
    ENUM(
        "train.gradient_residency", "device", state_residencies,
        "of gradients' sums; host: a bucket goes there when the backward has made it, with several "
        "data ranks each one's share (layout.shard_state 2 or 3); auto: if nothing else fits "
        "memory.budget",
        QUIET),
    FLOAT("train.clip", "1", "0", NULL, NULL, "global gradient norm; zero: no clipping", 0),
    INT("train.validate_every", "0", "0", NULL, "steps", "zero: at the end only", QUIET),
    INT("train.validate_batches", "4", "0", "65536", "micro-batches",
        "of a validation on each data rank; zero: none", QUIET),
    INT("train.stop_after", "0", "0", NULL, "steps",
        "save and stop after so many steps of this run; zero: run to the end", QUIET),

    INT("video.micro_batch", "0", "0", "1048576", "videos",
        "of a micro-batch; zero: what memory.budget lets fit, bucket by bucket", 0),
    INT("video.largest_micro_batch", "8", "1", "1048576", "videos",
        "most that zero video.micro_batch means", 0),
    {.key = "video.shapes",
     .type = HDI_CONFIG_STRING_LIST,
     .help = "sizes of latents to train on, as in 33x32x56 (frames, height, width); empty: all of "
             "data.path"},
    ENUM("video.times", "logit-normal", times, "distribution of noise levels", 0),
    FLOAT("video.time_mean", "0", "-100", "100", NULL, "of the logit", 0),
    FLOAT("video.time_std", "1", "0", "100", NULL, "of the logit", 0),
    ENUM("video.time_shift", "constant", time_shifts,
         "towards noise, more of it for larger and longer videos as in these models", 0),
    FLOAT("video.time_shift_factor", "1", "0.000001", "1000000", NULL,
          "the constant shift; of the others, a factor", 0),
    FLOAT("video.sigma_min", "0", "0", "0.5", NULL,
          "noise that stays in the cleanest latents (Open-Sora 2: 1e-5)", 0),
    FLOAT("video.text_dropout", "0.1", "0", "1", NULL,
          "share of the samples that get the null text; of pooled text alike, on its own", 0),
    {.key = "video.task_ratios",
     .type = HDI_CONFIG_INT_LIST,
     .min = "0",
     .max = "1000000",
     .help = "how often which frames are given: none, first, first and last, last; empty: none"},
    BOOL("video.given_loss", "false",
         "given frames count in the loss of models that see them beside the noise", 0),
    FLOAT("video.guidance", "1", "0", "1000", NULL,
          "what models with embedded guidance are told in training", 0),

    FLOAT("optimizer.learning_rate", "3e-4", "0", NULL, NULL, "peak learning rate of AdamW", 0),
    ENUM("optimizer.schedule", "cosine", rates, "after the warm-up", 0),
    INT("optimizer.warmup", "0", "0", NULL, "steps", "linear from zero", 0),
    INT("optimizer.decay_steps", "0", "0", NULL, "steps",
        "length of the whole schedule; zero: train.steps", 0),
    FLOAT("optimizer.decay_fraction", "0.2", "0", "1", NULL,
          "wsd: last share of the schedule that decays", 0),
    FLOAT("optimizer.final_rate", "0.1", "0", "1", NULL,
          "end of the schedule, as a share of the peak", 0),
    FLOAT("optimizer.beta1", "0.9", "0", "0.999999", NULL, "decay of the first moment", 0),
    FLOAT("optimizer.beta2", "0.95", "0", "0.999999", NULL, "decay of the second moment", 0),
    FLOAT("optimizer.epsilon", "1e-8", "0", "1", NULL, "added to the root of the second moment", 0),
    FLOAT("optimizer.weight_decay", "0.1", "0", "10", NULL, "decoupled weight decay", 0),
    ENUM("optimizer.master", "auto", masters,
         "what 16-bit weights are rounded from; remainder: half the bytes, the same bits (bf16); "
         "auto: remainder for bf16, else fp32",
         0),
    ENUM("optimizer.residency", "device", state_residencies,
         "moments, masters and train.ema: on the device; on the host, passing through the device "
         "while it updates; auto: on the host where nothing else fits memory.budget",
         QUIET),
    BOOL("optimizer.overlap", "true",
         "an update with state or gradients on the host goes on beside the next step's first "
         "forward, "
         "if memory.budget has room for what passes",
         QUIET),
    ENUM("optimizer.decay", "matrices", decays, "which parameters decay: those of two dims, or all",
         0),

    INT("layout.data", "0", "0", "65536", "ranks", "data axis; zero: what the other axes leave",
        QUIET),
    INT("layout.pipeline", "1", "1", "4096", "ranks", "pipeline axis", QUIET),
    INT("layout.sequence", "1", "1", "4096", "ranks",
        "sequence axis: ranks that share each sequence's tokens; sequence / ring, at most as many "
        "as "
        "key and value heads, exchange heads",
        QUIET),
    INT("layout.ring", "1", "1", "4096", "ranks",
        "ranks of the sequence axis among which keys and values go round in a ring, or, in models "
        "that attend within frames and along time, rows take turns by frames and by positions; "
        "divides layout.sequence",
        QUIET),
    INT("layout.sequence_groups", "0", "0", "4", "groups",
        "heads change places on the sequence axis in so many groups, one under way while another "
        "is "
        "computed, at most as many as each rank has key and value heads; zero: as many as keep a "
        "rank's messages to about 64 MiB",
        QUIET),
    INT("layout.tensor", "1", "1", "4096", "ranks",
        "tensor axis: ranks that share each layer's weights, at most as many as key and value "
        "heads, or, where sequence ranks exchange heads, as each of those would have",
        QUIET),
    INT("layout.tensor_groups", "0", "0", "8", "groups",
        "products beside what travels on the tensor axis are cut into so many pieces, one computed "
        "while "
        "another is under way: a rank's own rows, and of each other rank one less; one: all rows "
        "at "
        "once; zero: as many as run.rates make fastest",
        QUIET),
    ENUM("layout.schedule", "auto", schedules,
         "pipeline schedule; auto: 1f1b, interleaved if chunks > 1", QUIET),
    INT("layout.chunks", "1", "1", "64", "stages", "virtual stages on each pipeline rank", QUIET),
    {.key = "layout.stages",
     .type = HDI_CONFIG_INT_LIST,
     .min = "0",
     .max = "4096",
     .unit = "layers",
     .help = "layers of each virtual stage; empty: balanced by cost",
     .flags = QUIET},
    ENUM("layout.shard_state", "0", shardings,
         "split over the data axis: 1 (or true): the optimizer's state (ZeRO-1); 2: gradients, "
         "too; 3: "
         "weights of layers, too, gathered when they are used",
         QUIET),
    INT("layout.shard_group", "0", "0", "65536", "ranks",
        "shard_state 2 and 3: split over so many neighbours on the data axis, with a copy for each "
        "such group; zero: over all",
        QUIET),
    ENUM("layout.recompute", "none", recomputes, "layer: the same as train.activations=recompute",
         QUIET),
    ENUM("layout.reduction", "fast", reductions,
         "exact: the same bits on every layout, at the price of gradient buffers", 0),
    BYTES("layout.bucket", "32MiB", "gradients that travel together", QUIET),

    BYTES("memory.budget", "0", "device memory of a rank, all included; zero: no limit", QUIET),
    BYTES("memory.foreign", "0",
          "of the budget, what plan leaves to the driver and libraries; runs measure it", QUIET),
    BYTES("memory.margin", "48MiB",
          "of the budget, what runs on GPUs leave to kernels that are loaded later", QUIET),

    INT("checkpoint.every", "0", "0", NULL, "steps", "zero: at the end only", QUIET),
    INT("checkpoint.keep", "2", "1", "1000000", "checkpoints", "newest ones that stay", QUIET),
    ENUM("checkpoint.resume", "auto", resumes,
         "auto: from the newest good checkpoint of the run, if there is one", QUIET),
    BOOL("checkpoint.save_last", "true", "save at the end", QUIET),
    BOOL("checkpoint.verify", "false", "check every byte of a checkpoint before it is used", QUIET),

    STRING("run.directory", "runs/default", "everything that the job writes goes here", QUIET),
    STRING("run.device", "auto", "auto, cpu or cuda", QUIET),
    ENUM("run.transport", "auto", transports, "between ranks", QUIET),
    ENUM("run.device_transport", "auto", device_transports,
         "between their GPUs; staged: through host memory, where NCCL cannot", QUIET),
    ENUM("run.copy_engines", "auto", copy_engines,
         "of GPUs of one host, for exchanges: into each other's memory, or through the host's "
         "where they do not reach it; ranks that share a GPU: NCCL; host: through the host's on "
         "all; off: NCCL for all",
         QUIET),
    STRING("run.rates", "auto",
           "the device that seconds are predicted for, such as h100 or rtx-4090; auto: the GPU at "
           "hand; "
           "none",
           QUIET),
    BOOL("run.share_gpu", "false", "ranks may have one GPU: slow, for tests (--share-gpu)", QUIET),
    BOOL("run.graphs", "false",
         "queue runs of operations that are the same in every step as CUDA graphs: for steps in "
         "which "
         "the GPU waits for the host; up to 256 MiB of the device; nothing on the CPU",
         QUIET),
    INT("run.threads", "0", "0", "4096", "threads",
        "of the CPU backend; zero: OMP_NUM_THREADS, or 1", QUIET),
    FLOAT("run.deadline", "120", "0.1", NULL, "seconds", "longest wait for another rank", QUIET),
    BOOL("run.trace", "false",
         "write a Chrome trace of each rank and the pipeline chart, and measure what of the steps "
         "is exposed",
         QUIET),
    INT("run.log_every", "1", "1", NULL, "steps", "steps between records in metrics.jsonl", QUIET),

    STRING("generate.checkpoint", "",
           "run, checkpoint or Hugging Face folder; empty: run.directory", QUIET),
    {.key = "generate.prompts",
     .type = HDI_CONFIG_STRING_LIST,
     .help = "texts to continue",
     .flags = QUIET},
    STRING("generate.prompt_file", "", "one prompt a line, after generate.prompts", QUIET),
    STRING("generate.ids", "",
           "a prompt as token numbers with commas, for vocabularies that are not bytes", QUIET),
    INT("generate.tokens", "0", "0", "16777216", "tokens",
        "to add to each prompt; zero: 200, or as many as the model takes", QUIET),
    FLOAT("generate.temperature", "0.8", "0", "100", NULL, "zero: greedy", QUIET),
    INT("generate.top_k", "50", "0", NULL, "tokens",
        "sample among the k likeliest; zero: among all", QUIET),
    INT("generate.seed", "1", "0", NULL, NULL,
        "of sampling: a function of seed, prompt and position", QUIET),
    INT("generate.prefill", "32", "1", "65536", "tokens", "prompt tokens that one pass takes",
        QUIET),
    ENUM("generate.dtype", "auto", sample_dtypes,
         "of weights, caches and activations; auto: what Hugging Face files have on GPUs, else f32",
         QUIET),
    ENUM("generate.residency", "auto", residencies,
         "weights of blocks, as in sample.residency; auto: elsewhere where nothing else fits",
         QUIET),

    STRING("sample.checkpoint", "",
           "run, checkpoint, Hugging Face folder or safetensors file; empty: run.directory", QUIET),
    BOOL("sample.average", "false", "of a checkpoint: the average of the weights (train.ema)",
         QUIET),
    BOOL("sample.random_weights", "false", "no weights at all: to measure speed", QUIET),
    {.key = "sample.inputs",
     .type = HDI_CONFIG_STRING_LIST,
     .help = "texts: safetensors files with \"text\" and \"pooled\", folders of them, or data sets",
     .flags = QUIET},
    STRING("sample.negative", "",
           "text to be guided away from, or a folder with one of each input's name; empty: a data "
           "set's text for the empty prompt, or else that of the weights (Open-Sora 1.2, 1.3)",
           QUIET),
    STRING("sample.given", "",
           "safetensors with given frames: \"latents\", and \"mask\" of one number a frame", QUIET),
    INT("sample.width", "256", "1", "65536", "pixels", "of the videos", QUIET),
    INT("sample.height", "256", "1", "65536", "pixels", "of the videos", QUIET),
    INT("sample.frames", "17", "1", "65536", "frames", "of the videos", QUIET),
    FLOAT("sample.fps", "24", "0.1", "1000", "frames",
          "a second: for models that read it, and GIFs", QUIET),
    INT("sample.steps", "50", "1", "100000", "steps", "of denoising", QUIET),
    ENUM("sample.scheduler", "auto", schedulers, "noise levels of the steps; auto: the model's",
         QUIET),
    FLOAT("sample.shift", "0", "0", "1000", NULL,
          "of noise levels towards noise; zero: the scheduler's (flow: 7 for HunyuanVideo, else 1)",
          QUIET),
    FLOAT("sample.guidance", "0", "0", "1000", NULL,
          "by the text; 1: none; zero: 6, Open-Sora 2.0 7.5, Open-Sora 1.2 7", QUIET),
    FLOAT("sample.image_guidance", "3", "0", "1000", NULL, "by given frames (Open-Sora 1.3, 2.0)",
          QUIET),
    BOOL("sample.oscillate", "true",
         "guide in every other step only from the 11th on (open-sora-2; 1.3 with given frames)",
         QUIET),
    BOOL("sample.rounded_guidance", "true",
         "HunyuanVideo: guidance formed in bf16, as its authors do: 6 becomes 6.016", QUIET),
    ENUM(
        "sample.dtype", "auto", sample_dtypes,
        "of weights and activations; auto: bf16 on GPUs and in plans with run.rates of one, f32 on "
        "the CPU",
        QUIET),
    {.key = "sample.seeds",
     .type = HDI_CONFIG_INT_LIST,
     .fallback = "1",
     .min = "0",
     .help = "of the noise: a video for each seed and input",
     .flags = QUIET},
    ENUM("sample.residency", "auto", residencies,
         "weights of blocks: on the device; on the host, copied in beside computing; sharded: a "
         "share "
         "on each of the data and sequence ranks, which gather them; host-sharded: each copies a "
         "share "
         "from the host, then they gather; auto: as few elsewhere as memory.budget asks for, over "
         "the "
         "fastest link",
         QUIET),
    INT("sample.slices", "0", "0", "64", NULL,
        "of a block's heads and rows that are in memory one by one, on the sequence axis also the "
        "least number of groups in which heads change places; zero: as few as memory.budget needs "
        "once all blocks are on the host",
        QUIET),
    STRING("sample.directory", "", "results go here; empty: run.directory/samples", QUIET),
    INT("sample.save_every", "5", "0", NULL, "steps",
        "between saves of videos on their way; zero: none", QUIET),
    ENUM("sample.resume", "auto", resumes, "auto: take up what is in the directory already", QUIET),
    INT("sample.in_flight", "0", "0", "4096", "videos",
        "at once on a data line; zero: as many as keep all stages busy", QUIET),
    INT("sample.text_tokens", "0", "0", "1048576", "tokens",
        "of a text, for plan --sample; zero: the model's most", QUIET),
};

const int hdi_job_schema_rows = (int)(sizeof hdi_job_schema / sizeof hdi_job_schema[0]);
