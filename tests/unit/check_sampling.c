/* The choice of tokens, and the texts that tokens become. */
#include <math.h>
#include <stdio.h>

#include "core/memory.h"
#include "jobs/generate/prompts.h"
#include "jobs/generate/sampling.h"
#include "tests/support/hdt.h"

enum { VOCAB = 9, DRAWS = 40000 };
static int32_t heap[VOCAB];
static const float logits[VOCAB] = {0.5F, 2, -1, 2, 0, 1, -3, 1, 0.25F};

static int32_t draw(double temperature, int64_t top_k, uint64_t position)
{
    return hdi_sample(&(hd_sampling_options){.temperature = temperature, .top_k = top_k, .seed = 5},
                      logits, VOCAB, 3, position, heap);
}

START_TEST(greedy_takes_the_lowest_of_the_likeliest)
{
    ck_assert_int_eq(draw(0, 0, 0), 1);
    for (uint64_t i = 0; i < 100; i++)
        ck_assert_int_eq(draw(2, 1, i), 1);
}
END_TEST

/* The share of each token is its softmax among those that top_k leaves, to five standard
 * deviations of the draw. */
START_TEST(tokens_come_as_often_as_they_are_likely)
{
    static const bool kept[][VOCAB] = {{1, 1, 1, 1, 1, 1, 1, 1, 1},
                                       {0, 1, 0, 1, 0, 1, 0, 0, 0}, /* of 5 and 7, the lower */
                                       {1, 1, 0, 1, 0, 1, 0, 1, 0}};
    const int64_t top_k = (int64_t[]){0, 3, 5}[_i];
    const double temperature = 0.7;
    double sum = 0;
    int seen[VOCAB] = {0};
    for (int t = 0; t < VOCAB; t++)
        sum += kept[_i][t] ? exp((double)logits[t] / temperature) : 0;
    for (uint64_t i = 0; i < DRAWS; i++)
        seen[draw(temperature, top_k, i)]++;
    for (int t = 0; t < VOCAB; t++) {
        const double share = kept[_i][t] ? exp((double)logits[t] / temperature) / sum : 0;
        const double deviation = sqrt(share * (1 - share) / DRAWS);
        ck_assert_msg(fabs((double)seen[t] / DRAWS - share) <= 5 * deviation,
                      "token %d came %d times of %d, want a share of %g", t, seen[t], DRAWS, share);
    }
}
END_TEST

START_TEST(top_k_agrees_with_counting_how_many_are_likelier)
{
    enum { LARGE = 501, RUNS = 30 };
    static float many[LARGE];
    static int32_t many_heap[LARGE];
    for (uint64_t run = 0; run < RUNS; run++) {
        hdt_fill_whole(many, LARGE, 40, run); /* many ties */
        const int64_t k = 1 + (int64_t)(run * 37 % LARGE);
        for (uint64_t i = 0; i < 50; i++) {
            const int32_t token =
                hdi_sample(&(hd_sampling_options){.temperature = 50, .top_k = k, .seed = run}, many,
                           LARGE, 0, i, many_heap);
            int64_t likelier = 0;
            for (int32_t t = 0; t < LARGE; t++)
                likelier += many[t] > many[token] || (many[t] == many[token] && t < token);
            ck_assert_int_lt(likelier, k);
        }
    }
}
END_TEST

START_TEST(draws_are_a_function_of_seed_prompt_and_position)
{
    int differ = 0;
    for (uint64_t i = 0; i < 50; i++) {
        ck_assert_int_eq(draw(1, 0, i), draw(1, 0, i));
        differ += draw(1, 0, i) != draw(1, 0, i + 1000);
    }
    ck_assert_int_gt(differ, 0);
}
END_TEST

START_TEST(logits_that_leave_no_choice_are_told)
{
    float bad[3] = {0, NAN, 1};
    const hd_sampling_options sampling = {.temperature = 1};
    ck_assert_int_eq(hdi_sample(&sampling, bad, 3, 0, 0, heap), -1);
    bad[1] = INFINITY;
    ck_assert_int_eq(hdi_sample(&sampling, bad, 3, 0, 0, heap), -1);
    bad[0] = bad[1] = -INFINITY; /* ruled out, which is fine */
    for (uint64_t i = 0; i < 20; i++)
        ck_assert_int_eq(hdi_sample(&sampling, bad, 3, 0, i, heap), 2);
    bad[2] = -INFINITY;
    ck_assert_int_eq(hdi_sample(&sampling, bad, 3, 0, 0, heap), -1);
}
END_TEST

static void assert_text(const char *bytes, size_t count, const char *wanted)
{
    int32_t tokens[32];
    hdi_text text = {0};
    for (size_t i = 0; i < count; i++)
        tokens[i] = (unsigned char)bytes[i];
    hdi_append_bytes(&text, tokens, (int64_t)count);
    ck_assert_str_eq(text.data, wanted);
    hdi_text_free(&text);
}

#define REPLACED "\xef\xbf\xbd"
#define TEXT(bytes, wanted) assert_text(bytes, sizeof(bytes) - 1, wanted)

START_TEST(terminals_get_only_text)
{
    TEXT("To be,\n\tor \xc3\xa9t\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8c\x8d",
         "To be,\n\tor \xc3\xa9t\xc3\xa9 \xe2\x82\xac \xf0\x9f\x8c\x8d");
    TEXT("a\x1b[2J", "a" REPLACED "[2J");                   /* escape */
    TEXT("a\0b\r\x7f", "a" REPLACED "b" REPLACED REPLACED); /* NUL, return, delete */
    TEXT("\xc2\x9b", REPLACED REPLACED);                    /* escape, in eight bits */
    TEXT("\xc3", REPLACED);                                 /* cut short */
    TEXT("\xc3(", REPLACED "(");                            /* no continuation */
    TEXT("\xc0\xaf\xe0\x80\xaf", REPLACED REPLACED REPLACED REPLACED REPLACED); /* overlong */
    TEXT("\xed\xa0\x80", REPLACED REPLACED REPLACED);                           /* surrogate */
    TEXT("\xf4\x90\x80\x80", REPLACED REPLACED REPLACED REPLACED);              /* beyond Unicode */
}
END_TEST

static hd_config *make_config(void)
{
    hd_config *config;
    hdt_assert_ok(hd_config_create(&config));
    return config;
}

START_TEST(prompts_come_from_lists_files_and_numbers)
{
    const char *path = hdt_temp_path("prompts.txt");
    FILE *file = fopen(path, "w");
    fputs("one\r\n\ntwo \xc3\xa9", file);
    fclose(file);
    hd_config *config = make_config();
    hdi_prompts prompts = {0};
    hdt_assert_ok(hd_config_set(config, "generate.prompts", "[\"a, b\"]"));
    hdt_assert_ok(hd_config_set(config, "generate.prompt_file", path));
    hdt_assert_ok(hd_config_set(config, "generate.ids", "7, 300 ,0"));
    hdt_assert_ok(hdi_prompts_read(config, 256, &prompts));
    ck_assert_int_eq(prompts.count, 4);
    ck_assert_int_eq(prompts.longest, 6);
    const int64_t lengths[] = {4, 3, 6, 3};
    for (int p = 0; p < 4; p++)
        ck_assert_int_eq(prompts.prompts[p].length, lengths[p]);
    ck_assert_int_eq(prompts.prompts[0].tokens[1], ',');
    ck_assert_int_eq(prompts.prompts[2].tokens[5], 0xa9);
    ck_assert_int_eq(prompts.prompts[3].tokens[1], 300);
    hdi_prompts_free(&prompts);
    hd_config_destroy(config);
}
END_TEST

START_TEST(prompts_that_cannot_be_read_are_told)
{
    static const struct {
        const char *key, *value, *wanted;
        int64_t vocab;
    } cases[] = {
        {"generate.prompts", "a", "vocabulary of 300", 300},
        {"generate.prompts", "[\"a\",\"\"]", "prompt 1 is empty", 256},
        {"generate.prompt_file", "/nowhere/at/all", "/nowhere/at/all", 256},
        {"generate.ids", "1,,2", "entry 1", 256},
        {"generate.ids", "1,-2", "entry 1", 256},
        {"generate.ids", "1,2x", "entry 1", 256},
        {"generate.ids", "99999999999999999999", "entry 0", 256},
        {"generate.seed", "1", "generate.prompts", 256},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        hd_config *config = make_config();
        hdi_prompts prompts = {0};
        hdt_assert_ok(hd_config_set(config, cases[i].key, cases[i].value));
        hdt_assert_status(hdi_prompts_read(config, cases[i].vocab, &prompts),
                          i == 2 ? HD_ERROR_IO : HD_ERROR_CONFIG, cases[i].wanted);
        hdi_prompts_free(&prompts);
        hd_config_destroy(config);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sampling");
    TCase *tokens = tcase_create("tokens");
    tcase_add_test(tokens, greedy_takes_the_lowest_of_the_likeliest);
    tcase_add_loop_test(tokens, tokens_come_as_often_as_they_are_likely, 0, 3);
    tcase_add_test(tokens, top_k_agrees_with_counting_how_many_are_likelier);
    tcase_add_test(tokens, draws_are_a_function_of_seed_prompt_and_position);
    tcase_add_test(tokens, logits_that_leave_no_choice_are_told);
    suite_add_tcase(suite, tokens);
    TCase *texts = tcase_create("texts");
    tcase_add_test(texts, terminals_get_only_text);
    tcase_add_test(texts, prompts_come_from_lists_files_and_numbers);
    tcase_add_test(texts, prompts_that_cannot_be_read_are_told);
    suite_add_tcase(suite, texts);
    return hdt_main(suite);
}
