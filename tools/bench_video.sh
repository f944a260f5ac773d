#!/usr/bin/env bash
# Video on one GPU, with random weights: a double-stream block, then denoising steps of HunyuanVideo 13B,
# beside PyTorch and diffusers. Usage: tools/bench_video.sh BUILD_FOLDER [ROW...]
# A row is FRAMES:HEIGHT:WIDTH[:GIB], the last a memory.budget. STEPS: of a video, the first is left out.
# NO_TORCH=1: heddle alone. NO_BLOCK=1: without the block. DEVICE, MODEL: for trying the script out.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
shift || true
rows=("$@")
[ ${#rows[@]} -gt 0 ] || rows=(129:512:384 81:544:960 129:512:384:6 81:544:960:24)
steps=${STEPS:-3}
device=${DEVICE:-cuda}
model=${MODEL:---model.preset=hunyuan-video-13b}
read -r text_columns pooled_columns <<<"${TEXT:-4096 768}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

field() { grep -oE "$1" "$2" | tail -n 1 | grep -oE '[0-9][0-9.]*' | head -n 1 || true; }

[ "$device" != cuda ] || nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
if [ -z "${NO_BLOCK:-}" ]; then
    "$build/tests/gpu/speed_block" "$device" || true # make bench-gpu builds it
    [ -n "${NO_TORCH:-}" ] || python3 bench/peers/torch_dit.py 2>"$scratch/err" || tail -n 3 "$scratch/err"
fi

touch "$scratch/peer"
if [ -z "${NO_TORCH:-}" ]; then
    python3 bench/peers/diffusers_hunyuan.py "${rows[@]}" >"$scratch/peer" 2>"$scratch/err" || tail -n 3 "$scratch/err"
    cat "$scratch/peer"
fi

python3 tools/make_text.py "$scratch/text.safetensors" 256 "$text_columns" "$pooled_columns"
printf '%-20s %10s %8s %12s %12s %14s %8s\n' row "s/step" TFLOP/s planned "in use" "diffusers s/st" ratio
for row in "${rows[@]}"; do
    IFS=: read -r frames height width budget <<<"$row"
    rm -rf "$scratch/run"
    "$build/heddle" sample "$model" --sample.random_weights=true --sample.inputs="$scratch/text.safetensors" \
        --sample.frames="$frames" --sample.height="$height" --sample.width="$width" --sample.steps="$steps" \
        --sample.save_every=0 --sample.dtype=bf16 --memory.budget="${budget:-0}${budget:+GiB}" \
        --run.device="$device" --run.directory="$scratch/run" >"$scratch/log" 2>&1 || { tail -n 12 "$scratch/log"; continue; }
    planned=$(field 'planned [0-9]+ bytes' "$scratch/log")
    used=$(field 'in use [0-9]+ bytes' "$scratch/log")
    peer=$(grep -F " $row " "$scratch/peer" | grep -oE '[0-9.]+ s/step' | cut -d' ' -f1 || true)
    python3 - "$row" "$scratch/run/samples/metrics.jsonl" "$planned" "$used" "${peer:--}" <<'PY'
import json, sys
row, path, planned, used, peer = sys.argv[1:]
times = [line["seconds"] for line in map(json.loads, open(path)) if "step" in line]
seconds = (times[-1] - times[0]) / (len(times) - 1)
frames, height, width = map(int, row.split(":")[:3])
tokens = ((frames - 1) // 4 + 1) * (height // 16) * (width // 16) + 256
flops = 60 * (24 * tokens * 3072**2 + 4 * tokens**2 * 3072)
gib = lambda b: f"{int(b) / 2**30:.2f} GiB" if b else "-"
ratio = f"{float(peer) / seconds:.3f}" if peer != "-" else "-"
print(f"{row:20} {seconds:10.3f} {flops / seconds / 1e12:8.0f} {gib(planned):>12} {gib(used):>12} {peer:>14} {ratio:>8}")
PY
    grep -E 'conditions .* s, weights' "$scratch/log" | sed 's/^/  /' || true
done
