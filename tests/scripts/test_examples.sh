#!/bin/bash
# The examples, built as a user would against the installed tree, do what they say.
set -u
unset MAKEFLAGS MFLAGS MAKELEVEL "${!OMPI_@}" "${!PMIX_@}"
build=${HEDDLE_BUILD:-build/release}
cc=${CC:-gcc}
cxx=${CXX:-g++}
sanitize=${SAN:+-fsanitize=$SAN}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
root=$work/root

check() { # name command...
    local name=$1
    shift
    if "$@" >"$work/out" 2>&1 </dev/null; then
        echo "ok $name"
    else
        echo "not ok $name"
        sed 's/^/    /' "$work/out"
    fi
}

make --no-print-directory BUILD="$build" DESTDIR="$root" PREFIX=/usr install >"$work/out" 2>&1 || {
    echo "not ok make_install"
    sed 's/^/    /' "$work/out"
    exit 1
}
export PKG_CONFIG_PATH=$root/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root LD_LIBRARY_PATH=$root/usr/lib
export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1

builds() { # source
    local compiler=$cc standard=c11 name=${1##*/}
    [ "${name##*.}" = c ] || { compiler=$cxx standard=c++17; }
    # shellcheck disable=SC2046,SC2086
    "$compiler" "-std=$standard" -Wall -Wextra -Wpedantic -Werror $sanitize "$1" -o "$work/${name%.*}" \
        $(pkg-config --cflags --libs heddle) -lm
}
short() { [ "$(wc -l <"$1")" -lt 100 ]; }
for source in examples/*.c examples/*.cc; do
    name=${source##*/}
    check "${name}_builds_against_the_installed_tree" builds "$source"
    check "${name}_has_less_than_100_lines" short "$source"
done

cd "$work" || exit 1
learns() { # the last loss is below half of the first
    "$@" >said || return 1
    cat said
    sed -n 's/.*loss \([0-9.]*\).*/\1/p' said | awk 'NR == 1 { first = $1 } { last = $1 } END { exit !(last < first / 2) }'
}
one_call() {
    timeout 60 ./01_train_one_call >said || return 1
    cat said
    [ -s 01_run/loss.svg ] && [ -d 01_run/checkpoints ] && awk '/^loss/ { exit !($2 < $10 + 0) }' said
}
ranks=(mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca btl_vader_single_copy_mechanism none
       -x LD_LIBRARY_PATH)
[ "$(id -u)" != 0 ] || ranks+=(--allow-run-as-root)
check "one_call_learns_more_than_counts_of_bytes" one_call
check "a_block_of_one_s_own_learns_on_2_ranks" learns timeout 60 "${ranks[@]}" -np 2 ./02_transformer_block
check "a_custom_op_has_the_right_gradient" timeout 60 ./03_custom_op
