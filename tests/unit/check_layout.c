/* The flat storage of parameters: order, buckets, shards; and the tree in which gradients join. */
#include "program/layout.h"

#include <stdlib.h>

#include "backend/backend.h"
#include "core/random.h"
#include "ops/shard_sum.h"
#include "parallel/data.h"
#include "tests/support/hdt_program.h"

/* Declares weights of these sizes in this order, each with a gradient as a backward would make. */
static hd_program *program_of(const char *const *names, const int64_t *sizes, int count, bool exact)
{
    hd_program *program = hdt_program();
    for (int i = 0; i < count; i++) {
        hdt_weight(program, names[i], sizes[i]);
        hdi_use *use = &program->uses[i];
        for (int u = 0; u < i && !exact; u++)
            if (strcmp(program->uses[u].name, use->name) == 0)
                use->gradient = program->uses[u].gradient;
        if (!use->gradient.id)
            use->gradient =
                hdi_tensor_add(program, NULL, HD_DTYPE_F32, HD_ROLE_GRADIENT, 1, &sizes[i]);
    }
    hdt_assert_ok(hd_program_finish(program));
    return program;
}

static hdi_layout *layout_of(hd_program *const *programs, int count, hdi_layout_options options)
{
    hdi_layout *layout;
    hdt_assert_ok(hdi_layout_create(programs, count, &options, &layout));
    return layout;
}

static const char *const letters[] = {"a", "b", "c", "d", "e", "f", "g", "h"};

START_TEST(parameters_lie_in_the_order_in_which_the_backward_finishes_them)
{
    const int64_t sizes[] = {100, 64, 1};
    hd_program *p = program_of(letters, sizes, 3, false);
    hdi_layout *layout = layout_of(&p, 1, (hdi_layout_options){0});
    ck_assert_int_eq(layout->entry_count, 3);
    const char *const order[] = {"c", "b", "a"};
    const int64_t first[] = {0, 64, 128};
    for (int i = 0; i < 3; i++) {
        ck_assert_str_eq(layout->entries[i].name, order[i]);
        ck_assert_int_eq(layout->entries[i].first, first[i]);
        ck_assert_int_eq(hdi_layout_find(layout, order[i]), i);
        ck_assert_int_eq(hdi_layout_gradient(layout, 0, p->uses[2 - i].gradient), first[i]);
    }
    ck_assert_int_eq(hdi_layout_find(layout, "d"), -1);
    ck_assert_int_eq(hdi_layout_gradient(layout, 0, p->uses[0].tensor), -1);
    ck_assert_int_eq(layout->weights_elements, 256);
    ck_assert_int_eq(layout->gradient_elements, 256);
    ck_assert_int_eq(layout->optimizer_elements, 256);
    ck_assert_int_eq(layout->bucket_count, 1);
    hdi_layout_destroy(layout);
    hdi_layout_destroy(NULL);
    hd_program_destroy(p);
}
END_TEST

START_TEST(buckets_are_cut_at_their_size)
{
    const int64_t sizes[] = {64, 64, 64, 1000, 64};
    hd_program *p = program_of(letters, sizes, 5, false);
    hdi_layout *layout = layout_of(&p, 1, (hdi_layout_options){.bucket_elements = 128});
    const int entries[] = {2, 2, 1}; /* e d | c b | a, where d alone passes the size */
    ck_assert_int_eq(layout->bucket_count, 3);
    for (int b = 0, first = 0; b < 3; first += entries[b++]) {
        ck_assert_int_eq(layout->buckets[b].first_entry, first);
        ck_assert_int_eq(layout->buckets[b].entries, entries[b]);
        ck_assert_int_eq(layout->entries[first].bucket, b);
        ck_assert_int_eq(layout->buckets[b].first, layout->entries[first].first);
    }
    hdi_layout_destroy(layout);
    hd_program_destroy(p);
}
END_TEST

START_TEST(buckets_are_cut_between_programs)
{
    const int64_t sizes[] = {64, 64};
    hd_program *both[] = {program_of(letters, sizes, 2, false),
                          program_of(letters + 2, sizes, 2, false)};
    hdi_layout *layout = layout_of(both, 2, (hdi_layout_options){0});
    ck_assert_int_eq(layout->bucket_count, 2);
    ck_assert_int_eq(layout->buckets[0].program, 1);
    ck_assert_int_eq(layout->buckets[1].program, 0);
    ck_assert_str_eq(layout->entries[0].name, "d");
    hdi_layout_destroy(layout);
    hd_program_destroy(both[0]);
    hd_program_destroy(both[1]);
}
END_TEST

static bool is_b(void *user, const char *name)
{
    (*(int *)user)++;
    return strcmp(name, "b") == 0;
}

START_TEST(a_parameter_of_several_stages_has_a_bucket_of_its_own)
{
    const int64_t sizes[] = {64, 64, 64};
    int asked = 0;
    hd_program *p = program_of(letters, sizes, 3, false);
    hdi_layout *layout = layout_of(&p, 1, (hdi_layout_options){.is_tied = is_b, .user = &asked});
    ck_assert_int_eq(asked, 3);
    ck_assert_int_eq(layout->bucket_count, 3);
    for (int b = 0; b < 3; b++) {
        ck_assert_int_eq(layout->buckets[b].entries, 1);
        ck_assert_int_eq(layout->buckets[b].tied, b == 1);
    }
    hdi_layout_destroy(layout);
    hd_program_destroy(p);
}
END_TEST

START_TEST(further_gradients_of_a_parameter_follow_all_entries)
{
    const char *const names[] = {"a", "b", "a"};
    const int64_t sizes[] = {100, 64, 100};
    hd_program *both[] = {program_of(names, sizes, 3, true), program_of(names, sizes, 1, true)};
    hdi_layout *layout = layout_of(both, 2, (hdi_layout_options){0});
    ck_assert_int_eq(layout->entry_count, 2);
    const hdi_entry *entry = &layout->entries[hdi_layout_find(layout, "a")];
    ck_assert_int_eq(entry->instances, 3);
    ck_assert(layout->buckets[entry->bucket].tied);
    ck_assert_int_eq(layout->weights_elements, 192);
    ck_assert_int_eq(layout->gradient_elements, 192 + 2 * 128);
    ck_assert_int_eq(hdi_layout_gradient(layout, 0, both[0]->uses[0].gradient), entry->first);
    ck_assert_int_eq(hdi_layout_gradient(layout, 0, both[0]->uses[2].gradient), 192);
    ck_assert_int_eq(hdi_layout_gradient(layout, 1, both[1]->uses[0].gradient), 192 + 128);
    hdi_layout_destroy(layout);
    hd_program_destroy(both[0]);
    hd_program_destroy(both[1]);
}
END_TEST

/* Owner of every element over all shards; -1: none. Checks counts and offsets on the way. */
static void find_owners(hdi_layout **of, int shards, int *owner)
{
    for (int64_t i = 0; i < of[0]->weights_elements; i++)
        owner[i] = -1;
    for (int b = 0; b < of[0]->bucket_count; b++) {
        const hdi_bucket *bucket = &of[0]->buckets[b];
        for (int s = 0; s < shards; s++) {
            int64_t first, count = hdi_layout_shard(of[0], b, s, &first);
            ck_assert_int_ge(count, 0);
            ck_assert_int_eq(bucket->counts[s], count);
            ck_assert_int_eq(bucket->offsets[s], first - bucket->first);
            const hdi_bucket *own = &of[s]->buckets[b];
            for (int r = 0; r < shards; r++) {
                ck_assert_int_eq(own->own_counts[r], count);
                ck_assert_int_eq(own->own_offsets[r], r * count);
            }
            bool owned = false; /* one assertion for many elements: each costs a write */
            for (int64_t i = first; i < first + count; i++) {
                owned = owned || owner[i] >= 0;
                owner[i] = s;
            }
            ck_assert(!owned);
        }
    }
}

START_TEST(every_element_has_one_owner_and_a_block_is_not_cut)
{
    static const int shard_counts[] = {1, 2, 3, 4, 5, 7, 8, 16, 33};
    for (int round = 0; round < 12; round++) {
        int64_t sizes[6];
        for (int i = 0; i < 6; i++) {
            uint32_t words[4];
            hdi_random_words(5, (uint64_t)round, (uint64_t)i, words);
            sizes[i] = 1 + words[0] % (i % 2 ? 40000 : 300);
        }
        hd_program *p = program_of(letters, sizes, 6, false);
        for (size_t k = 0; k < sizeof shard_counts / sizeof shard_counts[0]; k++) {
            int shards = shard_counts[k];
            hdi_layout *layouts[33];
            for (int s = 0; s < shards; s++)
                layouts[s] = layout_of(
                    &p, 1,
                    (hdi_layout_options){
                        .bucket_elements = 20000, .shards = shards, .shard = s, .sharding = 1});
            int *owner = malloc((size_t)layouts[0]->weights_elements * sizeof *owner);
            find_owners(layouts, shards, owner);
            int64_t state = 0;
            for (int s = 0; s < shards; s++)
                state += layouts[s]->optimizer_elements;
            ck_assert_int_ge(state, layouts[0]->weights_elements);
            ck_assert_int_lt(state, layouts[0]->weights_elements +
                                        64LL * shards * layouts[0]->bucket_count);
            for (int e = 0; e < layouts[0]->entry_count; e++) {
                const hdi_entry *entry = &layouts[0]->entries[e];
                bool good = true;
                for (int64_t i = 0; i < entry->elements; i++) {
                    const int *mine = &owner[entry->first + i];
                    good = good && *mine >= 0 &&
                           (i % HDI_BLOCK_ELEMENTS_LAYOUT == 0 || mine[0] == mine[-1]);
                }
                ck_assert_msg(good, "round %d, %d shards: '%s'", round, shards, entry->name);
            }
            free(owner);
            for (int s = 0; s < shards; s++)
                hdi_layout_destroy(layouts[s]);
        }
        hd_program_destroy(p);
    }
}
END_TEST

START_TEST(more_shards_than_blocks_leave_some_empty)
{
    hd_program *p = program_of(letters, (const int64_t[]){100}, 1, false);
    hdi_layout *layout = layout_of(&p, 1, (hdi_layout_options){.shards = 4});
    int64_t first, owners = 0;
    for (int s = 0; s < 4; s++)
        owners += hdi_layout_shard(layout, 0, s, &first) > 0;
    ck_assert_int_eq(owners, 1);
    hdi_layout_destroy(layout);
    hd_program_destroy(p);
}
END_TEST

START_TEST(a_parameter_that_the_loss_does_not_reach_is_refused)
{
    hd_program *p = program_of(letters, (const int64_t[]){100, 100}, 2, false);
    p->uses[1].gradient = (hd_tensor){0};
    hdi_layout *layout = layout_of(&p, 1, (hdi_layout_options){0});
    hdi_data_reduce(p, 0, layout, NULL);
    hdt_assert_status(hd_program_finish(p), HD_ERROR_ARGUMENT, "parameter 'b' has no gradient");
    hdi_layout_destroy(layout);
    hd_program_destroy(p);
}
END_TEST

/* Sums whose text is the tree: "((01)2)" as a hash that depends on order and shape. */
static uint64_t join(uint64_t left, uint64_t right)
{
    uint32_t words[4];
    hdi_random_words(left, right, 1, words);
    return (uint64_t)words[0] << 32 | words[1];
}

/* Split where the left part is the largest power of two that leaves something to the right. */
static uint64_t tree_of(int first, int count)
{
    if (count == 1) return (uint64_t)first + 1;
    int left = 1;
    while (2 * left < count)
        left *= 2;
    return join(tree_of(first, left), tree_of(first + left, count - left));
}

/* What an executor does with levels and folds for the local micro-batches from `first` on. */
static uint64_t replay(int first, int count)
{
    uint64_t levels[16];
    for (int m = 0; m < count; m++) {
        int level = hdi_gradient_level(m), folds = hdi_gradient_folds(m, count);
        ck_assert_int_lt(level, hdi_gradient_levels(count));
        ck_assert_int_le(folds, level);
        levels[level] = (uint64_t)(first + m) + 1;
        for (int f = 0; f < folds; f++, level--)
            levels[level - 1] = join(levels[level - 1], levels[level]);
    }
    return levels[0];
}

START_TEST(micro_batches_join_in_a_tree)
{
    for (int m = 1; m <= 64; m++)
        ck_assert_msg(replay(0, m) == tree_of(0, m), "%d micro-batches", m);
    ck_assert_int_eq(hdi_gradient_levels(1), 1);
    ck_assert_int_eq(hdi_gradient_levels(8), 4);
    ck_assert_int_eq(hdi_gradient_levels(9), 4);
}
END_TEST

/* The same counter as a tree sum over ranks. */
static uint64_t over_ranks(const uint64_t *parts, int count)
{
    uint64_t levels[16];
    int depth = 0;
    for (int part = 0; part < count; part++) {
        levels[depth++] = parts[part];
        for (int index = part; index & 1; index >>= 1, depth--)
            levels[depth - 2] = join(levels[depth - 2], levels[depth - 1]);
    }
    for (; depth > 1; depth--)
        levels[depth - 2] = join(levels[depth - 2], levels[depth - 1]);
    return levels[0];
}

START_TEST(ranks_with_powers_of_two_join_to_the_tree_of_one_rank)
{
    for (int local = 1; local <= 8; local *= 2)
        for (int ranks = 1; ranks * local <= 64; ranks++) {
            uint64_t parts[64];
            for (int r = 0; r < ranks; r++)
                parts[r] = replay(r * local, local);
            ck_assert_msg(over_ranks(parts, ranks) == tree_of(0, ranks * local),
                          "%d ranks of %d micro-batches", ranks, local);
        }
}
END_TEST

START_TEST(the_backends_tree_sum_is_that_tree)
{
    /* Terms so unlike that each order of adding them rounds differently. */
    for (int parts = 1; parts <= 33; parts++) {
        float x[33], want[33], got;
        for (int i = 0; i < parts; i++)
            want[i] = x[i] = hdi_random_normal(1, 2, (uint64_t)i) * (float)(1 << (i * 7 % 20));
        for (int width = 1; width < parts; width *= 2)
            for (int i = 0; i + width < parts; i += 2 * width)
                want[i] += want[i + width];
        hdt_assert_ok(hdi_backend_cpu.tree_sum(NULL, HD_DTYPE_F32, x, 1, parts, 1, &got));
        ck_assert_float_eq(got, want[0]);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("layout");
    TCase *tests = tcase_create("layout");
    tcase_add_test(tests, parameters_lie_in_the_order_in_which_the_backward_finishes_them);
    tcase_add_test(tests, buckets_are_cut_at_their_size);
    tcase_add_test(tests, buckets_are_cut_between_programs);
    tcase_add_test(tests, a_parameter_of_several_stages_has_a_bucket_of_its_own);
    tcase_add_test(tests, further_gradients_of_a_parameter_follow_all_entries);
    tcase_add_test(tests, every_element_has_one_owner_and_a_block_is_not_cut);
    tcase_add_test(tests, more_shards_than_blocks_leave_some_empty);
    tcase_add_test(tests, a_parameter_that_the_loss_does_not_reach_is_refused);
    tcase_add_test(tests, micro_batches_join_in_a_tree);
    tcase_add_test(tests, ranks_with_powers_of_two_join_to_the_tree_of_one_rank);
    tcase_add_test(tests, the_backends_tree_sum_is_that_tree);
    suite_add_tcase(suite, tests);
    return hdt_main(suite);
}
