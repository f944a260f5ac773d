/* What devices do in a second, and what that makes of an op's cost. */
#include "core/error.h"
#include "program/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* The first two rows are what whole denoising steps reached with matrices of bf16 and heads of 128
 * columns (docs/benchmarks.md); heads of 64 and narrow models are slower. The others take the same
 * shares of the makers' figures: 0.75 of dense products with fp32 sums, 0.6 of them for attention and
 * 0.55 for its gradient, 0.85 of the memory's bytes and of the links'. */
static const struct {
    const char *name;
    hd_rates rates;
} known[] = {
    {"h100", {740e12, 590e12, 540e12, 2.8e12, 55e9, 320e9}},
    {"h200", {740e12, 590e12, 540e12, 4.0e12, 55e9, 320e9}},
    {"a100", {234e12, 187e12, 172e12, 1.7e12, 27e9, 255e9}},
    {"l40s", {271e12, 217e12, 199e12, 0.73e12, 27e9, 27e9}},
    {"a6000", {116e12, 93e12, 85e12, 0.65e12, 27e9, 27e9}},
    {"rtx 5090", {157e12, 126e12, 115e12, 1.5e12, 54e9, 54e9}},
    {"rtx 4090", {124e12, 99e12, 91e12, 0.86e12, 27e9, 27e9}},
    {"rtx 3090", {53e12, 43e12, 39e12, 0.8e12, 27e9, 27e9}},
};

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
            *out = known[i].rates;
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

double hdi_op_seconds(const hdi_op *op, const hd_rates *rates)
{
    hd_cost cost;
    hdi_op_cost(op, &cost);
    if (op->op.kind->flags & HD_OP_COMMUNICATES)
        return rates->peer > 0 ? cost.bytes / rates->peer : 0;
    if (op->op.kind->flags & (HD_OP_LOADS | HD_OP_STORES)) return cost.bytes / rates->link;
    double rate = rates->compute;
    if (op->op.kind->flags & HD_OP_ATTENDS)
        rate = op->phase == HDI_PHASE_BACKWARD && !op->recomputed ? rates->attention_gradient
                                                                  : rates->attention;
    const double computing = cost.flops / rate;
    const double moving = rates->memory > 0 ? cost.bytes / rates->memory : 0;
    return computing > moving ? computing : moving;
}

double hdi_program_seconds(const hd_program *program, hdi_phase phase, const hd_rates *rates)
{
    double seconds = 0;
    for (int i = 0; i < program->op_count; i++)
        if (program->ops[i]->phase == phase && !hdi_op_is_posted(&program->ops[i]->op))
            seconds += hdi_op_seconds(program->ops[i], rates);
    return seconds;
}
