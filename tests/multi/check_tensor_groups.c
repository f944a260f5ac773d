/* ranks: 2 3 4, at most 4 */
/* Products in pieces beside what travels on the tensor axis give what they give at once. */
#include "tests/support/hdt_device.h"

#include "jobs/setup.h"
#include "tests/support/hdt_split.h"

#include <stdio.h>

static const hdt_split settings[] = {
    {"gpt2", hdt_split_gpt2, 11, 0, 0, 5, 0, 0, false, 16},
    {"llama",
     "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":16,"
     "\"hidden_size\":24,\"intermediate_size\":41,\"num_hidden_layers\":2,"
     "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"rms_norm_eps\":1e-5}",
     7, 0, 0, 4, 0, 0, false, 16},
    {"hunyuan", hdt_split_hunyuan, 0, 7, 4, 6, 0, 0, false, 16},
    {"open sora", hdt_split_open_sora, 0, 13, 3, 5, 0, 0, true, 16},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

START_TEST(pieces_give_what_is_made_at_once)
{
    static hdt_split_outcome whole, seen;
    const hdt_split *one = &settings[_i];
    const int ranks = hd_comm_size(hdt_world);
    const hd_mesh_options layout = {.data = 1, .tensor = ranks};
    hd_trainer_options options = {.tensor_groups = 1};
    hdt_split_sequences = one->tokens ? 2 : 1; /* of a video's rows text is a part */
    hdt_assert_ok(hdt_split_train(hdt_world, one, &layout, options, &whole));
    for (options.tensor_groups = 2; options.tensor_groups <= 3; options.tensor_groups++) {
        char what[64];
        snprintf(what, sizeof what, "%d ranks, %d groups", ranks, options.tensor_groups);
        options.recompute = options.tensor_groups == 3;
        hdt_assert_ok(hdt_split_train(hdt_world, one, &layout, options, &seen));
        hdt_split_compare(one, what, &seen, &whole);
    }
}
END_TEST

/* Ranks that would choose by different devices' rates would wait for each other. */
START_TEST(ranks_choose_by_the_same_rates)
{
    const int ranks = hd_comm_size(hdt_world), rank = hd_comm_rank(hdt_world);
    const char *const rates[] = {"h100", "rtx-4090"};
    const hd_mesh_options layout = {.tensor = ranks};
    for (int groups = 0; groups <= 2; groups += 2)
        for (int differ = 0; differ < 2; differ++) {
            char text[160];
            hd_config *config = NULL;
            hd_mesh *mesh = NULL;
            hd_context *context = NULL;
            const int length =
                snprintf(text, sizeof text,
                         "{\"run\": {\"device\": \"cpu\", \"rates\": \"%s\"}, \"layout\": "
                         "{\"tensor\": %d, \"tensor_groups\": %d}}",
                         rates[differ && rank], ranks, groups);
            hd_status status = hd_config_create(&config);
            if (status == HD_OK)
                status = hdi_config_load_text(config->values, text, (size_t)length, "a test");
            if (status == HD_OK) status = hd_mesh_create(hdt_world, &layout, &mesh);
            if (status == HD_OK) status = hdi_job_open_device(config, hdt_world, mesh, &context);
            hd_context_destroy(context);
            hd_mesh_destroy(mesh);
            hd_config_destroy(config);
            if (differ && !groups)
                hdt_assert_status(status, HD_ERROR_MISMATCH, "want run.rates of one device");
            else
                hdt_assert_ok(status);
        }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("tensor groups");
    tcase_add_loop_test(tests, pieces_give_what_is_made_at_once, 0, SETTINGS);
    tcase_add_test(tests, ranks_choose_by_the_same_rates);
    return hdt_main_ranks(argc, argv, "tensor groups", tests);
}
