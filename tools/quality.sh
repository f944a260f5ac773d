#!/usr/bin/env bash
# GPT-2 124M trained twice on this repository's own text, in fp32 and in bf16, from one seed: the largest
# relative difference of the loss curves, as means of WINDOW steps. Fails above LIMIT (1 %).
# Usage: tools/quality.sh BUILD_FOLDER [--section.key=value...], the latter for both runs
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
shift || true
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
find README.md docs include lib comm parallel launcher tests -name '*.md' -o -name '*.[ch]' -o -name '*.cu' | sort |
    xargs cat >"$scratch/text.txt"

for dtype in f32 bf16; do
    "$build/heddle" train --model.preset=gpt2 --model.vocab=256 --data.path="$scratch/text.txt" \
        --train.dtype="$dtype" --train.steps="${STEPS:-300}" --train.tokens=256 --train.micro_batch=8 \
        --train.seed=1 --train.validate_batches=0 --optimizer.learning_rate=3e-4 --optimizer.warmup=20 \
        --checkpoint.resume=never --checkpoint.save_last=false --run.device="${DEVICE:-cuda}" \
        --run.directory="$scratch/$dtype" "$@" >"$scratch/log" 2>&1 || { tail -n 12 "$scratch/log"; exit 1; }
    printf '%-4s %s\n' "$dtype" "$(grep -oE '[0-9]+ tokens/s, first.*' "$scratch/log" | tail -n 1)"
done

python3 - "$scratch/f32/metrics.jsonl" "$scratch/bf16/metrics.jsonl" "${WINDOW:-20}" "${LIMIT:-0.01}" <<'PY'
import json, math, sys
window, limit = int(sys.argv[3]), float(sys.argv[4])

def curve(path):
    losses = [line["loss"] for line in map(json.loads, open(path)) if "loss" in line]
    return [sum(losses[i - window:i]) / window for i in range(window, len(losses) + 1)]

wanted, seen = curve(sys.argv[1]), curve(sys.argv[2])
if not wanted or len(wanted) != len(seen) or not all(map(math.isfinite, wanted + seen)):
    sys.exit(f"{len(wanted)} and {len(seen)} means of {window} steps, want as many of both, and finite ones")
off, at = max((abs(b - a) / a, i) for i, (a, b) in enumerate(zip(wanted, seen)))
verdict = off <= limit
print(f"loss from {wanted[0]:.4f} to {wanted[-1]:.4f} (f32) and {seen[-1]:.4f} (bf16), means of {window} steps")
print(f"largest difference {off:.3%} at step {at + window} ({wanted[at]:.4f} and {seen[at]:.4f}), {limit:.2%} allowed: "
      f"{'passed' if verdict else 'FAILED'}")
sys.exit(not verdict)
PY
