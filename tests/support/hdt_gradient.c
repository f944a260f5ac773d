/* Gradients of small programs against central differences in fp64. */
#include "tests/support/hdt_gradient.h"

#include <heddle/session.h>

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "tests/support/hdt.h"
#include "tests/support/hdt_interpret.h"

typedef struct subject {
    hd_program *program;
    hd_tensor y, seed; /* seed is invalid for losses */
} subject;

static subject make_subject(const hdt_gradient_case *one, bool exact)
{
    subject made = {0};
    hdt_assert_ok(hd_program_create(
        &(hd_program_options){.name = one->name, .training = true, .exact = exact}, &made.program));
    made.y = one->build(made.program);
    const hd_tensor_info *info = hd_tensor_get(made.program, made.y);
    if (info && info->dtype == HD_DTYPE_F32) {
        made.seed = hd_input(made.program, "seed", HD_DTYPE_F32, info->rank, info->dims);
        hd_output(made.program, made.y, "y");
    }
    hd_program_backward(made.program, made.y, made.seed);
    hdt_assert_ok(hd_program_finish(made.program));
    return made;
}

static bool is_leaf(const hd_program *program, int id)
{
    const hd_role role = program->tensors[id]->info.role;
    return role == HD_ROLE_INPUT || role == HD_ROLE_PARAMETER;
}

/* Ids below 11, or what the name asks for. */
static int32_t integer_of(const char *name, int64_t i)
{
    if (strcmp(name, "targets") == 0 && (i == 1 || i == 4)) return -1;
    if (strcmp(name, "counts") == 0) return (int32_t)(3 + 2 * i);
    if (strcmp(name, "offsets") == 0) return (int32_t)(1 + i * (7 - i) / 2); /* 1, 4, 6 */
    return (int32_t)((3 * i * i + i) % 11);
}

/* The same numbers for the same tensor everywhere; weights are around 1, as norms have them. */
static void values_of(const hd_program *program, int id, void *out)
{
    const hd_tensor_info *info = &program->tensors[id]->info;
    if (info->dtype == HD_DTYPE_I32) {
        for (int64_t i = 0; i < info->elements; i++)
            ((int32_t *)out)[i] = integer_of(info->name, i);
        return;
    }
    uint64_t seed = 7;
    for (const char *c = info->name; *c; c++)
        seed = 31 * seed + (unsigned char)*c;
    hdt_fill(out, info->elements, seed);
    for (int64_t i = 0; i < info->elements && info->role == HD_ROLE_PARAMETER; i++)
        ((float *)out)[i] = info->rank == 1 ? 1 + ((float *)out)[i] / 2 : ((float *)out)[i];
}

static void fill_machine(hdt_machine *machine, const hd_program *program)
{
    for (int i = 1; i < program->tensor_count; i++) {
        const hd_tensor_info *info = &program->tensors[i]->info;
        if (!is_leaf(program, i)) continue;
        float *values = calloc((size_t)info->elements, sizeof *values);
        ck_assert_ptr_nonnull(values);
        values_of(program, i, values);
        if (info->dtype == HD_DTYPE_I32)
            memcpy(hdt_machine_data(machine, (hd_tensor){i}), values, info->bytes);
        else
            for (int64_t k = 0; k < info->elements; k++)
                hdt_machine_set(machine, (hd_tensor){i}, k, (double)values[k]);
        free(values);
    }
}

/* The scalar that is differentiated: the loss, or the sum of seed * y. */
static double scalar(hdt_machine *machine, const subject *s)
{
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    if (!s->seed.id) return hdt_machine_get(machine, s->y, 0);
    double sum = 0;
    for (int64_t i = 0; i < hd_tensor_get(s->program, s->y)->elements; i++)
        sum += hdt_machine_get(machine, s->seed, i) * hdt_machine_get(machine, s->y, i);
    return sum;
}

/* The gradient of a leaf: of all uses together for a parameter; 0 if the loss does not depend on it. */
static double gradient_of(const hdt_machine *machine, const hd_program *program, int id,
                          int64_t element)
{
    const hdi_tensor *tensor = program->tensors[id];
    if (tensor->use < 0)
        return hdt_machine_get(machine, hd_gradient(program, (hd_tensor){id}), element);
    double sum = 0;
    int counted[8], count = 0;
    for (int u = 0; u < program->use_count; u++) {
        const hdi_use *use = &program->uses[u];
        bool seen = strcmp(use->name, tensor->info.name) != 0 || !use->gradient.id;
        for (int i = 0; i < count; i++)
            seen = seen || counted[i] == use->gradient.id;
        if (seen) continue;
        counted[count++] = use->gradient.id;
        sum += hdt_machine_get(machine, use->gradient, element);
    }
    return sum;
}

static double difference(hdt_machine *wide, const subject *s, hd_tensor leaf, int64_t element)
{
    const double h = 1e-4, value = hdt_machine_get(wide, leaf, element);
    hdt_machine_set(wide, leaf, element, value + h);
    const double above = scalar(wide, s);
    hdt_machine_set(wide, leaf, element, value - h);
    const double below = scalar(wide, s);
    hdt_machine_set(wide, leaf, element, value);
    return (above - below) / (2 * h);
}

static bool wants_gradient(const hd_program *program, int id)
{
    const hdi_tensor *tensor = program->tensors[id];
    return is_leaf(program, id) && tensor->info.dtype == HD_DTYPE_F32 && tensor->needs_gradient;
}

/* Largest magnitude first: errors are relative to it, as every element sums like terms. */
static void compare_leaf(const subject *s, hdt_machine *wide, const hdt_machine *narrow, int id,
                         double tolerance)
{
    const hd_tensor_info *info = &s->program->tensors[id]->info;
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < info->elements; i++) {
        const double wanted = difference(wide, s, (hd_tensor){id}, i);
        const double seen = gradient_of(narrow, s->program, id, i);
        ck_assert_msg(isfinite(seen), "%s: gradient of %s has no element %" PRId64,
                      s->program->name, info->name, i);
        largest = fmax(largest, fabs(wanted));
        worst = fmax(worst, fabs(seen - wanted));
    }
    const double truncation = 1e-8; /* h^2, times derivatives near 1 */
    ck_assert_msg(worst <= tolerance * largest + truncation,
                  "%s: gradient of %s is off by %g, want at most %g of %g", s->program->name,
                  info->name, worst, tolerance, largest);
}

void hdt_check_gradients(const hdt_gradient_case *one, bool exact)
{
    const subject s = make_subject(one, exact);
    hdt_machine *narrow = hdt_machine_create(s.program, false);
    hdt_machine *wide = hdt_machine_create(s.program, true);
    fill_machine(narrow, s.program);
    fill_machine(wide, s.program);
    const double wanted = scalar(wide, &s), seen = scalar(narrow, &s);
    const double tolerance = 4 * hdt_tolerance(HD_DTYPE_F32, one->terms);
    const int64_t outputs = hd_tensor_get(s.program, s.y)->elements;
    ck_assert_msg(fabs(seen - wanted) <= tolerance * (fabs(wanted) + (double)outputs),
                  "%s: forward gives %.9g, want %.9g", one->name, seen, wanted);
    hdt_assert_ok(hdt_machine_run(narrow, HDI_PHASE_BACKWARD, false));
    for (int i = 1; i < s.program->tensor_count; i++)
        if (wants_gradient(s.program, i)) compare_leaf(&s, wide, narrow, i, tolerance);
    hdt_machine_destroy(narrow);
    hdt_machine_destroy(wide);
    hd_program_destroy(s.program);
}

void hdt_check_accumulation(const hdt_gradient_case *one)
{
    const subject s = make_subject(one, false);
    hdt_machine *machine = hdt_machine_create(s.program, false);
    fill_machine(machine, s.program);
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    for (int run = 0; run < 2; run++) {
        hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_BACKWARD, run == 1));
        for (int u = 0; u < s.program->use_count; u++) {
            const hd_tensor gradient = s.program->uses[u].gradient;
            static double first[16][1024];
            if (!gradient.id) continue;
            const int64_t elements = hd_tensor_get(s.program, gradient)->elements;
            for (int64_t i = 0; i < elements; i++) {
                const double seen = hdt_machine_get(machine, gradient, i);
                if (run == 0) first[u][i] = seen;
                /* Sums in another order: at most a few roundings apart. */
                ck_assert_double_le(fabs(seen - (run + 1) * first[u][i]),
                                    1e-6 * (1 + fabs(first[u][i])));
            }
        }
    }
    hdt_machine_destroy(machine);
    hd_program_destroy(s.program);
}

void hdt_check_planned_memory(const hdt_gradient_case *one, bool exact)
{
    const subject s = make_subject(one, exact);
    hdt_machine *machine = hdt_machine_create(s.program, false);
    fill_machine(machine, s.program);
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_FORWARD, false));
    hdt_assert_ok(hdt_machine_run(machine, HDI_PHASE_BACKWARD, false));
    hd_context *context;
    hd_plan *plan;
    hd_session *session;
    hdt_assert_ok(hd_context_create(&(hd_context_options){.device = "cpu"}, &context));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdt_assert_ok(hd_plan_add(plan, s.program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hd_session_create(context, plan, NULL, &session));
    for (int i = 1; i < s.program->tensor_count; i++)
        if (is_leaf(s.program, i))
            hdt_assert_ok(hd_session_write(session, s.program, (hd_tensor){i}, 0,
                                           hdt_machine_data(machine, (hd_tensor){i})));
    hdt_assert_ok(
        hd_session_run(session, s.program, &(hd_session_run_options){.phase = HD_PHASE_FORWARD}));
    hdt_assert_ok(hd_session_run(
        session, s.program, &(hd_session_run_options){.phase = HD_PHASE_BACKWARD, .last = true}));
    for (int i = 1; i < s.program->tensor_count; i++) {
        const hd_tensor_info *info = &s.program->tensors[i]->info;
        if (info->role != HD_ROLE_OUTPUT && info->role != HD_ROLE_GRADIENT) continue;
        char *seen = calloc(1, info->bytes);
        ck_assert_ptr_nonnull(seen);
        hdt_assert_ok(hd_session_read(session, s.program, (hd_tensor){i}, 0, seen));
        ck_assert_mem_eq(seen, hdt_machine_data(machine, (hd_tensor){i}), info->bytes);
        free(seen);
    }
    hd_session_destroy(session);
    hd_plan_destroy(plan);
    hd_context_destroy(context);
    hdt_machine_destroy(machine);
    hd_program_destroy(s.program);
}

static const hdt_gradient_case *table;

START_TEST(gradients_equal_differences_in_fp64)
{
    hdt_check_gradients(&table[_i], false);
}
END_TEST

START_TEST(accumulating_adds_a_second_run_to_the_first)
{
    hdt_check_accumulation(&table[_i]);
}
END_TEST

START_TEST(planned_memory_gives_the_bits_of_separate_memory)
{
    hdt_check_planned_memory(&table[_i], _i % 2);
}
END_TEST

void hdt_add_gradient_tests(TCase *tests, const hdt_gradient_case *cases, int count)
{
    table = cases;
    tcase_add_loop_test(tests, gradients_equal_differences_in_fp64, 0, count);
    tcase_add_loop_test(tests, accumulating_adds_a_second_run_to_the_first, 0, count);
    tcase_add_loop_test(tests, planned_memory_gives_the_bits_of_separate_memory, 0, count);
}
