#!/usr/bin/env bash
# The demo: train a byte-level GPT on real text with 4 ranks, then let 4 pipeline stages write.
# Usage: tools/demo.sh [FILE | FOLDER | llm.c .bin]; HEDDLE_BUILD names the build folder.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${HEDDLE_BUILD:-build/release}
run=runs/demo
data=${1:-/usr/share/common-licenses}
extra=()
case $data in
*.bin*) # llm.c shards hold GPT-2's tokens, not bytes
    extra=(--model.vocab=50257) ;;
esac
rm -rf "$run"

echo "== training on $data: 4 ranks = data 2 x pipeline 2, 4 micro-batches a step, 1F1B"
"$build/heddle-run" -np 4 train tools/demo.json --data.path="$data" "${extra[@]}"

echo
echo "== generating: the same checkpoint on 4 pipeline stages, 6 prompts in flight"
"$build/heddle-run" -np 4 generate tools/demo.json --layout.data=1 --layout.pipeline=4 \
    --generate.prompts='["The license ", "You may ", "This program is ", "NO WARRANTY", "If you ", "Copyright "]' \
    "${extra[@]}"

cat <<TEXT

== written to $run
   loss curve      $run/loss.svg
   pipeline chart  $run/pipeline.svg
   memory plan     $run/plan.svg, $run/plan.json
   metrics         $run/metrics.jsonl
   checkpoints     $run/checkpoints
TEXT
