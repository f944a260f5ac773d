#!/bin/bash
# A program of a user's finds what `make install` put down, through pkg-config, in C and in C++.
set -u
# What an outer make was told stands in the environment; its job server is not ours.
unset MAKEFLAGS MFLAGS MAKELEVEL
build=${HEDDLE_BUILD:-build/release}
cc=${CC:-gcc}
cxx=${CXX:-g++}
sanitize=${SAN:+-fsanitize=$SAN}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
root=$work/root
prefix=/opt/heddle
version=$(sed -n 's/.*HD_VERSION_STRING "\(.*\)"/\1/p' include/heddle/version.h)

check() { # name command...
    local name=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        echo "ok $name"
    else
        echo "not ok $name"
        sed 's/^/    /' "$work/out"
    fi
}

check "make_install_puts_everything_under_DESTDIR_and_PREFIX" \
    make --no-print-directory BUILD="$build" DESTDIR="$root" PREFIX="$prefix" install

export PKG_CONFIG_PATH=$root$prefix/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
cat >"$work/user.c" <<'EOF'
#include <heddle/version.h>
#include <stdio.h>
#include <string.h>
int main(void)
{
    puts(hd_version());
    return strcmp(hd_version(), HD_VERSION_STRING) != 0;
}
EOF
cp "$work/user.c" "$work/user.cc"

links_and_runs() { # compiler source standard
    # shellcheck disable=SC2046,SC2086
    "$1" "-std=$3" -Wall -Werror $sanitize "$work/$2" -o "$work/user" $(pkg-config --cflags --libs heddle) &&
        [ "$(LD_LIBRARY_PATH=$root$prefix/lib "$work/user")" = "$version" ]
}
check "a_C_program_links_with_pkg_config" links_and_runs "$cc" user.c c11
check "a_C++_program_links_with_pkg_config" links_and_runs "$cxx" user.cc c++17

links_static() {
    # shellcheck disable=SC2046,SC2086
    "$cc" -std=c11 $sanitize "$work/user.c" -o "$work/user" "$root$prefix/lib/libheddle.a" \
        $(pkg-config --static --cflags --libs heddle | sed 's/-lheddle//') && [ "$("$work/user")" = "$version" ]
}
check "a_C_program_links_the_archive" links_static

check "pkg_config_tells_the_version" test "$(pkg-config --modversion heddle)" = "$version"

all_headers() { # each one as a user includes it, found in the installed place alone
    local header
    (cd "$root$prefix/include" && printf '#include <%s>\n' heddle/*.h) >"$work/all.c"
    echo 'int main(void) { return 0; }' >>"$work/all.c"
    header=$(pkg-config --cflags heddle)
    # shellcheck disable=SC2086
    "$cc" -std=c11 $header -fsyntax-only "$work/all.c" && "$cxx" -std=c++17 $header -fsyntax-only -x c++ "$work/all.c"
}
check "installed_headers_need_nothing_else" all_headers

only_hd() {
    nm -D --defined-only "$root$prefix/lib/libheddle.so" | awk '$3 !~ /^hd_/ { print; bad = 1 } END { exit bad || NR == 0 }'
}
check "the_library_exports_hd_names_only" only_hd

ranks_start() { # the installed heddle-run finds the installed heddle
    [ -x "$root$prefix/bin/heddle-run" ] && "$root$prefix/bin/heddle-run" --help
}
check "heddle_run_is_installed" ranks_start

removed() {
    make --no-print-directory BUILD="$build" DESTDIR="$root" PREFIX="$prefix" uninstall || return 1
    find "$root" ! -type d
    [ -z "$(find "$root" ! -type d)" ] && [ ! -e "$root$prefix/include/heddle" ]
}
check "make_uninstall_leaves_nothing" removed
