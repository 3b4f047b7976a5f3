#!/usr/bin/env bash
# Builds the crate once per planted bug and runs the simulator on it: every bug must be caught by name.
set -euo pipefail
cd "$(dirname "$0")/.."
outputs=$(mktemp -d)
trap 'rm -rf "$outputs"' EXIT
bugs=$(sed -n 's/^\(bug-[a-z-]*\) = .*/\1/p' Cargo.toml)
declare -A running

judge() {
    if wait "${running[$1]}" && grep "^$1: caught" "$outputs/$1"; then
        caught=$((caught + 1))
    else
        cat "$outputs/$1"
        echo "planted bug $1 was NOT caught" >&2
    fi
}

# One runs while the next is built.
caught=0
count=0
last=
for bug in $bugs; do
    program=$(cargo test --locked --quiet --no-run --message-format=json --no-default-features \
        --features "sim,$bug" --test planted | grep -o '"executable":"[^"]*"' | tail -n 1 | cut -d '"' -f 4)
    "$program" --nocapture >"$outputs/$bug" 2>&1 &
    running[$bug]=$!
    count=$((count + 1))
    [ -z "$last" ] || judge "$last"
    last=$bug
done
judge "$last"
echo "planted bugs: $caught of $count caught by name"
[ "$caught" = "$count" ]
