/* Sessions: planned runs give the bits of separate memory, use what was planned, allocate nothing. */
#include <heddle/session.h>

#include <stdlib.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/random.h"
#include "program/plan.h"
#include "tests/support/hdt_interpret.h"
#include "tests/support/hdt_program.h"

static hd_context *context;
static hd_plan *plan;
static hd_session *session;

static void begin(hd_program *const *programs, int count, const hd_plan_program_options *options)
{
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    for (int i = 0; i < count; i++)
        hdt_assert_ok(hd_plan_add(plan, programs[i], options));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_session_create(context, plan, NULL, &session));
}

static void end(void)
{
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_context_destroy(context);
}

static void run(const hd_program *program, hd_phase phase, int micro_batch, bool accumulate)
{
    hdt_assert_ok(hd_session_run(
        session, program,
        &(hd_session_run_options){
            .phase = phase, .micro_batch = micro_batch, .accumulate = accumulate, .last = true}));
}

/* Input values that differ with the micro-batch. */
static void set_inputs(const hd_program *program, hdt_machine *machine, int micro_batch)
{
    const char *const names[] = {"x", "seed"};
    for (uint64_t n = 0; n < 2; n++) {
        float values[100];
        hd_tensor tensor = hd_tensor_find(program, names[n]);
        hdt_fill(values, 100, 10 * n + (uint64_t)micro_batch);
        hdt_assert_ok(hd_session_write(session, program, tensor, micro_batch, values));
        memcpy(hdt_machine_data(machine, tensor), values, sizeof values);
    }
}

static void compare(const hd_program *program, const hdt_machine *machine, hd_tensor tensor,
                    int micro_batch)
{
    float seen[100];
    hdt_assert_ok(hd_session_read(session, program, tensor, micro_batch, seen));
    ck_assert_mem_eq(seen, hdt_machine_data(machine, tensor), sizeof seen);
}

START_TEST(a_planned_run_gives_the_bits_of_separate_memory)
{
    enum { BATCHES = 3 };
    for (uint64_t seed = 0; seed < 25; seed++) {
        hd_program *p = hdt_random_program(seed);
        begin(&p, 1, &(hd_plan_program_options){.saved_slots = BATCHES, .io_slots = BATCHES});
        hdt_machine *machines[BATCHES];
        hdt_assert_ok(hd_session_initialize(session, 1));
        for (int b = 0; b < BATCHES; b++) {
            machines[b] = hdt_machine_create(p, false);
            set_inputs(p, machines[b], b);
            for (int u = 0; u < p->use_count; u++)
                for (int64_t i = 0; i < 100; i++)
                    hdt_machine_set(machines[b], p->uses[u].tensor, i, 1);
            hdt_assert_ok(hdt_machine_run(machines[b], HDI_PHASE_FORWARD, false));
            hdt_assert_ok(hdt_machine_run(machines[b], HDI_PHASE_BACKWARD, false));
        }
        /* All in flight at once, as a pipeline has them, and backwards from the last. */
        uint64_t allocations = hdi_alloc_count();
        for (int b = 0; b < BATCHES; b++)
            run(p, HD_PHASE_FORWARD, b, false);
        for (int b = BATCHES - 1; b >= 0; b--) {
            run(p, HD_PHASE_BACKWARD, b, false);
            compare(p, machines[b], hd_tensor_find(p, "y"), b);
            compare(p, machines[b], hd_gradient(p, hd_tensor_find(p, "x")), b);
            for (int u = 0; u < p->use_count; u++)
                if (p->uses[u].gradient.id) compare(p, machines[b], p->uses[u].gradient, b);
        }
        ck_assert_uint_eq(hdi_alloc_count(), allocations);
        ck_assert_uint_eq(hd_session_high_water(session), hd_plan_arena_bytes(plan));
        for (int b = 0; b < BATCHES; b++)
            hdt_machine_destroy(machines[b]);
        end();
        hd_program_destroy(p);
    }
}
END_TEST

START_TEST(gradients_of_micro_batches_accumulate)
{
    hd_program *p = hdt_program();
    hd_tensor x = hdt_vector(p, "x", 1), w = hdt_weight(p, "w", 1);
    hd_program_backward(p, hdt_mul(p, x, w), hdt_vector(p, "seed", 1));
    hdt_assert_ok(hd_program_finish(p));
    begin(&p, 1, NULL);
    const float values[] = {3, 4}, one = 1;
    for (int b = 0; b < 2; b++) {
        hdt_assert_ok(hd_session_write(session, p, x, 0, &values[b]));
        hdt_assert_ok(hd_session_write(session, p, hd_tensor_find(p, "seed"), 0, &one));
        run(p, HD_PHASE_FORWARD, 0, false);
        run(p, HD_PHASE_BACKWARD, 0, b > 0);
    }
    float gradient;
    hdt_assert_ok(hd_session_read(session, p, hd_gradient(p, w), 0, &gradient));
    ck_assert_float_eq(gradient, 7);
    end();
    hd_program_destroy(p);
}
END_TEST

START_TEST(each_slot_keeps_what_was_written)
{
    hd_program *p = hdt_program();
    hd_tensor x = hdt_vector(p, "x", 3);
    hd_output(p, hdt_double(p, x), "y");
    hdt_assert_ok(hd_program_finish(p));
    begin(&p, 1, &(hd_plan_program_options){.io_slots = 3});
    for (int b = 0; b < 4; b++) { /* the fourth has the first one's slot */
        const float values[] = {(float)b, (float)b + 0.25F, -(float)b};
        hdt_assert_ok(hd_session_write(session, p, x, b, values));
    }
    for (int b = 1; b < 4; b++) {
        float seen[3];
        hdt_assert_ok(hd_session_read(session, p, x, b, seen));
        ck_assert_float_eq(seen[0], (float)b);
        ck_assert_float_eq(seen[2], -(float)b);
    }
    end();
    hd_program_destroy(p);
}
END_TEST

START_TEST(what_has_no_place_is_refused)
{
    hd_program *p = hdt_program(), *other = hdt_program();
    hd_tensor x = hdt_vector(p, "x", 3);
    hd_output(p, hdt_double(p, x), "y");
    hdt_assert_ok(hd_program_finish(p));
    begin(&p, 1, NULL);
    float values[3] = {0};
    const hd_session_run_options bad[] = {
        {.micro_batch = -1}, {.level = 1}, {.level = -1}, {.folds = 1}, {.folds = -1}};
    hdt_assert_status(hd_session_write(session, other, x, 0, values), HD_ERROR_ARGUMENT,
                      "not in its plan");
    hdt_assert_status(hd_session_read(session, p, (hd_tensor){0}, 0, values), HD_ERROR_ARGUMENT,
                      "no tensor 0");
    hdt_assert_status(hd_session_read(session, p, (hd_tensor){99}, 0, values), HD_ERROR_ARGUMENT,
                      "no tensor 99");
    hdt_assert_status(hd_session_write(session, p, x, -1, values), HD_ERROR_ARGUMENT,
                      "micro-batch is -1");
    hdt_assert_status(hd_session_run(session, other, &(hd_session_run_options){0}),
                      HD_ERROR_ARGUMENT, "not in its plan");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        hdt_assert_status(hd_session_run(session, p, &bad[i]), HD_ERROR_ARGUMENT,
                          "want folds <= level < 1");
    end();
    hd_program_destroy(p);
    hd_program_destroy(other);
}
END_TEST

START_TEST(a_plan_must_be_finished)
{
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_status(hd_session_create(context, plan, NULL, &session), HD_ERROR_ARGUMENT,
                      "not finished");
    ck_assert_ptr_null(session);
    end();
}
END_TEST

static void fill_squares(void *user, float *out)
{
    for (int i = 0; i < *(int *)user; i++)
        out[i] = (float)(i * i);
}

START_TEST(tables_are_filled_and_states_start_as_zeros)
{
    int count = 300;
    hd_program *p = hdt_program();
    const int64_t dims = count;
    hd_tensor state = hd_state(p, "m", HD_DTYPE_F32, 1, &dims);
    hd_tensor table = hdi_table(p, "squares", 1, &dims, fill_squares, &count, sizeof count);
    ck_assert_int_eq(hdi_table(p, "squares", 1, &dims, fill_squares, &count, sizeof count).id,
                     table.id);
    hd_output(p, hdt_mul(p, table, state), "y");
    hdt_assert_ok(hd_program_finish(p));
    begin(&p, 1, NULL);
    float seen[300];
    hdt_assert_ok(hd_session_read(session, p, table, 0, seen));
    for (int i = 0; i < count; i++)
        ck_assert_float_eq(seen[i], (float)(i * i));
    hdt_assert_ok(hd_session_read(session, p, state, 0, seen));
    for (int i = 0; i < count; i++)
        ck_assert_float_eq(seen[i], 0);
    end();
    hd_program_destroy(p);
}
END_TEST

static hd_program *with_weights(const char *const names[3])
{
    hd_program *p = hdt_program();
    const hd_init inits[] = {HD_INIT_NORMAL, HD_INIT_ONES, HD_INIT_ZEROS};
    for (int i = 0; i < 3; i++) {
        hd_init init = inits[strchr("nox", names[i][0]) - "nox"];
        hd_parameter(p, &(hd_parameter_options){
                            .name = names[i], .rank = 1, .dims = {1500}, .init = init, .std = 0.5});
    }
    hd_output(p, hdt_double(p, p->uses[0].tensor), "y");
    hdt_assert_ok(hd_program_finish(p));
    return p;
}

START_TEST(first_weights_are_a_function_of_seed_name_and_element)
{
    const char *const orders[2][3] = {{"n", "one", "x"}, {"x", "n", "one"}};
    for (int order = 0; order < 2; order++) {
        hd_program *p = with_weights(orders[order]);
        begin(&p, 1, NULL);
        for (uint64_t seed = 5; seed < 7; seed++) {
            hdt_assert_ok(hd_session_initialize(session, seed));
            for (int u = 0; u < 3; u++) {
                float seen[1500];
                const char *name = p->uses[u].name;
                hdt_assert_ok(hd_session_read(session, p, p->uses[u].tensor, 0, seen));
                for (uint64_t i = 0; i < 1500; i++) {
                    float wanted = *name == 'o' ? 1 : 0;
                    if (*name == 'n')
                        wanted = 0.5F * hdi_random_normal(seed, hdi_random_stream("n"), i);
                    ck_assert_float_eq(seen[i], wanted);
                }
            }
        }
        end();
        hd_program_destroy(p);
    }
}
END_TEST

static hd_status shape_like(hd_program *program, const hd_op *op)
{
    hd_op_output(program, HD_DTYPE_F32, 1, op->in_info[0]->dims);
    return HD_OK;
}

static hd_status run_failing(const hd_run *run)
{
    return hdi_error(HD_ERROR_DEVICE, "it broke in op %s", run->op->kind->name);
}

START_TEST(an_op_that_fails_is_named)
{
    static const hd_op_kind breaks = {.name = "breaks", .shape = shape_like, .run = run_failing};
    hd_program *p = hdt_program();
    hd_tensor x = hdt_double(p, hdt_vector(p, "x", 3));
    hd_scope_begin(p, "h.1");
    hd_output(p, hd_custom_op(p, &breaks, NULL, 1, &x), "y");
    hd_scope_end(p);
    hdt_assert_ok(hd_program_finish(p));
    begin(&p, 1, NULL);
    hdt_assert_status(hd_session_run(session, p, &(hd_session_run_options){0}), HD_ERROR_DEVICE,
                      "program 'p', op 1 (h.1: breaks): it broke in op breaks");
    end();
    hd_program_destroy(p);
}
END_TEST

START_TEST(an_unknown_device_is_refused)
{
    hdt_assert_status(hd_context_create(&(hd_context_options){.device = "abacus"}, &context),
                      HD_ERROR_DEVICE, "device 'abacus'");
    ck_assert_ptr_null(context);
    hd_context_destroy(NULL);
    hd_session_destroy(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("session");
    TCase *tests = tcase_create("session");
    tcase_add_test(tests, a_planned_run_gives_the_bits_of_separate_memory);
    tcase_add_test(tests, gradients_of_micro_batches_accumulate);
    tcase_add_test(tests, each_slot_keeps_what_was_written);
    tcase_add_test(tests, what_has_no_place_is_refused);
    tcase_add_test(tests, a_plan_must_be_finished);
    tcase_add_test(tests, tables_are_filled_and_states_start_as_zeros);
    tcase_add_test(tests, first_weights_are_a_function_of_seed_name_and_element);
    tcase_add_test(tests, an_op_that_fails_is_named);
    tcase_add_test(tests, an_unknown_device_is_refused);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
