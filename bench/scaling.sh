#!/usr/bin/env bash
# How heddle scales over the GPUs of this host: collectives, GPT-2 over data and pipeline, HunyuanVideo over
# every axis, videos in flight. One table on the standard output. Usage: bench/scaling.sh BUILD_FOLDER
# GPUS: how many, if not all that there are. PARTS: of "collectives block gpt2 loss video flight"; "peers", if asked for,
# times a block in PyTorch, too. DEVICE=cpu, GPT2, VIDEO, SIZES, STEPS, BLOCK (heads and text of blocks): for trying the
# script out. TOKENS, GROUPS_OF_ROWS: of blocks. NCCL_P2P_DISABLE=1: as between cards that cannot reach each other.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release}
device=${DEVICE:-cuda}
found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
gpus=${GPUS:-$found}
[ "$gpus" -ge 1 ] || { echo "bench/scaling.sh: no GPU found; GPUS=2 DEVICE=cpu tries it on ranks" >&2; exit 1; }
parts=${PARTS:-collectives block gpt2 loss video flight}
steps=${STEPS:-3}
read -r -a gpt2 <<<"${GPT2:---model.preset=gpt2-xl --model.vocab=50304 --train.dtype=bf16 --train.tokens=1024 --train.micro_batch=8}"
read -r -a video <<<"${VIDEO:---model.preset=hunyuan-video-13b --sample.dtype=bf16}"
read -r -a sizes <<<"${SIZES:-81:544:960 129:720:1280}"
read -r text_columns pooled_columns <<<"${TEXT:-4096 768}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export NCCL_NVLS_ENABLE=0

counts=()
for ((n = 1; n <= gpus; n *= 2)); do counts+=("$n"); done

launch() { # ranks command...
    local ranks=$1 root=()
    shift
    [ "$(id -u)" != 0 ] || root=(--allow-run-as-root)
    timeout "${LIMIT:-150}" mpirun "${root[@]}" --oversubscribe --bind-to none -np "$ranks" "$@"
}

wants() { [[ " $parts " == *" $1 "* ]]; }

field() { grep -oE "$1" "$2" | tail -n 1 | grep -oE '[0-9][0-9.e+-]*' | head -n 1 || true; }

share() { awk -v a="$1" -v b="$2" 'BEGIN { if (a > 0 && b > 0) printf "%.1f %%", 100 * a / b; else printf "-" }'; }

row() { printf '%-34s %5s %14s %12s %14s %12s %12s\n' "$@"; }

# ranks name tokens-of-one-gpu flags...: a run of GPT-2; the rate is left in `rate`.
train() {
    local ranks=$1 name=$2 one=$3
    shift 3
    rm -rf "$scratch/run"
    local flags=("${gpt2[@]}" "$@" --run.device="$device")
    "$build/heddle" plan --ranks="$ranks" "${flags[@]}" --train.validate_batches=0 --run.rates="${RATES:-h200}" >"$scratch/plan" 2>&1 || true
    launch "$ranks" "$build/heddle" train "${flags[@]}" --data.path="$scratch/tokens.bin" --train.steps=$((steps * 3)) \
        --train.validate_batches=0 --checkpoint.resume=never --checkpoint.save_last=false \
        --run.directory="$scratch/run" >"$scratch/log" 2>&1 || { row "$name" "$ranks" failed - - - -; grep -m 3 -i "error\|heddle:" "$scratch/log" >&2 || true; return; }
    rate=$(field '[0-9]+ tokens/s, first' "$scratch/log")
    local predicted loss bubble
    predicted=$(field 'predicted [0-9.e-]+ s a step' "$scratch/plan")
    bubble=$(field 'bubble [0-9.]+ %' "$scratch/plan")
    loss=$(grep -oE '"loss": [0-9.]+' "$scratch/run/metrics.jsonl" | tail -n 1 | grep -oE '[0-9.]+' || true)
    row "$name" "$ranks" "$rate tok/s" "$(share "$rate" "$((one * ranks))")" "bubble ${bubble:-0} %" "${predicted:+$predicted s}" "loss $loss"
}

# ranks name size seconds-of-one flags...: steps of videos; the seconds from one to the next are left in `seconds`.
sample() {
    local ranks=$1 name=$2 size=$3 one=$4 frames height width
    shift 4
    IFS=: read -r frames height width <<<"$size"
    rm -rf "$scratch/run"
    launch "$ranks" "$build/heddle" sample "${video[@]}" --sample.random_weights=true --sample.inputs="$scratch/text.safetensors" \
        --sample.frames="$frames" --sample.height="$height" --sample.width="$width" --sample.steps="$steps" \
        --sample.save_every=0 --run.device="$device" --run.directory="$scratch/run" "$@" \
        >"$scratch/log" 2>&1 || { row "$name" "$ranks" failed - - - -; grep -m 3 -i "error\|heddle:" "$scratch/log" >&2 || true; return; }
    seconds=$(python3 tools/step_seconds.py "$scratch/run/samples/metrics.jsonl")
    local planned used predicted
    planned=$(field 'planned [0-9]+ bytes' "$scratch/log")
    used=$(field 'in use [0-9]+ bytes' "$scratch/log")
    predicted=$(field 'predicted [0-9.e-]+ s' "$scratch/log")
    row "$name" "$ranks" "$seconds s/step" "$(share "$one" "$(awk -v s="$seconds" -v n="$ranks" 'BEGIN { print s * n }')")" \
        "predicted ${predicted:--}" "$((${planned:-0} >> 20)) MiB" "$((${used:-0} >> 20)) MiB"
}

if wants gpt2 || wants loss; then python3 tools/make_tokens.py "$scratch/tokens.bin" 4000000; fi
row what ranks speed "of linear" prediction planned "in use, loss"
if wants collectives && [ "$device" = cuda ]; then
    for n in "${counts[@]:1}"; do launch "$n" "$build/tests/gpu/speed_collectives" 1 16 256; done
fi
# ranks name milliseconds-of-one tokens groups way: a single-stream block; its milliseconds are left in `block`.
block() {
    local ranks=$1 name=$2 one=$3
    launch "$ranks" "$build/tests/gpu/speed_sequence" "$device" "$4" "$5" "${shape[@]}" "$6" >"$scratch/log" 2>&1 ||
        { row "$name" "$ranks" failed - - - -; tail -n 3 "$scratch/log" >&2; return; }
    block=$(field '[0-9.]+ ms/block' "$scratch/log")
    row "$name" "$ranks" "$block ms" "$(share "$one" "$(awk -v s="$block" -v n="$ranks" 'BEGIN { print s * n }')")" - - -
}

if wants block; then
    read -r -a shape <<<"${BLOCK:-24 256}"
    for tokens in ${TOKENS:-42840 118800}; do
        block=0
        block 1 "block, $tokens tokens" 0 "$tokens" 1 heads
        alone=$block
        for n in "${counts[@]:1}"; do
            for groups in ${GROUPS_OF_ROWS:-1 2 3}; do
                block "$n" "heads $n, groups $groups" "$alone" "$tokens" "$groups" heads
                block "$n" "tensor $n, groups $groups" "$alone" "$tokens" "$groups" tensor
            done
            block "$n" "ring $n" "$alone" "$tokens" 1 ring
        done
        if wants peers; then
            for n in "${counts[@]}"; do torchrun --nproc-per-node="$n" bench/peers/torch_sequence.py 3072 24 "$tokens" 256; done
        fi
    done
fi
if wants gpt2; then
        rate=0
    train 1 "data 1" 0
    alone=${rate:-0}
    for n in "${counts[@]:1}"; do
        train "$n" "data $n, sharded state" "$alone" --layout.data="$n" --layout.shard_state=1
        train "$n" "pipeline $n, 2 chunks, 16 micro" "$alone" --layout.pipeline="$n" --layout.chunks=2 \
            --train.batch=$((16 * ${MICRO:-4})) --train.micro_batch="${MICRO:-4}"
    done
fi
if wants loss; then # the same sequences on every layout: the last column is what to compare
    read -r -a gpt2 <<<"${LOSS:---model.preset=gpt2 --model.vocab=50304 --train.dtype=bf16 --train.tokens=1024 --train.micro_batch=4}"
    for n in "${counts[@]}"; do
        same=(--train.batch=$((4 * gpus)) --layout.data=1)
        [ "$n" -gt 1 ] || { train 1 "batch $((4 * gpus)), one rank" 0 "${same[@]}"; continue; }
        train "$n" "the same, data $n" 0 "${same[0]}" --layout.data="$n" --layout.shard_state=1
        train "$n" "the same, state sharded 3" 0 "${same[0]}" --layout.data="$n" --layout.shard_state=3
        train "$n" "the same, pipeline $n" 0 "${same[@]}" --layout.pipeline="$n"
        train "$n" "the same, heads $n" 0 "${same[@]}" --layout.sequence="$n"
        train "$n" "the same, ring $n" 0 "${same[@]}" --layout.sequence="$n" --layout.ring="$n"
        train "$n" "the same, tensor $n" 0 "${same[@]}" --layout.tensor="$n"
    done
fi
python3 tools/make_text.py "$scratch/text.safetensors" 256 "$text_columns" "$pooled_columns"
if wants video; then
    for size in "${sizes[@]}"; do
        seconds=0
        sample 1 "$size" "$size" 0
        alone=$seconds
        for n in "${counts[@]:1}"; do
            sample "$n" "$size heads $n" "$size" "$alone" --layout.sequence="$n"
            sample "$n" "$size ring $n" "$size" "$alone" --layout.sequence="$n" --layout.ring="$n"
            [ "$n" -lt 4 ] || sample "$n" "$size heads $((n / 2)) ring 2" "$size" "$alone" --layout.sequence="$n" --layout.ring=2
            sample "$n" "$size tensor $n" "$size" "$alone" --layout.tensor="$n"
        done
    done
fi
if wants flight; then
    size=${FLIGHT:-129:512:384}
    seconds=0
    sample 1 "$size, videos in turn" "$size" 0 --sample.seeds=1,2
    alone=$seconds
    for n in "${counts[@]:1}"; do
        sample "$n" "$size, $((2 * n)) videos over $n stages" "$size" "$alone" --layout.pipeline="$n" --sample.seeds="$(seq -s, 1 $((2 * n)))"
    done
fi
