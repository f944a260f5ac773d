#!/usr/bin/env bash
# GPT-2 training on one GPU: heddle and PyTorch in one run. Usage: tools/bench_gpu.sh BUILD_FOLDER [ROW...]
# A row is PRESET:LAYERS:HEADS:WIDTH:MICRO_BATCH; without any, those of docs/benchmarks.md.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
shift || true
rows=("$@")
[ ${#rows[@]} -gt 0 ] || rows=(gpt2:12:12:768:32 gpt2:12:12:768:64 gpt2-medium:24:16:1024:16
    gpt2-large:36:20:1280:8 gpt2-xl:48:25:1600:8)
steps=${STEPS:-20}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 tools/make_tokens.py "$scratch/tokens.bin" 8000000

field() { grep -oE "$1" "$2" | tail -n 1 | grep -oE '[0-9][0-9.]*' | head -n 1; }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
printf '%-22s %12s %8s %12s %12s %10s %8s\n' row "heddle tok/s" MFU planned "in use" "torch tok/s" ratio
for row in "${rows[@]}"; do
    IFS=: read -r preset layers heads width batch <<<"$row"
    "$build/heddle" train --model.preset="$preset" --model.vocab=50304 --train.dtype=bf16 \
        --data.path="$scratch/tokens.bin" --train.tokens=1024 --train.micro_batch="$batch" \
        --train.steps="$steps" --train.validate_batches=0 --checkpoint.resume=never \
        --checkpoint.save_last=false --run.device=cuda --run.directory="$scratch/run" \
        >"$scratch/log" 2>&1 || { cat "$scratch/log"; continue; }
    rate=$(field '[0-9]+ tokens/s, first' "$scratch/log")
    planned=$(field 'planned [0-9]+ bytes' "$scratch/log")
    used=$(field 'in use [0-9]+ bytes' "$scratch/log")
    start=$(field 'first step after [0-9.]+' "$scratch/log")
    torch=-
    if [ -z "${NO_TORCH:-}" ]; then
        python3 bench/peers/torch_gpt2.py "$layers" "$heads" "$width" "$batch" 1024 15 \
            >"$scratch/torch" 2>"$scratch/err" || tail -n 1 "$scratch/err"
        torch=$(field '[0-9]+ tok/s' "$scratch/torch")
        cat "$scratch/torch"
    fi
    python3 - "$row" "$rate" "$planned" "$used" "$torch" "$start" <<'PY'
import sys
row, rate, planned, used, torch, start = sys.argv[1:]
_, layers, heads, width, batch = row.split(":")
layers, width, rate = int(layers), int(width), float(rate)
parameters = layers * (12 * width * width + 13 * width) + (50304 + 1024) * width + 2 * width
mfu = (6 * parameters + 12 * layers * width * 1024) * rate / 989e12
ratio = f"{rate / float(torch):.3f}" if torch not in ("-", "") else "-"
gib = lambda b: f"{int(b) / 2**30:.2f} GiB" if b else "-"
print(f"{row:22} {rate:12.0f} {mfu:8.1%} {gib(planned):>12} {gib(used):>12} {torch:>10} {ratio:>8}  first step {start} s")
PY
done
