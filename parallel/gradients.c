/* Gradients go to the host bucket by bucket. */
#include "parallel/gradients.h"

#include "core/error.h"
#include "core/memory.h"
#include "ops/host_copy.h"

#include <stdlib.h>

/* Gradients of one program that lie side by side. */
typedef struct bucket_run {
    const hdi_bucket *bucket;
    int64_t first;    /* flat position; the bucket's, or an extra instance's */
    int begin, after; /* the first and the last op that writes to it */
    hd_tensor whole;
} bucket_run;

typedef struct mover {
    hd_program *program;
    int index;
    const hdi_layout *layout;
    const hdi_host_gradients *options;
    bucket_run *runs;
    int run_count, run_capacity;
    int original_ops, first_backward;
    int *before; /* [appended op] */
} mover;

hd_tensor hdi_host_gradient(hd_program *program, int64_t first, int64_t elements)
{
    const hd_tensor out = hdi_flat_tensor(program, "gradients.host", HDI_FLAT_GRADIENTS,
                                          program->gradients, first, elements);
    hdi_tensor *tensor = hdi_tensor_of(program, out);
    if (tensor) tensor->host = true;
    return out;
}

static bucket_run *find_run(mover *m, const hdi_bucket *bucket, int64_t first)
{
    for (int i = 0; i < m->run_count; i++)
        if (m->runs[i].first == first) return &m->runs[i];
    if (!HDI_GROW(m->runs, m->run_count, m->run_capacity)) {
        hd_program_fail(m->program, HD_ERROR_MEMORY, "out of host memory");
        return NULL;
    }
    bucket_run *run = &m->runs[m->run_count++];
    *run = (bucket_run){.bucket = bucket, .first = first, .begin = m->original_ops, .after = -1};
    run->whole = hdi_tensor_add(m->program, "gradient.bucket", m->program->gradients,
                                HD_ROLE_ACTIVATION, 1, &bucket->elements);
    return run;
}

static void find_writers(const mover *m, hd_tensor gradient, bucket_run *run)
{
    for (int i = 0; i < m->original_ops; i++)
        for (int k = 0; k < m->program->ops[i]->op.outputs; k++) {
            if (m->program->ops[i]->op.out[k].id != gradient.id) continue;
            if (i < run->begin) run->begin = i;
            if (i > run->after) run->after = i;
        }
}

static void collect_runs(mover *m)
{
    for (int i = 0; i < m->layout->instance_count && m->program->status == HD_OK; i++) {
        const hdi_instance *instance = &m->layout->instances[i];
        if (instance->program != m->index) continue;
        const hdi_bucket *bucket = &m->layout->buckets[m->layout->entries[instance->entry].bucket];
        bucket_run *run = find_run(m, bucket, bucket->tied ? instance->first : bucket->first);
        hdi_tensor *gradient = hdi_tensor_of(m->program, instance->gradient);
        if (!run || !gradient) return;
        find_writers(m, instance->gradient, run);
        gradient->within = run->whole;
        gradient->within_first = instance->first - run->first;
    }
}

static hdi_op *append(mover *m, const hd_op_kind *kind, const void *options, int before,
                      hd_tensor in, hd_tensor out)
{
    hd_program *program = m->program;
    const int index = program->op_count - m->original_ops;
    hdi_op *op = hdi_op_append(program, kind, options, 1, &in, out.id != 0, &out);
    if (!op) return NULL;
    op->phase = HDI_PHASE_BACKWARD;
    op->scope = 0;
    m->before[index] = before;
    return op;
}

bool hdi_squares_of(const hdi_host_gradients *options, const hdi_bucket *bucket, int64_t first,
                    int64_t elements, hdi_squares_options *out)
{
    int begin = 0, end;
    while (begin < options->count && options->pieces[begin].first < first)
        begin++;
    for (end = begin; end < options->count && options->pieces[end].first < first + elements;)
        end++;
    *out = (hdi_squares_options){
        .pieces = options->pieces + begin, .count = end - begin, .first = first, .adds = true};
    return !bucket->late && out->count > 0;
}

hd_tensor hdi_squares_state(hd_program *program, const hdi_host_gradients *options)
{
    const hd_tensor found = hd_tensor_find(program, HDI_SQUARES);
    return found.id ? found : hd_state(program, HDI_SQUARES, HD_DTYPE_F64, 1, &options->blocks);
}

static void append_squares(mover *m, const bucket_run *run)
{
    hdi_squares_options options;
    if (!hdi_squares_of(m->options, run->bucket, run->first, run->bucket->elements, &options))
        return;
    hdi_op *op = append(m, &hdi_op_squares, &options, run->after + 1, run->whole,
                        hdi_squares_state(m->program, m->options));
    if (op) op->last_only = true;
}

static int earlier_begin(const void *left, const void *right)
{
    const bucket_run *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->first < b->first ? -1 : a->first > b->first;
}

static int earlier_end(const void *left, const void *right)
{
    const bucket_run *a = left, *b = right;
    if (a->after != b->after) return a->after < b->after ? -1 : 1;
    return a->first < b->first ? -1 : a->first > b->first;
}

static void append_loads(mover *m)
{
    qsort(m->runs, (size_t)m->run_count, sizeof *m->runs, earlier_begin);
    for (int i = 0; i < m->run_count && m->options->accumulates; i++) {
        const bucket_run *run = &m->runs[i];
        const hd_tensor host = hdi_host_gradient(m->program, run->first, run->bucket->elements);
        hdi_op *op = append(m, &hdi_op_load, NULL, i ? m->runs[i - 1].begin : m->first_backward,
                            host, run->whole);
        if (op) op->adds_only = true;
    }
}

static void append_stores(mover *m)
{
    qsort(m->runs, (size_t)m->run_count, sizeof *m->runs, earlier_end);
    for (int i = 0; i < m->run_count; i++) {
        const bucket_run *run = &m->runs[i];
        append_squares(m, run);
        append(m, &hdi_op_store, NULL, run->after + 1, run->whole,
               hdi_host_gradient(m->program, run->first, run->bucket->elements));
        if (i) /* its copy has had the time of this bucket */
            append(m, &hdi_op_hold, NULL, run->after + 1, m->runs[i - 1].whole, (hd_tensor){0});
    }
}

void hdi_gradients_to_host(hd_program *program, int index, const hdi_layout *layout,
                           const hdi_host_gradients *options)
{
    if (program->status != HD_OK) return;
    mover m = {.program = program,
               .index = index,
               .layout = layout,
               .options = options,
               .original_ops = program->op_count,
               .first_backward = program->op_count};
    for (int i = program->op_count - 1; i >= 0; i--)
        if (program->ops[i]->phase == HDI_PHASE_BACKWARD) m.first_backward = i;
    collect_runs(&m);
    m.before = hdi_alloc_array(4 * (size_t)m.run_count + 1, sizeof *m.before);
    if (!m.before) hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    if (program->status == HD_OK && m.run_count) {
        append_loads(&m);
        append_stores(&m);
        if (program->status == HD_OK) hdi_program_insert(program, m.original_ops, m.before);
    }
    hdi_free(m.runs);
    hdi_free(m.before);
}
