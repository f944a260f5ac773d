// Building blocks: a transformer block of one's own, on pipeline stages (mpirun -np 2 ...).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <heddle/nn.h>
#include <heddle/trainer.h>

constexpr int64_t kVocab = 32, kHidden = 32, kHeads = 4, kTokens = 16, kSequences = 4;

static void check(hd_status status)
{
    if (status == HD_OK) return;
    std::fprintf(stderr, "%s: %s\n", hd_status_string(status), hd_last_error());
    std::exit(1); // mpirun ends the other ranks
}

static hd_tensor linear(hd_program *p, hd_tensor x, const char *name, int64_t outputs)
{
    hd_linear_options options = {};
    options.name = name;
    options.outputs = outputs;
    return hd_linear(p, x, &options);
}

// Attention and MLP side by side on one norm. x is [sequences * tokens, hidden].
static hd_tensor block(hd_program *p, hd_tensor x)
{
    hd_norm_options norm = {"norm", 1e-5, HD_NORM_RMS};
    hd_attention_options attention = {};
    attention.heads = kHeads;
    attention.tokens = kTokens;
    attention.causal = true;
    const hd_tensor h = hd_rms_norm(p, x, &norm);
    const hd_tensor a = hd_attention(p, linear(p, h, "qkv", 3 * kHidden), &attention);
    const hd_tensor m = hd_silu(p, linear(p, h, "up", 2 * kHidden));
    return hd_add(p, hd_add(p, x, linear(p, a, "out", kHidden)), linear(p, m, "down", kHidden));
}

// heddle asks for any run of layers; the first and the last also hold what stands around them.
static hd_tensor build(void *, hd_program *p, const hd_stage *stage, hd_tensor x)
{
    const int64_t rows = stage->sequences * stage->tokens;
    const hd_embedding_options table = {"embedding", kVocab, kHidden, 0.02, false};
    if (stage->first) x = hd_embedding(p, hd_input(p, "tokens", HD_DTYPE_I32, 1, &rows), &table);
    for (int layer = stage->first_layer; layer < stage->first_layer + stage->layers; layer++) {
        hd_scope_begin(p, "block.%d", layer);
        x = block(p, x);
        hd_scope_end(p);
    }
    if (!stage->last) return x;
    const hd_tensor targets = hd_input(p, "targets", HD_DTYPE_I32, 1, &rows);
    return hd_cross_entropy(p, linear(p, x, "head", kVocab), targets);
}

// Sequences that count in steps; a step's size has to be found out from the tokens before.
static hd_status feed(void *, const char *name, int64_t batch, void *out, size_t bytes)
{
    const int ahead = std::strcmp(name, "targets") == 0;
    int32_t *ids = static_cast<int32_t *>(out);
    for (int64_t i = 0; i < static_cast<int64_t>(bytes / sizeof *ids); i++) {
        const int64_t sequence = batch * kSequences + i / kTokens, token = i % kTokens + ahead;
        ids[i] = static_cast<int32_t>((sequence + token * (1 + sequence % 3)) % kVocab);
    }
    return HD_OK;
}

int main()
{
    hd_comm *world;
    hd_mesh *mesh;
    hd_context *context;
    hd_trainer *trainer;
    const hd_context_options device = {"auto", 0, 1, true, false}; // ranks may share a GPU
    hd_trainer_options options = {};
    check(hd_comm_create_world(nullptr, &world));
    const hd_mesh_options axes = {1, 1, 1, hd_comm_size(world), 0, 0}; // the fourth is the pipeline
    check(hd_mesh_create(world, &axes, &mesh));
    check(hd_context_create_ranked(world, &device, &context));
    check(hd_mesh_attach(mesh, context, HD_DEVICE_TRANSPORT_AUTO));
    options.build = build;
    options.backend = hd_context_backend(context);
    options.layers = 4;
    options.mesh = mesh;
    options.sequences = kSequences;
    options.tokens = kTokens;
    options.accumulate = 4; // micro-batches in flight keep all stages busy
    check(hd_trainer_create(&options, &trainer));
    check(hd_trainer_start(trainer, context, 1));
    for (int step = 0; step <= 60; step++) {
        hd_step_result result;
        check(hd_trainer_step(trainer, 3e-3, feed, nullptr, &result));
        if (step % 20 == 0 && hd_comm_rank(world) == 0)
            std::printf("step %d: loss %.3f\n", step, result.loss);
    }
    hd_trainer_destroy(trainer);
    hd_context_destroy(context);
    hd_mesh_destroy(mesh);
    hd_comm_destroy(world);
}
