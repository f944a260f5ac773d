/* What devices do in a second, and what that makes of an op's cost. */
#include "core/error.h"
#include "program/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* What an H100 does was measured, as ADR 0034 says. An H200 differs by its memory, as far as its steps show. The
 * others take the same shares of the makers' figures: of dense products with fp32 sums 0.8, for attention 0.6
 * and for its gradient 0.55, with narrow heads 0.56 and 0.47; of the memory's bytes 0.75, of the links' 0.85. */
static const struct {
    const char *name;
    double compute, attention, attention_gradient, narrow, narrow_gradient, memory, link, peer;
} known[] = {
    {"h100", 786e12, 590e12, 540e12, 555e12, 461e12, 2.5e12, 55e9, 320e9},
    {"h200", 786e12, 590e12, 540e12, 555e12, 461e12, 2.9e12, 55e9, 320e9},
    {"a100", 250e12, 187e12, 172e12, 175e12, 147e12, 1.5e12, 27e9, 255e9},
    {"l40s", 290e12, 217e12, 199e12, 203e12, 170e12, 0.65e12, 27e9, 27e9},
    {"a6000", 124e12, 93e12, 85e12, 87e12, 73e12, 0.58e12, 27e9, 27e9},
    {"rtx 5090", 168e12, 126e12, 115e12, 117e12, 98e12, 1.34e12, 54e9, 54e9},
    {"rtx 4090", 132e12, 99e12, 91e12, 92e12, 78e12, 0.76e12, 27e9, 27e9},
    {"rtx 3090", 57e12, 43e12, 39e12, 40e12, 33e12, 0.7e12, 27e9, 27e9},
};

/* By what causal attention of 1024 tokens with heads of 64 falls short of that of 32,768. */
#define QUERY_KEYS 340
#define QUERY_GRADIENT_KEYS 530

/* Whether `name` has `model` in it, whatever the case, '-' and '_' being blanks. */
static bool holds(const char *name, const char *model)
{
    for (; *name; name++) {
        size_t i = 0;
        for (; model[i]; i++) {
            const char seen = name[i] == '-' || name[i] == '_' ? ' ' : name[i];
            if (tolower((unsigned char)seen) != model[i]) break;
        }
        if (!model[i]) return true;
    }
    return false;
}

hd_status hd_rates_find(const char *device, hd_rates *out)
{
    char names[160] = "";
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (holds(device, known[i].name)) {
            *out = (hd_rates){.compute = known[i].compute,
                              .attention = known[i].attention,
                              .attention_gradient = known[i].attention_gradient,
                              .narrow_attention = known[i].narrow,
                              .narrow_attention_gradient = known[i].narrow_gradient,
                              .memory = known[i].memory,
                              .link = known[i].link,
                              .peer = known[i].peer,
                              .query = QUERY_KEYS,
                              .query_gradient = QUERY_GRADIENT_KEYS,
                              .launch = HDI_LAUNCH_SECONDS};
            return HD_OK;
        }
        const size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", known[i].name);
    }
    *out = (hd_rates){0};
    return hdi_error(HD_ERROR_ARGUMENT, "rates: no figures for '%s', known are: %s", device, names);
}

hd_rates hdi_rates_filled(const hd_rates *given)
{
    hd_rates rates = *given;
    if (rates.compute <= 0) rates.compute = 100e12;
    if (rates.attention <= 0) rates.attention = rates.compute;
    if (rates.attention_gradient <= 0) rates.attention_gradient = rates.compute;
    if (rates.link <= 0) rates.link = 25e9;
    return rates;
}

/* FLOPs in a second of heads of so many columns; zero columns: wide ones. */
static double attention_rate(double columns, double wide, double narrow)
{
    const double least = 64, most = 128;
    if (narrow <= 0 || columns <= 0 || columns >= most) return wide;
    if (columns < least) return narrow * columns / least;
    return narrow + (wide - narrow) * (columns - least) / (most - least);
}

static double attention_seconds(const hd_cost *cost, bool gradient, const hd_rates *rates)
{
    const double wide = gradient ? rates->attention_gradient : rates->attention;
    const double narrow = gradient ? rates->narrow_attention_gradient : rates->narrow_attention;
    const double more = gradient ? rates->query_gradient : rates->query;
    const double keys = cost->keys > 0 ? 1 + more / cost->keys : 1;
    return cost->flops * keys / attention_rate(cost->head_dim, wide, narrow);
}

/* FLOPs, and then the results, whose writing nothing is left to hide under. */
static double product_seconds(const hd_op *op, const hd_cost *cost, const hd_rates *rates)
{
    double written = 0;
    for (int i = 0; i < op->outputs; i++)
        if (op->out_info[i]) written += (double)op->out_info[i]->bytes;
    return cost->flops / rates->compute + (rates->memory > 0 ? written / rates->memory : 0);
}

double hdi_op_seconds(const hdi_op *op, const hd_rates *rates)
{
    hd_cost cost;
    hdi_op_cost(op, &cost);
    const uint32_t flags = op->op.kind->flags;
    if (flags & HD_OP_COMMUNICATES) return rates->peer > 0 ? cost.bytes / rates->peer : 0;
    if (flags & (HD_OP_LOADS | HD_OP_STORES)) return cost.bytes / rates->link;
    if (cost.flops <= 0 && cost.bytes <= 0) return 0;
    const bool gradient = op->phase == HDI_PHASE_BACKWARD && !op->recomputed;
    const double computing = flags & HD_OP_ATTENDS ? attention_seconds(&cost, gradient, rates)
                                                   : product_seconds(&op->op, &cost, rates);
    const double moving = rates->memory > 0 ? cost.bytes / rates->memory : 0;
    return (computing > moving ? computing : moving) + rates->launch;
}

double hdi_program_seconds(const hd_program *program, hdi_phase phase, const hd_rates *rates)
{
    double seconds = 0;
    for (int i = 0; i < program->op_count; i++)
        if (program->ops[i]->phase == phase && !hdi_op_is_posted(&program->ops[i]->op))
            seconds += hdi_op_seconds(program->ops[i], rates);
    return seconds;
}
