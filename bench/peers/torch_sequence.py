"""A single-stream block of HunyuanVideo's shape in PyTorch, bf16, its sequence split over GPUs (Ulysses): ms a block
of a forward, eager and compiled. Usage: torchrun --nproc-per-node=GPUS torch_sequence.py [WIDTH HEADS TOKENS TEXT]"""
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH, HEADS, TOKENS, TEXT = ([int(a) for a in sys.argv[1:]] + [3072, 24, 42840, 256][len(sys.argv) - 1:])
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
HEAD, INNER, BLOCKS = WIDTH // HEADS, 4 * WIDTH, 2
if TOKENS % RANKS or HEADS % RANKS:
    sys.exit(f"{TOKENS} tokens and {HEADS} heads over {RANKS} GPUs: both must divide")
OWN = TOKENS // RANKS
DEVICE = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def exchange(x, gather):
    """[rows, heads, HEAD] of own rows and all heads to all rows and own heads (gather), or the way back."""
    if RANKS == 1:
        return x
    rows, heads = x.shape[0], x.shape[1]
    if gather:
        sent = x.view(rows, RANKS, heads // RANKS, -1).transpose(0, 1).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        return received.flatten(0, 1)
    sent = x.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.view(RANKS, rows // RANKS, heads, -1).transpose(0, 1).flatten(1, 2)


def rotate(x, cos, sin):
    pairs = torch.stack([-x.float()[..., 1::2], x.float()[..., 0::2]], -1).flatten(-2)
    return (x.float() * cos + pairs * sin).to(x.dtype)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 3 * WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 3 * WIDTH + INNER), nn.Linear(WIDTH + INNER, WIDTH)
        self.query_norm, self.key_norm = nn.RMSNorm(HEAD, eps=1e-6), nn.RMSNorm(HEAD, eps=1e-6)

    def before(self, x, vector, cos, sin):
        shift, scale, gate = self.modulation(F.silu(vector)).chunk(3, -1)
        h = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        qkv, mlp = self.linear1(h).split([3 * WIDTH, INNER], -1)
        q, k, v = qkv.view(-1, 3, HEADS, HEAD).unbind(1)
        q, k = self.query_norm(q), self.key_norm(k)
        q, k = (torch.cat([rotate(t[:OWN], cos, sin), t[OWN:]]) for t in (q, k))
        return torch.cat([q, k, v], -1), F.gelu(mlp, approximate="tanh"), gate

    def after(self, x, attention, mlp, gate):
        return x + gate * self.linear2(torch.cat([attention.flatten(1), mlp], -1))

    def forward(self, x, vector, cos, sin):
        """The image's own rows and all of the text's; one exchange of queries, keys and values, one back."""
        qkv, mlp, gate = self.before(x, vector, cos, sin)
        first = RANK * HEADS // RANKS
        own = slice(first, first + HEADS // RANKS)
        joint = torch.cat([exchange(qkv[:OWN], True), qkv[OWN:, own]])
        q, k, v = (t.transpose(0, 1)[None] for t in joint.chunk(3, -1))
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
        image, text = exchange(out[:TOKENS], False), out[TOKENS:].contiguous()
        if RANKS > 1:
            parts = [torch.empty_like(text) for _ in range(RANKS)]
            dist.all_gather(parts, text)
            text = torch.cat(parts, 1)
        return self.after(x, torch.cat([image, text]), mlp, gate)


def measure(run, runs):
    run()
    torch.cuda.synchronize()
    if RANKS > 1:
        dist.barrier()
    begin = time.time()
    for _ in range(runs):
        run()
    torch.cuda.synchronize()
    if RANKS > 1:
        dist.barrier()
    return (time.time() - begin) / runs / BLOCKS


torch.cuda.set_device(DEVICE)
if RANKS > 1:
    dist.init_process_group("nccl", device_id=DEVICE)
random = lambda *dims: torch.randn(*dims, device=DEVICE, dtype=torch.bfloat16)
rows = TOKENS + TEXT
flops = 2 * rows * 12 * WIDTH**2 + 4 * rows**2 * WIDTH
blocks = [Block().to(DEVICE, torch.bfloat16) for _ in range(BLOCKS)]
x, vector = random(OWN + TEXT, WIDTH), random(1, WIDTH)
cos, sin = (torch.randn(OWN, 1, HEAD, device=DEVICE) for _ in range(2))
for mode in "eager", "compiled":
    if mode == "compiled":
        for block in blocks:
            block.before, block.after = torch.compile(block.before), torch.compile(block.after)

    @torch.no_grad()
    def forward():
        y = x
        for block in blocks:
            y = block(y, vector, cos, sin)

    seconds = measure(forward, 3 if TOKENS > 50000 else 10)
    if RANK == 0:
        print(f"torch single-stream block of {WIDTH} columns, {rows} tokens, {RANKS} ranks, {mode} fwd "
              f"{seconds * 1e3:.2f} ms/block {flops / seconds / 1e12:.0f} TFLOP/s", flush=True)
if RANKS > 1:
    dist.destroy_process_group()
