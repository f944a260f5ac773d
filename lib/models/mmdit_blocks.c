/* Double-stream and single-stream blocks. */
#include "models/mmdit.h"
#include "nn/nn.h"
#include "ops/tensor_axis.h"

static hd_modulation table_of(hd_tensor table, int64_t rows, int64_t shift, int64_t scale,
                              int64_t gate)
{
    return (hd_modulation){
        .table = table, .rows_per_group = rows, .shift = shift, .scale = scale, .gate = gate};
}

hd_tensor hdi_mmdit_sum(hd_program *p, hdi_mmdit_rows *rows)
{
    if (rows->delta.id) rows->x = hd_gated_add(p, rows->x, rows->delta, &rows->gate);
    rows->delta = (hd_tensor){0};
    return rows->x;
}

/* The modulated norm of the rows' value, which rows->x becomes. */
static hd_tensor norm(hd_program *p, hdi_mmdit_rows *rows, const hd_modulation *by)
{
    if (!rows->delta.id) return hd_modulated_norm(p, rows->x, by, 1e-6);
    const hd_tensor x = rows->x, delta = rows->delta;
    rows->delta = (hd_tensor){0};
    return hd_gated_modulated_norm(p, x, delta, &rows->gate, by, 1e-6, &rows->x);
}

/* Between blocks that a backward follows the sum is made at once: where a stage ends it has to be,
 * and the gradients' bits must not depend on where that is. */
static void hand_on(const hdi_mmdit_build *b, hdi_mmdit_rows *rows)
{
    if (b->p->training) hdi_mmdit_sum(b->p, rows);
}

/* The tensor axis shares the columns between an MLP's layers. */
static void split_mlp(const hdi_mmdit_build *b, hdi_mmdit_layer *up, hdi_mmdit_layer *down)
{
    up->options.split = HD_SPLIT_COLUMNS;
    down->options.split = HD_SPLIT_ROWS;
    down->options.split_runs = 1;
    down->options.split_run[0].columns = b->config->inner;
}

hd_tensor hdi_mmdit_mlp(hdi_mmdit_build *b, hd_tensor x, const char *up, const char *down)
{
    hdi_mmdit_layer first, second;
    hdi_mmdit_layer_of(b, up, b->config->hidden, b->config->inner, &first);
    hdi_mmdit_layer_of(b, down, b->config->inner, b->config->hidden, &second);
    split_mlp(b, &first, &second);
    return hd_gelu_mlp(b->p, x, &first.options, &second.options);
}

/* Positions of the image's patches, whose rows start at `first` of the stream's. */
static hd_rope_axes positions(const hdi_mmdit_build *b, int64_t first)
{
    const hdi_mmdit_config *config = b->config;
    hd_rope_axes axes = {.axes = 3,
                         .theta = config->theta,
                         .pairing = config->halves ? HD_ROPE_HALVES : HD_ROPE_INTERLEAVED,
                         .first = first,
                         .count = b->image};
    int64_t stride = b->image;
    for (int i = 0; i < 3; i++) {
        stride /= b->grid[i];
        axes.dims[i] = config->axes[i];
        axes.length[i] = b->grid[i];
        axes.stride[i] = stride;
    }
    return axes;
}

static hd_tensor head_norm(hdi_mmdit_build *b, const char *name)
{
    if (!b->config->qk_norm) return (hd_tensor){0};
    return hdi_mmdit_vector(b, name, HD_INIT_ONES, 1, b->config->head_dim);
}

/* What attention is made of: the streams' queries, keys and values, or, in slices, the rows and maps
 * that make them. */
static bool is_sliced(const hdi_mmdit_build *b)
{
    return b->p->slices > 1;
}

static void add_stream(hdi_mmdit_build *b, hdi_attention_slices *to, int s, hd_tensor h,
                       const char *name)
{
    const int64_t hidden = b->config->hidden;
    hdi_mmdit_layer layer;
    hdi_mmdit_layer_of(b, name, hidden, 3 * hidden, &layer);
    layer.options.split = HD_SPLIT_COLUMNS;
    layer.options.split_runs = 3;
    for (int i = 0; i < 3; i++)
        layer.options.split_run[i] = (hd_split_run){hidden, b->config->heads};
    if (is_sliced(b))
        to->map[s] = hdi_linear_declare(b->p, hidden, &layer.options);
    else
        h = hd_linear(b->p, h, &layer.options);
    to->stream[s].qkv = h;
}

/* What a block's attention gives to its rows, with `add` to it. */
static hd_tensor project(hdi_mmdit_build *b, hd_tensor x, const char *name, hd_tensor add)
{
    const int64_t hidden = b->config->hidden;
    hdi_mmdit_layer layer;
    hdi_mmdit_layer_of(b, name, hidden, hidden, &layer);
    layer.options.split = HD_SPLIT_ROWS;
    layer.options.split_runs = 1;
    layer.options.split_run[0] = (hd_split_run){hidden, b->config->heads};
    layer.options.add = add;
    return hd_linear(b->p, x, &layer.options);
}

/* The streams' rows of the result. */
static void attend(hdi_mmdit_build *b, hdi_attention_slices *from, hd_tensor *out)
{
    const hdi_mmdit_config *config = b->config;
    hdi_mmdit_travel travel;
    if (hdi_mmdit_is_split(b) && is_sliced(b)) {
        hdi_mmdit_slices_attend(b, from, &travel, out);
        hdi_mmdit_slices_end(b, &travel, out);
        return;
    }
    if (hdi_mmdit_is_split(b)) {
        hdi_mmdit_sequence_begin(b, from->streams, from->stream, &travel);
        hdi_mmdit_sequence_attend(b, &travel);
        hdi_mmdit_sequence_end(b, &travel, out);
        return;
    }
    from->sequences = b->stage->sequences;
    from->heads = hdi_tensor_deal(b->p, config->heads, config->heads).count;
    from->head_dim = config->head_dim;
    from->epsilon = 1e-6;
    from->counts = b->joint_counts;
    from->groups = b->p->slices;
    if (is_sliced(b)) {
        hdi_attention_sliced(b->p, from, out);
        return;
    }
    const hd_tensor joint = hd_joint_qkv(b->p, from->sequences, from->heads, from->head_dim,
                                         from->epsilon, from->streams, from->stream);
    const hd_attention_options options = {.heads = from->heads,
                                          .head_dim = config->head_dim,
                                          .tokens = b->image + b->text,
                                          .counts = b->joint_counts};
    const int64_t tokens[] = {from->stream[0].tokens, from->stream[1].tokens};
    out[0] = hd_attention(b->p, joint, &options);
    if (from->streams > 1) hd_split_rows(b->p, out[0], from->sequences, 2, tokens, out);
}

/* A single block's attention and MLP, of the same rows h. Its second layer has its bias with the
 * attention's columns. Over ranks the MLP's halves are computed while heads change places; in slices, where
 * it takes h's place, all of it while the last heads come back. */
static hd_tensor attention_and_mlp(hdi_mmdit_build *b, hdi_attention_slices *from, hd_tensor h,
                                   hd_tensor *attended)
{
    hdi_mmdit_layer up, down;
    hdi_mmdit_travel travel;
    hd_tensor mlp;
    hdi_mmdit_layer_of(b, "linear1_mlp", b->config->hidden, b->config->inner, &up);
    hdi_mmdit_layer_of(b, "linear2_mlp", b->config->inner, b->config->hidden, &down);
    down.options.bias = false;
    split_mlp(b, &up, &down);
    if (!hdi_mmdit_is_split(b)) {
        attend(b, from, attended);
        return hd_gelu_mlp(b->p, h, &up.options, &down.options);
    }
    if (is_sliced(b)) {
        hdi_mmdit_slices_attend(b, from, &travel, attended);
        mlp = hd_gelu_mlp(b->p, h, &up.options, &down.options);
        hdi_mmdit_slices_end(b, &travel, attended);
        return mlp;
    }
    hdi_mmdit_sequence_begin(b, 1, from->stream, &travel);
    if (b->p->mlp_slices > 1) {
        hdi_mmdit_sequence_attend(b, &travel);
        mlp = hd_gelu_mlp(b->p, h, &up.options, &down.options);
        hdi_mmdit_sequence_end(b, &travel, attended);
        return mlp;
    }
    const hdi_gelu_half half = hdi_gelu_up(b->p, h, &up.options);
    hdi_mmdit_sequence_attend(b, &travel);
    mlp = hdi_gelu_down(b->p, &half, &down.options);
    hdi_mmdit_sequence_end(b, &travel, attended);
    return mlp;
}

/* A stream's layers in a double block. */
static const struct stream_names {
    const char *modulation, *qkv, *query_norm, *key_norm, *projection, *up, *down;
} image_names = {"img_mod.linear",
                 "img_attn_qkv",
                 "img_attn_q_norm.weight",
                 "img_attn_k_norm.weight",
                 "img_attn_proj",
                 "img_mlp.fc1",
                 "img_mlp.fc2"},
  text_names = {"txt_mod.linear",
                "txt_attn_qkv",
                "txt_attn_q_norm.weight",
                "txt_attn_k_norm.weight",
                "txt_attn_proj",
                "txt_mlp.fc1",
                "txt_mlp.fc2"};

void hdi_mmdit_double_block(hdi_mmdit_build *b, int block, hdi_mmdit_rows streams[2])
{
    const int64_t hidden = b->config->hidden;
    const int image = hdi_mmdit_image(b->config);
    hd_tensor tables[2], attended[2];
    hdi_attention_slices from = {.streams = 2,
                                 .stream = {{.tokens = b->text}, {.tokens = b->text}}};
    from.stream[image] = (hd_qkv_stream){.tokens = b->image, .rope = positions(b, 0)};
    int64_t tokens[] = {b->text, b->text};
    tokens[image] = b->own;
    hdi_mmdit_begin(b, HDI_MMDIT_DOUBLE, block);
    for (int s = 0; s < 2; s++) {
        const struct stream_names *names = s == image ? &image_names : &text_names;
        tables[s] = hdi_mmdit_modulation(b, names->modulation, 6);
        if (b->stage->purpose == HD_PURPOSE_CONDITION) continue;
        const hd_modulation by = table_of(tables[s], tokens[s], 0, hidden, -1);
        add_stream(b, &from, s, hdi_mmdit_enter(b, s == image, norm(b->p, &streams[s], &by)),
                   names->qkv);
        from.stream[s].query_norm = head_norm(b, names->query_norm);
        from.stream[s].key_norm = head_norm(b, names->key_norm);
    }
    if (b->stage->purpose != HD_PURPOSE_CONDITION) {
        attend(b, &from, attended);
        for (int s = 0; s < 2; s++) {
            const struct stream_names *names = s == image ? &image_names : &text_names;
            const hd_modulation by = table_of(tables[s], tokens[s], 3 * hidden, 4 * hidden, -1);
            streams[s].delta = hdi_mmdit_leave(
                b, s == image, project(b, attended[s], names->projection, (hd_tensor){0}));
            streams[s].gate = table_of(tables[s], tokens[s], -1, -1, 2 * hidden);
            const hd_tensor h = hdi_mmdit_enter(b, s == image, norm(b->p, &streams[s], &by));
            streams[s].delta =
                hdi_mmdit_leave(b, s == image, hdi_mmdit_mlp(b, h, names->up, names->down));
            streams[s].gate = table_of(tables[s], tokens[s], -1, -1, 5 * hidden);
            hand_on(b, &streams[s]);
        }
    }
    hdi_mmdit_end(b);
}

void hdi_mmdit_single_block(hdi_mmdit_build *b, int block, hdi_mmdit_rows *joined)
{
    const int64_t hidden = b->config->hidden, tokens = b->own + b->text;
    hdi_mmdit_begin(b, HDI_MMDIT_SINGLE, block);
    const hd_tensor table = hdi_mmdit_modulation(b, "modulation.linear", 3);
    if (b->stage->purpose != HD_PURPOSE_CONDITION) {
        const hd_modulation by = table_of(table, tokens, 0, hidden, -1);
        const hd_tensor h = hdi_mmdit_enter_joined(b, norm(b->p, joined, &by));
        hdi_attention_slices from = {.streams = 1};
        add_stream(b, &from, 0, h, "linear1_qkv");
        from.stream[0].query_norm = head_norm(b, "q_norm.weight");
        from.stream[0].key_norm = head_norm(b, "k_norm.weight");
        from.stream[0].tokens = b->shared + b->text;
        from.stream[0].rope = positions(b, b->config->text_first ? b->text : 0);
        hd_tensor attended;
        const hd_tensor mlp = attention_and_mlp(b, &from, h, &attended);
        joined->delta = hdi_mmdit_leave_joined(b, project(b, attended, "linear2_attn", mlp));
        joined->gate = table_of(table, tokens, -1, -1, 2 * hidden);
        hand_on(b, joined);
    }
    hdi_mmdit_end(b);
}
