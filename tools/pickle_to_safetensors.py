#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2.1", "safetensors>=0.4", "numpy"]
# ///
"""Turn a PyTorch checkpoint (.pt, .pth, .ckpt) into safetensors that heddle reads.

    pickle_to_safetensors.py mp_rank_00_model_states.pt hunyuan-video/ --key module
    pickle_to_safetensors.py model.pth open-sora/

The folder gets one model.safetensors or shards with model.safetensors.index.json. Tensors keep
their names, dtypes and values. The checkpoint is mapped, not read, so host memory holds one shard
at a time; it is loaded with weights_only=True, which runs no code out of the file.
"""
import argparse
import json
import os
import sys

import torch
from safetensors.torch import save_file

# What training frameworks wrap a state dict in.
WRAPPERS = ("module", "state_dict", "model", "ema")


def load(path):
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        print(f"{path}: an old file that cannot be mapped; reading all of it", file=sys.stderr)
        return torch.load(path, map_location="cpu", weights_only=True)


def unwrap(found, key):
    """The state dict: what `key` names (dots go deeper), or what a known wrapper holds."""
    if key:
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                keys = ", ".join(map(str, list(found)[:8])) if isinstance(found, dict) else "none"
                sys.exit(f"no key '{part}' in the checkpoint; its keys are {keys}")
            found = found[part]
        return found
    while isinstance(found, dict) and not any(torch.is_tensor(v) for v in found.values()):
        inner = [name for name in WRAPPERS if isinstance(found.get(name), dict)]
        if not inner:
            break
        if len(inner) > 1:
            sys.exit(f"the checkpoint holds {', '.join(inner)}: choose one with --key")
        found = found[inner[0]]
    return found


def cut(tensors, limit):
    """Names in runs of at most `limit` bytes, in the file's order."""
    runs, size = [[]], 0
    for name, tensor in tensors.items():
        more = tensor.numel() * tensor.element_size()
        if runs[-1] and size + more > limit:
            runs.append([])
            size = 0
        runs[-1].append(name)
        size += more
    return runs


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--key", help="where in the checkpoint the tensors are: HunyuanVideo's is "
                        "'module'; left out, known wrappers are looked into")
    parser.add_argument("--prefix", default="", help="take this off the front of names")
    parser.add_argument("--shard", type=float, default=4.0, metavar="GIB",
                        help="largest shard, and host memory needed (4)")
    args = parser.parse_args()
    state = unwrap(load(args.checkpoint), args.key)
    if not isinstance(state, dict):
        sys.exit(f"{args.checkpoint}: found a {type(state).__name__}, want a dict of tensors")
    tensors = {name.removeprefix(args.prefix): value for name, value in state.items()
               if torch.is_tensor(value)}
    left = [name for name, value in state.items() if not torch.is_tensor(value)]
    if not tensors:
        sys.exit(f"{args.checkpoint}: no tensors among {', '.join(map(str, left[:8])) or 'nothing'}"
                 "; choose the place with --key")
    if left:
        print(f"left out, no tensors: {', '.join(map(str, left))}", file=sys.stderr)

    os.makedirs(args.folder, exist_ok=True)
    runs = cut(tensors, int(args.shard * 2**30))
    index = {"metadata": {"total_size": 0}, "weight_map": {}}
    for number, names in enumerate(runs, 1):
        base = "model.safetensors"
        if len(runs) > 1:
            base = f"model-{number:05}-of-{len(runs):05}.safetensors"
        # Copies: tensors that share memory in the checkpoint are written out each.
        shard = {name: tensors[name].detach().clone().contiguous() for name in names}
        path = os.path.join(args.folder, base)
        save_file(shard, path + ".tmp", metadata={"format": "pt"})
        os.replace(path + ".tmp", path)
        for name in names:
            index["weight_map"][name] = base
            index["metadata"]["total_size"] += shard[name].numel() * shard[name].element_size()
        print(f"{path}: {len(names)} tensors")
    if len(runs) > 1:
        with open(os.path.join(args.folder, "model.safetensors.index.json"), "w") as out:
            json.dump(index, out, indent=1)
            out.write("\n")
    elements = sum(tensor.numel() for tensor in tensors.values())
    print(f"{len(tensors)} tensors, {elements:,} elements")


if __name__ == "__main__":
    main()
