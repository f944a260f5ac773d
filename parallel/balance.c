/* Contiguous partition of layers into stages by dynamic programming over suffixes; with several stages on
 * a rank, by moves of one layer from there. */
#include "parallel/balance.h"

#include <math.h>
#include <stdlib.h>

#include "core/error.h"
#include "core/memory.h"

/* Costs that differ by less than rounding are the same cost. */
static const double rounding = 1e-9;

typedef struct partition {
    const hdi_balance_options *options;
    double *prefix; /* [layers + 1]: cost of the layers before */
    double *best;   /* [stages + 1][layers + 1]: value of stages s.. on layers a.. */
    int *count;     /* [stages][layers + 1]: layers that stage s takes then */
} partition;

static size_t cell(const partition *part, int stage, int layer)
{
    return (size_t)stage * ((size_t)part->options->layers + 1) + (size_t)layer;
}

static int fewest(const hdi_balance_options *options, int stage)
{
    const bool may_be_empty = (stage == 0 && options->first_may_be_empty) ||
                              (stage == options->stages - 1 && options->last_may_be_empty);
    return may_be_empty ? 0 : 1;
}

static double stage_cost(const partition *part, int stage, int layer, int count)
{
    const hdi_balance_options *options = part->options;
    double cost = part->prefix[layer + count] - part->prefix[layer];
    if (stage == 0) cost += options->first_cost;
    if (stage == options->stages - 1) cost += options->last_cost;
    return cost;
}

/* Fill best and count. With `limit` infinite the value is the largest stage cost; else it is the sum
 * of squares over stages that keep to the limit. Among equal values the smallest count wins. */
static void solve(partition *part, double limit)
{
    const int layers = part->options->layers, stages = part->options->stages;
    const bool squares = isfinite(limit);
    for (int a = 0; a <= layers; a++)
        part->best[cell(part, stages, a)] = a == layers ? 0 : INFINITY;

    for (int stage = stages - 1; stage >= 0; stage--)
        for (int a = 0; a <= layers; a++) {
            double *best = &part->best[cell(part, stage, a)];
            *best = INFINITY;
            for (int count = fewest(part->options, stage); a + count <= layers; count++) {
                const double cost = stage_cost(part, stage, a, count);
                if (squares && cost > limit) break;
                const double rest = part->best[cell(part, stage + 1, a + count)];
                const double value = squares ? cost * cost + rest : fmax(cost, rest);
                if (!isfinite(value) ||
                    (isfinite(*best) && value >= *best - rounding * fabs(*best)))
                    continue;
                *best = value;
                part->count[cell(part, stage, a)] = count;
            }
        }
}

/* How good a partition is, what matters most first. */
typedef struct quality {
    double rank, stage, squares; /* the most expensive of each; the sum of squares of stages */
} quality;

static quality judge(const partition *part, const int *counts, double *loads)
{
    const int stages = part->options->stages, ranks = part->options->ranks;
    quality it = {0};
    for (int r = 0; r < ranks; r++)
        loads[r] = 0;
    for (int stage = 0, layer = 0; stage < stages; layer += counts[stage++]) {
        const double cost = stage_cost(part, stage, layer, counts[stage]);
        loads[stage % ranks] += cost;
        it.stage = fmax(it.stage, cost);
        it.squares += cost * cost;
    }
    for (int r = 0; r < ranks; r++)
        it.rank = fmax(it.rank, loads[r]);
    return it;
}

static bool is_less(double a, double b)
{
    return a < b - rounding * fabs(b);
}

static bool is_better(const quality *a, const quality *b)
{
    if (is_less(a->rank, b->rank) || is_less(b->rank, a->rank)) return is_less(a->rank, b->rank);
    if (is_less(a->stage, b->stage) || is_less(b->stage, a->stage))
        return is_less(a->stage, b->stage);
    return is_less(a->squares, b->squares);
}

/* The best move of a layer from the most expensive rank to another stage, made; false when none is better
 * than none. */
static bool move_layer(const partition *part, int *counts, double *loads)
{
    const int stages = part->options->stages, ranks = part->options->ranks;
    quality best = judge(part, counts, loads);
    const double most = best.rank;
    int from = -1, to = -1;
    for (int a = 0; a < stages; a++) {
        if (is_less(loads[a % ranks], most) || counts[a] <= fewest(part->options, a)) continue;
        for (int b = 0; b < stages; b++) {
            if (a == b) continue;
            counts[a]--;
            counts[b]++;
            const quality moved = judge(part, counts, loads + ranks);
            counts[a]++;
            counts[b]--;
            if (!is_better(&moved, &best)) continue;
            best = moved;
            from = a;
            to = b;
        }
    }
    if (from < 0) return false;
    counts[from]--;
    counts[to]++;
    return true;
}

static hd_status even_out_ranks(const partition *part, int *counts)
{
    double *loads = hdi_alloc_array(2 * (size_t)part->options->ranks, sizeof *loads);
    if (!loads) return hdi_error(HD_ERROR_MEMORY, "balance: out of host memory");
    while (move_layer(part, counts, loads))
        continue;
    hdi_free(loads);
    return HD_OK;
}

static hd_status check_sizes(const hdi_balance_options *options)
{
    if (options->stages < 1 || options->layers < 0)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "balance: %d layers on %d stages, want at least 1 stage", options->layers,
                         options->stages);
    int needed = 0;
    for (int stage = 0; stage < options->stages; stage++)
        needed += fewest(options, stage);
    if (options->layers < needed)
        return hdi_error(HD_ERROR_CONFIG,
                         "%d layers cannot fill %d pipeline stages (at least %d layers): "
                         "use fewer pipeline ranks or fewer chunks per rank",
                         options->layers, options->stages, needed);
    return HD_OK;
}

static hd_status check_cost(double cost, const char *what, int index)
{
    if (isfinite(cost) && cost >= 0) return HD_OK;
    return hdi_error(HD_ERROR_ARGUMENT, "balance: cost of %s %d is %g, want finite and at least 0",
                     what, index, cost);
}

static hd_status check_costs(const hdi_balance_options *options)
{
    HD_RETURN_IF_ERROR(check_cost(options->first_cost, "the extra of stage", 0));
    HD_RETURN_IF_ERROR(check_cost(options->last_cost, "the extra of stage", options->stages - 1));
    for (int i = 0; options->costs && i < options->layers; i++)
        HD_RETURN_IF_ERROR(check_cost(options->costs[i], "layer", i));
    return HD_OK;
}

hd_status hdi_balance(const hdi_balance_options *options, int *counts_out)
{
    HD_RETURN_IF_ERROR(check_sizes(options));
    HD_RETURN_IF_ERROR(check_costs(options));
    const size_t columns = (size_t)options->layers + 1, stages = (size_t)options->stages;
    partition part = {
        .options = options,
        .prefix = hdi_alloc_array(columns, sizeof(double)),
        .best = hdi_alloc_array((stages + 1) * columns, sizeof(double)),
        .count = hdi_alloc_array(stages * columns, sizeof(int)),
    };
    hd_status status = HD_OK;
    if (!part.prefix || !part.best || !part.count) {
        status =
            hdi_error(HD_ERROR_MEMORY, "balance: out of host memory for %d layers on %d stages",
                      options->layers, options->stages);
    } else {
        for (int i = 0; i < options->layers; i++)
            part.prefix[i + 1] = part.prefix[i] + (options->costs ? options->costs[i] : 1);
        solve(&part, INFINITY);
        solve(&part, part.best[0] * (1 + rounding));
        for (int stage = 0, layer = 0; stage < options->stages; stage++) {
            counts_out[stage] = part.count[cell(&part, stage, layer)];
            layer += counts_out[stage];
        }
        if (options->ranks && options->ranks < options->stages)
            status = even_out_ranks(&part, counts_out);
    }
    hdi_free(part.prefix);
    hdi_free(part.best);
    hdi_free(part.count);
    return status;
}

hd_status hdi_balance_check(const int *counts, int count, const hdi_balance_options *options)
{
    HD_RETURN_IF_ERROR(check_sizes(options));
    if (count != options->stages)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout.stages: %d entries, want one for each of %d "
                         "pipeline stages",
                         count, options->stages);
    int64_t sum = 0;
    for (int stage = 0; stage < count; stage++) {
        if (counts[stage] < fewest(options, stage))
            return hdi_error(HD_ERROR_CONFIG, "layout.stages: entry %d is %d, want at least %d",
                             stage, counts[stage], fewest(options, stage));
        sum += counts[stage];
    }
    if (sum != options->layers)
        return hdi_error(HD_ERROR_CONFIG,
                         "layout.stages: the entries add up to %lld, the model has %d layers",
                         (long long)sum, options->layers);
    return HD_OK;
}

hd_status hdi_balance_parse(const char *text, const hdi_balance_options *options, int *counts_out)
{
    HD_RETURN_IF_ERROR(check_sizes(options));
    const char *next = text;
    int count = 0;
    for (bool more = true; more; count++) {
        char *end;
        const long value = strtol(next, &end, 10);
        if (end == next || (*end != ',' && *end != '\0') || value < 0 || value > options->layers)
            return hdi_error(HD_ERROR_CONFIG,
                             "layout.stages: entry %d of \"%s\" is not a number from 0 to %d",
                             count, text, options->layers);
        if (count < options->stages) counts_out[count] = (int)value;
        more = *end == ',';
        next = end + 1;
    }
    return hdi_balance_check(counts_out, count, options);
}
