/* The weights of a model: one safetensors file, or a Hugging Face folder with one or many. */
#ifndef HDI_IO_WEIGHTS_INDEX_H
#define HDI_IO_WEIGHTS_INDEX_H

#include "io/safetensors.h"

typedef struct hdi_weights hdi_weights;

/* Open `path`: a .safetensors file, an index (.json), or a folder with model.safetensors or
 * model.safetensors.index.json. An index is hostile until checked: its shards are plain names of
 * files in its own folder, each tensor lies in exactly the shard that the index says, and the sizes
 * add up to metadata.total_size where that is given. Local. */
hd_status hdi_weights_open(const char *path, hdi_weights **out);
void hdi_weights_close(hdi_weights *weights); /* takes NULL */

const char *hdi_weights_path(const hdi_weights *weights); /* as given to open */

/* Files, and tensors of all files by name. Borrowed. */
int hdi_weights_file_count(const hdi_weights *weights);
hdi_safetensors *hdi_weights_file(const hdi_weights *weights, int index);
int hdi_weights_count(const hdi_weights *weights);
const hdi_safetensors_tensor *hdi_weights_get(const hdi_weights *weights, int index,
                                              hdi_safetensors **out_file);

/* The tensor `name` and its file; NULL if there is none. Borrowed. `out_file` may be NULL. */
const hdi_safetensors_tensor *hdi_weights_find(const hdi_weights *weights, const char *name,
                                               hdi_safetensors **out_file);

#endif
