/* What `heddle data` makes up: texts of classes, scaled pictures, and shapes that are what their
 * class says. */
#include <math.h>
#include <stdio.h>

#include "core/file.h"
#include "core/memory.h"
#include "jobs/class_text.h"
#include "jobs/data/data.h"
#include "tests/support/hdt.h"
#include "tests/support/hdt_program.h"

enum { COLUMNS = 64 };

static double product(const float *a, const float *b)
{
    double sum = 0;
    for (int i = 0; i < COLUMNS; i++)
        sum += (double)a[i] * b[i];
    return sum / COLUMNS;
}

START_TEST(words_are_vectors_of_their_own_that_classes_share)
{
    ck_assert_int_eq(hdi_class_words("red-circle, up_down 2"), 5);
    ck_assert_int_eq(hdi_class_words(""), 0);
    ck_assert_int_eq(hdi_class_words("caf\xc3\xa9"), 1);
    float a[3 * COLUMNS], b[3 * COLUMNS], sum[COLUMNS], other[COLUMNS];
    hdi_class_embed("red circle", 3, COLUMNS, a, sum);
    hdi_class_embed("blue circle", 3, COLUMNS, b, other);
    ck_assert_mem_eq(a + COLUMNS, b + COLUMNS, 2 * COLUMNS * sizeof *a); /* circle, and no word */
    /* The product of two random unit vectors has a deviation of 1 / sqrt(COLUMNS). */
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            ck_assert_double_le(fabs(product(a + i * COLUMNS, a + j * COLUMNS) - (i == j)),
                                i == j ? 1e-5 : 4 / sqrt(COLUMNS));
    ck_assert_double_le(fabs(product(a, b)), 4 / sqrt(COLUMNS));
    for (int c = 0; c < COLUMNS; c++)
        ck_assert_double_le(
            fabs((double)sum[c] - ((double)a[c] + a[COLUMNS + c] + a[2 * COLUMNS + c]) / sqrt(3)),
            1e-5);
}
END_TEST

START_TEST(pictures_are_scaled_by_area_and_cut_in_the_middle)
{
    /* 2 x 6 to 1 x 1: the middle 2 x 2 is left, whose mean it is. */
    float wide[3][12], one[3], same[3][12], large[3][4 * 12];
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 12; i++)
            wide[c][i] = (float)(i + 100 * c);
    hdi_data_resize(&wide[0][0], 2, 6, 1, 1, one);
    for (int c = 0; c < 3; c++)
        ck_assert_float_eq_tol(one[c], (float)(2 + 3 + 8 + 9) / 4 + 100 * (float)c, 1e-4F);
    hdi_data_resize(&wide[0][0], 2, 6, 2, 6, &same[0][0]);
    ck_assert_mem_eq(same, wide, sizeof wide);
    hdi_data_resize(&wide[0][0], 2, 6, 4, 12, &large[0][0]);
    for (int i = 0; i < 48; i++)
        ck_assert_float_eq_tol(large[0][i], wide[0][i / 24 * 6 + i % 12 / 2], 1e-4F);
}
END_TEST

/* The middle of what differs from the ground, which is the first pixel. */
static void find_shape(const float *clip, int64_t frames, int64_t side, int64_t frame, double *x,
                       double *y, double *area)
{
    double sum = 0;
    *x = *y = 0;
    for (int64_t p = 0; p < side * side; p++) {
        double weight = 0;
        for (int64_t c = 0; c < 3; c++)
            weight += fabs((double)clip[(c * frames + frame) * side * side + p] -
                           (double)clip[c * frames * side * side]);
        sum += weight;
        *x += weight * (double)(p % side);
        *y += weight * (double)(p / side);
    }
    *x /= sum;
    *y /= sum;
    *area = sum;
}

START_TEST(a_shape_moves_as_its_class_says_and_stays_whole)
{
    enum { SIDE = 32, FRAMES = 8 };
    const char *folder = hdt_temp_path("shapes");
    hdt_assert_ok(hd_data_run(&(hd_data_options){.kind = "shapes",
                                                 .output = folder,
                                                 .samples = 54,
                                                 .width = SIDE,
                                                 .height = SIDE,
                                                 .frames = FRAMES,
                                                 .seed = 3},
                              hdt_drop, NULL));
    hdi_video_dataset *set;
    hdt_assert_ok(hdi_video_dataset_open(hdt_temp_path("shapes"), &set));
    float clip[3 * FRAMES * SIDE * SIDE];
    for (int i = 0; i < 54; i++) {
        const hdi_video_sample *sample = hdi_video_dataset_sample(set, i);
        const char *name = hdi_video_dataset_text(set, sample->text)->name;
        hdt_assert_ok(hdi_video_dataset_read_latents(set, i, 0, FRAMES, clip));
        double low[2] = {SIDE, SIDE}, high[2] = {0}, least = 1e9, most = 0;
        for (int t = 0; t < FRAMES; t++) {
            double at[2], area;
            find_shape(clip, FRAMES, SIDE, t, &at[0], &at[1], &area);
            for (int a = 0; a < 2; a++) {
                low[a] = fmin(low[a], at[a]);
                high[a] = fmax(high[a], at[a]);
            }
            least = fmin(least, area);
            most = fmax(most, area);
        }
        const bool sideways = strstr(name, "updown") == NULL;
        const bool upwards = strstr(name, "sideways") == NULL;
        /* Eight points of a circle span at least cos(pi / 8) of its diameter. */
        ck_assert_msg(sideways ? high[0] - low[0] > 0.4 * SIDE : high[0] - low[0] < 0.3, "%s: %g",
                      name, high[0] - low[0]);
        ck_assert_msg(upwards ? high[1] - low[1] > 0.4 * SIDE : high[1] - low[1] < 0.3, "%s: %g",
                      name, high[1] - low[1]);
        ck_assert_msg(most - least < 0.06 * most, "%s: areas from %g to %g", name, least, most);
    }
    hdi_video_dataset_close(set);
}
END_TEST

START_TEST(wrong_options_are_refused_and_leave_nothing)
{
    const char *folder = hdt_temp_path("refused");
    const struct {
        hd_data_options options;
        const char *fragment;
    } wrong[] = {{{.kind = "songs", .output = folder}, "kind is \"songs\""},
                 {{.output = folder}, "kind is \"\""},
                 {{.kind = "shapes"}, "want a folder"},
                 {{.kind = "shapes", .output = folder, .frames = -1}, "-1 frames"},
                 {{.kind = "shapes", .output = folder, .width = 1 << 20, .height = 8}, "at most"},
                 {{.kind = "shapes", .output = folder, .fps = NAN}, "nan frames a second"},
                 {{.kind = "images", .output = folder}, "no input"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        hdt_assert_status(hd_data_run(&wrong[i].options, hdt_drop, NULL), HD_ERROR_ARGUMENT,
                          wrong[i].fragment);
        ck_assert(!hdi_file_exists(folder));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("data job");
    TCase *data = tcase_create("data");
    tcase_add_test(data, words_are_vectors_of_their_own_that_classes_share);
    tcase_add_test(data, pictures_are_scaled_by_area_and_cut_in_the_middle);
    tcase_add_test(data, a_shape_moves_as_its_class_says_and_stays_whole);
    tcase_add_test(data, wrong_options_are_refused_and_leave_nothing);
    suite_add_tcase(suite, data);
    return hdt_main(suite);
}
