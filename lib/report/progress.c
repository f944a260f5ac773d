/* The progress line's text, and how fast a job goes. */
#include "report/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "report/format.h"

enum { FIELDS = 6, FIELD_TEXT = 80, BAR = 20, LEAST_BAR = 4 };

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

/* What is done in a second, or, of what takes longer, the seconds of one. */
static void make_rate(const hdi_progress *p, char *out)
{
    const char *unit = p->unit ? p->unit : "step";
    char number[HDI_NUMBER_TEXT];
    const bool is_slow = !p->rate_unit && p->rate < 1;
    hdi_format_rate(is_slow ? 1 / p->rate : p->rate, number);
    if (is_slow)
        snprintf(out, FIELD_TEXT, "  %s s/%.24s", number, unit);
    else
        snprintf(out, FIELD_TEXT, "  %s %.24s%s/s", number, p->rate_unit ? p->rate_unit : unit,
                 p->rate_unit ? "" : "s");
}

/* Every field begins with two blanks, except the first. */
static void make_fields(const hdi_progress *p, char fields[FIELDS][FIELD_TEXT])
{
    const char *unit = p->unit ? p->unit : "step";
    char number[HDI_NUMBER_TEXT];
    memset(fields, 0, FIELDS * FIELD_TEXT);
    if (p->steps > 0)
        snprintf(fields[0], FIELD_TEXT, "%.24s %*lld/%lld", unit, p->plain ? 0 : digits(p->steps),
                 (long long)p->step, (long long)p->steps);
    else
        snprintf(fields[0], FIELD_TEXT, "%.24s %lld", unit, (long long)p->step);
    if (!isnan(p->loss)) snprintf(fields[2], FIELD_TEXT, "  loss %.4f", p->loss);
    if (!isnan(p->learning_rate)) snprintf(fields[3], FIELD_TEXT, "  lr %.1e", p->learning_rate);
    if (p->rate > 0) make_rate(p, fields[4]);
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
    if (progress->steps > 0 && !progress->plain && room >= total + around + LEAST_BAR) {
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

void hdi_pace_note(hdi_pace *pace, double seconds, int64_t steps, double work)
{
    enum { SECONDS = 5 };
    const double least = 0.9, shorter = 1 - seconds / SECONDS;
    const double kept = pace->notes == 1 ? 0 : shorter > least ? shorter : least;
    pace->seconds = kept * pace->seconds + seconds;
    pace->steps = kept * pace->steps + (double)steps;
    pace->work = kept * pace->work + work;
    pace->notes++;
}

double hdi_pace_rate(const hdi_pace *pace)
{
    return pace->seconds > 0 ? pace->work / pace->seconds : NAN;
}

double hdi_pace_left(const hdi_pace *pace, int64_t steps)
{
    return pace->steps > 0 ? (double)steps * pace->seconds / pace->steps : NAN;
}
