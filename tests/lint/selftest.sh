#!/bin/bash
# Every rule of lint.sh sees a violation that is planted for it, and nothing in what is allowed.
set -u
cd "$(dirname "$0")/../.." || exit 1
tree=$(mktemp -d) || exit 1

mkdir -p "$tree"/{.ci,comm,parallel,include/heddle,launcher,examples,tools,tests/lint} \
    "$tree"/lib/{core,report,program,backend/cpu,ops,runtime,nn,optim,io,models,jobs}
cp include/heddle/status.h "$tree/include/heddle"
cp .clang-format "$tree"
cp tests/lint/lint.sh tests/lint/long_files "$tree/tests/lint"
printf '#!/bin/sh\necho hello\n' | tee "$tree/bootstrap" "$tree/.ci/run" >/dev/null
printf 'all:\n' >"$tree/Makefile"

plant() { # path, text from standard input
    mkdir -p "$tree/${1%/*}"
    cat >"$tree/$1"
}
run() { bash "$tree/tests/lint/lint.sh" "$tree" >"$tree.out" 2>&1; }
trap 'rm -rf "$tree" "$tree.out"' EXIT
bad=0
check() { # name command...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        echo "not ok $name"
        bad=1
        sed 's/^/    /' "$tree.out"
    fi
}
# shellcheck disable=SC2317 # called through check
says() { grep -qF -- "$1" "$tree.out"; }

# What may look like a violation and is none.
plant lib/core/memory.h <<<'int hdi_size;'
plant lib/core/memory.c <<<'void *take(void) { return malloc(1); }'
plant lib/ops/allowed.c <<'EOF'
/* free(x), exit(1), printf("x") in a comment, on
 * two lines: abort() */
#include "core/memory.h"
#include "ops/allowed.h"
#include <heddle/status.h>
#include <stdio.h>
static const char *text = "free(x); exit(1); /* ";
static void allowed(struct table *table, FILE *file)
{
    table->free(text);
    hdi_free(text);
    fprintf(file, "%d", MPI_Abort(1));
}
EOF
plant lib/ops/allowed.h <<<'int hdi_allowed;'
plant launcher/main.h <<<'int hdi_main;'
plant launcher/main.c <<'EOF'
#include "launcher/main.h"
#include <heddle/status.h>
#include <stdlib.h>
int main(void)
{
    exit(0);
}
EOF
if command -v clang-format >/dev/null; then
    clang-format -i "$tree"/lib/*/*.[ch] "$tree"/launcher/*.[ch]
fi
run
check "lint_lets_what_is_allowed_pass" test $? = 0

plant lib/core/up.c <<<'#include "ops/allowed.h"'
plant lib/program/sibling.c <<<'#include "backend/x.h"'
plant lib/report/up.c <<<'#include "program/x.h"'
plant launcher/inside.c <<<'#include "core/memory.h"'
plant examples/inside.c <<<'#include "core/memory.h"'
plant lib/models/nowhere.c <<<'#include "nowhere/x.h"'
plant lib/nn/mpi.c <<<'#include <mpi.h>'
plant lib/ops/blas.c <<<'#include <cblas.h>'
seq -f 'int x%g;' 501 | plant lib/nn/long.c
plant comm/memory.c <<<'void f(void) { char *x = strdup("a"); free (x); }'
plant lib/jobs/leave.c <<<'void f(void) { if (1) exit(1); }'
plant parallel/print.c <<<'void f(void) { fprintf(stderr, "x"); }'
plant lib/io/mark.c <<<'/* TO''DO: later */'
plant include/heddle/alone.h <<<'size_t hd_alone(void);'
plant include/heddle/not_cpp.h <<<'extern int hd_class; static inline int *f(void *x) { return x; }'
plant lib/nn/format.c <<<'int    x ;'
plant tools/bad.sh <<<$'#!/bin/sh\ncd $1'
echo 'lib/core/memory.c not long' >>"$tree/tests/lint/long_files"
run
check "lint_fails_on_violations" test $? = 1
check "lint_sees_a_look_up" says 'lib/core/up.c:1: includes "ops/allowed.h"; lib/ops is not below lib/core'
check "lint_sees_a_look_at_a_sibling" says 'lib/program/sibling.c:1: includes "backend/x.h"'
check "lint_keeps_report_on_core" says 'lib/report/up.c:1: includes "program/x.h"; lib/report sees only lib/core'
check "lint_keeps_the_launcher_outside" says 'launcher/inside.c:1:'
check "lint_keeps_examples_outside" says 'examples/inside.c:1:'
check "lint_sees_a_folder_on_no_floor" says 'which lies on no floor'
check "lint_keeps_mpi_in_comm" says 'lib/nn/mpi.c:1:'
check "lint_keeps_blas_in_the_backend" says 'lib/ops/blas.c:1:'
check "lint_caps_files" says 'lib/nn/long.c: 501 lines'
check "lint_sees_idle_exceptions" says 'lib/core/memory.c needs no exception'
check "lint_sees_bare_memory_calls" says 'comm/memory.c:1:'
check "lint_sees_exits" says 'lib/jobs/leave.c:1:'
check "lint_sees_prints" says 'parallel/print.c:1:'
check "lint_sees_unfinished_work" says 'lib/io/mark.c:1:'
check "lint_compiles_headers_alone_as_c" says 'include/heddle/alone.h: does not compile alone as C11'
check "lint_compiles_headers_alone_as_cpp" says 'include/heddle/not_cpp.h: does not compile alone as C++17'
if clang-format --version 2>/dev/null | grep -q 'version 14\.'; then
    check "lint_sees_bad_layout" says 'lib/nn/format.c:1: make format'
fi
if command -v shellcheck >/dev/null; then
    check "lint_sees_bad_scripts" says 'tools/bad.sh:2:'
fi
exit "$bad"
