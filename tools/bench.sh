#!/usr/bin/env bash
# Training tokens/s of the text demo's model: heddle on 1 and 4 ranks, and PyTorch if it is installed, on
# the same cores in the same run. Usage: tools/bench.sh BUILD_FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
steps=${STEPS:-30}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cores=$(nproc)

heddle() { # name, ranks, threads, overrides...
    local name=$1 ranks=$2 threads=$3
    shift 3
    OMP_NUM_THREADS=$threads "$build/heddle-run" -np "$ranks" train tools/demo_text.json --train.steps="$steps" \
        --train.validate_batches=0 --checkpoint.every=0 --checkpoint.resume=never --run.trace=false \
        --run.directory="$scratch/run" "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
    printf '%-44s %8s tokens/s   first step after %s s\n' "$name" \
        "$(sed -n 's/^\([0-9]*\) tokens\/s.*/\1/p' "$scratch/log")" \
        "$(sed -n 's/.*first step after \([0-9.]*\) s.*/\1/p' "$scratch/log")"
}

torch() { # name, arguments...
    local name=$1
    shift
    local rate
    rate=$(OMP_NUM_THREADS=$cores python3 bench/peers/torch_gpt2_cpu.py "$@" "$steps" 2>"$scratch/log") ||
        { echo "$name: failed: $(tail -n 1 "$scratch/log")"; return; }
    printf '%-44s %8s tokens/s\n' "$name" "$rate"
}

echo "the text demo's model, 4096 tokens a step, $cores cores, $(date +%F)"
heddle "heddle, 1 rank x $cores threads" 1 "$cores" --layout.data=1 --layout.pipeline=1 --train.accumulate=8
heddle "heddle, 4 ranks, data 2 x pipeline 2" 4 1
heddle "heddle, 2 ranks, data 2" 2 1 --layout.data=2 --layout.pipeline=1
if python3 -c 'import torch' 2>/dev/null; then
    torch "PyTorch $(python3 -c 'import torch; print(torch.__version__)'), eager"
    torch "PyTorch, torch.compile" --compile
else
    echo "PyTorch is not installed: no comparison"
fi
