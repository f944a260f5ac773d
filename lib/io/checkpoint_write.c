/* Saving checkpoints: all ranks write, rank 0 commits by one rename. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "io/block_sums.h"
#include "io/checkpoint_folder.h"
#include "io/manifest.h"
#include "io/safetensors.h"
#include "report/format.h"

enum { STATE_BYTES = 64 << 10, DEFAULT_KEEP = 2, FETCH_BYTES = 4 << 20 };

typedef struct known_step {
    int64_t step;
    bool verified;
} known_step;

struct hdi_checkpoint_writer {
    hd_comm *comm; /* borrowed, NULL for one rank */
    int rank, ranks, keep;
    char *folder;                 /* owned */
    hdi_checkpoint_piece *pieces; /* owned; names are not kept */
    int count;
    hdi_safetensors_writer *shard;
    void *fetched;       /* [FETCH_BYTES] of a piece, if any is fetched */
    int64_t total_bytes; /* of all ranks' shards */

    /* What the ranks tell each other after writing: rank r's size and sums are the counts[r] words
     * from offsets[r] on. */
    int64_t *words, *counts, *offsets;

    /* Rank 0 only. */
    hdi_manifest manifest; /* files[r].sums point into words */
    hdi_manifest_text text;
    known_step *steps; /* on disk, newest first */
    int step_count, step_capacity;
    bool layout_checked; /* a save of these pieces was read back */
    char warning[1024];
};

/* One rank's failure becomes everybody's. */
static hd_status agree(const hdi_checkpoint_writer *writer, hd_status status)
{
    return writer->comm ? hd_comm_agree(writer->comm, status) : status;
}

static hd_status share(const hdi_checkpoint_writer *writer, int64_t *inout, const int64_t *counts,
                       const int64_t *offsets)
{
    if (!writer->comm) return HD_OK;
    hd_request request;
    HD_RETURN_IF_ERROR(
        hd_comm_all_gather(writer->comm, inout, counts, offsets, HD_DTYPE_I64, &request));
    return hd_comm_wait(writer->comm, &request);
}

static hd_status declare_piece(hdi_safetensors_writer *shard, const hdi_checkpoint_piece *piece)
{
    int64_t end;
    const int64_t columns = piece->columns;
    const bool fits = columns == 0 || (piece->first >= 0 && piece->width > 0 &&
                                       piece->width <= columns - piece->first &&
                                       piece->global_elements % columns == 0);
    const int64_t held =
        fits && columns ? piece->global_elements / columns * piece->width : piece->global_elements;
    if (!fits || piece->begin < 0 || piece->count < 0 ||
        !hdi_add_i64(piece->begin, piece->count, &end) || end > held)
        return hdi_error(HD_ERROR_ARGUMENT,
                         "checkpoint piece \"%s\": %" PRId64 " elements at %" PRId64
                         " of a tensor that has %" PRId64 ", columns %" PRId64 " + %" PRId64
                         " of %" PRId64,
                         piece->name, piece->count, piece->begin, piece->global_elements,
                         piece->first, piece->width, columns);
    char *name = columns ? hdi_format("%s[%" PRId64 ":%" PRId64 "/%" PRId64 ",%" PRId64 "+%" PRId64
                                      "/%" PRId64 "]",
                                      piece->name, piece->begin, end, piece->global_elements,
                                      piece->first, piece->width, columns)
                         : hdi_format("%s[%" PRId64 ":%" PRId64 "/%" PRId64 "]", piece->name,
                                      piece->begin, end, piece->global_elements);
    if (!name) return hdi_error(HD_ERROR_MEMORY, "no memory for a checkpoint piece");
    hd_status status = hdi_safetensors_writer_tensor(shard, name, piece->dtype, 1, &piece->count);
    hdi_free(name);
    return status;
}

/* What a rank can prepare alone. */
static hd_status prepare_shard(hdi_checkpoint_writer *writer, const char *folder,
                               const hdi_checkpoint_piece *pieces, int count)
{
    const size_t ranks = (size_t)writer->ranks;
    writer->folder = hdi_strdup(folder);
    writer->pieces = hdi_alloc_array((size_t)count, sizeof *pieces);
    writer->counts = hdi_alloc_array(ranks, sizeof *writer->counts);
    writer->offsets = hdi_alloc_array(ranks, sizeof *writer->offsets);
    writer->words = hdi_alloc_array(ranks, sizeof *writer->words);
    if (!writer->folder || !writer->pieces || !writer->counts || !writer->offsets || !writer->words)
        return hdi_error(HD_ERROR_MEMORY, "no memory for a checkpoint writer");
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_create(&writer->shard));
    for (int i = 0; i < count; i++) {
        if (pieces[i].count == 0 && pieces[i].global_elements > 0) continue;
        HD_RETURN_IF_ERROR(declare_piece(writer->shard, &pieces[i]));
        writer->pieces[writer->count] = pieces[i];
        writer->pieces[writer->count++].name = NULL;
        if (pieces[i].data || writer->fetched) continue;
        writer->fetched = hdi_alloc(FETCH_BYTES);
        if (!writer->fetched)
            return hdi_error(HD_ERROR_MEMORY, "no memory for a checkpoint writer");
    }
    HD_RETURN_IF_ERROR(hdi_safetensors_writer_prepare(writer->shard));
    for (int r = 0; r < writer->ranks; r++) {
        writer->counts[r] = 1;
        writer->offsets[r] = r;
    }
    writer->words[writer->rank] = hdi_safetensors_writer_bytes(writer->shard);
    return HD_OK;
}

/* With every rank's size known (words[r]), make room for the sums of all of them. */
static hd_status prepare_words(hdi_checkpoint_writer *writer)
{
    int64_t words = 0;
    for (int r = 0; r < writer->ranks; r++) {
        if (!hdi_add_i64(writer->total_bytes, writer->words[r], &writer->total_bytes))
            return hdi_error(HD_ERROR_ARGUMENT, "the checkpoint's size overflows");
        writer->counts[r] = 1 + hdi_block_count(writer->words[r]);
        writer->offsets[r] = words;
        words += writer->counts[r];
    }
    int64_t *grown = hdi_alloc_array((size_t)words, sizeof *grown);
    if (!grown) return hdi_error(HD_ERROR_MEMORY, "no memory for a checkpoint's sums");
    for (int r = 0; r < writer->ranks; r++)
        grown[writer->offsets[r]] = writer->words[r];
    hdi_free(writer->words);
    writer->words = grown;
    if (writer->rank != 0) return HD_OK;

    writer->manifest.files = hdi_alloc_array((size_t)writer->ranks, sizeof *writer->manifest.files);
    if (!writer->manifest.files) return hdi_error(HD_ERROR_MEMORY, "no memory for a manifest");
    writer->manifest.count = writer->ranks;
    for (int r = 0; r < writer->ranks; r++)
        writer->manifest.files[r] = (hdi_manifest_file){
            grown[writer->offsets[r]], (uint64_t *)(grown + writer->offsets[r] + 1)};
    return hdi_manifest_reserve(&writer->text, hdi_manifest_bound(&writer->manifest) + STATE_BYTES);
}

static hd_status know_step(hdi_checkpoint_writer *writer, int64_t step, bool verified)
{
    int place = 0;
    while (place < writer->step_count && writer->steps[place].step > step)
        place++;
    if (place == writer->step_count || writer->steps[place].step != step) {
        if (!HDI_GROW(writer->steps, writer->step_count, writer->step_capacity))
            return hdi_error(HD_ERROR_MEMORY, "%s: no memory to list it", writer->folder);
        memmove(writer->steps + place + 1, writer->steps + place,
                (size_t)(writer->step_count - place) * sizeof *writer->steps);
        writer->step_count++;
    }
    writer->steps[place] = (known_step){step, verified};
    return HD_OK;
}

/* Make the folder, clear what dead saves left, and learn which checkpoints are sound. */
static hd_status prepare_folder(hdi_checkpoint_writer *writer)
{
    HD_RETURN_IF_ERROR(hdi_directory_create(writer->folder));
    HD_RETURN_IF_ERROR(hdi_step_sweep(writer->folder));
    hdi_step_list list;
    HD_RETURN_IF_ERROR(hdi_step_list_read(writer->folder, &list));
    hd_status status = HD_OK;
    for (int i = 0; i < list.count && status == HD_OK; i++) {
        if (list.steps[i].kind != HDI_STEP_WHOLE) continue;
        char path[HDI_PATH_BYTES];
        status = hdi_step_path(writer->folder, list.steps[i], path);
        if (status != HD_OK) break;
        hdi_checkpoint *checkpoint;
        const bool verified = hdi_checkpoint_open_step(path, NULL, &checkpoint) == HD_OK;
        if (verified) hdi_checkpoint_close(checkpoint);
        status = know_step(writer, list.steps[i].step, verified);
    }
    hdi_free(list.steps);
    return status;
}

hd_status hdi_checkpoint_writer_create(hd_comm *comm, const char *folder, int keep,
                                       const hdi_checkpoint_piece *pieces, int count,
                                       hdi_checkpoint_writer **out)
{
    *out = NULL;
    hdi_checkpoint_writer none = {.comm = comm};
    hdi_checkpoint_writer *writer = hdi_alloc(sizeof *writer);
    hd_status status = HD_OK;
    if (!writer) status = hdi_error(HD_ERROR_MEMORY, "no memory for a checkpoint writer");
    if (writer) {
        writer->comm = comm;
        writer->rank = comm ? hd_comm_rank(comm) : 0;
        writer->ranks = comm ? hd_comm_size(comm) : 1;
        writer->keep = keep > 0 ? keep : DEFAULT_KEEP;
        status = prepare_shard(writer, folder, pieces, count);
    }
    status = agree(writer ? writer : &none, status);
    if (status == HD_OK) status = share(writer, writer->words, writer->counts, writer->offsets);
    if (status == HD_OK) {
        status = prepare_words(writer);
        if (status == HD_OK && writer->rank == 0) status = prepare_folder(writer);
        status = agree(writer, status);
    }
    if (status != HD_OK) {
        hdi_checkpoint_writer_destroy(writer);
        return status;
    }
    *out = writer;
    return HD_OK;
}

void hdi_checkpoint_writer_destroy(hdi_checkpoint_writer *writer)
{
    if (!writer) return;
    hdi_safetensors_writer_destroy(writer->shard);
    hdi_free(writer->folder);
    hdi_free(writer->pieces);
    hdi_free(writer->fetched);
    hdi_free(writer->words);
    hdi_free(writer->counts);
    hdi_free(writer->offsets);
    hdi_free(writer->manifest.files); /* state is borrowed, sums are words */
    hdi_free(writer->text.data);
    hdi_free(writer->steps);
    hdi_free(writer);
}

const char *hdi_checkpoint_writer_warning(const hdi_checkpoint_writer *writer)
{
    return writer->warning;
}

int64_t hdi_checkpoint_writer_bytes(const hdi_checkpoint_writer *writer)
{
    return writer->total_bytes;
}

/* Phase one, rank 0: an empty step-N.tmp on a disk with room. */
static hd_status open_attempt(hdi_checkpoint_writer *writer, int64_t step, const char *state)
{
    writer->warning[0] = '\0';
    if (step < 0 || step >= 1000000000000000000)
        return hdi_error(HD_ERROR_ARGUMENT, "checkpoint of step %" PRId64 ", want 0 to 10^18",
                         step);
    if (!state)
        return hdi_error(HD_ERROR_ARGUMENT, "checkpoint of step %" PRId64 ": no state", step);
    writer->manifest.step = step;
    writer->manifest.state = (char *)state; /* borrowed for the save */

    char attempt[HDI_PATH_BYTES];
    HD_RETURN_IF_ERROR(
        hdi_step_path(writer->folder, (hdi_step_name){step, HDI_STEP_TEMPORARY}, attempt));
    HD_RETURN_IF_ERROR(hdi_remove_tree(attempt));
    int64_t free_bytes, wanted = writer->total_bytes + writer->total_bytes / 10;
    wanted += (int64_t)hdi_manifest_bound(&writer->manifest) + (int64_t)strlen(state);
    HD_RETURN_IF_ERROR(hdi_free_space(writer->folder, &free_bytes));
    if (free_bytes < wanted)
        return hdi_error(
            HD_ERROR_IO, "%s: a checkpoint needs %s, a tenth to spare; the disk has %s free",
            writer->folder, hdi_bytes((size_t)wanted).text, hdi_bytes((size_t)free_bytes).text);
    return hdi_directory_create(attempt);
}

static hd_status write_piece(hdi_checkpoint_writer *writer, const hdi_checkpoint_piece *piece)
{
    const size_t width = hd_dtype_bytes(piece->dtype);
    if (piece->data)
        return hdi_safetensors_writer_write(writer->shard, piece->data,
                                            (size_t)piece->count * width);
    const int64_t most = (int64_t)(FETCH_BYTES / width);
    for (int64_t done = 0; done < piece->count; done += most) {
        const int64_t count = piece->count - done < most ? piece->count - done : most;
        HD_RETURN_IF_ERROR(piece->fetch(piece->user, done, count, writer->fetched));
        HD_RETURN_IF_ERROR(
            hdi_safetensors_writer_write(writer->shard, writer->fetched, (size_t)count * width));
    }
    return HD_OK;
}

/* Phase one, every rank: its shard, durable, with its sums in words. */
static hd_status write_shard(hdi_checkpoint_writer *writer, int64_t step)
{
    char attempt[HDI_PATH_BYTES], name[32], path[HDI_PATH_BYTES + sizeof name];
    HD_RETURN_IF_ERROR(
        hdi_step_path(writer->folder, (hdi_step_name){step, HDI_STEP_TEMPORARY}, attempt));
    hdi_manifest_file_name(writer->rank, name);
    snprintf(path, sizeof path, "%s/%s", attempt, name);
    hd_status status = hdi_safetensors_writer_begin(writer->shard, path);
    for (int i = 0; i < writer->count && status == HD_OK; i++)
        status = write_piece(writer, &writer->pieces[i]);
    if (status == HD_OK) status = hdi_safetensors_writer_end(writer->shard);
    hdi_safetensors_writer_cancel(writer->shard);
    HD_RETURN_IF_ERROR(status);

    int64_t *words = writer->words + writer->offsets[writer->rank], blocks;
    const uint64_t *sums = hdi_safetensors_writer_sums(writer->shard, &blocks);
    words[0] = hdi_safetensors_writer_bytes(writer->shard);
    memcpy(words + 1, sums, (size_t)blocks * sizeof *sums);
    return HD_OK;
}

/* Let step-N.tmp become step-N; one that is there already steps aside until the new one has the
 * name, and stays readable as step-N.old in between. */
static hd_status take_name(hdi_checkpoint_writer *writer, const char *attempt, int64_t step)
{
    char path[HDI_PATH_BYTES], old_path[HDI_PATH_BYTES];
    const hdi_step_name old = {step, HDI_STEP_OLD};
    HD_RETURN_IF_ERROR(hdi_step_path(writer->folder, (hdi_step_name){step, HDI_STEP_WHOLE}, path));
    HD_RETURN_IF_ERROR(hdi_step_path(writer->folder, old, old_path));
    const bool replaces = hdi_file_exists(path);
    if (replaces) {
        HD_RETURN_IF_ERROR(hdi_step_remove(writer->folder, old));
        HD_RETURN_IF_ERROR(hdi_file_rename(path, old_path));
    }
    hd_status status = hdi_file_rename(attempt, path);
    if (status != HD_OK) {
        if (replaces && rename(old_path, path) != 0)
            status = hdi_error_context(status, "%s holds the earlier one", old_path);
        return status;
    }
    HD_RETURN_IF_ERROR(hdi_directory_sync(writer->folder));
    if (replaces && hdi_step_remove(writer->folder, old) != HD_OK)
        snprintf(writer->warning, sizeof writer->warning, "%s", hd_last_error());
    return HD_OK;
}

/* Phase two, rank 0: the manifest, then the rename that makes the checkpoint exist. */
static hd_status commit(hdi_checkpoint_writer *writer, int64_t step)
{
    char attempt[HDI_PATH_BYTES], path[HDI_PATH_BYTES + sizeof "/" HDI_MANIFEST_NAME];
    HD_RETURN_IF_ERROR(
        hdi_step_path(writer->folder, (hdi_step_name){step, HDI_STEP_TEMPORARY}, attempt));
    snprintf(path, sizeof path, "%s/" HDI_MANIFEST_NAME, attempt);
    HD_RETURN_IF_ERROR(hdi_manifest_format(&writer->manifest, &writer->text));
    HD_RETURN_IF_ERROR(hdi_file_write_text(path, writer->text.data)); /* syncs the folder too */
    if (!writer->layout_checked) {
        /* Pieces that leave a hole must be known before an older checkpoint is given up. */
        hdi_checkpoint *checkpoint;
        HD_RETURN_IF_ERROR(hdi_checkpoint_open_step(attempt, NULL, &checkpoint));
        hdi_checkpoint_close(checkpoint);
        writer->layout_checked = true;
    }
    /* Known before it exists: a failure after the rename must not make prune forget it. */
    HD_RETURN_IF_ERROR(know_step(writer, step, false));
    HD_RETURN_IF_ERROR(take_name(writer, attempt, step));
    return know_step(writer, step, true);
}

static void warn(hdi_checkpoint_writer *writer, hd_status status)
{
    if (status != HD_OK) snprintf(writer->warning, sizeof writer->warning, "%s", hd_last_error());
}

/* Remove what is older than the keep-th sound checkpoint; the one just saved always stays. */
static void prune(hdi_checkpoint_writer *writer, int64_t saved)
{
    int sound = 0, left = 0;
    for (int i = 0; i < writer->step_count; i++) {
        const known_step known = writer->steps[i];
        bool stays = sound < writer->keep || known.step == saved;
        if (stays) {
            sound += known.verified;
        } else {
            const hdi_step_name name = {known.step, HDI_STEP_WHOLE};
            hd_status status = hdi_step_remove(writer->folder, name);
            warn(writer, status);
            stays = status != HD_OK; /* to be tried again after the next save */
        }
        if (stays) writer->steps[left++] = known;
    }
    writer->step_count = left;
}

static void point_latest(hdi_checkpoint_writer *writer, int64_t step)
{
    char path[HDI_PATH_BYTES + 8], text[40];
    snprintf(path, sizeof path, "%s/latest", writer->folder);
    snprintf(text, sizeof text, "step-%" PRId64 "\n", step);
    warn(writer, hdi_file_write_text(path, text));
}

/* After all ranks have stopped writing. The error text of the save survives. */
static void drop_attempt(hdi_checkpoint_writer *writer, int64_t step, hd_status status)
{
    char attempt[HDI_PATH_BYTES], text[2048];
    snprintf(text, sizeof text, "%s", hd_last_error());
    if (hdi_step_path(writer->folder, (hdi_step_name){step, HDI_STEP_TEMPORARY}, attempt) == HD_OK)
        hdi_remove_tree(attempt);
    hdi_error(status, "%s", text);
}

hd_status hdi_checkpoint_save(hdi_checkpoint_writer *writer, int64_t step, const char *state)
{
    const bool leads = writer->rank == 0;
    hd_status status = leads ? open_attempt(writer, step, state) : HD_OK;
    status = agree(writer, status);
    if (status == HD_OK) status = agree(writer, write_shard(writer, step));
    if (status == HD_OK) status = share(writer, writer->words, writer->counts, writer->offsets);
    if (status == HD_OK) status = agree(writer, leads ? commit(writer, step) : HD_OK);
    if (leads && status != HD_OK) drop_attempt(writer, step, status);
    if (leads && status == HD_OK) {
        point_latest(writer, step);
        prune(writer, step);
    }
    writer->manifest.state = NULL;
    return status;
}
