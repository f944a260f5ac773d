#!/bin/bash
# A run that is killed, starved of disk, or asked to stop loses no checkpoint, hangs nobody, leaves nothing
# behind, and goes on to the same weights. SEED=n repeats a run of the script.
set -u
build=${HEDDLE_BUILD:-build/release}
heddle=$(realpath "$build")/heddle
heddle_run=$(realpath "$build")/heddle-run
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
seed=${SEED:-$(date +%N | sed 's/^0*//')}
RANDOM=$seed
mkdir "$work/shm"
for _ in {1..400}; do echo "warp and weft, $RANDOM threads, one heddle"; done >"$work/text"

# Everything of MPI's that could be left behind is left below $work.
export TMPDIR=$work
mpirun_words=(--oversubscribe --bind-to none --mca mpi_yield_when_idle 1
              --mca btl_vader_single_copy_mechanism none --mca btl_vader_backing_directory "$work/shm")
[ "$(id -u)" = 0 ] && mpirun_words+=(--allow-run-as-root)
[ -z "${SAN:-}" ] || export ASAN_OPTIONS=detect_leaks=0

# A rate that does not depend on the number of steps: an undisturbed run can be as long as the other was.
model=(--model.layers=2 --model.hidden=32 --model.heads=2 --train.tokens=16 --train.micro_batch=2
       --train.validate_batches=0 --data.path="$work/text" --optimizer.schedule=constant
       --layout.reduction=exact --layout.bucket=16384 --run.threads=1)
endless=(--train.steps=1000000 --checkpoint.every=1)

check() { # name condition...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        echo "not ok $name"
        echo "    seed $seed"
        [ -e "$work/out" ] && tail -n 30 "$work/out" | sed 's/^/    /'
    fi
}

newest() { # directory: the newest whole checkpoint's step, 0 if there is none
    local step best=0
    for step in "$1"/checkpoints/step-*; do
        step=${step##*-}
        case $step in *[!0-9]*) continue ;; esac
        [ "$step" -gt "$best" ] && best=$step
    done
    echo "$best"
}

await_save() { # directory step pid: until a later checkpoint is there
    for _ in {1..1000}; do
        [ "$(newest "$1")" -gt "$2" ] && return
        kill -0 "$3" 2>/dev/null || return
        sleep 0.01
    done
}

start() { # output layout directory words...: in the background; its process is $!
    local out=$1 layout=$2 directory=$3
    shift 3
    mpirun "${mpirun_words[@]}" -np 2 "$heddle" train "${model[@]}" --layout.pipeline="$layout" \
        --run.directory="$directory" "$@" </dev/null >"$out" 2>&1 &
}

# A dead process that nobody has waited for does not live.
lives() { # process
    case $(ps -o stat= -p "$1") in '' | Z*) false ;; esac
}

weights() { sed -n 's/.*, weights \([0-9a-f]*\)$/\1/p' "$1"; }

# Go on for two more steps; the weights must be those of a run that did as many without a stop.
goes_on_equal() { # directory
    local steps
    steps=$(($(newest "$1") + 2))
    "$heddle" train "${model[@]}" --train.accumulate=2 --train.steps=$steps --run.directory="$1" \
        >"$1.resumed" 2>&1 || return 1
    "$heddle" train "${model[@]}" --train.accumulate=2 --train.steps=$steps --run.directory="$1.whole" \
        >"$1.undisturbed" 2>&1 || return 1
    [ -n "$(weights "$1.resumed")" ] && [ "$(weights "$1.resumed")" = "$(weights "$1.undisturbed")" ]
}

# Kill a random rank, five times, each at a random moment of what are mostly saves.
kill_ranks() { # lane
    local directory=$work/kill-$1 before after pid ranks
    RANDOM=$((seed + $1))
    for round in 1 2 3 4 5; do
        before=$(newest "$directory")
        start "$work/kill-$1.out" 2 "$directory" "${endless[@]}" --train.accumulate=2
        pid=$!
        await_save "$directory" "$before" "$pid"
        sleep "0.$(printf %03d $((RANDOM % 200)))"
        before=$(newest "$directory")
        mapfile -t ranks < <(pgrep -P "$pid" -x heddle)
        [ ${#ranks[@]} = 2 ] || { echo "round $round: ${#ranks[@]} ranks" >>"$directory.faults"; break; }
        kill -KILL "${ranks[RANDOM % 2]}"
        wait "$pid" && echo "round $round: mpirun ended well" >>"$directory.faults"
        after=$(newest "$directory")
        [ "$after" -ge "$before" ] || echo "round $round: step $before is lost, $after left" >>"$directory.faults"
        for _ in {1..500}; do
            lives "${ranks[0]}" || lives "${ranks[1]}" || break
            sleep 0.01
        done
        { lives "${ranks[0]}" || lives "${ranks[1]}"; } && echo "round $round: ranks live on" >>"$directory.faults"
    done
    goes_on_equal "$directory" || echo "other weights, or no resume" >>"$directory.faults"
}

lanes=()
for lane in 0 1 2 3; do
    kill_ranks $lane &
    lanes+=($!)
done
wait "${lanes[@]}"
for lane in 0 1 2 3; do
    cat "$work/kill-$lane.faults" "$work/kill-$lane.resumed" "$work/kill-$lane.undisturbed" >"$work/out" 2>/dev/null
    check "killed_ranks_lose_no_checkpoint_and_no_bit_in_lane_$lane" test ! -e "$work/kill-$lane.faults"
done

# SIGUSR1, as a batch system sends it, to mpirun.
start "$work/out" 1 "$work/user" "${endless[@]}"
pid=$!
await_save "$work/user" 1 $pid
kill -USR1 $pid
wait $pid
check "a_run_that_saved_on_SIGUSR1_ends_with_75" test $? = 75
cp "$work/user.resumed" "$work/out" 2>/dev/null
check "it_goes_on_to_the_same_weights" goes_on_equal "$work/user"

# SIGTERM to heddle-run. Nothing is saved but what the signal asks for.
"$heddle_run" -np 2 --mca btl_vader_backing_directory "$work/shm" train "${model[@]}" --train.steps=1000000 \
    --run.directory="$work/term" </dev/null >"$work/out" 2>&1 &
pid=$!
for _ in {1..1000}; do
    [ -s "$work/term/metrics.jsonl" ] && break
    sleep 0.01
done
kill -TERM $pid
wait $pid
check "heddle_run_gives_time_to_save_on_SIGTERM" test $? = 75
check "the_checkpoint_that_SIGTERM_asked_for_is_whole" test "$(newest "$work/term")" -gt 0
check "and_goes_on_to_the_same_weights" goes_on_equal "$work/term"

# No room for files above 4 KiB for a while, on both ranks.
limit_files() { # soft limit, mpirun's process
    for rank in $(pgrep -P "$2" -x heddle); do prlimit --pid "$rank" --fsize="$1:unlimited"; done
}
start "$work/out" 1 "$work/full" "${endless[@]}"
pid=$!
await_save "$work/full" 1 $pid
limit_files 4096 $pid
for _ in {1..500}; do
    grep -q 'not saved, going on' "$work/out" && break
    sleep 0.01
done
check "a_save_without_room_names_the_file_and_the_cause" \
    grep -q 'not saved, going on: .*step-[0-9]*\.tmp/rank-[01]\.safetensors.*File too large' "$work/out"
before=$(newest "$work/full")
check "the_checkpoints_before_it_stay" test "$before" -gt 0
limit_files unlimited $pid
await_save "$work/full" "$before" $pid
check "the_run_saves_again_when_there_is_room" test "$(newest "$work/full")" -gt "$before"
limit_files 4096 $pid
kill -USR1 $pid
wait $pid
check "a_last_save_that_fails_is_a_failure" test $? = 1
check "and_the_run_goes_on_from_the_one_before" goes_on_equal "$work/full"

# One rank alone loses its data in the middle of a step: each reads "text" in a folder of its own.
for rank in 0 1; do
    mkdir "$work/host-$rank"
    cp "$work/text" "$work/host-$rank/text"
done
words=("$heddle" train "${model[@]}" --data.path=text --train.steps=1000000 --run.directory="$work/alone")
mpirun "${mpirun_words[@]}" -np 1 -wdir "$work/host-0" "${words[@]}" : -np 1 -wdir "$work/host-1" "${words[@]}" \
    </dev/null >"$work/out" 2>&1 &
pid=$!
for _ in {1..1000}; do
    [ -s "$work/alone/metrics.jsonl" ] && break
    sleep 0.01
done
begin=$SECONDS
: >"$work/host-1/text"
wait $pid
check "a_rank_that_fails_alone_ends_the_job" test $? = 1
check "without_waiting_for_a_deadline" test $((SECONDS - begin)) -lt 30
check "and_says_which_rank_and_file_it_was" grep -q 'rank 1: text: ' "$work/out"

ls -A "$work/shm" >"$work/out"
check "no_shared_memory_is_left" test ! -s "$work/out"
for _ in {1..500}; do
    pgrep -f "$work/" >"$work/out" || break
    sleep 0.01
done
check "no_process_is_left" test ! -s "$work/out"
