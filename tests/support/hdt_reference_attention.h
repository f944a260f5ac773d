/* The functions of hdt_reference that have to do with attention. */
#ifndef HDT_REFERENCE_ATTENTION_H
#define HDT_REFERENCE_ATTENTION_H

#include "backend/backend.h"

hd_status hdt_reference_attention(hd_stream *stream, const hdi_attention_args *args);
hd_status hdt_reference_joint_qkv(hd_stream *stream, const hdi_joint_qkv_args *args);
hd_status hdt_reference_cross_attention(hd_stream *stream, const hdi_cross_attention_args *args);

#endif
