/* Videos over the places of the sequence axis' ring, cut in one of two ways that take turns: by frames, each
 * place having some whole frames, or by positions, each having some positions of all frames. What
 * attends within frames then needs nothing of other places, nor does what attends along time (dynamic
 * sequence parallelism, arXiv 2403.10266). Tokens of a place are in the order frame, position; the ranks
 * that share it have one run each, as hdi_sequence_to_heads takes them. */
#ifndef HDI_OPS_REGROUP_H
#define HDI_OPS_REGROUP_H

#include "ops/sequence.h"

typedef struct hdi_regroup_video {
    int64_t sequences, frames, positions; /* positions: of a frame */
    int64_t together; /* positions in a run that places do not part; the last one may be shorter */
} hdi_regroup_video;

/* What a place has of each sequence, and of those tokens, which run is a rank's: begin up to end. */
typedef struct hdi_regroup_part {
    int64_t first_frame, frames, first_position, positions;
    int64_t begin, end;
} hdi_regroup_part;
hdi_regroup_part hdi_regroup_part_of(const hd_program *program, const hdi_regroup_video *video,
                                     bool by_position);

/* A model says that its sequences are cut so, by frames first: to be said first of all. There are as many
 * places as the mesh's ring, or fewer where they, or the ranks that share one, would not all have some
 * of such a video; false, and an error of the program, where those are more than heads. */
bool hdi_regroup_begin(hd_program *program, const hdi_regroup_video *video, int64_t heads);

/* This rank's rows x [sequences * its run, columns] of the one cut to those of the other. Collective when
 * run. */
hd_tensor hdi_regroup(hd_program *program, hd_tensor x, const hdi_regroup_video *video,
                      bool by_position);

/* Of entries I32 [sequences * frames] one for each of this rank's rows. */
hd_tensor hdi_regroup_entries(hd_program *program, hd_tensor entries,
                              const hdi_regroup_video *video, bool by_position);

extern const hd_op_kind hdi_op_regroup_exchange;

#endif
