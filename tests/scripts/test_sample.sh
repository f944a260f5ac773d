#!/bin/bash
# heddle sample from the outside: the same videos on every number of ranks, after kills on others, and
# nothing taken up that is damaged or another sampling's.
set -u
build=${HEDDLE_BUILD:-build/release}
heddle=$(realpath "$build")/heddle
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work
mkdir "$work/shm"
mpirun_words=(--oversubscribe --bind-to none --mca mpi_yield_when_idle 1
              --mca btl_vader_single_copy_mechanism none --mca btl_vader_backing_directory "$work/shm")
[ "$(id -u)" = 0 ] && mpirun_words+=(--allow-run-as-root)
[ -z "${SAN:-}" ] || export ASAN_OPTIONS=detect_leaks=0

check() { # name condition...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        echo "not ok $name"
        [ -e "$work/out" ] && tail -n 30 "$work/out" | sed 's/^/    /'
    fi
}

# 27 classes are the texts; four frames of 16 x 16 pixels.
"$heddle" data shapes "$work/set" --width 16 --height 16 --frames 4 --samples 27 >"$work/out" 2>&1 || exit 1
# A few rough steps: first values make no velocity at all, and every video would be its noise.
"$heddle" train --model.preset=mmdit-pixel-tiny --data.path="$work/set" --train.steps=4 --run.device=cpu \
    --optimizer.learning_rate=0.03 --train.micro_batch=4 --train.validate_batches=0 --run.threads=1 \
    --run.directory="$work/run" >"$work/out" 2>&1 || exit 1
words=(sample --sample.checkpoint="$work/run" --sample.inputs="$work/set"
       --sample.width=16 --sample.height=16 --sample.frames=4 --sample.steps=24 --sample.save_every=2
       --sample.guidance=3 --run.device=cpu --run.threads=1)

alone() { # directory words...
    local directory=$1
    shift
    "$heddle" "${words[@]}" --run.directory="$directory" "$@" </dev/null >"$work/out" 2>&1
}

together() { # ranks pipeline directory
    mpirun "${mpirun_words[@]}" -np "$1" "$heddle" "${words[@]}" --layout.pipeline="$2" \
        --run.directory="$3" </dev/null >"$work/out" 2>&1
}

equal() { # directory: its 27 videos are those of the undisturbed run
    local file count=0
    for file in "$work"/whole/samples/*.safetensors; do
        cmp -s "$file" "$1/samples/${file##*/}" || return 1
        count=$((count + 1))
    done
    [ $count = 27 ] && [ -z "$(ls -A "$1/samples/state")" ]
}

count() { # directory: files in it
    find "$1" -name '*.safetensors' 2>/dev/null | wc -l
}

check sampling_works_on_one_rank alone "$work/whole"
check planned_memory_is_told grep -q 'memory: planned [0-9]* bytes ([0-9.]* MiB) of the host' "$work/out"
check it_leaves_pictures test -s "$work/whole/samples/samples.png"
check it_leaves_a_line_for_each_step test \
    "$(grep -c '"step": ' "$work/whole/samples/metrics.jsonl")" = $((27 * 24))

# 4 MiB hold no more than half of the weights.
refuses_resident_weights() {
    ! alone "$work/none" --memory.budget=4MiB --sample.residency=resident &&
        grep -q "does not fit" "$work/out"
}
streams() { alone "$work/streamed" --memory.budget=4MiB && equal "$work/streamed"; }
check a_budget_below_the_weights_is_refused_if_they_are_to_stay refuses_resident_weights
check else_they_are_streamed_for_the_same_videos streams
check the_log_tells_their_host_memory grep -Eq \
    'host memory planned: 0 bytes shared \(copies: 0, ranks: 0\), [1-9][0-9]* bytes private' "$work/out"

finished() { # directory
    find "$1/samples" -maxdepth 1 -name '*.safetensors' 2>/dev/null | wc -l
}

# Killed on 2 ranks with videos on their way, then on 4, then finished by 1. A kill between two videos
# leaves none on their way: then again, a few videos later.
kill_once() { # ranks pipeline
    local mpirun ranks before
    before=$(finished "$work/killed")
    mpirun "${mpirun_words[@]}" -np "$1" "$heddle" "${words[@]}" --layout.pipeline="$2" \
        --run.directory="$work/killed" </dev/null >"$work/out" 2>&1 &
    mpirun=$!
    for _ in {1..4000}; do
        [ "$(count "$work/killed/samples/state")" -gt 0 ] &&
            [ "$(finished "$work/killed")" -gt "$before" ] && break
        kill -0 $mpirun 2>/dev/null || break
        sleep 0.01
    done
    mapfile -t ranks < <(pgrep -P $mpirun -x heddle)
    [ ${#ranks[@]} = "$1" ] && kill -KILL "${ranks[@]}"
    ! wait $mpirun
}
kill_amid() { # ranks pipeline
    for _ in 1 2 3 4 5; do
        kill_once "$1" "$2" || return 1
        [ "$(count "$work/killed/samples/state")" -gt 0 ] && return
    done
    return 1
}
check a_killed_run_leaves_videos_on_their_way kill_amid 2 2
check so_does_one_that_took_them_up kill_amid 4 2
cp -r "$work/killed" "$work/damaged"
cp -r "$work/killed" "$work/changed"
check the_rest_is_made_by_one_rank alone "$work/killed"
check videos_equal_those_of_an_undisturbed_run equal "$work/killed"

for file in "$work"/damaged/samples/state/*.safetensors; do
    printf 'x' | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") - 7)) conv=notrunc 2>/dev/null
done
check damaged_videos_are_made_anew together 4 4 "$work/damaged"
check and_told grep -q 'is damaged: not taken up' "$work/out"
check and_equal equal "$work/damaged"

check other_settings_take_up_nothing alone "$work/changed" --sample.guidance=2
check and_say_so grep -q 'is of other settings or weights: not taken up' "$work/out"
refuses_without_earlier_work() {
    ! alone "$work/none" --sample.resume=require && grep -q "nothing to take up" "$work/out"
}
check nothing_to_take_up_is_an_error_if_required refuses_without_earlier_work

# Plans of full-size models, on one line each of what would be looked at.
plans() {
    local model size
    for model in hunyuan-video-13b open-sora-2-11b; do
        for size in 1280x720x129 960x544x129 960x544x81 512x384x129; do
            IFS=x read -r width height frames <<<"$size"
            "$heddle" plan --sample --ranks=4 --layout.pipeline=4 --model.preset=$model --run.device=cpu \
                --sample.dtype=bf16 --sample.width="$width" --sample.height="$height" \
                --sample.frames="$frames" >"$work/out" 2>&1 || return 1
            awk '/planned in/ { exit !($3 < 1) }' "$work/out" || return 1
        done
    done
}
check full_size_models_are_planned_within_a_second plans

# What the 13B model needs for 129 frames of 720p on one GPU, of which others take 700 MiB.
plan_720p() { # budget
    "$heddle" plan --sample --model.preset=hunyuan-video-13b --run.device=cpu --sample.dtype=bf16 \
        --sample.width=1280 --sample.height=720 --sample.frames=129 --memory.foreign=700MiB \
        --memory.budget="$1" >"$work/out" 2>&1
}
whole_within_24() { plan_720p 24GiB && ! grep -q slices "$work/out"; }
check blocks_are_whole_where_that_fits whole_within_24
# Two ranks that hold the same blocks: half of each, then all of them on the host.
shared_within() { # ranks' axis, budget, pattern
    "$heddle" plan --sample --ranks=2 --layout."$1"=2 --model.preset=hunyuan-video-13b --run.device=cpu \
        --sample.dtype=bf16 --sample.width=512 --sample.height=384 --sample.frames=129 \
        --memory.budget="$2" "${@:4}" >"$work/out" 2>&1
    grep -q "$3" "$work/out"
}
check plans_share_blocks_of_ranks_that_make_videos_of_their_own \
    shared_within data 18GiB '[1-5]*[0-9] of 60 blocks in shares of 2 ranks; a run gathers'
check and_of_ranks_that_share_a_video \
    shared_within sequence 17GiB '[1-5]*[0-9] of 60 blocks in shares of 2 ranks; a run gathers'
check and_go_to_the_host_where_shares_are_too_large \
    shared_within data 9GiB '[1-5]*[0-9] of 60 blocks on the host, .*; a run copies in'
check or_to_shares_of_it_as_told shared_within data 9GiB 'each of 2 ranks copies in its share of' \
    --sample.residency=host-sharded
check a_refusal_of_shares_names_what_the_host_would_need \
    shared_within data 9GiB 'with all blocks on the host .* a budget of [0-9]* bytes (.*B) would do' \
    --sample.residency=sharded
sliced_within() { plan_720p "$1" && grep -q 'one pass, .*, blocks in [0-9]* slices' "$work/out"; }
check slices_fit_720p_into_6_gib sliced_within 6GiB
check and_into_4_gib sliced_within 4GiB
refuses_2_gib() { ! plan_720p 2GiB && grep -q 'a budget of [0-9]* bytes (.*B) would do' "$work/out"; }
check a_refusal_names_the_budget_that_would_do refuses_2_gib
