/* Gradient buckets: fold, exchange, ordered sum, gather, placed into the backward. */
#include "parallel/data.h"

#include "core/error.h"
#include "core/memory.h"
#include "ops/collective.h"
#include "ops/host_copy.h"
#include "ops/shard_sum.h"

#include <stdlib.h>

/* A run of flat gradients of one program that travels together. */
typedef struct bucket_run {
    const hdi_bucket *bucket;
    int64_t first;  /* flat position; the bucket's, or an extra instance's */
    int64_t stored; /* of this rank's shard in the stored gradients */
    int after;      /* the op that finishes it */
    hd_tensor staging;
    hd_tensor copies; /* staging of the sum over copies */
    hd_tensor shard;  /* of sums that are kept on the host: all levels, on their way */
} bucket_run;

enum { MOST_OPS = 9 }; /* that are appended for a run */

typedef struct reducer {
    hd_program *program;
    int index; /* of the program in the layout */
    const hdi_layout *layout;
    const hdi_host_gradients *host; /* NULL: shards stay on the device */
    bucket_run *runs;
    int run_count, run_capacity;
    int original_ops;
    int *after; /* [op]: for appended ops, the original op that they follow */
    int after_capacity;
} reducer;

static int last_writer(const hd_program *program, hd_tensor gradient)
{
    for (int i = program->op_count - 1; i >= 0; i--)
        for (int k = 0; k < program->ops[i]->op.outputs; k++)
            if (program->ops[i]->op.out[k].id == gradient.id) return i;
    return -1;
}

static void collect_runs(reducer *r)
{
    const hdi_layout *layout = r->layout;
    for (int i = 0; i < layout->instance_count; i++) {
        const hdi_instance *instance = &layout->instances[i];
        if (instance->program != r->index) continue;
        const hdi_entry *entry = &layout->entries[instance->entry];
        const hdi_bucket *bucket = &layout->buckets[entry->bucket];
        int after = last_writer(r->program, instance->gradient);
        int64_t first = bucket->tied ? instance->first : bucket->first;
        bucket_run *run = NULL;
        for (int k = 0; k < r->run_count; k++)
            if (r->runs[k].first == first) run = &r->runs[k];
        if (!run) {
            if (!HDI_GROW(r->runs, r->run_count, r->run_capacity)) {
                hd_program_fail(r->program, HD_ERROR_MEMORY, "out of host memory");
                return;
            }
            run = &r->runs[r->run_count++];
            *run = (bucket_run){.bucket = bucket, .first = first, .after = -1};
            run->stored = bucket->tied ? instance->stored : bucket->gradient_first;
        }
        if (after > run->after) run->after = after;
    }
}

static int earlier_run(const void *left, const void *right)
{
    const bucket_run *a = left, *b = right;
    if (a->after != b->after) return a->after < b->after ? -1 : 1;
    return a->first < b->first ? -1 : a->first > b->first;
}

static void append(reducer *r, const hd_op_kind *kind, const void *options, int after,
                   bool last_only, const hd_tensor *in, hd_tensor out)
{
    hdi_op *op = hdi_op_append(r->program, kind, options, in ? 1 : 0, in, out.id != 0, &out);
    if (!op) return;
    op->last_only = last_only;
    op->scope = 0;
    r->after[r->program->op_count - 1] = after;
}

static void append_fold(reducer *r, bucket_run *run)
{
    hd_tensor leaf = hdi_flat_tensor(r->program, "gradient.leaf", HDI_FLAT_GRADIENTS,
                                     r->program->gradients, run->first, run->bucket->elements);
    hdi_tensor *tensor = hdi_tensor_of(r->program, leaf);
    if (tensor) tensor->level_zero = false;
    append(r, &hdi_op_gradient_fold, NULL, run->after, false, NULL, leaf);
}

/* The bucket as a tensor: where it is stored, or, if only shards are, a passing one that holds the
 * program's gradients until they have travelled. */
static hd_tensor bucket_tensor(const reducer *r, const bucket_run *run)
{
    const int64_t elements = run->bucket->elements;
    if (!r->layout->gradients_sharded)
        return hdi_flat_tensor(r->program, "gradient.bucket", HDI_FLAT_GRADIENTS,
                               r->program->gradients, run->first, elements);
    hd_tensor whole = hdi_tensor_add(r->program, "gradient.bucket", r->program->gradients,
                                     HD_ROLE_ACTIVATION, 1, &elements);
    if (whole.id) hdi_tensor_of(r->program, whole)->holds = true;
    for (int i = 0; i < r->layout->instance_count && whole.id; i++) {
        const hdi_instance *instance = &r->layout->instances[i];
        const int64_t at = instance->first - run->first;
        if (instance->program != r->index || at < 0 || at >= elements) continue;
        hdi_tensor *gradient = hdi_tensor_of(r->program, instance->gradient);
        gradient->within = whole;
        gradient->within_first = at;
    }
    return whole;
}

/* Of one shard nothing needs to travel. */
static void append_exchange(reducer *r, bucket_run *run)
{
    const hdi_bucket *bucket = run->bucket;
    int64_t own = bucket->own_counts[0], received = own * r->layout->shards;
    hd_tensor whole = bucket_tensor(r, run);
    run->staging = whole;
    if (r->layout->shards == 1) return;
    run->staging = hdi_tensor_add(r->program, "gradient.staging", r->program->gradients,
                                  HD_ROLE_ACTIVATION, 1, &received);
    append(r, &hdi_op_all_to_all,
           &(hdi_all_to_all_options){.collective = {r->layout->axis, bucket->elements, "gradients"},
                                     .send_counts = bucket->counts,
                                     .send_offsets = bucket->offsets,
                                     .recv_counts = bucket->own_counts,
                                     .recv_offsets = bucket->own_offsets},
           run->after, !r->layout->gradients_sharded, &whole, run->staging);
}

static hdi_shard_sum_options sum_options(const reducer *r)
{
    return (hdi_shard_sum_options){.parts = r->layout->shards,
                                   .levels = r->layout->levels,
                                   .exact = r->program->exact,
                                   .accumulates = r->layout->accumulates};
}

/* All levels of a run's shard on the device. */
static hd_tensor all_levels(reducer *r, bucket_run *run)
{
    const int64_t elements = r->layout->levels * run->bucket->own_counts[0];
    if (!r->host)
        return hdi_flat_tensor(r->program, "gradient.shard", HDI_FLAT_GRADIENTS,
                               r->program->gradients, run->stored, elements);
    if (!run->shard.id)
        run->shard = hdi_tensor_add(r->program, "gradient.shard", r->program->gradients,
                                    HD_ROLE_ACTIVATION, 1, &elements);
    return run->shard;
}

static hd_tensor kept_levels(const reducer *r, const bucket_run *run)
{
    return hdi_host_gradient(r->program, run->stored,
                             r->layout->levels * run->bucket->own_counts[0]);
}

static void append_load(reducer *r, bucket_run *run, int after)
{
    const hdi_shard_sum_options options = sum_options(r);
    if (!r->host || !r->host->accumulates || !run->bucket->own_counts[0]) return;
    const hd_tensor kept = kept_levels(r, run);
    append(r, &hdi_op_shard_load, &options, after, false, &kept, all_levels(r, run));
}

/* What has come of one micro-batch joins the sum that this rank keeps. */
static void append_shard_sum(reducer *r, bucket_run *run, int after)
{
    const hdi_shard_sum_options options = sum_options(r);
    if (run->bucket->own_counts[0])
        append(r, &hdi_op_shard_sum, &options, after, false, &run->staging, all_levels(r, run));
}

/* A part of the sum. */
static hd_tensor own_shard(const reducer *r, const bucket_run *run, int64_t begin, int64_t count)
{
    if (r->host) return hdi_tensor_view(r->program, run->shard, begin, count);
    return hdi_flat_tensor(r->program, "gradient.shard", HDI_FLAT_GRADIENTS, r->program->gradients,
                           run->stored + begin, count);
}

/* A sum goes back to the host; its bytes are free when that of the next has had its turn. */
static void append_store(reducer *r, bucket_run *run, bucket_run *before, int after)
{
    const hdi_shard_sum_options options = sum_options(r);
    if (!r->host || !run->shard.id) return;
    hdi_squares_options squares;
    if (hdi_squares_of(r->host, run->bucket, run->stored, run->bucket->own_counts[0], &squares))
        append(r, &hdi_op_squares, &squares, after, true, &run->shard,
               hdi_squares_state(r->program, r->host));
    append(r, &hdi_op_shard_store, &options, after, false, &run->shard, kept_levels(r, run));
    if (before && before->shard.id)
        append(r, &hdi_op_hold, NULL, after, false, &before->shard, (hd_tensor){0});
}

/* The shard is complete but for what the other copies have of it: parts go to those that sum them. */
static void append_copy_exchange(reducer *r, bucket_run *run, int after)
{
    const hdi_bucket *bucket = run->bucket;
    const int64_t own = bucket->own_counts[0],
                  received = bucket->part_counts[0] * r->layout->copies;
    if (r->layout->copies == 1 || !own) return;
    hd_tensor shard = own_shard(r, run, 0, own);
    run->copies = hdi_tensor_add(r->program, "gradient.copies", r->program->gradients,
                                 HD_ROLE_ACTIVATION, 1, &received);
    append(r, &hdi_op_all_to_all,
           &(hdi_all_to_all_options){.collective = {HD_AXIS_COPY, own, "gradients"},
                                     .send_counts = bucket->copy_counts,
                                     .send_offsets = bucket->copy_offsets,
                                     .recv_counts = bucket->part_counts,
                                     .recv_offsets = bucket->part_offsets},
           after, true, &shard, run->copies);
}

static void append_copy_sum(reducer *r, const bucket_run *run, int after)
{
    const hdi_bucket *bucket = run->bucket;
    const int64_t own = bucket->own_counts[0], part = bucket->part_counts[0];
    if (r->layout->copies == 1 || !own) return;
    if (part)
        append(r, &hdi_op_tree_sum, &(hdi_tree_sum_options){r->layout->copies}, after, true,
               &run->copies, own_shard(r, run, bucket->copy_offsets[r->layout->copy], part));
    append(r, &hdi_op_all_gather,
           &(hdi_all_gather_options){.collective = {HD_AXIS_COPY, own, "gradients"},
                                     .counts = bucket->copy_counts,
                                     .offsets = bucket->copy_offsets},
           after, true, NULL, own_shard(r, run, 0, own));
}

/* Sum what has come, after op `after`; then send the sum to the others if they need it. */
static void append_sum(reducer *r, bucket_run *run, int after)
{
    if (r->layout->gradients_sharded) {
        append_shard_sum(r, run, after);
        return;
    }
    const hdi_bucket *bucket = run->bucket;
    int64_t own = bucket->own_counts[0];
    int64_t first = run->first + bucket->offsets[r->layout->shard];
    if (own) {
        hd_tensor shard = hdi_flat_tensor(r->program, "gradient.shard", HDI_FLAT_GRADIENTS,
                                          r->program->gradients, first, own);
        append(r, &hdi_op_tree_sum, &(hdi_tree_sum_options){r->layout->shards}, after, true,
               &run->staging, shard);
    }
    if (r->layout->state_sharded) return;
    hd_tensor whole = hdi_flat_tensor(r->program, "gradient.bucket", HDI_FLAT_GRADIENTS,
                                      r->program->gradients, run->first, bucket->elements);
    append(r, &hdi_op_all_gather,
           &(hdi_all_gather_options){.collective = {r->layout->axis, bucket->elements, "gradients"},
                                     .counts = bucket->counts,
                                     .offsets = bucket->offsets},
           after, true, NULL, whole);
}

/* The run that is `late` steps behind step `step`, or NULL. */
static bucket_run *run_behind(reducer *r, int step, int late)
{
    const int index = step - late;
    return index >= 0 && index < r->run_count ? &r->runs[index] : NULL;
}

/* Two buckets travel at a time: a third waits until the first has been summed, and a fourth until copies
 * of the first have. Shards from the host come one bucket ahead of their sums. */
static void append_work(reducer *r)
{
    enum { UNDER_WAY = 2, STAGES = UNDER_WAY + 1 };
    const int complete = r->layout->copies > 1 ? STAGES : UNDER_WAY;
    for (int i = 0; i < r->run_count + STAGES; i++) {
        bucket_run *run = run_behind(r, i, 0), *arrived = run_behind(r, i, UNDER_WAY);
        bucket_run *copied = run_behind(r, i, STAGES), *done = run_behind(r, i, complete);
        bucket_run *next = run_behind(r, i, UNDER_WAY - 1);
        const int after = run ? run->after : r->original_ops - 1;
        if (run && r->program->exact && !r->layout->gradients_sharded) append_fold(r, run);
        if (r->layout->shards == 1 && !r->layout->gradients_sharded) continue;
        if (copied) append_copy_sum(r, copied, after);
        if (arrived) append_sum(r, arrived, after);
        if (arrived) append_copy_exchange(r, arrived, after);
        if (done) append_store(r, done, run_behind(r, i, complete + 1), after);
        if (run) append_exchange(r, run);
        if (next) append_load(r, next, after);
    }
}

/* Merge the appended ops into the original order; both parts keep theirs. */
static void merge(reducer *r)
{
    hd_program *program = r->program;
    hdi_op **merged = hdi_alloc_array((size_t)program->op_capacity, sizeof(hdi_op *));
    if (!merged) {
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
        return;
    }
    int count = 0, next = r->original_ops;
    for (int i = 0; i < r->original_ops; i++) {
        merged[count++] = program->ops[i];
        while (next < program->op_count && r->after[next] <= i)
            merged[count++] = program->ops[next++];
    }
    hdi_free(program->ops);
    program->ops = merged;
    hdi_program_index(program);
}

/* A parameter without a gradient would be updated by whatever its bytes hold. */
static void check_gradients(hd_program *program, int index, const hdi_layout *layout)
{
    for (int u = 0; u < program->use_count; u++) {
        if (program->uses[u].options.frozen) continue;
        int entry = hdi_layout_find(layout, program->uses[u].name);
        bool found = false;
        for (int i = 0; i < layout->instance_count; i++)
            found = found ||
                    (layout->instances[i].program == index && layout->instances[i].entry == entry);
        if (!found)
            hd_program_fail(program, HD_ERROR_ARGUMENT,
                            "parameter '%s' has no gradient: the loss does not depend on it",
                            program->uses[u].name);
    }
}

void hdi_data_reduce(hd_program *program, int index, const hdi_layout *layout,
                     const hdi_host_gradients *host)
{
    check_gradients(program, index, layout);
    if (host && !layout->gradients_sharded) {
        hdi_gradients_to_host(program, index, layout, host);
        return;
    }
    if (program->status != HD_OK || (layout->shards == 1 && !program->exact)) return;
    reducer r = {.program = program,
                 .index = index,
                 .layout = layout,
                 .host = host,
                 .original_ops = program->op_count};
    collect_runs(&r);
    if (r.run_count) qsort(r.runs, (size_t)r.run_count, sizeof *r.runs, earlier_run);
    r.after_capacity = program->op_count + MOST_OPS * r.run_count;
    r.after = hdi_alloc_array((size_t)r.after_capacity, sizeof *r.after);
    if (r.after && program->status == HD_OK) {
        program->phase = HDI_PHASE_BACKWARD;
        append_work(&r);
        if (program->status == HD_OK) merge(&r);
    } else {
        hd_program_fail(program, HD_ERROR_MEMORY, "out of host memory");
    }
    hdi_free(r.runs);
    hdi_free(r.after);
}
