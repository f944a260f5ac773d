/* Which tokens of a sequence each rank has. */
#include "ops/sequence_parts.h"

int64_t hdi_sequence_first(int64_t tokens, int ranks, int rank)
{
    return rank * tokens / ranks;
}

/* The tokens of a place of the ring: one run, or the two of a zigzag. */
static void runs_of_place(const hdi_sequence_cut *cut, int64_t tokens, int place,
                          hdi_token_run out[HDI_SEQUENCE_RUNS])
{
    const int pieces = cut->zigzag ? 2 * cut->ring : cut->ring;
    const int piece[] = {place, pieces - 1 - place};
    const int64_t together = cut->together > 1 ? cut->together : 1, runs = tokens / together;
    for (int i = 0; i < HDI_SEQUENCE_RUNS; i++) {
        out[i].first = hdi_sequence_first(runs, pieces, piece[i]) * together;
        out[i].count = hdi_sequence_first(runs, pieces, piece[i] + 1) * together - out[i].first;
    }
    if (!cut->zigzag) out[1] = (hdi_token_run){0};
}

void hdi_sequence_runs(const hdi_sequence_cut *cut, int64_t tokens, int rank,
                       hdi_token_run out[HDI_SEQUENCE_RUNS])
{
    const int sharing = cut->ranks / cut->ring;
    runs_of_place(cut, tokens, rank / sharing, out);
    const int64_t together = out[0].count + out[1].count;
    int64_t begin = hdi_sequence_first(together, sharing, rank % sharing);
    int64_t end = hdi_sequence_first(together, sharing, rank % sharing + 1);
    for (int i = 0; i < HDI_SEQUENCE_RUNS; i++) {
        const int64_t count = out[i].count;
        const int64_t from = begin < 0 ? 0 : begin < count ? begin : count;
        const int64_t to = end < 0 ? 0 : end < count ? end : count;
        out[i] = (hdi_token_run){out[i].first + from, to - from};
        begin -= count;
        end -= count;
    }
}

int64_t hdi_sequence_tokens_of(const hdi_sequence_cut *cut, int64_t tokens, int rank)
{
    hdi_token_run runs[HDI_SEQUENCE_RUNS];
    hdi_sequence_runs(cut, tokens, rank, runs);
    return runs[0].count + runs[1].count;
}

hdi_sequence_cut hdi_sequence_cut_of(const hd_program *program)
{
    const int ring = hdi_sequence_ring(program);
    return (hdi_sequence_cut){.ranks = hd_mesh_size(program->mesh, HD_AXIS_SEQUENCE),
                              .ring = ring,
                              .zigzag = ring > 1 && program->causal_sequences,
                              .together = program->sequence_together};
}

hdi_sequence_cut hdi_sequence_places(const hd_program *program)
{
    hdi_sequence_cut cut = hdi_sequence_cut_of(program);
    cut.ranks = cut.ring;
    return cut;
}

int hdi_sequence_sharing(const hd_program *program)
{
    return hdi_sequence_ranks(program) / hdi_sequence_ring(program);
}

int hdi_sequence_place(const hd_program *program)
{
    return hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE) / hdi_sequence_sharing(program);
}

int64_t hdi_sequence_own_tokens(const hd_program *program, int64_t tokens)
{
    const hdi_sequence_cut cut = hdi_sequence_cut_of(program);
    return hdi_sequence_tokens_of(&cut, tokens, hd_mesh_index(program->mesh, HD_AXIS_SEQUENCE));
}

int64_t hdi_sequence_place_tokens(const hd_program *program, int64_t tokens)
{
    const hdi_sequence_cut cut = hdi_sequence_places(program);
    return hdi_sequence_tokens_of(&cut, tokens, hdi_sequence_place(program));
}
