/* ranks: 2 3 4 5 6 7 8 */
/* Every layout of the ranks over data, pipeline, sequence (in rings of every size) and tensor gives the loss,
 * the norm and the gradients of one rank, or is refused with the reason, as one rule says. */
#include "tests/support/hdt_device.h"

#include "core/error.h"
#include "tests/support/hdt_split.h"

#include <heddle/model.h>
#include <stdio.h>
#include <stdlib.h>

/* A model and what is known of how it can be split. */
typedef struct setting {
    hdt_split split;
    int layers;
    int64_t image; /* tokens that ranks deal out, without the text */
    bool causal;   /* a ring zigzags */
    int ring;      /* places that there are frames for, 0: any number */
} setting;

/* Four of a layer on the way to the loss, four on the way back. */
#define ROUNDINGS(layers) (8 * (layers))

static const setting settings[] = {
    {{"gpt2",
      "{\"model_type\":\"gpt2\",\"vocab_size\":31,\"n_positions\":20,\"n_embd\":32,"
      "\"n_layer\":8,\"n_head\":8}",
      17, 0, 0, 8, 0, 0, false, ROUNDINGS(8)},
     8,
     17,
     true,
     0},
    {{"hunyuan",
      "{\"model_type\": \"hunyuan_video\", \"in_channels\": 2, \"out_channels\": 2, "
      "\"num_attention_heads\": 6, \"attention_head_dim\": 6, \"num_layers\": 2, "
      "\"num_single_layers\": 4, \"num_refiner_layers\": 1, \"text_embed_dim\": 6, "
      "\"pooled_projection_dim\": 5, \"rope_axes_dim\": [2, 2, 2]}",
      0, 7, 9, 6, 0, 0, false, ROUNDINGS(6)},
     6,
     7,
     false,
     0},
    {{"open sora 1.2",
      "{\"model_type\": \"stdit3\", \"in_channels\": 2, \"hidden_size\": 28, \"depth\": 4, "
      "\"num_heads\": 7, \"mlp_ratio\": 2.0, \"caption_channels\": 6, \"model_max_length\": 4, "
      "\"qk_norm\": true}",
      0, 3, 4, 7, 4, 6, true, ROUNDINGS(8)},
     8,
     18,
     false,
     3},
};
enum { SETTINGS = sizeof settings / sizeof settings[0], MOST_RANKS = 8, WHAT = 96 };

/* Videos without frames for all places of a ring are cut into fewer. */
static int places_of(const setting *one, const hd_mesh_options *layout)
{
    int places = layout->ring;
    while (one->ring && (places > one->ring || layout->sequence % places))
        places--;
    return places;
}

/* One of so many equal pieces, as far as tokens go. */
static int64_t piece_of(int64_t tokens, int pieces, int index)
{
    return (index + 1) * tokens / pieces - index * tokens / pieces;
}

/* What the rank of the sequence axis has that has the fewest tokens. */
static int64_t fewest_tokens(const setting *one, const hd_mesh_options *layout)
{
    const int sharing = layout->sequence / layout->ring;
    int64_t fewest = one->image;
    for (int place = 0; place < layout->ring; place++) {
        const bool zigzag = one->causal && layout->ring > 1;
        const int pieces = zigzag ? 2 * layout->ring : layout->ring;
        int64_t tokens = piece_of(one->image, pieces, place);
        if (zigzag) tokens += piece_of(one->image, pieces, pieces - 1 - place);
        if (tokens / sharing < fewest) fewest = tokens / sharing;
    }
    return fewest;
}

/* The rule: NULL, or a part of the reason. */
static const char *why_not(const setting *one, const hd_mesh_options *layout)
{
    const bool zigzag = one->causal && layout->ring > 1;
    const int64_t places = zigzag ? one->image / 2 : one->image;
    const int shares =
        layout->sequence / places_of(one, layout) * layout->tensor; /* of the heads */
    if (layout->pipeline > one->layers) return "layers";
    if (shares > one->split.heads) return "key and value heads";
    if (layout->sequence > places || layout->tensor > fewest_tokens(one, layout))
        return "tokens of a sequence";
    return NULL;
}

static void check_layout(const setting *one, const hd_mesh_options *layout,
                         const hd_trainer_options *options, const hdt_split_outcome *alone)
{
    static hdt_split_outcome seen;
    char what[WHAT];
    snprintf(what, sizeof what,
             "data %d x pipeline %d x sequence %d in rings of %d x tensor %d, shard_state %d",
             layout->data, layout->pipeline, layout->sequence, layout->ring, layout->tensor,
             options->shard_state);
    const hd_status status = hdt_split_train(hdt_world, &one->split, layout, *options, &seen);
    const char *reason = why_not(one, layout);
    if (!reason) {
        ck_assert_msg(status == HD_OK, "%s, %s: %s", one->split.name, what, hd_last_error());
        hdt_assert_ok(hd_comm_check_equal(hdt_world, &seen.loss, sizeof seen.loss, "losses"));
        hdt_assert_ok(
            hd_comm_check_equal(hdt_world, &seen.weights, sizeof seen.weights, "weights"));
        hdt_split_compare(&one->split, what, &seen, alone);
        return;
    }
    ck_assert_msg(status != HD_OK, "%s, %s: runs, want a refusal: %s", one->split.name, what,
                  reason);
    ck_assert_msg(status == HD_ERROR_UNSUPPORTED || status == HD_ERROR_CONFIG,
                  "%s, %s: refused with '%s' (%s)", one->split.name, what, hd_status_string(status),
                  hd_last_error());
    ck_assert_msg(strstr(hd_last_error(), reason), "%s, %s: the reason is '%s', want '%s' in it",
                  one->split.name, what, hd_last_error(), reason);
}

static hdt_split_outcome
    alone[2 * MOST_RANKS + 1]; /* by the step's micro-batches; made when wanted */

/* Two micro-batches for each data rank where there is a pipeline to fill; one rank does them all. State
 * is sharded by turns where ranks have the same parameters, beside a run that shows the gradients. */
static void check_sizes(const setting *one, const hd_mesh_options *layout, int number)
{
    hd_trainer_options options = {.bucket_elements = 3000};
    const int accumulate = layout->pipeline > 1 ? 2 : 1, batches = layout->data * accumulate;
    if (!why_not(one, layout) && !alone[batches].gradients.parameters) {
        options.accumulate = batches;
        hdt_split_train_alone(&one->split, &options, &alone[batches]);
    }
    options.accumulate = accumulate;
    check_layout(one, layout, &options, &alone[batches]);
    options.shard_state = one->ring && layout->ring > 1 ? 0 : number % 4; /* see check_regroup */
    if (options.shard_state && layout->data * layout->sequence > 1)
        check_layout(one, layout, &options, &alone[batches]);
}

/* PART=K/N in the environment: the K-th of N shares of the layouts, from 1; ranks that share a GPU are slow. */
static bool is_of_part(int number)
{
    int part = 1, parts = 1;
    const char *wanted = getenv("PART");
    if (wanted && *wanted) ck_assert_int_eq(sscanf(wanted, "%d/%d", &part, &parts), 2);
    ck_assert_msg(part >= 1 && part <= parts, "PART is '%s', want K/N", wanted ? wanted : "");
    return number % parts == part - 1;
}

START_TEST(every_layout_is_right_or_refused_with_the_reason)
{
    const setting *one = &settings[_i];
    const int ranks = hd_comm_size(hdt_world);
    hd_model *model;
    hdt_assert_ok(hd_model_create_json(one->split.json, &model));
    const int layers = hd_model_layers(model);
    hd_model_destroy(model);
    ck_assert_int_eq(layers, one->layers);
    ck_assert_int_le(ranks, MOST_RANKS);
    for (int batches = 0; batches <= 2 * MOST_RANKS; batches++)
        alone[batches].gradients.parameters = 0;
    int number = 0;
    hd_mesh_options l = {0};
    for (l.data = 1; l.data <= ranks; l.data++)
        for (l.pipeline = 1; l.data * l.pipeline <= ranks; l.pipeline++)
            for (l.sequence = 1; l.data * l.pipeline * l.sequence <= ranks; l.sequence++)
                for (l.ring = 1; l.ring <= l.sequence; l.ring++) {
                    const int rest = l.data * l.pipeline * l.sequence;
                    if (ranks % rest || l.sequence % l.ring) continue;
                    if (places_of(one, &l) < l.ring) continue; /* as with the smaller ring */
                    l.tensor = ranks / rest;
                    if (is_of_part(number)) check_sizes(one, &l, number);
                    number++;
                }
}
END_TEST

int main(int argc, char **argv)
{
    TCase *tests = tcase_create("layouts");
    tcase_add_loop_test(tests, every_layout_is_right_or_refused_with_the_reason, 0, SETTINGS);
    return hdt_main_ranks(argc, argv, "layouts", tests);
}
