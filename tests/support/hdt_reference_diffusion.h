/* The reference backend's functions for diffusion transformers; attention has a header of its own. */
#ifndef HDT_REFERENCE_DIFFUSION_H
#define HDT_REFERENCE_DIFFUSION_H

#include "backend/backend.h"

hd_status hdt_reference_sinusoid(hd_stream *stream, const hdi_sinusoid_args *args);
hd_status hdt_reference_modulate(hd_stream *stream, const hdi_modulate_args *args);
hd_status hdt_reference_add_rows(hd_stream *stream, const hdi_add_rows_args *args);
hd_status hdt_reference_copy_blocks(hd_stream *stream, const hdi_copy_blocks_args *args);
hd_status hdt_reference_copy_grid(hd_stream *stream, const hdi_copy_grid_args *args);
hd_status hdt_reference_patchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdt_reference_unpatchify(hd_stream *stream, const hdi_patch_args *args);
hd_status hdt_reference_squared_error(hd_stream *stream, const hdi_squared_error_args *args);
hd_status hdt_reference_mean_rows(hd_stream *stream, const hdi_mean_rows_args *args);

#endif
