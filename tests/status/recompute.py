#!/usr/bin/env python3
"""Recomputes what a controller publishes from what its /v1/status prints, with none of its code.

    recompute.py URL [COUNT]

Reads GET URL/v1/status once for each table until COUNT numbers (100 unless stated) were computed
from their reasons, and says which are not what was published. Needs nothing but Python 3.

The constants are those of docs/law.md; where a table keeps an old limit because the new one is close
(1 % below to 3 % above), the old one is computed to be kept.
"""
import json
import math
import sys
import time
import urllib.request

KEPT_BELOW, KEPT_ABOVE = 0.99, 1.03
PROBE_MAX, RECOVERED, SLOW_START = 1.03, 0.97, 1.25
STEER_DOWN, STEER_UP = 0.7, 0.05
WAITING_PART_OF_SLO, IN_FLIGHT_SPARE = 0.75, 1.1
UNLISTED, EVEN_PART, SHARE_STEP = 10_000, 0.1, 20_000
PATIENCE_S = 60


def rounded_down(value):
    """Three significant digits, down."""
    if value < 1000:
        return math.floor(value)
    step = 10 ** (math.floor(math.log10(value)) - 2)
    return math.floor(value / step) * step


def damped(new, old):
    if isinstance(new, int) and isinstance(old, int) and old * KEPT_BELOW <= new <= old * KEPT_ABOVE:
        return old
    return new


def close(a, b):
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1)


class Numbers:
    def __init__(self):
        self.computed, self.wrong = 0, []

    def same(self, what, published, computed, equal=lambda a, b: a == b):
        self.computed += 1
        if not equal(published, computed):
            self.wrong.append(f"{what}: published {published}, computed {computed}")


def pool_numbers(numbers, where, tick, before, name):
    pool, entry = tick["pools"][name], tick["table"]["pools"][name]
    old = before["table"]["pools"].get(name) if before else None
    estimate, decision = pool["estimate"], pool["decision"]
    ready = estimate["ready"]
    if estimate["per_replica"] is not None:
        numbers.same(f"{where} capacity", estimate["capacity"], estimate["per_replica"] * ready, close)
    basis = decision["budget"]
    if estimate["per_replica"] is not None:
        basis = estimate["per_replica"] * max(ready, 1)
    waiting = WAITING_PART_OF_SLO * entry["slo_ms"] / 1000 * basis
    numbers.same(f"{where} waiting_work", decision["waiting_work"], waiting, close)
    limits = [
        ("budget", decision["budget"] * 60),
        ("waiting_work", decision["waiting_work"]),
        ("in_flight", decision["in_flight"] and math.ceil(decision["in_flight"])),
    ]
    for field, value in limits:
        new = "unlimited" if value is None else rounded_down(value)
        numbers.same(f"{where} table {field}", entry[field], damped(new, old[field]) if old else new)
    if decision["in_flight"] is not None:
        batch = IN_FLIGHT_SPARE * estimate["running_saturated"] * max(ready, 1)
        above = (decision["in_flight"] - batch) / decision["in_flight"]
        numbers.same(f"{where} in_flight above a batch", decision["in_flight_above_batch"], above, close)
    decided(numbers, f"{where} {decision['motion']} {decision['reason']}", estimate, decision, before, name)


def decided(numbers, where, estimate, decision, before, name):
    """The budget from the one before, by the reason that is named; where that says it wholly."""
    if not before or name not in before["pools"]:
        return
    last, budget, capacity = before["pools"][name]["decision"]["budget"], decision["budget"], estimate["capacity"]
    motion, reason = decision["motion"], decision["reason"]
    if motion == "hold" and reason != "backlogged":
        numbers.same(where, budget, last, close)
    elif reason == "capacity_measured":
        numbers.same(where, budget, PROBE_MAX * capacity, close)
    elif reason == "capacity_lost":
        numbers.same(where, budget, last * estimate["ready"] / estimate["ready_before"], close)
    elif reason == "slow_start":
        numbers.same(where, budget, SLOW_START * last, close)
    elif reason == "recovered" and motion == "follow":
        numbers.same(where, budget, RECOVERED * capacity, close)
    elif reason == "probing":
        most = max(last, min(last + STEER_UP * capacity, PROBE_MAX * capacity))
        numbers.same(f"{where} at most", budget, most, lambda a, b: last <= a * (1 + 1e-9) and a <= b * (1 + 1e-9))


def row_numbers(numbers, where, tick, before, name):
    pool = tick["pools"][name]
    rows = {(row["model"], row["tier"]): row for row in tick["table"]["rows"] if row["pool"] == name}
    old = {(row["model"], row["tier"]): row for row in before["table"]["rows"]} if before else {}
    dimension = {"tokens": "tokens_per_minute", "requests": "requests_per_minute", "images": "images_per_minute"}
    unit = dimension[tick["table"]["pools"][name]["unit"]]
    for row in pool["rows"]:
        key = (row["model"], row["tier"])
        entry = rows[key]["limits"][unit]
        kept = old[key]["limits"][unit] if key in old else None
        at = f"{where} {row['model']} {row['tier']}"
        guarantee, ceiling = round(row["guarantee"] * 60), entry["ceiling"]
        most = math.inf if ceiling == "unlimited" else ceiling
        numbers.same(f"{at} guarantee", entry["guarantee"], guarantee)
        if row["bound"] == "ceiling":
            limit = ceiling
        elif row["bound"] == "guarantee":
            limit = min(guarantee, most)
        else:
            limit = rounded_down(row["limit"] * 60)
            if row["bound"] != "priority":
                limit = max(limit, guarantee)
            limit = min(damped(limit, kept["tier_limit"]) if kept else limit, most)
        numbers.same(f"{at} limit ({row['bound']})", entry["tier_limit"], limit)
        if row["key_share"] is not None:
            share = max(rounded_down(row["key_share"] * 60), 1)
            last = kept.get("key_share", "unlimited") if kept else None
            numbers.same(f"{at} share of a key", entry["key_share"], damped(share, last))
    level = pool["level"]
    if level:
        # Nothing is left over: what tiers ask for, as far as it is let in, is the budget.
        asked = sum(min(row["demand"]["offered"], row["limit"]) for row in pool["rows"])
        numbers.same(f"{where} what is shared", pool["decision"]["budget"], asked, close)


def share_numbers(numbers, where, tick, before, name):
    """Nodes' parts follow what each is asked, and stay while they are close."""
    entry, nodes = tick["table"]["pools"][name], tick["pools"][name]["demand"]["nodes"]
    if not nodes or any(node["silent"] for node in nodes):
        return
    offered, free = sum(node["offered"] for node in nodes), 1_000_000 - UNLISTED
    even = 1 / len(nodes)
    part = lambda node: (1 - EVEN_PART) * node["offered"] / offered + EVEN_PART * even if offered > 0 else even
    fresh = {node["node"]: int(part(node) * free) for node in nodes}
    old = before["table"]["pools"][name]["shares"] if before else {}
    if old.keys() == fresh.keys() and all(abs(old[node] - fresh[node]) <= SHARE_STEP for node in fresh):
        fresh = old
    for node, share in fresh.items():
        numbers.same(f"{where} share of {node}", entry["shares"][node], share)


def tables(url):
    """Every table's status, as they come."""
    last, since = None, time.monotonic()
    while time.monotonic() - since < PATIENCE_S:
        with urllib.request.urlopen(f"{url}/v1/status", timeout=10) as answer:
            tick = json.load(answer)["tick"]
        stamp = (tick["table"]["epoch"], tick["table"]["version"], tick["table"]["tick"])
        if stamp != last:
            last, since = stamp, time.monotonic()
            yield tick
        time.sleep(0.1)


def main():
    url = sys.argv[1].rstrip("/")
    wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    numbers, before, motions = Numbers(), None, set()
    for tick in tables(url):
        # Only a table whose predecessor was seen says what it kept.
        if before and tick["table"]["tick"] == before["table"]["tick"] + 1:
            for name, pool in tick["pools"].items():
                where = f"tick {tick['table']['tick']} {name}"
                motions.add(f"{pool['decision']['motion']} {pool['decision']['reason']}")
                pool_numbers(numbers, where, tick, before, name)
                row_numbers(numbers, where, tick, before, name)
                share_numbers(numbers, where, tick, before, name)
        before = tick
        if numbers.computed >= wanted:
            break
    for line in numbers.wrong:
        print(line)
    print(f"{numbers.computed - len(numbers.wrong)} of {numbers.computed} numbers are what their reasons come to")
    print(f"decided: {', '.join(sorted(motions))}")
    return 0 if numbers.computed >= wanted and not numbers.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
