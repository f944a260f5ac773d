/* The one-call tier: a configuration, one call, a trained model. Run it alone, or under mpirun on as
 * many ranks as you like: the layout's data axis takes what is there. */
#include <heddle/job.h>
#include <stdio.h>

static const char *const settings[][2] = {
    {"data.path", "01_text.txt"},
    {"run.directory", "01_run"},
    {"checkpoint.resume", "never"},
    {"model.layers", "2"},
    {"model.hidden", "64"},
    {"model.heads", "4"},
    {"train.steps", "30"},
    {"train.tokens", "64"},
    {"train.micro_batch", "4"},
    {"optimizer.warmup", "5"},
    {"optimizer.learning_rate", "3e-3"},
};

/* Something to learn from: bytes with a pattern. */
static int write_text(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file) return 0;
    for (int i = 0; i < 2000; i++)
        fprintf(file, "%d shuttles carry the weft through %d threads of warp.\n", i % 7, i % 11);
    return fclose(file) == 0;
}

/* Comes after each step, on rank 0. Returning false would save and stop. */
static bool show(void *user, const hd_progress *progress)
{
    (void)user;
    if (progress->step % 10 == 0)
        printf("step %d of %d: loss %.3f\n", (int)progress->step, (int)progress->steps,
               progress->loss);
    return true;
}

static hd_status train(hd_config *config)
{
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        hd_status status = hd_config_set(config, settings[i][0], settings[i][1]);
        if (status != HD_OK) return status;
    }
    hd_train_result result;
    hd_status status = hd_train_run(config, show, NULL, &result);
    if (status == HD_OK)
        printf("loss %.3f after %d steps; counting bytes alone gives %.3f. See %s/loss.svg\n",
               result.loss, (int)result.steps, result.entropy, result.directory);
    return status;
}

int main(void)
{
    if (!write_text("01_text.txt")) return perror("01_text.txt"), 1;
    hd_config *config;
    hd_status status = hd_config_create(&config);
    if (status == HD_OK) status = train(config);
    hd_config_destroy(config);
    if (status != HD_OK) fprintf(stderr, "%s: %s\n", hd_status_string(status), hd_last_error());
    return status != HD_OK;
}
