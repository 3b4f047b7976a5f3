#!/usr/bin/env bash
# Switches every planted bug on, one at a time: the simulator must catch each by name. Then leaves
# every term of docs/law.md out, one at a time: the test named there must pass with it and fail
# without.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=$(cargo test --locked --quiet --no-run --message-format=json --no-default-features \
    --features sim,planted --lib --test planted | grep -o '"executable":"[^"]*"' | cut -d '"' -f 4)
program=$(grep '/planted-[0-9a-f]*$' <<<"$programs")
library=$(grep -v '/planted-[0-9a-f]*$' <<<"$programs")
bugs=$(sed -n 's/^    ("\([a-z-]*\)", Promise::.*/\1/p' tests/planted.rs)
# Terms and tests: the first and the last cell.
terms=$(sed -n 's/^| `\([a-z-]*\)` |.*| `\([a-z0-9_:]*\)` |$/\1 \2/p' docs/law.md)

# Prints what caught it, or all there is to say.
hunt() {
    local said
    if said=$(TIDEGATE_BUG=$2 "$1" --nocapture the_planted_bug_is_caught 2>&1) && grep "^$2: caught" <<<"$said"; then
        return
    fi
    echo "$said"
    echo "planted bug $2 was NOT caught"
}

# Prints what noticed that a term is missing, or that nothing did.
miss() {
    if ! "$1" --exact "$3" 2>&1 | grep -q '^test result: ok. 1 passed'; then
        echo "term $2: $3 does NOT pass with it"
    elif TIDEGATE_WITHOUT=$2 TIDEGATE_BUG=$2 "$1" --exact "$3" 2>&1 | grep -q '^test result: FAILED. 0 passed; 1 failed'; then
        echo "$2: missed by $3"
    else
        echo "term $2: $3 does NOT miss it"
    fi
}
export -f hunt miss

found=$(xargs -P "$(nproc)" -I {} bash -c 'hunt "$0" {}' "$program" <<<"$bugs" || true)
echo "$found"
count=$(wc -w <<<"$bugs")
caught=$(grep -c '^[a-z-]*: caught' <<<"$found" || true)
echo "planted bugs: $caught of $count caught by name"

found=$(xargs -P "$(nproc)" -L 1 bash -c 'miss "$0" "$@"' "$library" <<<"$terms" || true)
grep -v ': missed by' <<<"$found" || true
listed=$(grep -c '^| `' docs/law.md)
missed=$(grep -c '^[a-z-]*: missed by' <<<"$found" || true)
echo "terms of the law: $missed of $listed missed by their test"
[ "$caught" = "$count" ] && [ "$missed" = "$listed" ]
