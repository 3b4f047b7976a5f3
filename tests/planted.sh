#!/usr/bin/env bash
# Switches every planted bug on, one at a time: the simulator must catch each by name.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(cargo test --locked --quiet --no-run --message-format=json --no-default-features \
    --features sim,planted --test planted | grep -o '"executable":"[^"]*"' | tail -n 1 | cut -d '"' -f 4)
bugs=$(sed -n 's/^    ("\([a-z-]*\)", Promise::.*/\1/p' tests/planted.rs)

# Prints what caught it, or all there is to say.
hunt() {
    local said
    if said=$(TIDEGATE_BUG=$2 "$1" --nocapture the_planted_bug_is_caught 2>&1) && grep "^$2: caught" <<<"$said"; then
        return
    fi
    echo "$said"
    echo "planted bug $2 was NOT caught"
}
export -f hunt

found=$(xargs -P "$(nproc)" -I {} bash -c 'hunt "$0" {}' "$program" <<<"$bugs" || true)
echo "$found"
count=$(wc -w <<<"$bugs")
caught=$(grep -c '^[a-z-]*: caught' <<<"$found" || true)
echo "planted bugs: $caught of $count caught by name"
[ "$caught" = "$count" ]
