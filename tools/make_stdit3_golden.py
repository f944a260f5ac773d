#!/usr/bin/env python3
"""Make tests/golden/stdit3_v13_tiny.safetensors: Open-Sora 1.3's STDiT3 in plain PyTorch.

Written from the published model (hpcaitech/Open-Sora, branch opensora/v1.3), with windows padded
and masked as it has them, in float64. Where windows, condition and spatial rotations are left out,
it is Open-Sora 1.2's model; `--check FILE` compares that with the stored run of 1.2's own code.

usage: make_stdit3_golden.py OUT | make_stdit3_golden.py --check stdit3_tiny.safetensors
"""
import json
import math
import struct
import sys

import torch
import torch.nn.functional as F

CONFIG = {
    "input_sq_size": 512, "in_channels": 4, "patch_size": [1, 2, 2], "hidden_size": 48, "depth": 2,
    "num_heads": 2, "mlp_ratio": 2.0, "pred_sigma": True, "caption_channels": 24,
    "model_max_length": 10, "qk_norm": True, "kernel_size": [3, 2, -1], "use_spatial_rope": True,
}
SEED = 53
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64,
         "BOOL": torch.bool}


def read(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header, data = json.loads(file.read(size)), file.read()
    facts, tensors = header.pop("__metadata__"), {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        tensors[name] = torch.frombuffer(bytearray(data[first:last]), dtype=TYPES[entry["dtype"]])
        tensors[name] = tensors[name].reshape(entry["shape"])
    return facts, tensors


def write(path, facts, tensors):
    names, header, data = {t: n for n, t in TYPES.items()}, {"__metadata__": facts}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def linear(w, name, x):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def mlp(w, name, x, first="fc1", second="fc2"):
    return linear(w, f"{name}.{second}", F.gelu(linear(w, f"{name}.{first}", x), approximate="tanh"))


def embed_number(w, name, number):
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=number.dtype) / 128)
    angles = number[:, None] * frequencies
    x = torch.cat([angles.cos(), angles.sin()], -1)
    return linear(w, f"{name}.mlp.2", F.silu(linear(w, f"{name}.mlp.0", x)))


def patches(w, name, video, patch):
    """Rows of a convolution whose stride is its size; sizes that it does not divide get zeros."""
    pads = [n for d in (2, 1, 0) for n in (0, -video.shape[2 + d] % patch[d])]
    x = F.conv3d(F.pad(video, pads), w[name + ".proj.weight"], w[name + ".proj.bias"], stride=patch)
    return x.flatten(2).transpose(1, 2)


def positions(height, width, hidden, scale, like):
    base = round(math.sqrt(height * width))
    frequencies = 10000.0 ** (-torch.arange(0, hidden // 2, 2, dtype=like) / (hidden // 2))

    def axis(count):
        angles = (torch.arange(count, dtype=like) / scale * base / count)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    across = axis(width)[None].expand(height, -1, -1)
    down = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat([across, down], -1).reshape(height * width, hidden)


def turn(x, frequencies, at):
    """x [..., columns]: pairs of columns side by side turn by `at` (broadcast) times frequency."""
    angles = at[..., None] * frequencies
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(),
                        b * angles.cos() + a * angles.sin()], -1).flatten(-2)


def attend(w, name, x, heads, at, keep):
    """x [sequences, tokens, hidden]; at: positions of tokens on each axis; keep [sequences, tokens]."""
    sequences, tokens, hidden = x.shape
    q, k, v = linear(w, name + ".qkv", x).view(sequences, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)

    def prepare(x, norm):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w[f"{name}.{norm}.weight"]
        if not at:
            return x
        parts = x.chunk(len(at), -1)
        return torch.cat([turn(p, w["rope.freqs"], a) for p, a in zip(parts, at)], -1)

    scores = prepare(q, "q_norm") @ prepare(k, "k_norm").transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~keep[:, None, None, :], -math.inf)
    x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(sequences, tokens, hidden)
    return linear(w, name + ".proj", x)


def window_attention(w, name, x, grid, heads, kernel, scale, mistakes):
    """Windows of kernel places over all frames, padded on the far sides; padding is masked."""
    batch, hidden = x.shape[0], x.shape[-1]
    frames, height, width = grid
    tall, wide = kernel[0], kernel[1]
    shift = (tall // 2, wide // 2) if "shift" in mistakes else (0, 0)
    x = x.view(batch, frames, height, width, hidden)
    keep = torch.ones(batch, frames, height, width, 1, dtype=x.dtype)
    below, right = -(height + shift[0]) % tall, -(width + shift[1]) % wide
    x, keep = (F.pad(t, (0, 0, shift[1], right, shift[0], below)) for t in (x, keep))
    down, across = x.shape[2] // tall, x.shape[3] // wide

    def cut(x):
        x = x.view(batch, frames, down, tall, across, wide, -1).permute(0, 2, 4, 1, 3, 5, 6)
        return x.reshape(batch * down * across, frames * tall * wide, -1)

    t, y, u = (a.flatten().to(x.dtype) for a in torch.meshgrid(
        torch.arange(frames), torch.arange(tall), torch.arange(wide), indexing="ij"))
    at = [t, y / scale, u / scale]
    if "axes" in mistakes:
        at = [at[1], at[2], at[0]]
    keep = cut(keep)[..., 0] > 0
    if "padding" in mistakes:
        keep = torch.ones_like(keep)
    x = attend(w, name, cut(x), heads, at, keep)
    x = x.view(batch, down, across, frames, tall, wide, hidden).permute(0, 3, 1, 4, 2, 5, 6)
    x = x.reshape(batch, frames, down * tall, across * wide, hidden)
    x = x[:, :, shift[0]:shift[0] + height, shift[1]:shift[1] + width]
    return x.reshape(batch, frames * height * width, hidden)


def self_attention(w, name, x, temporal, grid, config, scale, mistakes):
    batch, tokens, hidden = x.shape
    frames, height, width = grid
    places, heads = height * width, config["num_heads"]
    kernel = config.get("kernel_size")
    if temporal and kernel:
        return window_attention(w, name, x, grid, heads, kernel, scale, mistakes)
    if temporal:
        x = x.view(batch, frames, places, hidden).transpose(1, 2).reshape(-1, frames, hidden)
        at = [torch.arange(frames, dtype=x.dtype)]
    else:
        x, at = x.view(-1, places, hidden), []
        if config.get("use_spatial_rope"):
            place = torch.arange(places)
            at = [torch.zeros(places, dtype=x.dtype), (place // width).to(x.dtype) / scale,
                  (place % width).to(x.dtype) / scale]
    x = attend(w, name, x, heads, at, torch.ones(x.shape[:2], dtype=torch.bool))
    if temporal:
        x = x.view(batch, places, frames, hidden).transpose(1, 2)
    return x.reshape(batch, tokens, hidden)


def cross_attention(w, name, x, texts, heads):
    """texts: a list of [valid tokens, hidden], one for each sequence."""
    out = []
    for rows, text in zip(x, texts):
        q = linear(w, name + ".q_linear", rows).view(len(rows), heads, -1).transpose(0, 1)
        k, v = linear(w, name + ".kv_linear", text).view(len(text), 2, heads, -1).permute(1, 2, 0, 3)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        out.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(rows), -1))
    return linear(w, name + ".proj", torch.stack(out))


def norm(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def forward(w, config, x, inputs, size, text_masked=True, timed=None, given=None, mids=None,
            mistakes=()):
    """timed [batch, frames]: 0 where a frame has time 0. given: a list of frames, None: no condition."""
    patch, hidden, heads = config["patch_size"], config["hidden_size"], config["num_heads"]
    frames, height, width = (-(-n // p) for n, p in zip(x.shape[2:], patch))
    grid, places, batch = (frames, height, width), height * width, x.shape[0]
    scale = math.sqrt(size[0] * size[1]) / config["input_sq_size"]

    fps = embed_number(w, "fps_embedder", inputs["fps"][:batch])
    times = [inputs["timestep"][:batch]]
    if timed is not None:
        times.append(torch.zeros_like(times[0]))
    times = [embed_number(w, "t_embedder", t) + fps for t in times]
    blocks = [linear(w, "t_block.1", F.silu(t)).view(batch, 6, hidden) for t in times]

    def text(y):
        y = mlp(w, "y_embedder.y_proj", y)
        return [r[m] for r, m in zip(y, inputs["mask"] > 0)] if text_masked else list(y)

    texts = text(inputs["y"][:batch, 0])
    nulls = text(w["y_embedder.y_embedding"].expand(batch, -1, -1)) if given is not None else None
    rows = patches(w, "x_embedder", x, patch)
    if given is not None:
        mask = torch.zeros_like(x)
        mask[:, :, given] = 1
        rows = rows + patches(w, "x_embedder_cond", inputs["cond"] * mask, patch)
        rows = rows + patches(w, "x_embedder_cond_mask", mask, patch)
    rows = (rows.view(batch, frames, places, hidden) +
            positions(height, width, hidden, scale, x.dtype)).view(batch, -1, hidden)

    def by_frame(vectors, index):
        """Row `index` of each sequence's vectors, of time 0 where the frame has it."""
        table = vectors[0][:, None, index].expand(-1, frames, -1)
        if timed is not None:
            table = torch.where(timed[..., None], table, vectors[1][:, None, index])
        return table.repeat_interleave(places, 1)

    for i in range(2 * config["depth"]):
        name = f"{'temporal' if i % 2 else 'spatial'}_blocks.{i // 2}"
        of = [w[name + ".scale_shift_table"] + b for b in blocks]
        vectors = [by_frame(of, k) for k in range(6)]
        h = norm(rows, vectors[0], vectors[1])
        rows = rows + vectors[2] * self_attention(w, name + ".attn", h, i % 2 == 1, grid, config,
                                                  scale, mistakes)
        read = cross_attention(w, name + ".cross_attn", rows, texts, heads)
        if given and "text" not in mistakes:
            is_given = torch.zeros(frames, dtype=torch.bool)
            is_given[given] = True
            other = cross_attention(w, name + ".cross_attn", rows, nulls, heads)
            read = torch.where(is_given.repeat_interleave(places)[:, None], other, read)
        rows = rows + read
        h = norm(rows, vectors[3], vectors[4])
        rows = rows + vectors[5] * mlp(w, name + ".mlp", h)
        if mids is not None and i < 2:
            mids.append(rows)

    def last(t):
        return [(w["final_layer.scale_shift_table"] + t[:, None])[:, k:k + 1] for k in range(2)]

    rows = norm(rows, *last(times[0]))
    if timed is not None:
        rows = torch.where(timed.repeat_interleave(places, 1)[..., None], rows,
                           norm(rows, *last(times[1])))
    rows = linear(w, "final_layer.linear", rows)
    out = rows.view(batch, frames, height, width, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    out = out.reshape(batch, out.shape[1], frames * patch[0], height * patch[1], width * patch[2])
    return out[:, :, :x.shape[2], :x.shape[3], :x.shape[4]]


def make_weights(config, draw):
    hidden, inner = config["hidden_size"], int(config["hidden_size"] * config["mlp_ratio"])
    head, patch, channels = hidden // config["num_heads"], config["patch_size"], config["in_channels"]
    w = {}

    def put(name, *dims, std=None, bias=True):
        w[name + ".weight"] = draw(*dims) * (std or math.prod(dims[1:]) ** -0.5)
        if bias:
            w[name + ".bias"] = draw(dims[0]) * 0.1

    for name in ("x_embedder", "x_embedder_cond", "x_embedder_cond_mask"):
        put(name + ".proj", hidden, channels, *patch)
    for name in ("t_embedder", "fps_embedder"):
        put(name + ".mlp.0", hidden, 256)
        put(name + ".mlp.2", hidden, hidden)
    put("t_block.1", 6 * hidden, hidden)
    put("y_embedder.y_proj.fc1", hidden, config["caption_channels"])
    put("y_embedder.y_proj.fc2", hidden, hidden)
    w["y_embedder.y_embedding"] = draw(config["model_max_length"], config["caption_channels"])
    for i in range(2 * config["depth"]):
        name = f"{'temporal' if i % 2 else 'spatial'}_blocks.{i // 2}"
        w[name + ".scale_shift_table"] = draw(6, hidden) * 0.3
        put(name + ".attn.qkv", 3 * hidden, hidden)
        put(name + ".attn.proj", hidden, hidden)
        for which in ("q_norm", "k_norm"):
            w[f"{name}.attn.{which}.weight"] = 1 + 0.5 * draw(head)
        put(name + ".cross_attn.q_linear", hidden, hidden)
        put(name + ".cross_attn.kv_linear", 2 * hidden, hidden)
        put(name + ".cross_attn.proj", hidden, hidden)
        put(name + ".mlp.fc1", inner, hidden)
        put(name + ".mlp.fc2", hidden, inner)
    put("final_layer.linear", math.prod(patch) * 2 * channels, hidden)
    w["final_layer.scale_shift_table"] = draw(2, hidden) * 0.3
    w = {name: tensor.bfloat16() for name, tensor in w.items()}
    axis = head // 3
    w["rope.freqs"] = 10000.0 ** (-torch.arange(0, axis, 2, dtype=torch.float32) / axis)
    return w


GRADIENTS = [
    "x_embedder.proj.weight", "x_embedder_cond.proj.weight", "x_embedder_cond_mask.proj.weight",
    "x_embedder_cond_mask.proj.bias", "t_block.1.bias", "y_embedder.y_proj.fc1.weight",
    "spatial_blocks.0.attn.q_norm.weight", "spatial_blocks.0.attn.qkv.bias",
    "spatial_blocks.0.cross_attn.kv_linear.weight", "spatial_blocks.1.scale_shift_table",
    "temporal_blocks.0.attn.qkv.weight", "temporal_blocks.0.attn.qkv.bias",
    "temporal_blocks.1.attn.k_norm.weight", "temporal_blocks.1.attn.proj.bias",
    "temporal_blocks.1.mlp.fc2.bias", "final_layer.linear.weight",
]


def make(path):
    torch.manual_seed(SEED)
    config, length, columns = CONFIG, CONFIG["model_max_length"], CONFIG["caption_channels"]
    weights = make_weights(config, torch.randn)
    w = {name: tensor.double() for name, tensor in weights.items()}
    valid = torch.tensor([7, 4])
    inputs = {
        "x": torch.randn(2, 4, 3, 10, 10), "cond": torch.randn(2, 4, 3, 10, 10),
        "x_odd": torch.randn(1, 4, 2, 7, 9), "x_small": torch.randn(1, 4, 2, 4, 2),
        "target": torch.randn(2, 4, 3, 10, 10), "timestep": torch.tensor([731.25, 204.5]),
        "fps": torch.tensor([24.0, 12.0]), "y": torch.randn(2, 1, length, columns),
        "mask": (torch.arange(length) < valid[:, None]).long(),
        "height": torch.tensor([320.0, 320.0]), "width": torch.tensor([448.0, 448.0]),
    }
    given = [0, 2]
    wide = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    runs = {"x": ("x", given), "x_none": ("x", []), "x_t2v": ("x", None),
            "x_odd": ("x_odd", None), "x_small": ("x_small", None)}
    for name in GRADIENTS:
        w[name].requires_grad_(True)
    size, facts = (320.0, 448.0), {}

    def run(name, mistakes=(), mids=None):
        video, frames = runs[name]
        return forward(w, config, wide[video], wide, size, given=frames, mids=mids,
                       mistakes=mistakes)

    tensors = {f"weights.{n}": t for n, t in weights.items()}
    tensors.update({f"in.{n}": t for n, t in inputs.items()})
    mids, outs = [], {}
    for name in runs:
        outs[name] = run(name, mids=mids if name == "x" else None)
        tensors[f"out64.{name}"] = outs[name].detach()
    loss = (outs["x"][:, :4] - wide["target"]).pow(2).mean()
    loss.backward()
    tensors["out64.loss"] = loss.detach()[None]
    tensors.update({f"mid.{n}.0": m.detach().float() for n, m in zip(("spatial", "temporal"), mids)})
    tensors.update({f"grad.{n}": w[n].grad.float() for n in GRADIENTS})
    with torch.no_grad():
        for mistake in ("shift", "padding", "axes", "text"):
            facts["mistake." + mistake] = f"{(run('x', [mistake]) - outs['x']).abs().max():.3g}"
    facts.update(config=json.dumps(config), seed=str(SEED), dtype="float64",
                 source="hpcaitech/Open-Sora, branch opensora/v1.3, restated in PyTorch "
                        + torch.__version__,
                 note="in.x, in.cond: frames 0 and 2 are given in out64.x, none in x_none, no "
                      "condition in x_t2v, x_odd and x_small; text mask in all")
    write(path, facts, tensors)
    print(json.dumps(facts, indent=1))


def check(path):
    facts, tensors = read(path)
    config = json.loads(facts["config"])
    part = {p: {n[len(p) + 1:]: t.double() if t.is_floating_point() else t
                for n, t in tensors.items() if n.startswith(p + ".")} for p in ("weights", "in", "out64")}
    for name, masked, timed in (("x", True, True), ("x_no_xmask", True, False),
                                ("x_no_textmask", False, False), ("x_odd", True, False)):
        odd = "_odd" if name == "x_odd" else ""
        size = [float(part["in"][side + odd][0]) for side in ("height", "width")]
        out = forward(part["weights"], config, part["in"]["x" + odd], part["in"], size, masked,
                      part["in"]["x_mask"] if timed else None)
        print(name, float((out - part["out64"][name]).abs().max()))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        check(sys.argv[2])
    elif len(sys.argv) == 2:
        make(sys.argv[1])
    else:
        sys.exit(__doc__)
