#!/usr/bin/env bash
# The demos. Video: make clips of moving shapes, train a small video transformer on them with 4 ranks,
# sample a clip of each class on 4 pipeline stages. Text: train a byte-level GPT on real text with 4
# ranks, then let 4 pipeline stages write.
# Usage: tools/demo.sh [text [FILE | FOLDER | llm.c .bin]]; HEDDLE_BUILD names the build folder.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${HEDDLE_BUILD:-build/release}
run=runs/demo

demo_video() {
    rm -rf "$run"
    echo "== data: clips of moving shapes, 27 classes"
    "$build/heddle" data shapes "$run/data"

    echo
    echo "== training on them: 4 ranks = data 2 x pipeline 2, 2 micro-batches a step, 1F1B"
    "$build/heddle-run" -np 4 train tools/demo.json

    echo
    echo "== sampling: a clip of each class on 4 pipeline stages"
    "$build/heddle-run" -np 4 sample tools/demo.json --layout.data=1 --layout.pipeline=4

    cat <<TEXT

== written to $run
   animation       $run/samples/samples.gif
   contact sheet   $run/samples/samples.png
   loss curve      $run/loss.svg
   memory plan     $run/plan.svg, $run/plan.json
   metrics         $run/metrics.jsonl
   checkpoints     $run/checkpoints
TEXT
}

demo_text() { # [FILE | FOLDER | llm.c .bin]
    local data=${1:-/usr/share/common-licenses} extra=()
    case $data in
    *.bin*) # llm.c shards hold GPT-2's tokens, not bytes
        extra=(--model.vocab=50257) ;;
    esac
    run=runs/demo-text
    rm -rf "$run"

    echo "== training on $data: 4 ranks = data 2 x pipeline 2, 4 micro-batches a step, 1F1B"
    "$build/heddle-run" -np 4 train tools/demo_text.json --data.path="$data" "${extra[@]}"

    echo
    echo "== generating: the same checkpoint on 4 pipeline stages, 6 prompts in flight"
    "$build/heddle-run" -np 4 generate tools/demo_text.json --layout.data=1 --layout.pipeline=4 \
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
}

case ${1:-} in
'') demo_video ;;
text)
    shift
    demo_text "$@"
    ;;
*)
    echo "usage: tools/demo.sh [text [PATH]]" >&2
    exit 2
    ;;
esac
