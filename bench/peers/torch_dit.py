"""Double-stream blocks of HunyuanVideo's shape in PyTorch, bf16, one GPU: ms a block of a forward and of
forward and backward, eager and compiled. Usage: torch_dit.py [WIDTH HEADS TOKENS TEXT [BLOCKS]]"""
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH, HEADS, TOKENS, TEXT, BLOCKS = ([int(a) for a in sys.argv[1:]] + [3072, 24, 25344, 256, 2][len(sys.argv) - 1:])
HEAD = WIDTH // HEADS
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.query_norm, self.key_norm = nn.RMSNorm(HEAD, eps=1e-6), nn.RMSNorm(HEAD, eps=1e-6)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def heads(self, x, shift, scale):
        x = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        q, k, v = self.qkv(x).view(1, -1, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        return self.query_norm(q), self.key_norm(k), v

    def finish(self, x, attention, modulation):
        x = x + modulation[2] * self.out(attention)
        h = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + modulation[4]) + modulation[3]
        return x + modulation[5] * self.down(F.gelu(self.up(h), approximate="tanh"))


def rotate(x, cos, sin):
    pairs = torch.stack([-x.float()[..., 1::2], x.float()[..., 0::2]], -1).flatten(-2)
    return (x.float() * cos + pairs * sin).to(x.dtype)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = Stream(), Stream()

    def forward(self, image, text, vector, cos, sin):
        a = self.image.modulation(F.silu(vector)).chunk(6, -1)
        b = self.text.modulation(F.silu(vector)).chunk(6, -1)
        q, k, v = self.image.heads(image, a[0], a[1])
        parts = zip((rotate(q, cos, sin), rotate(k, cos, sin), v), self.text.heads(text, b[0], b[1]))
        with sdpa_kernel(ATTENTION, set_priority=True):
            out = F.scaled_dot_product_attention(*(torch.cat(pair, 2) for pair in parts))
        out = out.transpose(1, 2).reshape(1, -1, WIDTH)
        return self.image.finish(image, out[:, :TOKENS], a), self.text.finish(text, out[:, TOKENS:], b)


def measure(run, runs):
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begin = time.time()
    for _ in range(runs):
        run()
    torch.cuda.synchronize()
    return (time.time() - begin) / runs / BLOCKS


def report(name, seconds, flops):
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"torch block of {WIDTH} columns, {TOKENS + TEXT} tokens, {name} {seconds * 1e3:.2f} ms/block "
          f"{flops / seconds / 1e12:.0f} TFLOP/s, peak {peak:.1f} GiB", flush=True)


random = lambda *dims: torch.randn(*dims, device="cuda", dtype=torch.bfloat16)
blocks = [Block().cuda().to(torch.bfloat16) for _ in range(BLOCKS)]
image, text, vector = random(1, TOKENS, WIDTH), random(1, TEXT, WIDTH), random(1, 1, WIDTH)
cos, sin = torch.randn(TOKENS, HEAD, device="cuda"), torch.randn(TOKENS, HEAD, device="cuda")
rows = TOKENS + TEXT
flops = 2 * rows * 12 * WIDTH**2 + 4 * rows**2 * WIDTH
runs = 3 if TOKENS > 50000 else 10
for mode, chain in ("eager", blocks), ("compiled", [torch.compile(block) for block in blocks]):
    def forward(x, y):
        for block in chain:
            x, y = block(x, y, vector, cos, sin)
        return x, y

    def train():
        x, y = forward(image.detach().requires_grad_(), text)
        (x.float().mean() + y.float().mean()).backward()

    with torch.no_grad():
        report(f"{mode} fwd", measure(lambda: forward(image, text), runs), flops)
    if TOKENS <= 50000:
        report(f"{mode} fwd+bwd", measure(train, runs), 3 * flops)
