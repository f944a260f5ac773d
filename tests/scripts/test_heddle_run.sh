#!/bin/bash
# heddle-run: words reach mpirun and heddle in their places, signals give ranks time, status passes.
set -u
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cp launcher/heddle-run "$work/heddle-run"

# A program that tells what it was given, and can fail, save slowly, or never stop.
cat >"$work/heddle" <<'EOF'
#!/bin/bash
rank=$OMPI_COMM_WORLD_RANK
case $1 in
train)
    printf '%s|' "$rank of $OMPI_COMM_WORLD_SIZE" "$@"
    echo "threads $OMP_NUM_THREADS"
    ;;
read) [ "$rank" != 0 ] || cat ;;
fail) [ "$rank" != 1 ] || exit 5 ;;
save)
    trap 'sleep 1.5; echo "rank $rank saved"; exit 0' USR1
    for _ in {1..300}; do
        touch "$WORK/up.$rank"
        sleep 0.1
    done
    ;;
stuck)
    trap '' USR1
    touch "$WORK/up.$rank"
    for _ in {1..300}; do sleep 0.1; done
    ;;
esac
EOF
chmod +x "$work/heddle"
export WORK=$work

check() { # name condition...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        echo "not ok $name"
        sed 's/^/    /' "$work/out"
    fi
}
run() { "$work/heddle-run" "$@" >"$work/out" 2>&1; }
has() { grep -qF -- "$1" "$work/out"; }
await_ranks() { # both stand where signals find them
    for _ in {1..100}; do
        [ -e "$work/up.0" ] && [ -e "$work/up.1" ] && return
        sleep 0.1
    done
}

run -np 2 train 'a file.json' --layout.data=2 -np 7
check "both_ranks_start_with_the_words_of_the_command" has '1 of 2|train|a file.json|--layout.data=2|-np|7|'

OMP_NUM_THREADS=3 run -np 1 -x WORK -- train
check "threads_that_are_set_are_kept" has '|threads 3'

printf 'a prompt\n' | run -np 1 read
check "standard_input_reaches_rank_0" has 'a prompt'

run -np 2 fail
check "status_of_the_failed_rank_passes" test $? = 5

run -np 64 --explain train config.json
check "explain_names_the_command_and_starts_nothing" has 'train config.json'
check "explain_prints_where_each_rank_goes" has 'Process rank: 63'

run -np 0 train
check "zero_ranks_are_refused_with_the_value_seen" has "-np is '0'"

run train config.json
check "ranks_must_be_told" has 'how many ranks?'

SLURM_JOB_ID=1 SLURM_NTASKS=3 run --explain train
check "slurm_tells_the_ranks" has ' -np 3 '

mkdir "$work/alone"
ln -s "$(command -v sh)" "$(command -v dirname)" "$work/alone"
PATH=$work/alone run -np 1 train
check "missing_mpirun_is_named" has 'mpirun is not in PATH'

rm -f "$work"/up.*
"$work/heddle-run" -np 2 save >"$work/out" 2>&1 &
await_ranks
kill -TERM $!
wait $!
check "a_stop_that_ranks_obey_ends_well" test $? = 0
check "ranks_have_time_to_save_on_SIGTERM" test "$(grep -c saved "$work/out")" = 2

rm -f "$work"/up.*
"$work/heddle-run" -np 2 --grace 1 stuck >"$work/out" 2>&1 &
await_ranks
start=$SECONDS
kill -TERM $!
wait $!
check "ranks_that_do_not_stop_are_ended_after_the_grace" test $((SECONDS - start)) -le 6
check "the_end_of_the_grace_is_said" has '1 s are over'

rm -f "$work"/up.*
"$work/heddle-run" -np 2 stuck >"$work/out" 2>&1 &
await_ranks
kill -TERM $!
sleep 0.3
kill -TERM $!
start=$SECONDS
wait $!
check "a_second_signal_ends_ranks_at_once" test $((SECONDS - start)) -le 6

rm -f "$work"/up.*
"$work/heddle-run" -np 2 save >"$work/out" 2>&1 &
await_ranks
disown $!
kill -KILL $!
sleep 3
rm -f "$work"/up.*
sleep 0.5
check "nothing_is_left_when_the_script_is_killed" test ! -e "$work/up.0" -a ! -e "$work/up.1"
