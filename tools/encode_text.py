#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["torch>=2.1", "transformers>=4.46", "diffusers>=0.32", "safetensors>=0.4",
#                 "sentencepiece", "protobuf", "accelerate", "numpy"]
# ///
"""Turn prompts into the text embeddings that `heddle sample` and data sets of videos read.

    encode_text.py hunyuan-video texts/ "a cat walks on grass" "waves at night"
    encode_text.py open-sora-2 texts/ --file prompts.txt --device cuda

Each prompt makes one safetensors file, fp32: "text" [tokens, columns] and, where the model has it,
"pooled" [columns]. They are what each model was trained on:

  hunyuan-video   LLaMA-3-8B of LLaVA, its prompt template, third-last hidden state (two layers
                  skipped, no final norm), template cropped (95 tokens), padding dropped; pooled CLIP-L.
                  Made by diffusers' own HunyuanVideoPipeline.encode_prompt.
  open-sora-2     T5 v1.1 XXL, 512 tokens, padding and all and without a mask, as the model attends to
                  it; pooled CLIP-L of 77 tokens.
  open-sora-1.2   T5 v1.1 XXL, up to 300 tokens, masked, padding dropped; the prompt in lower case.
                  Its null text is part of its weights, where heddle finds it. 1.3 reads the same.
"""
import argparse
import os
import re
import sys

import torch
from safetensors.torch import save_file

HUNYUAN = "hunyuanvideo-community/HunyuanVideo"
T5 = {"open-sora-2": "google/t5-v1_1-xxl", "open-sora-1.2": "DeepFloyd/t5-v1_1-xxl"}
CLIP = "openai/clip-vit-large-patch14"


def hunyuan(prompts, args):
    from diffusers import HunyuanVideoPipeline

    pipeline = HunyuanVideoPipeline.from_pretrained(
        args.encoder or HUNYUAN, transformer=None, vae=None, torch_dtype=args.dtype)
    pipeline.to(args.device)
    for prompt in prompts:
        text, pooled, mask = pipeline.encode_prompt(prompt=prompt, device=args.device)
        yield {"text": text[0][mask[0].bool()], "pooled": pooled[0]}


def t5_embedder(source, args, tokens, masked):
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = T5EncoderModel.from_pretrained(source, torch_dtype=args.dtype).to(args.device).eval()

    def embed(prompt):
        batch = tokenizer(prompt, max_length=tokens, padding="max_length", truncation=True,
                          return_tensors="pt").to(args.device)
        mask = batch["attention_mask"]
        rows = model(input_ids=batch["input_ids"],
                     attention_mask=mask if masked else None).last_hidden_state[0]
        return rows[mask[0].bool()] if masked else rows

    return embed


def open_sora_2(prompts, args):
    from transformers import AutoTokenizer, CLIPTextModel

    source = args.pooled_encoder or CLIP
    tokenizer = AutoTokenizer.from_pretrained(source)
    clip = CLIPTextModel.from_pretrained(source, torch_dtype=args.dtype).to(args.device).eval()
    embed = t5_embedder(args.encoder or T5["open-sora-2"], args, 512, masked=False)
    for prompt in prompts:
        ids = tokenizer(prompt, max_length=77, padding="max_length", truncation=True,
                        return_tensors="pt")["input_ids"].to(args.device)
        yield {"text": embed(prompt), "pooled": clip(input_ids=ids).pooler_output[0]}


def open_sora_1_2(prompts, args):
    embed = t5_embedder(args.encoder or T5["open-sora-1.2"], args, 300, masked=True)
    for prompt in prompts:
        yield {"text": embed(" ".join(prompt.lower().split()))}


MODELS = {"hunyuan-video": hunyuan, "open-sora-2": open_sora_2, "open-sora-1.2": open_sora_1_2}


def read_prompts(args):
    prompts = list(args.prompt)
    if args.file:
        with open(args.file, encoding="utf-8") as lines:
            prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        sys.exit("no prompts: give some, or --file")
    return prompts


def file_name(number, prompt):
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return f"{number:03}-{words[:40].strip('-') or 'empty'}.safetensors"


def save(folder, name, tensors, prompt, model):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    tensors = {key: value.float().cpu().clone().contiguous() for key, value in tensors.items()}
    save_file(tensors, path, metadata={"prompt": prompt, "model": model})
    shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in tensors.items())
    print(f"{path}: {shapes}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder")
    parser.add_argument("prompt", nargs="*", help='may be "": a text to be guided away from')
    parser.add_argument("--file", help="prompts, one a line")
    parser.add_argument("--encoder", help="folder or hub name of the text encoder; hunyuan-video: of the "
                        "pipeline")
    parser.add_argument("--pooled-encoder", help="the same of CLIP, for open-sora-2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="float16 (hunyuan-video), bfloat16 (the others), float32")
    args = parser.parse_args()
    default = "float16" if args.model == "hunyuan-video" else "bfloat16"
    args.dtype = getattr(torch, args.dtype or default)
    prompts = read_prompts(args)
    with torch.inference_mode():
        for number, made in enumerate(MODELS[args.model](prompts, args), 1):
            prompt = prompts[number - 1]
            save(args.folder, file_name(number, prompt), made, prompt, args.model)


if __name__ == "__main__":
    main()
