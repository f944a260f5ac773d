/* The promise: a run knows the most of a device that was in use in each kind of its work, says once when that
 * is over the budget, and takes no byte more of the device for a validation or a save than for a step. */
#include "tests/support/hdt_blocks.h"
#include "tests/support/hdt_plans.h"
#include "tests/support/hdt_train.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/memory.h"
#include "jobs/setup.h"
#include "jobs/train/trainer.h"
#include "runtime/session.h"

#include <stdio.h>

/* A device of 8 GiB of which a test says, or a session takes, what is in use. */
enum { TOTAL_GIB = 8, OTHERS = 12345 };
static size_t in_use;
static double read_seconds;
static int readings;

static hd_status made_up_memory(hdi_device *device, hdi_memory_info *out)
{
    (void)device;
    const double until = hdi_clock_seconds() + read_seconds;
    while (hdi_clock_seconds() < until) {
    }
    readings++;
    out->total_bytes = (size_t)TOTAL_GIB << 30;
    out->free_bytes = out->total_bytes - in_use;
    return HD_OK;
}

static hd_status no_memory_info(hdi_device *device, hdi_memory_info *out)
{
    (void)device, (void)out;
    return HD_ERROR_DEVICE;
}

static hd_status reserve(hdi_device *device, size_t bytes, void **out)
{
    in_use += bytes;
    return hdi_backend_cpu.reserve(device, bytes, out);
}

static void release(hdi_device *device, void *arena, size_t bytes)
{
    in_use -= arena ? bytes : 0;
    hdi_backend_cpu.release(device, arena, bytes);
}

/* Pinned memory has page tables on the device. */
enum { PINNED_SHARE = 512, PIECE = 2 << 20 };

static hd_status reserve_host(hdi_device *device, size_t bytes, void **out)
{
    in_use += bytes / PINNED_SHARE;
    return hdi_backend_cpu.reserve_host(device, bytes, out);
}

static void release_host(hdi_device *device, void *memory, size_t bytes)
{
    in_use -= memory ? bytes / PINNED_SHARE : 0;
    hdi_backend_cpu.release_host(device, memory, bytes);
}

static hd_backend made_up;

static hd_context *open_context(void)
{
    hd_context *context;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    made_up = hdi_backend_cpu;
    made_up.memory_info = made_up_memory;
    made_up.reserve = reserve;
    made_up.release = release;
    made_up.reserve_host = reserve_host;
    made_up.release_host = release_host;
    made_up.pinned_share = PINNED_SHARE;
    context->backend = &made_up;
    in_use = OTHERS;
    read_seconds = 0;
    readings = 0;
    return context;
}

static int lines;
static char last_line[4096];

static void keep_line(void *user, hd_log_level level, const char *line)
{
    (void)user, (void)level;
    lines++;
    snprintf(last_line, sizeof last_line, "%s", line);
}

static void read_at(hd_context *context, hdi_work work, size_t bytes)
{
    in_use = bytes;
    hdi_watch_memory(context, work);
}

START_TEST(the_most_of_each_kind_of_work_is_kept)
{
    hd_context *context = open_context();
    const hdi_memory_watch *watch = &context->memory;
    read_at(context, HDI_WORK_TRAINING, 300);
    read_at(context, HDI_WORK_TRAINING, 500);
    read_at(context, HDI_WORK_SAVE, 700);
    read_at(context, HDI_WORK_TRAINING, 400);
    read_at(context, HDI_WORK_SAVE, 600);
    ck_assert_uint_eq(watch->most[HDI_WORK_TRAINING], 500);
    ck_assert_uint_eq(watch->most[HDI_WORK_SAVE], 700);
    ck_assert_uint_eq(watch->most[HDI_WORK_VALIDATION], 0);
    ck_assert_uint_eq(hdi_memory_most(watch), 700);
    hdi_log_attach(keep_line, NULL, HD_LOG_INFO);
    lines = 0;
    hdi_job_log_memory(context, 650);
    ck_assert_int_eq(lines, 1);
    ck_assert_msg(strstr(last_line,
                         "memory: planned 650 bytes of the device, on the rank that needs most; "
                         "most in use there, other programs included, 700 bytes of 8589934592 "
                         "bytes (8 GiB): 500 bytes in training, 700 bytes in saving"),
                  "%s", last_line);
    context->backend = &hdi_backend_cpu;
    hdi_job_log_memory(context, 650);
    hdi_log_attach(NULL, NULL, HD_LOG_NONE);
    ck_assert_msg(strstr(last_line, "memory: planned 650 bytes of the host, "), "%s", last_line);
    ck_assert_msg(!strstr(last_line, "in use"), "%s", last_line);
    hd_context_destroy(context);
}
END_TEST

START_TEST(ranks_that_share_a_device_share_what_is_in_use)
{
    hd_context *context = open_context();
    context->sharers = 4;
    read_at(context, HDI_WORK_STEPS, 4000);
    ck_assert_uint_eq(context->memory.most[HDI_WORK_STEPS], 1000);
    hd_context_destroy(context);
}
END_TEST

START_TEST(more_than_the_budget_is_said_once)
{
    hd_context *context = open_context();
    const size_t gib = (size_t)1 << 30;
    context->memory.budget = 2 * gib;
    lines = 0;
    hdi_log_attach(keep_line, NULL, HD_LOG_WARN);
    hdi_log_set_rank(3);
    read_at(context, HDI_WORK_TRAINING, 2 * gib);
    const int within = lines;
    read_at(context, HDI_WORK_VALIDATION, 2 * gib + gib / 4);
    read_at(context, HDI_WORK_SAVE, 3 * gib);
    hdi_log_attach(NULL, NULL, HD_LOG_NONE);
    ck_assert_int_eq(within, 0);
    ck_assert_int_eq(lines, 1);
    ck_assert_msg(strstr(last_line, "[3] warn: memory: 2.250 GiB of the device in use in "
                                    "validation, 0.250 GiB over memory.budget, 2.000 GiB"),
                  "%s", last_line);
    hd_context_destroy(context);
}
END_TEST

/* However slow a reading is: of N readings all but the first come N times 200 readings after it. */
START_TEST(glances_read_at_most_half_a_percent_of_the_time)
{
    hd_context *context = open_context();
    read_seconds = 1e-4;
    const double begin = hdi_clock_seconds();
    while (hdi_clock_seconds() < begin + 0.1)
        hdi_glance_at_memory(context, HDI_WORK_TRAINING);
    const double seconds = hdi_clock_seconds() - begin;
    ck_assert_int_ge(readings, 1);
    ck_assert_double_le(readings - 1, seconds / (200 * read_seconds));
    const int before = readings;
    hdi_glance_at_memory(context, HDI_WORK_VALIDATION); /* a kind that was not seen yet */
    ck_assert_int_eq(readings, before + 1);
    ck_assert_uint_eq(context->memory.most[HDI_WORK_VALIDATION], OTHERS);
    hd_context_destroy(context);
}
END_TEST

START_TEST(a_device_that_cannot_be_read_is_passed_over)
{
    hd_context *context = open_context();
    made_up.memory_info = no_memory_info;
    context->memory.budget = 1;
    lines = 0;
    hdi_log_attach(keep_line, NULL, HD_LOG_INFO);
    hdi_watch_memory(context, HDI_WORK_TRAINING);
    hdi_job_log_memory(context, 650);
    hdi_log_attach(NULL, NULL, HD_LOG_NONE);
    ck_assert_int_eq(lines, 0);
    ck_assert_uint_eq(hdi_memory_most(&context->memory), 0);
    hd_context_destroy(context);
}
END_TEST

/* As a save reads it. */
static hd_status read_part(void *user, const hdi_trainer_part *part)
{
    hd_trainer *trainer = user;
    enum { AT_ONCE = 100 };
    float values[AT_ONCE];
    for (int64_t done = 0; done < part->count; done += AT_ONCE) {
        const int64_t left = part->count - done;
        HD_RETURN_IF_ERROR(
            hdi_trainer_read(trainer, part, done, left < AT_ONCE ? left : AT_ONCE, values));
        hdi_glance_at_memory(trainer->session->context, HDI_WORK_SAVE);
    }
    hdi_watch_memory(trainer->session->context, HDI_WORK_SAVE);
    return HD_OK;
}

/* Where weights are streamed, gradients and optimizer states copied, activations kept or computed again. */
static const hd_trainer_options kinds[] = {
    {0},
    {.optimizer_residency = HD_RESIDENCY_HOST},
    {.optimizer_residency = HD_RESIDENCY_HOST,
     .gradient_residency = HD_RESIDENCY_HOST,
     .residency = HD_RESIDENCY_HOST,
     .activations = HD_ACTIVATIONS_RECOMPUTE_HOST},
    {.dtype = HD_DTYPE_BF16, .master = HD_MASTER_REMAINDER, .ema_decay = 0.9F},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

START_TEST(validations_and_saves_take_no_byte_more_than_steps)
{
    hd_comm *self;
    hd_mesh *mesh;
    hd_trainer *trainer;
    hd_step_result result;
    hd_context *context = open_context();
    hd_model *model = hdt_tiny_model("gpt2", 4);
    hd_trainer_options options = kinds[_i];
    hdt_assert_ok(hd_comm_create_world(&(hd_comm_options){.transport = HD_TRANSPORT_SELF}, &self));
    hdt_assert_ok(hd_mesh_create(self, &(hd_mesh_options){0}, &mesh));
    options.build = hd_model_build;
    options.user = model;
    options.layers = hd_model_layers(model);
    options.mesh = mesh;
    options.backend = &made_up;
    options.sequences = HDT_SEQUENCES;
    options.tokens = HDT_TOKENS;
    options.accumulate = 2;
    options.validate_batches = 2;
    hdt_assert_ok(hd_trainer_create(&options, &trainer));
    hdt_assert_ok(hd_trainer_start(trainer, context, 1));
    for (int64_t step = 0; step < 3; step++) {
        hdt_assert_ok(hd_trainer_step(trainer, 1e-3, hdt_feed, &step, &result));
        hdi_watch_memory(context, HDI_WORK_TRAINING);
        hdt_assert_ok(hd_trainer_validate(trainer, hdt_feed, &step, &result));
        hdi_watch_memory(context, HDI_WORK_VALIDATION);
        hdt_assert_ok(hdi_trainer_saved_parts(trainer, read_part, trainer));
    }
    const size_t *most = context->memory.most, planned = hd_plan_total_bytes(trainer->plan);
    const size_t pinned = hd_plan_host_bytes(trainer->plan);
    ck_assert_uint_le(most[HDI_WORK_TRAINING], OTHERS + planned);
    ck_assert_uint_ge(most[HDI_WORK_TRAINING] + (pinned ? PIECE : 0), OTHERS + planned);
    ck_assert_uint_eq(most[HDI_WORK_VALIDATION], most[HDI_WORK_TRAINING]);
    ck_assert_uint_eq(most[HDI_WORK_SAVE], most[HDI_WORK_TRAINING]);
    hd_trainer_destroy(trainer);
    ck_assert_uint_eq(in_use, OTHERS);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_comm_destroy(self);
    hd_model_destroy(model);
}
END_TEST

/* Blocks that leave the device because a budget does not hold them take their page tables along. */
START_TEST(budgets_count_the_page_tables_of_what_they_send_to_the_host)
{
    enum { BLOCKS = 5, WIDTH = 1024, SHARE = 4, FOREIGN = 77 };
    hdt_plans plans = {.programs = {hdt_matrices_program(&(hdt_matrices){
                           .rows = 1, .width = WIDTH, .count = BLOCKS, .last = true})},
                       .program_count = 1};
    hd_plan_options options = {.foreign = FOREIGN, .pinned_share = SHARE};
    size_t needs[BLOCKS + 1];
    for (int blocks = 0; blocks <= BLOCKS; blocks++) {
        options.residency = blocks ? HD_RESIDENCY_HOST : HD_RESIDENCY_RESIDENT;
        options.host_blocks = blocks;
        hdt_make_plan(&plans, &options);
        const size_t tables = hd_plan_host_bytes(plans.plan) / SHARE;
        const size_t foreign = hd_plan_region_bytes(plans.plan, HD_REGION_FOREIGN);
        ck_assert_uint_ge(foreign, FOREIGN + tables);
        ck_assert_uint_lt(foreign, FOREIGN + tables + PIECE);
        needs[blocks] = hd_plan_total_bytes(plans.plan);
        hdt_drop_plan(&plans);
    }
    for (size_t budget = needs[0] + PIECE; budget >= needs[BLOCKS]; budget -= PIECE / 4) {
        int fewest = 0;
        while (needs[fewest] > budget)
            fewest++;
        options.residency = HD_RESIDENCY_AUTO;
        options.host_blocks = 0;
        options.budget = budget;
        hdt_make_plan(&plans, &options);
        ck_assert_int_eq(plans.plan->residency.host_blocks, fewest);
        ck_assert_uint_eq(hd_plan_total_bytes(plans.plan), needs[fewest]);
        hdt_drop_plan(&plans);
    }
    hdt_drop_plans(&plans);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("memory_watch");
    TCase *tests = tcase_create("memory watch");
    tcase_add_test(tests, the_most_of_each_kind_of_work_is_kept);
    tcase_add_test(tests, ranks_that_share_a_device_share_what_is_in_use);
    tcase_add_test(tests, more_than_the_budget_is_said_once);
    tcase_add_test(tests, glances_read_at_most_half_a_percent_of_the_time);
    tcase_add_test(tests, a_device_that_cannot_be_read_is_passed_over);
    tcase_add_loop_test(tests, validations_and_saves_take_no_byte_more_than_steps, 0, KINDS);
    tcase_add_test(tests, budgets_count_the_page_tables_of_what_they_send_to_the_host);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
