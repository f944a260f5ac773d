#!/bin/bash
# The rules of the house that a compiler does not check. Prints "ok rule" or, after what breaks it,
# "not ok rule". Usage: tests/lint/lint.sh [ROOT]; CC and CXX compile the public headers alone.
set -u
cd "${1:-$(dirname "$0")/../..}" || exit 1
cc=${CC:-gcc}
cxx=${CXX:-g++}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# Floors, lowest first. A file includes its own folder and lower floors only.
floors='
lib/core
lib/report
lib/program lib/backend comm
lib/ops
lib/runtime
parallel
lib/nn lib/optim lib/io
lib/models
lib/jobs
lib/jobs/data lib/jobs/train lib/jobs/sample lib/jobs/generate
lib/jobs/plan
'

mapfile -t code < <(find lib comm parallel include launcher examples tests \
    -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' | sort)
mapfile -t library < <(printf '%s\n' "${code[@]}" | grep -E '^(lib|comm|parallel)/')
mapfile -t scripts < <(find bootstrap .ci launcher tests tools -type f -exec grep -lE '^#!/bin/(ba)?sh' {} + | sort)

# A copy without comments and with empty strings and characters; lines keep their numbers.
bare=$work/bare
for file in "${code[@]}"; do mkdir -p "$bare/${file%/*}"; done
perl -e '
    my $bare = shift;
    for my $file (@ARGV) {
        local $/;
        open my $in, "<", $file or die "$file: $!\n";
        my $text = <$in>;
        $text =~ s{("(?:\\.|[^"\\\n])*"|\x27(?:\\.|[^\x27\\\n])*\x27)|(/\*.*?\*/|//[^\n]*)}
                  {my $hit = $&; defined $1 ? substr($1, 0, 1) x 2 : $hit =~ s/[^\n]//gr}gse;
        open my $out, ">", "$bare/$file" or die "$bare/$file: $!\n";
        print $out $text;
    }' "$bare" "${code[@]}" || exit 1

failed=0
verdict() { # name file-of-violations
    if [ -s "$2" ]; then
        sed 's/^/    /' "$2"
        echo "not ok $1"
        failed=1
    else
        echo "ok $1"
    fi
}

# Words that the library may not call; what follows a dot, an arrow or a letter is another name.
never_calls() { # pattern files...
    local pattern=$1
    shift
    (cd "$bare" && grep -nE "(^|[^A-Za-z0-9_.>])($pattern)[[:space:]]*\(" /dev/null "$@")
}

folder_of() { # path: the floor's folder it lies in, or its first folder
    case $1 in
    lib/jobs/*/*)
        local rest=${1#lib/jobs/}
        echo "lib/jobs/${rest%%/*}"
        ;;
    lib/*/*)
        local rest=${1#lib/}
        echo "lib/${rest%%/*}"
        ;;
    *) echo "${1%%/*}" ;;
    esac
}

declare -A floor
number=0
while read -r line; do
    for folder in $line; do floor[$folder]=$number; done
    number=$((number + 1))
done <<<"$floors"

check_floors() {
    local file number include from to
    grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' /dev/null "${library[@]}" "${headers[@]}" "${outside[@]}" |
        sed -E 's/^([^:]*):([0-9]+):[^"]*"([^"]*)".*/\1 \2 \3/' | while read -r file number include; do
        from=$(folder_of "$file")
        if [ -e "${file%/*}/$include" ]; then
            to=$(folder_of "${file%/*}/$include")
        elif [ -e "lib/$include" ]; then
            to=$(folder_of "lib/$include")
        else
            to=$(folder_of "$include")
        fi
        [ "$from" = "$to" ] && continue
        if [ -z "${floor[$from]:-}" ]; then
            echo "$file:$number: includes \"$include\"; $from sees only <heddle/...>"
        elif [ "$from" = lib/report ] && [ "$to" != lib/core ]; then
            echo "$file:$number: includes \"$include\"; lib/report sees only lib/core"
        elif [ -z "${floor[$to]:-}" ]; then
            echo "$file:$number: includes \"$include\", which lies on no floor"
        elif [ "${floor[$to]}" -ge "${floor[$from]}" ]; then
            echo "$file:$number: includes \"$include\"; $to is not below $from"
        fi
    done
}
mapfile -t headers < <(find include -name '*.h' | sort)
mapfile -t outside < <(find launcher examples -name '*.[ch]' -o -name '*.cc' | sort)
check_floors >"$work/floors"
verdict floors "$work/floors"

# Who may know a foreign library: MPI only comm/, matrix products only the CPU backend.
{
    grep -nE '#[[:space:]]*include[[:space:]]*<mpi\.h>' /dev/null "${library[@]}" "${headers[@]}" | grep -v '^comm/'
    grep -nE '#[[:space:]]*include[[:space:]]*<(dnnl|cblas).*\.h>' /dev/null "${library[@]}" "${headers[@]}" |
        grep -v '^lib/backend/cpu/'
} >"$work/foreign"
verdict foreign_headers "$work/foreign"

# Long files are listed with a reason.
for file in "${code[@]}" "${scripts[@]}"; do
    lines=$(wc -l <"$file")
    [ "$lines" -le 500 ] || grep -qE "^$file [[:space:]]*[A-Za-z]" tests/lint/long_files ||
        echo "$file: $lines lines, want at most 500 (or its name and a reason in tests/lint/long_files)"
done >"$work/long"
sed -E '/^(#|$)/d; s/ .*//' tests/lint/long_files | while read -r file; do
    [ -e "$file" ] && [ "$(wc -l <"$file")" -gt 500 ] || echo "tests/lint/long_files: $file needs no exception"
done >>"$work/long"
verdict at_most_500_lines "$work/long"

never_calls 'malloc|calloc|realloc|reallocarray|free|strdup|strndup|asprintf|vasprintf|getline|aligned_alloc|posix_memalign' \
    "${library[@]}" | grep -v '^lib/core/memory\.c:' >"$work/memory"
verdict memory_through_hdi_alloc "$work/memory"

{
    never_calls 'exit|_exit|_Exit|quick_exit|abort|assert|raise|printf|vprintf|puts|putchar|perror' "${library[@]}"
    (cd "$bare" && grep -nwE 'stdout|stderr' /dev/null "${library[@]}")
} | sort -u >"$work/prints"
verdict library_never_exits_aborts_or_prints "$work/prints"

# An unsettled thought belongs in an issue.
grep -nwE 'TODO|FIXME|XXX' /dev/null "${code[@]}" "${scripts[@]}" Makefile | grep -v '^tests/lint/' >"$work/marks"
verdict no_marks_of_unfinished_work "$work/marks"

for header in "${headers[@]}"; do
    "$cc" -std=c11 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only -x c - <<<"#include <${header#include/}>" ||
        echo "$header: does not compile alone as C11"
    "$cxx" -std=c++17 -Wall -Wextra -Wpedantic -Werror -Iinclude -fsyntax-only -x c++ - <<<"#include <${header#include/}>" ||
        echo "$header: does not compile alone as C++17"
done >"$work/alone" 2>&1
verdict headers_compile_alone "$work/alone"

# Other versions of clang-format disagree with 14 in details, so they are not asked.
for formatter in clang-format-14 clang-format; do
    "$formatter" --version 2>/dev/null | grep -q 'version 14\.' || continue
    "$formatter" --dry-run "${code[@]}" 2>&1 | grep -E '^[^ ].*: warning:' | sort -u -t: -k1,1 |
        sed -E 's/(:[0-9]+):.*/\1: make format changes this/' >"$work/format"
    verdict formatted "$work/format"
    break
done

if command -v shellcheck >/dev/null; then
    shellcheck -x --format=gcc "${scripts[@]}" >"$work/shell" 2>&1
    verdict scripts_pass_shellcheck "$work/shell"
fi

exit "$failed"
