#!/bin/bash
# timeout: 600
# The whole source compiles without a warning with clang too, when it is installed.
set -u
unset MAKEFLAGS MFLAGS MAKELEVEL CC CXX
if ! command -v clang >/dev/null; then
    echo "ok without_clang_there_is_nothing_to_ask"
    exit 0
fi
log=$(mktemp) || exit 1
if make --no-print-directory -j2 CC=clang CXX=clang++ WERROR=1 OPT=-O0 SAN= BUILD=build/clang \
    all tests examples >"$log" 2>&1; then
    echo "ok clang_has_no_warning"
else
    echo "not ok clang_has_no_warning"
    grep -vE '^  (cc|c\+\+|nvcc|ar|ld) +build/' "$log" | head -n 60
fi
rm -f "$log"
