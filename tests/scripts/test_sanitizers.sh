#!/bin/bash
# timeout: 1500
# Unit programs, and those of several ranks on 4 ranks, under AddressSanitizer and
# UndefinedBehaviorSanitizer. Open MPI's own leaks are in tests/support/lsan.supp.
set -u

if [ -n "${SAN:-}" ]; then
    echo "ok this_run_is_sanitized_itself"
    exit 0
fi
build=build/sanitized
make -j"$(nproc)" BUILD=$build CUDA=0 SAN=address,undefined OPT='-O1 -march=x86-64-v3' tests >"$TMPDIR/build.log" 2>&1 || {
    tail -n 30 "$TMPDIR/build.log"
    echo "not ok the_sanitized_build"
    exit 1
}
echo "ok the_sanitized_build"
SAN=address,undefined NP=4 tests/run.sh $build 'check_*' >"$TMPDIR/run.log" 2>&1
status=$?
sed -nE 's/^(ok|FAIL) +([^ ]+( on 4)?) .*/\1 \2/p' "$TMPDIR/run.log" | tr ' /' '__' |
    sed -E 's/^ok_(.*)/ok \1/; s/^FAIL_(.*)/not ok \1/'
[ $status = 0 ] || cat "$TMPDIR/run.log"
exit $status
