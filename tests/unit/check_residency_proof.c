/* The verifier on weights from the host: each way of spoiling their places and copies is caught. */
#include "parallel/data.h"
#include "program/plan.h"

#include "tests/support/hdt_blocks.h"

enum { BLOCKS = 7 };

static hd_program *program;
static hd_plan *plan;
static hdi_unit *unit;
static hdi_stream_run *streamed; /* by the forward */

static void make(int host_blocks)
{
    hdt_assert_ok(hd_plan_create(
        &(hd_plan_options){.residency = HD_RESIDENCY_HOST, .host_blocks = host_blocks}, &plan));
    hdt_assert_ok(hd_plan_add(plan, program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    hdt_assert_ok(hdi_plan_verify(plan));
    unit = &plan->units[0];
    streamed = &unit->streamed[HDI_PHASE_FORWARD];
}

static void begin(void)
{
    const int order[BLOCKS] = {0, 1, 2, 3, 4, 5, 6};
    program = hdt_blocks_program("p", order, BLOCKS);
}

static void drop(void)
{
    hd_plan_destroy(plan);
    hd_program_destroy(program);
}

static void caught(const char *text)
{
    hdt_assert_status(hdi_plan_verify(plan), HD_ERROR_INTERNAL, text);
}

START_TEST(every_copy_that_comes_too_early_is_caught)
{
    make(0);
    hdt_assert_ok(hdi_plan_verify(plan));
    for (int m = 2; m < streamed->use_count + 2; m++) {
        streamed->fetches[m]--;
        caught("finds another block in the slot of block 'model.h.");
        streamed->fetches[m]++;
        hdt_assert_ok(hdi_plan_verify(plan));
    }
}
END_TEST

START_TEST(every_copy_that_comes_too_late_is_caught)
{
    make(0);
    for (int m = 0; m < streamed->use_count; m++) {
        const int kept = streamed->fetches[m];
        streamed->fetches[m] = streamed->uses[m].first + 1;
        caught("begins, before its copy is queued, block 'model.h.");
        streamed->fetches[m] = kept;
    }
    streamed->fetches[streamed->use_count + 1] = unit->program->op_count + 1;
    caught("never copies");
}
END_TEST

START_TEST(uses_that_miss_a_reader_are_caught)
{
    make(0);
    streamed->uses[3].first++;
    caught("reads, outside its uses, block 'model.h.3'");
    streamed->uses[3].first--;
    streamed->uses[3].block = 2;
    caught("block 'model.h.3'");
    streamed->uses[3].block = 3;
    streamed->use_count = 0;
    caught("reads, outside its uses, block 'model.h.0'");
}
END_TEST

START_TEST(weights_that_share_bytes_are_caught)
{
    make(5);
    hdi_residency *it = &plan->residency;
    hdi_home *home = NULL, *resident = NULL;
    for (int e = 0; e < plan->layout->entry_count; e++)
        if (!hdi_residency_host(it, e))
            resident = it->homes[e].offset ? &it->homes[e] : resident;
        else if (it->homes[e].in_block)
            home = &it->homes[e];
    home->in_block -= 256;
    caught("share bytes of model.h.");
    home->in_block += 256;
    resident->offset -= 256;
    caught("share bytes of the weights");
    resident->offset += 256;
    for (int b = 0; b < BLOCKS; b++)
        if (it->blocks[b].host_offset) it->blocks[b].host_offset -= 256;
    caught("of the host's copy");
}
END_TEST

START_TEST(places_that_are_not_where_the_values_are_are_caught)
{
    make(5);
    for (int u = 0; u < unit->program->use_count; u++) {
        hdi_place_of *place = &unit->places[unit->program->uses[u].tensor.id];
        const hdi_place_of kept = *place;
        place->offset += 256;
        caught("not where its values are");
        *place = kept;
        if (place->region != HD_REGION_STREAMED) continue;
        place->stride -= 256;
        caught("not where its values are");
        *place = kept;
        place->slots = 1;
        caught("not where its values are");
        *place = kept;
    }
    hdt_assert_ok(hdi_plan_verify(plan));
    unit->base[HD_REGION_STREAMED] -= 256;
    caught("share bytes");
}
END_TEST

/* Rank 0 of 2 with sharded weights, those of so many blocks on the host, its backward behind a forward;
 * buckets are smaller than blocks. */
static void make_gathered(int host_blocks)
{
    program = hdt_random_program(2);
    hdi_layout *layout;
    hdt_assert_ok(hdi_layout_create(
        &program, 1,
        &(hdi_layout_options){
            .bucket_elements = 150, .shards = 2, .sharding = 3, .host_blocks = host_blocks},
        &layout));
    hdt_assert_ok(hd_plan_create(&(hd_plan_options){0}, &plan));
    hdi_plan_set_layout(plan, layout);
    hdi_data_reduce(program, 0, layout, NULL);
    hdt_assert_ok(hd_plan_add(plan, program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    unit = &plan->units[0];
    streamed = &unit->streamed[HDI_PHASE_BACKWARD];
}

START_TEST(blocks_that_are_gathered_are_proved_likewise)
{
    make_gathered(2 * _i);
    hdi_residency *it = &plan->residency;
    ck_assert(it->gathers && it->block_count > 2);
    ck_assert_int_eq(streamed->use_count, it->block_count);
    streamed->fetches[2]--;
    caught("finds another block in the slot of block 'block.");
    streamed->fetches[2]++;
    for (int e = 0; e < plan->layout->entry_count; e++) {
        hdi_home *home = &it->homes[e];
        if (home->block < 0) continue;
        home->in_block += 4;
        hdt_assert_status(hdi_plan_verify(plan), HD_ERROR_INTERNAL, "verifier");
        home->in_block -= 4;
    }
    hdi_bucket *shards[2] = {0};
    for (int b = 0, found = 0; b < plan->layout->bucket_count && found < 2; b++) {
        int64_t first, own = hdi_layout_shard(plan->layout, b, 0, &first);
        if (own && plan->layout->buckets[b].block >= 0 && plan->layout->buckets[b].host == (_i > 0))
            shards[found++] = &plan->layout->buckets[b];
    }
    ck_assert_ptr_nonnull(shards[1]);
    const int64_t kept = shards[1]->weights_first;
    shards[1]->weights_first = shards[0]->weights_first;
    caught(_i ? "share bytes of the host's copy" : "share bytes of the weights");
    shards[1]->weights_first = kept;
    hdt_assert_ok(hdi_plan_verify(plan));
    if (!_i) return;
    it->shard_bytes = 4;
    caught("this rank's shard of 'block.");
}
END_TEST

/* Rank 1 of 2, whose shards come from the host. */
START_TEST(room_for_shards_from_the_host_is_proved)
{
    program = hdt_blocks_program("p", (const int[]){0, 1, 2, 3}, 4);
    hdt_assert_ok(hd_plan_create(
        &(hd_plan_options){.residency = HD_RESIDENCY_HOST_SHARDED, .shards = 2, .shard = 1},
        &plan));
    hdt_assert_ok(hd_plan_add(plan, program, NULL));
    hdt_assert_ok(hd_plan_finish(plan));
    unit = &plan->units[0];
    hdi_residency *it = &plan->residency;
    ck_assert(it->gathers && it->host_bytes && it->shard_bytes);
    hdt_assert_ok(hdi_plan_verify(plan));
    it->shard_bytes -= 4;
    caught("this rank's shard of 'model.h.");
    it->shard_bytes += 4;
    plan->bytes[HD_REGION_STREAMED] -= 4;
    caught("this rank's shard of 'model.h.");
    plan->bytes[HD_REGION_STREAMED] += 4;
    it->blocks[1].host_offset = it->blocks[2].host_offset;
    caught("share bytes of the host's copy");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("residency proof");
    TCase *tests = tcase_create("residency proof");
    tcase_add_checked_fixture(tests, begin, drop);
    tcase_add_test(tests, every_copy_that_comes_too_early_is_caught);
    tcase_add_test(tests, every_copy_that_comes_too_late_is_caught);
    tcase_add_test(tests, uses_that_miss_a_reader_are_caught);
    tcase_add_test(tests, weights_that_share_bytes_are_caught);
    tcase_add_test(tests, places_that_are_not_where_the_values_are_are_caught);
    suite_add_tcase(suite, tests);
    TCase *gathered = tcase_create("gathered");
    tcase_add_checked_fixture(gathered, NULL, drop);
    tcase_add_loop_test(gathered, blocks_that_are_gathered_are_proved_likewise, 0, 3);
    tcase_add_test(gathered, room_for_shards_from_the_host_is_proved);
    suite_add_tcase(suite, gathered);
    return hdt_main(suite);
}
