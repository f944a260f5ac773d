/* Gradients of what all ranks of the tensor axis have: each rank has made its part. Each sums a share of
 * them, in the tree over the ranks, and all have the sums: the same bits everywhere. */
#include "core/error.h"
#include "core/memory.h"
#include "jobs/train/trainer.h"
#include "ops/collective.h"

/* One bucket's counts and offsets, [ranks] each. */
typedef struct shares {
    int64_t *counts, *offsets, *own_counts, *own_offsets;
} shares;

static shares cut(int64_t *words, int ranks, int rank, int64_t elements)
{
    const shares out = {words, words + ranks, words + 2 * ranks, words + 3 * ranks};
    for (int r = 0; r < ranks; r++) {
        out.offsets[r] = elements * r / ranks;
        out.counts[r] = elements * (r + 1) / ranks - out.offsets[r];
    }
    for (int r = 0; r < ranks; r++) {
        out.own_counts[r] = out.counts[rank];
        out.own_offsets[r] = r * out.counts[rank];
    }
    return out;
}

/* Of what has been taken, a range: stored gradients from `first` + `begin` on. */
static hd_tensor range_of(const hd_trainer *trainer, hd_tensor taken, int64_t first, int64_t begin,
                          int64_t elements)
{
    if (hdi_trainer_gradients_on_host(trainer))
        return hdi_tensor_view(trainer->norm, taken, begin, elements);
    return hdi_trainer_take(trainer, first + begin, elements);
}

static void sum_range(const hd_trainer *trainer, int64_t first, int64_t elements, int64_t *words)
{
    hd_program *program = trainer->norm;
    const int ranks = hd_mesh_size(trainer->options.mesh, HD_AXIS_TENSOR);
    const int rank = hd_mesh_index(trainer->options.mesh, HD_AXIS_TENSOR);
    const shares by = cut(words, ranks, rank, elements);
    const hdi_collective what = {HD_AXIS_TENSOR, elements, "gradients"};
    const int64_t own = by.counts[rank], received = own * ranks;
    const hd_dtype dtype = program->gradients;
    const hd_tensor taken = hdi_trainer_take(trainer, first, elements);
    const hd_tensor whole = range_of(trainer, taken, first, 0, elements);
    const hd_tensor parts =
        hdi_tensor_add(program, "alike", dtype, HD_ROLE_ACTIVATION, 1, &received);
    hdi_op_append(program, &hdi_op_all_to_all,
                  &(hdi_all_to_all_options){.collective = what,
                                            .send_counts = by.counts,
                                            .send_offsets = by.offsets,
                                            .recv_counts = by.own_counts,
                                            .recv_offsets = by.own_offsets},
                  1, &whole, 1, &parts);
    if (own) {
        const hd_tensor share = range_of(trainer, taken, first, by.offsets[rank], own);
        hdi_op_append(program, &hdi_op_tree_sum, &(hdi_tree_sum_options){ranks}, 1, &parts, 1,
                      &share);
    }
    hdi_op_append(
        program, &hdi_op_all_gather,
        &(hdi_all_gather_options){.collective = what, .counts = by.counts, .offsets = by.offsets},
        0, NULL, 1, &taken);
    hdi_trainer_give_back(trainer, first, elements, taken);
}

hd_status hdi_trainer_sum_alike(hd_trainer *trainer, const hdi_layout *layout)
{
    const int ranks = hd_mesh_size(trainer->options.mesh, HD_AXIS_TENSOR);
    const size_t words = 4 * (size_t)ranks;
    if (ranks == 1) return HD_OK;
    trainer->alike_counts = hdi_alloc_array((size_t)layout->bucket_count * words, sizeof(int64_t));
    if (!trainer->alike_counts) return hdi_error(HD_ERROR_MEMORY, "trainer: out of host memory");
    for (int b = 0; b < layout->bucket_count; b++) {
        const hdi_bucket *bucket = &layout->buckets[b];
        int64_t first = bucket->first, elements = bucket->elements;
        if (layout->state_sharded) elements = hdi_layout_shard(layout, b, layout->shard, &first);
        first = hdi_layout_stored_gradient(layout, b, first);
        if (elements && !hdi_entry_is_part(&layout->entries[bucket->first_entry]))
            sum_range(trainer, first, elements, trainer->alike_counts + (size_t)b * words);
    }
    return HD_OK;
}
