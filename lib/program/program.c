/* The builder: tensors, scopes, parameters, and errors that stick. */
#include "program/program.h"

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "program/shard.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

hd_status hd_program_create(const hd_program_options *options, hd_program **out)
{
    *out = NULL;
    if (!options->name) return hdi_error(HD_ERROR_ARGUMENT, "program: name is NULL, want a name");
    const hd_dtype gradients = options->gradients ? options->gradients : HD_DTYPE_F32;
    const bool is_known = gradients == HD_DTYPE_F32 || gradients == HD_DTYPE_BF16;
    const bool fits = !options->training || (options->dtype == HD_DTYPE_BF16 && !options->exact);
    if (!is_known || (gradients == HD_DTYPE_BF16 && !fits))
        return hdi_error(HD_ERROR_UNSUPPORTED,
                         "program '%s': gradients are %s, want F32, or BF16 for a dtype of BF16 "
                         "without reduction exact",
                         options->name, hd_dtype_name(gradients));
    hd_program *program = hdi_alloc(sizeof *program);
    if (!program)
        return hdi_error(HD_ERROR_MEMORY, "program '%s': out of host memory", options->name);
    program->name = hdi_strdup(options->name);
    program->dtype = options->dtype ? options->dtype : HD_DTYPE_F32;
    program->gradients = gradients;
    program->mesh = options->mesh;
    program->backend = options->backend;
    program->training = options->training;
    program->exact = options->exact;
    program->slices = options->slices > 1 && !options->training ? options->slices : 1;
    program->loss_slices = options->slices > 1 ? options->slices : 1;
    /* What lies within an MLP has four times its input's columns, queries, keys and values have three times: in
     * twice the slices it is no larger than a slice of those. */
    program->mlp_slices = program->slices > 1 ? 2 * program->slices : 1;
    if (options->mlp_slices > program->mlp_slices) program->mlp_slices = options->mlp_slices;
    program->sequence_groups = options->sequence_groups;
    program->tensor_groups = options->tensor_groups;
    if (options->rates) program->rates = *options->rates;
    program->tensor_count = 1;
    program->scope_count = 1;
    bool grown = HDI_GROW(program->tensors, program->tensor_count, program->tensor_capacity) &&
                 HDI_GROW(program->scopes, program->scope_count, program->scope_capacity);
    if (grown) program->scopes[0] = (hdi_scope){.name = hdi_strdup(""), .parent = -1};
    if (!grown || !program->name || !program->scopes[0].name) {
        hd_program_destroy(program);
        return hdi_error(HD_ERROR_MEMORY, "program '%s': out of host memory", options->name);
    }
    *out = program;
    return HD_OK;
}

static void destroy_use(hdi_use *use)
{
    for (int i = 0; i < use->options.parts; i++)
        hdi_free((void *)(uintptr_t)use->options.part[i].name);
    hdi_free(use->name);
}

void hd_program_destroy(hd_program *program)
{
    if (!program) return;
    for (int i = 1; i < program->tensor_count && program->tensors; i++) {
        if (!program->tensors[i]) continue;
        hdi_free((void *)(uintptr_t)program->tensors[i]->info.name);
        hdi_free(program->tensors[i]);
    }
    for (int i = 0; i < program->op_count; i++) {
        hdi_free(program->ops[i]->options);
        hdi_free(program->ops[i]);
    }
    for (int i = 0; i < program->scope_count && program->scopes; i++)
        hdi_free(program->scopes[i].name);
    for (int i = 0; i < program->use_count; i++)
        destroy_use(&program->uses[i]);
    hdi_free(program->tensors);
    hdi_free(program->ops);
    hdi_free(program->scopes);
    hdi_free(program->uses);
    hdi_free(program->message);
    hdi_free(program->name);
    hdi_free(program);
}

hd_tensor hd_program_fail(hd_program *program, hd_status status, const char *format, ...)
{
    if (program->status == HD_OK) {
        char text[1024];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        const char *scope = program->scopes[program->scope_open].name;
        program->status = status;
        program->message = hdi_format("program '%s'%s%s: %s", program->name,
                                      *scope ? ", scope " : "", scope, text);
    }
    return (hd_tensor){0};
}

hd_status hd_program_finish(hd_program *program)
{
    if (program->status == HD_OK && program->scope_open != 0)
        hd_program_fail(program, HD_ERROR_ARGUMENT, "scope '%s' is still open at the end",
                        program->scopes[program->scope_open].name);
    if (program->status != HD_OK)
        return hdi_error(program->status, "%s",
                         program->message ? program->message : "program: out of host memory");
    hdi_program_post_early(program);
    hdi_program_cut(program);
    if (program->status != HD_OK)
        return hdi_error(program->status, "%s",
                         program->message ? program->message : "program: out of host memory");
    program->finished = true;
    return HD_OK;
}

void hd_scope_begin(hd_program *program, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const char *parent = program->scopes[program->scope_open].name;
    char *name = *parent ? hdi_format("%s.%s", parent, text) : hdi_strdup(text);
    if (!name || !HDI_GROW(program->scopes, program->scope_count, program->scope_capacity)) {
        hdi_free(name);
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
        return;
    }
    program->scopes[program->scope_count] =
        (hdi_scope){.name = name, .parent = program->scope_open};
    program->scope_open = program->scope_count++;
}

void hd_scope_end(hd_program *program)
{
    if (program->scope_open == 0)
        hd_program_fail(program, HD_ERROR_ARGUMENT, "a scope is ended that was never begun");
    else
        program->scope_open = program->scopes[program->scope_open].parent;
}

void hd_scope_recompute(hd_program *program)
{
    program->scopes[program->scope_open].recompute = true;
}

hdi_tensor *hdi_tensor_of(const hd_program *program, hd_tensor handle)
{
    return handle.id > 0 && handle.id < program->tensor_count ? program->tensors[handle.id] : NULL;
}

const hd_tensor_info *hd_tensor_get(const hd_program *program, hd_tensor tensor)
{
    hdi_tensor *found = hdi_tensor_of(program, tensor);
    return found ? &found->info : NULL;
}

hd_tensor hd_tensor_find(const hd_program *program, const char *name)
{
    for (int i = 1; i < program->tensor_count && name && *name; i++) {
        const hd_tensor_info *info = &program->tensors[i]->info;
        bool named = info->role == HD_ROLE_INPUT || info->role == HD_ROLE_STATE ||
                     info->role == HD_ROLE_OUTPUT;
        if (named && strcmp(info->name, name) == 0) return (hd_tensor){i};
    }
    return (hd_tensor){0};
}

/* No tensor is larger, so that a plan can add up many of them without overflow. */
static const uint64_t most_bytes = UINT64_C(1) << 48;

static bool count_elements(int rank, const int64_t *dims, size_t element_bytes, int64_t *elements,
                           size_t *bytes)
{
    *elements = 1;
    if (rank < 0 || rank > HD_MAX_DIMS) return false;
    for (int i = 0; i < rank; i++)
        if (dims[i] < 0 || !hdi_mul_i64(*elements, dims[i], elements)) return false;
    return !__builtin_mul_overflow((uint64_t)*elements, (uint64_t)element_bytes, bytes) &&
           *bytes <= most_bytes;
}

hd_tensor hdi_tensor_add(hd_program *program, const char *name, hd_dtype dtype, hd_role role,
                         int rank, const int64_t *dims)
{
    if (program->status != HD_OK) return (hd_tensor){0};
    int64_t elements;
    size_t bytes;
    if (!count_elements(rank, dims, hd_dtype_bytes(dtype), &elements, &bytes))
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "tensor '%s': rank %d or a dim is out of range (rank <= %d, 0 <= "
                               "dim, 2^48 bytes in all)",
                               name ? name : "", rank, HD_MAX_DIMS);
    hdi_tensor *tensor = hdi_alloc(sizeof *tensor);
    char *copy = hdi_strdup(name ? name : "");
    if (!tensor || !copy ||
        !HDI_GROW(program->tensors, program->tensor_count, program->tensor_capacity)) {
        hdi_free(tensor);
        hdi_free(copy);
        return hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    }
    tensor->info = (hd_tensor_info){.name = copy,
                                    .dtype = dtype,
                                    .role = role,
                                    .rank = rank,
                                    .elements = elements,
                                    .bytes = bytes};
    for (int i = 0; i < rank; i++)
        tensor->info.dims[i] = dims[i];
    tensor->producer = -1;
    tensor->use = -1;
    program->tensors[program->tensor_count] = tensor;
    return (hd_tensor){program->tensor_count++};
}

hd_tensor hdi_tensor_rows(hd_program *program, hd_tensor whole, int64_t first, int64_t rows)
{
    const hdi_tensor *of = hdi_tensor_of(program, whole);
    if (!of) return whole;
    const int64_t dims[] = {rows, of->info.dims[1]};
    const hd_tensor made =
        hdi_tensor_add(program, NULL, of->info.dtype, HD_ROLE_ACTIVATION, 2, dims);
    hdi_tensor *tensor = hdi_tensor_of(program, made);
    if (!tensor) return made;
    tensor->within = of->within.id ? of->within : whole;
    tensor->within_first = of->within_first + first * of->info.dims[1];
    return made;
}

void hdi_tensor_put(hd_program *program, hd_tensor part, hd_tensor whole, int64_t first)
{
    hdi_tensor *tensor = hdi_tensor_of(program, part), *of = hdi_tensor_of(program, whole);
    if (!tensor || !of) return;
    tensor->within = whole;
    tensor->within_first = first;
    of->holds = true;
}

static hd_tensor named_tensor(hd_program *program, const char *name, hd_dtype dtype, hd_role role,
                              int rank, const int64_t *dims)
{
    if (!name || !*name)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "an input or state wants a name");
    if (hd_tensor_find(program, name).id)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "tensor '%s' is declared twice", name);
    return hdi_tensor_add(program, name, dtype, role, rank, dims);
}

hd_tensor hd_input(hd_program *program, const char *name, hd_dtype dtype, int rank,
                   const int64_t *dims)
{
    return named_tensor(program, name, dtype, HD_ROLE_INPUT, rank, dims);
}

hd_tensor hd_state(hd_program *program, const char *name, hd_dtype dtype, int rank,
                   const int64_t *dims)
{
    return named_tensor(program, name, dtype, HD_ROLE_STATE, rank, dims);
}

hd_tensor hdi_table(hd_program *program, const char *name, int rank, const int64_t *dims,
                    hdi_table_fill fill, const void *user, size_t user_bytes)
{
    hd_tensor found = hd_tensor_find(program, name);
    if (found.id) return found;
    hd_tensor table = hdi_tensor_add(program, name, HD_DTYPE_F32, HD_ROLE_STATE, rank, dims);
    hdi_tensor *tensor = hdi_tensor_of(program, table);
    if (!tensor) return table;
    if (user_bytes > sizeof tensor->fill_user)
        return hd_program_fail(program, HD_ERROR_INTERNAL, "table '%s': %zu bytes of parameters",
                               name, user_bytes);
    tensor->fill = fill;
    memcpy(tensor->fill_user, user, user_bytes);
    return table;
}

hd_tensor hdi_cache(hd_program *program, const char *name, hd_dtype dtype, int rank,
                    const int64_t *dims)
{
    hd_tensor handle = hd_state(program, name, dtype, rank, dims);
    hdi_tensor *tensor = hdi_tensor_of(program, handle);
    if (tensor) tensor->per_slot = true;
    return handle;
}

hd_tensor hdi_flat_tensor(hd_program *program, const char *name, hdi_flat flat, hd_dtype dtype,
                          int64_t first, int64_t elements)
{
    hd_role role = flat == HDI_FLAT_WEIGHTS     ? HD_ROLE_PARAMETER
                   : flat == HDI_FLAT_GRADIENTS ? HD_ROLE_GRADIENT
                                                : HD_ROLE_STATE;
    hd_tensor handle = hdi_tensor_add(program, name, dtype, role, 1, &elements);
    hdi_tensor *tensor = hdi_tensor_of(program, handle);
    if (tensor) {
        tensor->flat = flat;
        tensor->flat_first = first;
        tensor->level_zero = true;
    }
    return handle;
}

hd_tensor hdi_tensor_view(hd_program *program, hd_tensor whole, int64_t first, int64_t elements)
{
    const hdi_tensor *of = hdi_tensor_of(program, whole);
    if (!of) return (hd_tensor){0};
    const hd_tensor view =
        hdi_tensor_add(program, of->info.name, of->info.dtype, HD_ROLE_ACTIVATION, 1, &elements);
    hdi_tensor *tensor = hdi_tensor_of(program, view);
    if (!tensor) return view;
    tensor->within = whole;
    tensor->within_first = first;
    return view;
}

hd_tensor hd_output(hd_program *program, hd_tensor x, const char *name)
{
    hdi_tensor *tensor = hdi_tensor_of(program, x);
    if (!tensor) return x;
    if (tensor->info.role != HD_ROLE_ACTIVATION)
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "output '%s': wants a tensor made by an op that is no output yet",
                               name ? name : "(NULL)");
    bool taken = !name || !*name;
    for (int i = 1; i < program->tensor_count && !taken; i++)
        taken = program->tensors[i]->info.role == HD_ROLE_OUTPUT &&
                strcmp(program->tensors[i]->info.name, name) == 0;
    if (taken)
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "output '%s': wants a name that no other output has",
                               name ? name : "(NULL)");
    char *copy = hdi_strdup(name);
    if (!copy) return hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    hdi_free((void *)(uintptr_t)tensor->info.name);
    tensor->info.name = copy;
    tensor->info.role = HD_ROLE_OUTPUT;
    tensor->keep = true;
    return x;
}

static char *global_name(const hd_program *program, const char *name)
{
    if (name[0] == '/') return hdi_strdup(name + 1);
    const char *scope = program->scopes[program->scope_open].name;
    return *scope ? hdi_format("%s.%s", scope, name) : hdi_strdup(name);
}

/* Names in `use->options` become owned and global. */
static bool own_names(const hd_program *program, const hd_parameter_options *options, hdi_use *use)
{
    use->options = *options;
    use->name = global_name(program, options->name);
    use->options.name = use->name;
    bool ok = use->name != NULL;
    for (int i = 0; i < options->parts; i++) {
        use->options.part[i].name = global_name(program, options->part[i].name);
        ok = ok && use->options.part[i].name;
    }
    return ok;
}

hd_tensor hd_parameter(hd_program *program, const hd_parameter_options *options)
{
    if (program->status != HD_OK) return (hd_tensor){0};
    if (!options->name || options->rank < 1 || options->rank > HD_MAX_DIMS)
        return hd_program_fail(program, HD_ERROR_ARGUMENT, "parameter '%s': rank is %d, want 1..%d",
                               options->name ? options->name : "(NULL)", options->rank,
                               HD_MAX_DIMS);
    int64_t rows = 0;
    for (int i = 0; i < options->parts && i < HD_MAX_PARTS; i++)
        rows += options->part[i].rows;
    if (options->parts > HD_MAX_PARTS || (options->parts && rows != options->dims[0]))
        return hd_program_fail(program, HD_ERROR_ARGUMENT,
                               "parameter '%s': %d parts with %" PRId64
                               " rows, want at most %d with %" PRId64 " rows",
                               options->name, options->parts, rows, HD_MAX_PARTS, options->dims[0]);
    for (int i = 0; i < options->parts; i++)
        if (!options->part[i].name || options->part[i].rows <= 0)
            return hd_program_fail(program, HD_ERROR_ARGUMENT,
                                   "parameter '%s': part %d has no name or no rows", options->name,
                                   i);
    for (int i = 0; i < options->rank; i++)
        if (options->dims[i] <= 0)
            return hd_program_fail(program, HD_ERROR_ARGUMENT,
                                   "parameter '%s': dim %d is %" PRId64 ", want > 0", options->name,
                                   i, options->dims[i]);
    int64_t dims[HD_MAX_DIMS];
    if (!hdi_shard_dims(options, dims))
        return hd_program_fail(
            program, HD_ERROR_ARGUMENT,
            "parameter '%s': a shard of dim %d in %d runs, want runs that ascend "
            "within dim 0, or one within dim 1 of two",
            options->name, options->shard.dim, options->shard.runs);
    hdi_use use = {0};
    if (!own_names(program, options, &use) ||
        !HDI_GROW(program->uses, program->use_count, program->use_capacity)) {
        destroy_use(&use);
        return hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    }
    for (int i = 0; i < program->use_count; i++) {
        const hdi_use *other = &program->uses[i];
        if (strcmp(other->name, use.name) == 0 &&
            (other->options.rank != options->rank ||
             memcmp(other->options.dims, options->dims, sizeof(int64_t) * (size_t)options->rank) ||
             !hdi_shard_equal(&other->options.shard, &options->shard))) {
            hd_tensor bad = hd_program_fail(
                program, HD_ERROR_ARGUMENT,
                "parameter '%s' is declared twice with different dims or shards", use.name);
            destroy_use(&use);
            return bad;
        }
    }
    use.tensor =
        hdi_tensor_add(program, use.name, program->dtype, HD_ROLE_PARAMETER, options->rank, dims);
    hdi_tensor *tensor = hdi_tensor_of(program, use.tensor);
    if (tensor) {
        tensor->use = program->use_count;
        tensor->needs_gradient = program->training && !options->frozen;
    }
    program->uses[program->use_count++] = use;
    return use.tensor;
}
