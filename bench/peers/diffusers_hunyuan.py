"""Seconds a denoising step of HunyuanVideo 13B with random weights through diffusers, bf16: resident, and
with its blocks offloaded one by one where a row names a limit of device memory.
Usage: diffusers_hunyuan.py FRAMES:HEIGHT:WIDTH[:GIB]..., rows without a limit first"""
import sys
import time

import diffusers
import torch

STEPS = 2


def build():
    with torch.device("meta"):
        model = diffusers.HunyuanVideoTransformer3DModel()
    model = model.to(torch.bfloat16).to_empty(device="cuda")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    model.set_attention_backend("_native_cudnn")
    return model.eval()


def inputs(frames, height, width):
    random = lambda *dims: torch.randn(*dims, device="cuda", dtype=torch.bfloat16)
    return dict(hidden_states=random(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8),
                timestep=torch.tensor([500], device="cuda"),
                encoder_hidden_states=random(1, 256, 4096),
                encoder_attention_mask=torch.ones(1, 256, device="cuda", dtype=torch.bool),
                pooled_projections=random(1, 768),
                guidance=torch.tensor([6000.0], device="cuda", dtype=torch.bfloat16))


@torch.no_grad()
def measure(model, sizes):
    values = inputs(*sizes)
    model(**values)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    begin = time.time()
    for _ in range(STEPS):
        model(**values)
    torch.cuda.synchronize()
    return (time.time() - begin) / STEPS


model, is_offloaded = build(), False
total = torch.cuda.get_device_properties(0).total_memory
for row in sys.argv[1:]:
    *sizes, limit = [int(part) for part in (row + ":0").split(":")][:4]
    if limit and not is_offloaded:
        model.to("cpu")
        torch.cuda.empty_cache()
        model.enable_group_offload(onload_device=torch.device("cuda"), offload_device=torch.device("cpu"),
                                   offload_type="block_level", num_blocks_per_group=1, use_stream=True)
        is_offloaded = True
    if limit:
        torch.cuda.set_per_process_memory_fraction(limit * 2**30 / total)
    try:
        seconds = measure(model, sizes)
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"diffusers {diffusers.__version__} {row} {seconds:.3f} s/step, peak {peak:.1f} GiB", flush=True)
    except Exception as error:
        print(f"diffusers {diffusers.__version__} {row} failed: {type(error).__name__} {str(error)[:120]}", flush=True)
        torch.cuda.empty_cache()
