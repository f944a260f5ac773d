/* The progress line's text. */
#include "report/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/format.h"

enum { FIELDS = 6, FIELD_TEXT = 64, BAR = 20, LEAST_BAR = 8 };

static int digits(int64_t value)
{
    return snprintf(NULL, 0, "%lld", (long long)value);
}

static void make_bar(double share, int width, char *out)
{
    int full = (int)(share * width);
    out[0] = '[';
    for (int i = 0; i < width; i++)
        out[1 + i] = i < full ? '=' : i == full ? '>' : ' ';
    snprintf(out + 1 + width, 8, "] %3d%%", (int)(share * 100));
}

/* Every field begins with two blanks, except the first. */
static void make_fields(const hdi_progress *p, char fields[FIELDS][FIELD_TEXT])
{
    char number[HDI_NUMBER_TEXT];
    memset(fields, 0, FIELDS * FIELD_TEXT);
    if (p->steps > 0)
        snprintf(fields[0], FIELD_TEXT, "step %*lld/%lld", digits(p->steps), (long long)p->step,
                 (long long)p->steps);
    else
        snprintf(fields[0], FIELD_TEXT, "step %lld", (long long)p->step);
    if (!isnan(p->loss)) snprintf(fields[2], FIELD_TEXT, "  loss %.4f", p->loss);
    if (!isnan(p->learning_rate)) snprintf(fields[3], FIELD_TEXT, "  lr %.1e", p->learning_rate);
    if (!isnan(p->tokens_per_second)) {
        hdi_format_rate(p->tokens_per_second, number);
        snprintf(fields[4], FIELD_TEXT, "  %s tok/s", number);
    }
    if (!isnan(p->eta_seconds)) {
        hdi_format_duration(p->eta_seconds, number);
        snprintf(fields[5], FIELD_TEXT, "  eta %s", number);
    }
}

size_t hdi_progress_format(const hdi_progress *progress, int columns, char *out, size_t bytes)
{
    if (bytes == 0) return 0;
    char fields[FIELDS][FIELD_TEXT];
    make_fields(progress, fields);
    size_t room = columns > 0 ? (size_t)columns : 0;
    if (room > bytes - 1) room = bytes - 1;

    size_t total = 0;
    for (int i = 0; i < FIELDS; i++)
        total += strlen(fields[i]);
    static const int least_first[] = {3, 4, 5, 2};
    for (int i = 0; i < 4 && total > room; i++) {
        total -= strlen(fields[least_first[i]]);
        fields[least_first[i]][0] = 0;
    }
    const size_t around = strlen(" [] 100%");
    if (progress->steps > 0 && room >= total + around + LEAST_BAR) {
        size_t width = room - total - around;
        double share = (double)progress->step / (double)progress->steps;
        fields[1][0] = ' ';
        make_bar(fmin(fmax(share, 0), 1), width < BAR ? (int)width : BAR, fields[1] + 1);
    }
    size_t used = 0;
    for (int i = 0; i < FIELDS; i++)
        for (const char *c = fields[i]; *c && used < room; c++)
            out[used++] = *c;
    out[used] = 0;
    return used;
}
