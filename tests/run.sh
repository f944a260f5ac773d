#!/bin/bash
# Run the test programs of a build and the test scripts; the last line is "N passed, N failed".
# Usage: tests/run.sh [BUILD_FOLDER [NAME_PATTERN]], from the root of the source.
# RANKS: the numbers of ranks for tests/multi, unless the test's source says /* ranks: 2 4 */; it may say
# /* ranks: 2 4, at most 5 */ where it has no work for more.
# HEDDLE_DEVICE=cuda: on the GPU, and tests/gpu, too; without it, of tests/gpu those whose source says
# /* device: none */, where CUDA was built. NP: numbers of ranks in place of those; on the GPU 2 4 8.
# What a program says it skipped is shown, and counted neither as passed nor as failed.
# HEDDLE_GRAPHS=1: sessions of ranks replay graphs; on the CPU, those of tests/support/hdt_recorder.h.
# HEDDLE_COPIES=host, peers: ranks that share a GPU exchange by copy engines, through host memory or into each other's.
# SANITIZER=memcheck, racecheck, ...: only tests/gpu's programs of one process, under compute-sanitizer.
# PART=K/N: of check_layouts the K-th of N shares of its layouts.
# SAN: the sanitizers it was built with. TEST_TIMEOUT: seconds for each program. JOBS: unit programs at once.
set -u

san=${SAN:-}
variant=${san:-release}
build=${1:-build/${variant//,/-}}
pattern=${2:-*}
ranks=${RANKS:-1 2 4}
device=${HEDDLE_DEVICE:-cpu}
numbers=${NP:-}
sanitizer=${SANITIZER:-}
timeout=120
if [ "$device" = cuda ]; then # ranks that share a GPU take turns
    timeout=300
    numbers=${NP:-2 4 8}
fi
timeout=${TEST_TIMEOUT:-$timeout}
jobs=${JOBS:-2}
support=$PWD/tests/support

export HEDDLE_SOURCE=${HEDDLE_SOURCE:-$PWD}
export HEDDLE_BUILD=$build
work=$(mktemp -d "${TMPDIR:-/tmp}/heddle-check.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work
ulimit -c 0

if [ -n "$san" ]; then
    timeout=$((timeout * 3))
    export LSAN_OPTIONS=suppressions=$support/lsan.supp:print_suppressions=0
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
fi

# Ranks share cores: they are not bound, and give way when idle. Single-copy messages between processes
# need ptrace rights that containers withhold.
mpirun_flags=(--oversubscribe --bind-to none --timeout "$timeout" --mca mpi_yield_when_idle 1
              --mca btl_vader_single_copy_mechanism none)
[ "$(id -u)" = 0 ] && mpirun_flags+=(--allow-run-as-root)

# Leaks of Open MPI's libraries are forgiven by names in their stacks. Where libc has no debug symbols, the
# stacks of ranks are unwound the slow way, which finds who called libc.
libc=$(ldd /bin/sh 2>/dev/null | awk '/libc\.so/ { print $3 }')
id=$(readelf -n "$libc" 2>/dev/null | sed -n 's/.*Build ID: //p')
unwind_slowly=fast_unwind_on_malloc=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}
if [ -n "$san" ] && [ ! -e "/usr/lib/debug/.build-id/${id:0:2}/${id:2}.debug" ]; then
    mpirun_flags+=(-x "ASAN_OPTIONS=$unwind_slowly")
fi

passed=0
failed=0
failures=()

fail() { # name count
    failed=$((failed + $2))
    failures+=("$1")
}

show() { # mark name checks seconds
    printf '%-5s %-44s %5s checks %6s s\n' "$1" "$2" "$3" "$4"
}

# Run a command for a name: its output, exit status and seconds go to files.
run() { # name command...
    local log=$work/${1//[\/ ]/_} start=$EPOCHREALTIME status
    shift
    timeout -k 10 $((timeout + 15)) "$@" >"$log.out" 2>&1 </dev/null
    status=$?
    echo "$status $(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')" >"$log.end"
}

explain() { # exit status
    case $1 in
    110 | 124 | 137) echo "ended by the timeout of $timeout s or killed (exit status $1)" ;;
    *) echo "exit status $1" ;;
    esac
}

# What compute-sanitizer found; 1 if it did not come to say so.
sanitizer_errors() { # output
    local errors
    errors=$(sed -nE 's/^=+ (ERROR|RACECHECK) SUMMARY: ([0-9]+) .*/\2/p' "$1" | tail -n 1)
    echo "${errors:-1}"
}

# Count what a program's run left: Check's line, or one failure if it never came to print it.
count() { # name
    local log=$work/${1//[\/ ]/_} status seconds checks=0 bad=0 line
    read -r status seconds <"$log.end"
    line=$(grep -E '^[0-9]+%: Checks: [0-9]+, Failures: [0-9]+, Errors: [0-9]+' "$log.out" | tail -n 1)
    if [ -n "$line" ]; then
        read -r checks bad < <(sed -E 's/.*Checks: ([0-9]+), Failures: ([0-9]+), Errors: ([0-9]+).*/\1 \2 \3/' \
            <<<"$line" | awk '{ print $1, $2 + $3 }')
    fi
    passed=$((passed + checks - bad))
    [ -z "$sanitizer" ] || bad=$((bad + $(sanitizer_errors "$log.out")))
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
    if [ -z "$line" ] && [ "$bad" = 0 ]; then bad=1; fi
    report "$1" "$checks" "$bad" "$status" "$seconds"
}

# The same for a script, which prints "ok name" and "not ok name".
count_script() { # name
    local log=$work/${1//[\/ ]/_} status seconds good bad
    read -r status seconds <"$log.end"
    good=$(grep -c '^ok ' "$log.out")
    bad=$(grep -c '^not ok ' "$log.out")
    passed=$((passed + good))
    if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ "$good" = 0 ]; }; then bad=1; fi
    report "$1" "$((good + bad))" "$bad" "$status" "$seconds"
}

report() { # name checks bad status seconds
    if [ "$3" = 0 ]; then
        show ok "$1" "$2" "$5"
        sed -n 's/^skipped: /      skipped: /p' "$work/${1//[\/ ]/_}.out" | sort -u
        return
    fi
    fail "$1" "$3"
    show FAIL "$1" "$2" "$5"
    sed 's/^/    /' "$work/${1//[\/ ]/_}.out" | tail -n 200
    echo "    $(explain "$4")"
}

programs() { # folder: its test programs, by the sources, so that one that was not built is missed
    local source
    [ -z "$sanitizer" ] || [ "$1" = gpu ] || return
    for source in tests/"$1"/check_*.c; do
        [ -e "$source" ] || continue
        source=${source##*/}
        # shellcheck disable=SC2053
        [[ ${source%.c} == $pattern ]] && echo "${source%.c}"
    done
}

ranks_of() { # folder name: the numbers that its source asks for
    sed -nE 's|.*/\* ranks: ([0-9 ]+)(, at most [0-9]+)? \*/.*|\1|p' "tests/$1/$2.c" | head -n 1
}

most_of() { # folder name: the most ranks that it has work for, if its source names them
    sed -nE 's|.*/\* ranks: [0-9 ]+, at most ([0-9]+) \*/.*|\1|p' "tests/$1/$2.c" | head -n 1
}

needs_no_device() { # name: of tests/gpu
    grep -qxF '/* device: none */' "tests/gpu/$1.c"
}

built_cuda() { # as make says, and what it left
    [ "${CUDA:-1}" = 1 ] && [ -e "$build/lib/backend/cuda/backend.o" ]
}

run_on_ranks() { # folder name numbers
    local n most
    most=$(most_of "$1" "$2")
    for n in ${numbers:-${3:-$ranks}}; do
        [ "$n" -le "${most:-$n}" ] || continue
        run "$1/$2 on $n" mpirun "${mpirun_flags[@]}" -np "$n" "$build/tests/$1/$2"
        count "$1/$2 on $n"
    done
}

start=$EPOCHREALTIME

single=$(programs unit | sed 's|^|unit/|')
several=$(programs multi | sed 's|^|multi/|') # of ranks
if [ "$device" != cuda ]; then
    for name in $(programs gpu); do
        needs_no_device "$name" || continue
        if ! built_cuda; then
            echo "skip  gpu/$name: built without CUDA"
        elif [ -n "$(ranks_of gpu "$name")" ]; then
            several+=" gpu/$name"
        else
            single+=" gpu/$name"
        fi
    done
fi
for name in $single; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    run "$name" "$build/tests/$name" &
done
wait
for name in $single; do count "$name"; done

if [ -n "$several" ] && ! command -v mpirun >/dev/null; then
    echo "FAIL  mpirun is not in PATH: tests of ranks cannot run (Debian, Ubuntu: openmpi-bin)"
    fail "mpirun" "$(wc -w <<<"$several")"
    several=
fi
for name in $several; do
    run_on_ranks "${name%/*}" "${name#*/}" "$(ranks_of "${name%/*}" "${name#*/}")"
done

under=()
if [ -n "$sanitizer" ]; then
    # Refused calls are what some tests want; NVIDIA's own kernels (nvjet, cudnn) are not ours to prove.
    under=(compute-sanitizer --tool "$sanitizer" --error-exitcode 9 --report-api-errors no)
    [ "$sanitizer" != racecheck ] || under+=(--kernel-name-exclude kernel_substring=nvjet
                                            --kernel-name-exclude kernel_substring=cudnn)
    export CK_FORK=no # the tool does not follow forks
fi
if [ "$device" = cuda ]; then
    for name in $(programs gpu); do
        own=$(ranks_of gpu "$name")
        if [ -z "$own" ]; then
            run "gpu/$name" "${under[@]}" "$build/tests/gpu/$name"
            count "gpu/$name"
        elif [ -z "$sanitizer" ]; then
            run_on_ranks gpu "$name" "$own"
        fi
    done
fi

# Test programs keep Open MPI's plugins (hdt_main.c); of heddle only the slow unwinder finds the frames
# that lsan.supp names.
[ -z "$san" ] || export ASAN_OPTIONS=$unwind_slowly
for script in tests/scripts/test_*.sh; do
    [ -z "$sanitizer" ] || break
    name=${script##*/}
    # shellcheck disable=SC2053
    { [ -e "$script" ] && [[ ${name%.sh} == $pattern ]]; } || continue
    own=$(sed -n 's/^# timeout: \([0-9]*\)$/\1/p' "$script") # a script may ask for more seconds
    timeout=${own:-$timeout} run "scripts/$name" bash "$script"
    count_script "scripts/$name"
done

[ ${#failures[@]} = 0 ] || printf '%s\n' "${failures[@]/#/failed: }"
awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.0f s\n", b - a }'
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
