/* ranks: 1 2 4, at most 4 */
/* Training whose loss is made in slices of rows, on every layout: the bits of the same layout without slices,
 * but for the gradient of the weight that makes logits, which is near; with reduction exact the same bits on
 * every layout. */
#include "tests/support/hdt_device.h"

#include <stdio.h>

#include "tests/support/hdt_split.h"

typedef struct setting {
    hdt_split split;
    const char *head; /* the weight that makes logits */
} setting;

/* Two sequences of 97 tokens, of which slices are 64 rows and more, and some are left. */
static const setting settings[] = {
    {{"gpt2",
      "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":97,\"n_embd\":24,"
      "\"n_layer\":4,\"n_head\":4}",
      97, 0, 0, 4, 0, 0, false, 32},
     "transformer.wte.weight"},
    {{"llama",
      "{\"model_type\":\"llama\",\"vocab_size\":31,\"max_position_embeddings\":97,"
      "\"hidden_size\":24,\"intermediate_size\":41,\"num_hidden_layers\":4,"
      "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"rms_norm_eps\":1e-5,"
      "\"tie_word_embeddings\":false}",
      97, 0, 0, 4, 0, 0, false, 32},
     "lm_head.weight"},
};
enum { SETTINGS = sizeof settings / sizeof settings[0], SLICES = 3 };

static hdt_split_outcome whole, sliced;

/* On a CPU a row's bits do not depend on the rows beside it. */
static bool has_bits(void)
{
    return strcmp(hdt_device(), "cpu") == 0;
}

static void check_bits(const setting *one, const char *what)
{
    const hdt_split_gradients *a = &whole.gradients, *b = &sliced.gradients;
    ck_assert_msg(sliced.loss == whole.loss && sliced.validation == whole.validation,
                  "%s, %s: loss %.17g, validation %.17g, want %.17g, %.17g", one->split.name, what,
                  sliced.loss, sliced.validation, whole.loss, whole.validation);
    ck_assert_int_eq(a->parameters, b->parameters);
    for (int p = 0; p < a->parameters; p++) {
        ck_assert_str_eq(a->names[p], b->names[p]);
        if (strcmp(a->names[p], one->head) == 0) continue;
        ck_assert_msg(memcmp(a->values + a->firsts[p], b->values + b->firsts[p],
                             (size_t)a->sizes[p] * sizeof *a->values) == 0,
                      "%s, %s: the gradient of %s has other bits", one->split.name, what,
                      a->names[p]);
    }
}

static void check_layout(const setting *one, const hd_mesh_options *layout,
                         hd_trainer_options options)
{
    char what[128];
    snprintf(what, sizeof what,
             "data %d x pipeline %d x sequence %d x tensor %d, shard_state %d, recompute %d",
             layout->data, layout->pipeline, layout->sequence, layout->tensor, options.shard_state,
             options.recompute);
    options.accumulate = 4 / layout->data;
    options.slices = 1;
    hdt_assert_ok(hdt_split_train(hdt_world, &one->split, layout, options, &whole));
    options.slices = SLICES;
    hdt_assert_ok(hdt_split_train(hdt_world, &one->split, layout, options, &sliced));
    hdt_assert_ok(hd_comm_check_equal(hdt_world, &sliced.loss, sizeof sliced.loss, "losses"));
    hdt_split_compare(&one->split, what, &sliced, &whole);
    if (has_bits()) check_bits(one, what);
}

START_TEST(every_layout_has_the_bits_that_it_has_without_slices)
{
    const int ranks = hd_comm_size(hdt_world);
    for (int data = 1; data <= ranks; data++)
        for (int pipeline = 1; data * pipeline <= ranks; pipeline++)
            for (int sequence = 1; data * pipeline * sequence <= ranks; sequence++) {
                const int others = data * pipeline * sequence;
                const hd_mesh_options layout = {.data = data,
                                                .pipeline = pipeline,
                                                .sequence = sequence,
                                                .tensor = ranks / others};
                if (ranks % others) continue;
                const hd_trainer_options options = {.shard_state = data > 1 ? _i % 2 * 2 : 0,
                                                    .recompute = sequence > 1};
                check_layout(&settings[_i], &layout, options);
            }
}
END_TEST

/* A gradient's terms are summed slice by slice, whatever rank has the rows. */
START_TEST(reduction_exact_has_the_same_bits_on_every_layout)
{
    const int ranks = hd_comm_size(hdt_world);
    const setting *one = &settings[_i];
    hd_trainer_options options = {.exact = true, .slices = SLICES, .accumulate = 4};
    hdt_split_train_alone(&one->split, &options, &whole);
    for (int data = 1; data <= ranks; data *= 2) {
        const hd_mesh_options layout = {.data = data, .pipeline = ranks / data};
        options.accumulate = 4 / data;
        hdt_assert_ok(hdt_split_train(hdt_world, &one->split, &layout, options, &sliced));
        ck_assert_uint_eq(sliced.weights, whole.weights);
        ck_assert_double_eq(sliced.loss, whole.loss);
    }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("loss slices");
    tcase_add_loop_test(tests, every_layout_has_the_bits_that_it_has_without_slices, 0, SETTINGS);
    tcase_add_loop_test(tests, reduction_exact_has_the_same_bits_on_every_layout, 0, SETTINGS);
    return hdt_main_ranks(argc, argv, "loss slices", tests);
}
