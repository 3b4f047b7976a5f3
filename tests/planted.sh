#!/usr/bin/env bash
# Builds the crate once per planted bug and runs the simulator on it: every bug must be caught by name.
set -euo pipefail
cd "$(dirname "$0")/.."
caught=0
bugs=$(sed -n 's/^\(bug-[a-z-]*\) = .*/\1/p' Cargo.toml)
for bug in $bugs; do
    out=$(cargo test --quiet --no-default-features --features "sim,$bug" --test planted -- --nocapture 2>&1) || {
        printf '%s\n' "$out"
        echo "planted bug $bug was NOT caught" >&2
        exit 1
    }
    printf '%s\n' "$out" | grep "^$bug: caught"
    caught=$((caught + 1))
done
echo "planted bugs: $caught of $caught caught by name"
