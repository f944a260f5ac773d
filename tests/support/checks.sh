# shellcheck shell=bash
# What test scripts check with: "ok name" or "not ok name", and then what the file `out` holds.
check() { # name condition...
    local name=$1
    shift
    if "$@"; then
        echo "ok $name"
    else
        echo "not ok $name"
        sed 's/^/    /' out | head -n 60
    fi
}
# Run with what is printed in `out`, and tell whether it ended with a status within the time.
exits() { # status command...
    local want=$1 seen
    shift
    timeout -k 5 60 "$@" >out 2>&1 </dev/null
    seen=$?
    [ "$seen" = "$want" ] || echo "exit status $seen, want $want" >>out
    [ "$seen" = "$want" ]
}
says() { # status text... -- command...
    local want=$1 texts=() text
    shift
    while [ "$1" != -- ]; do
        texts+=("$1")
        shift
    done
    shift
    exits "$want" "$@" || return 1
    for text in "${texts[@]}"; do
        grep -qF -- "$text" out || { echo "want: $text" >>out && return 1; }
    done
}
