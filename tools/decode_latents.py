#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2.1", "diffusers>=0.32", "safetensors>=0.4", "accelerate", "numpy",
#                 "pillow", "imageio", "imageio-ffmpeg"]
# ///
"""Turn latents that `heddle sample` wrote into a video one can watch, by diffusers' VAE.

    decode_latents.py samples/cat-seed-1.safetensors cat.mp4
    decode_latents.py samples/cat-seed-1.safetensors frames/ --device cpu

For HunyuanVideo and Open-Sora 2.0, which share a VAE. The file holds "latents" [channels, frames,
height, width]; they are divided by the VAE's scaling factor and decoded in tiles. What is written
depends on the output's name: .mp4, .gif, or a folder of PNG pictures.
"""
import argparse
import os

import torch
from safetensors import safe_open


def write(frames, path, fps):
    import imageio.v3 as iio

    if path.endswith(".gif"):
        iio.imwrite(path, frames, duration=1000 / fps, loop=0)
    elif path.endswith(".mp4"):
        iio.imwrite(path, frames, fps=fps)
    else:
        os.makedirs(path, exist_ok=True)
        for number, frame in enumerate(frames):
            iio.imwrite(os.path.join(path, f"{number:04}.png"), frame)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents")
    parser.add_argument("output")
    parser.add_argument("--vae", default="hunyuanvideo-community/HunyuanVideo",
                        help="folder or hub name with a VAE in `vae`")
    parser.add_argument("--subfolder", default="vae", help="'' if the folder is the VAE itself")
    parser.add_argument("--fps", type=float, default=24)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="float16; float32 on a CPU")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype or ("float32" if args.device == "cpu" else "float16"))

    from diffusers import AutoencoderKLHunyuanVideo

    with safe_open(args.latents, framework="pt") as file:
        latents = file.get_tensor("latents")
    vae = AutoencoderKLHunyuanVideo.from_pretrained(
        args.vae, subfolder=args.subfolder or None, torch_dtype=dtype).to(args.device).eval()
    if latents.shape[0] != vae.config.latent_channels:
        parser.error(f"{args.latents}: latents of {latents.shape[0]} channels, this VAE's have "
                     f"{vae.config.latent_channels}")
    vae.enable_tiling()
    with torch.inference_mode():
        scaled = latents[None].to(args.device, dtype) / vae.config.scaling_factor
        video = vae.decode(scaled, return_dict=False)[0][0]  # [3, frames, height, width], -1 to 1
    frames = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    frames = frames.permute(1, 2, 3, 0).cpu().numpy()
    write(frames, args.output, args.fps)
    print(f"{args.output}: {frames.shape[0]} frames of {frames.shape[2]} x {frames.shape[1]}")


if __name__ == "__main__":
    main()
