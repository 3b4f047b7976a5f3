//! The limiter beside others, in one run, interleaved: medians of ratios, so that a noisy machine
//! disturbs both sides alike. Every side starts from the raw bytes of a key and reads a clock.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use limitador::limit::{Context, Limit as Rule};
use tidegate::enforce::{Limiter, Request, Settlement, Verdict};
use tidegate::unit::{Clock, Dimension, Limit, PPM, SystemClock, WorkUnit};
use tidegate::wire::table::SCHEMA;
use tidegate::wire::{Entry, LimitTable, PoolEntry, Row, Stamp, Yields};

const KEYS: usize = 1_000_000;
const CALLS: usize = 1_000_000;
const ROUNDS: usize = 7;
const MOST: u64 = 1 << 30;

type Key = [u8; 48];
type Governor = DefaultKeyedRateLimiter<Key>;

fn key(at: usize) -> Key {
    let text =
        format!("sk-{:045x}", (at as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    text.as_bytes().try_into().expect("48 bytes")
}

/// Which key asks, call by call.
fn calls(zipf: bool, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let draw = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let part = (state >> 11) as f64 / (1_u64 << 53) as f64;
        // The density of rank r is proportional to 1 / r.
        let rank = if zipf { (KEYS as f64).powf(part) as usize - 1 } else { (part * KEYS as f64) as usize };
        rank.min(KEYS - 1) as u32
    };
    (0..CALLS).map(draw).collect()
}

fn table(version: u64, full: bool) -> LimitTable {
    let finite = Limit::Finite(MOST);
    let key = Entry { key_limit: finite, ..Entry::default() };
    let all = Entry {
        tier_limit: Limit::Finite(1 << 50),
        safe: Limit::Finite(1 << 50),
        account_limit: finite,
        ..key
    };
    let limits = match full {
        false => BTreeMap::from([
            (Dimension::RequestsPerMinute, key),
            (Dimension::TokensPerMinute, Entry::default()),
        ]),
        true => [
            Dimension::RequestsPerMinute,
            Dimension::TokensPerMinute,
            Dimension::InputTokensPerMinute,
            Dimension::OutputTokensPerMinute,
        ]
        .map(|dimension| (dimension, all))
        .into(),
    };
    let row = Row {
        model: "llama-3-70b".into(),
        tier: "starter".into(),
        pool: "p".into(),
        yields: Yields::default(),
        limits,
        product: None,
        budgets: BTreeMap::new(),
        credit: Default::default(),
    };
    let pool = PoolEntry {
        unit: WorkUnit::Tokens,
        output_cost_milli: 1_000,
        budget: Limit::Unlimited,
        waiting_work: Limit::Unlimited,
        slo_ms: 0,
        in_flight: Limit::Unlimited,
        degraded: false,
        shares: BTreeMap::from([("n".into(), PPM)]),
        unlisted_share: 0,
    };
    LimitTable {
        schema: SCHEMA,
        stamp: Stamp { epoch: 1, version, tick: version },
        policy: "00".to_owned(),
        interval_ms: 2_000,
        valid_for_ms: 3_600_000,
        pools: BTreeMap::from([("p".into(), pool)]),
        rows: vec![row],
        products: BTreeMap::new(),
        models: BTreeMap::new(),
        providers: BTreeMap::new(),
    }
}

fn limiter(clock: &SystemClock, full: bool, keys_max: usize) -> Limiter {
    let limiter = Limiter::new("n".into(), keys_max);
    limiter.offer(table(1, full), clock.now()).expect("a valid table");
    limiter
}

fn wanted<'a>(limiter: &Limiter, raw: &Key) -> Request<'a> {
    Request::new("llama-3-70b", "starter", limiter.key(raw))
}

fn check(limiter: &Limiter, clock: &SystemClock, raw: &Key) {
    limiter.check(clock.now(), &wanted(limiter, raw)).expect("far below its limit");
}

/// A thousandth as many accounts as keys.
fn admit(limiter: &Limiter, clock: &SystemClock, raw: &Key, account: &Key) {
    let request = Request {
        account: Some(limiter.key(account)),
        input_tokens: 40,
        output_max: Some(100),
        ..wanted(limiter, raw)
    };
    limiter.check(clock.now(), &request).expect("far below its limit");
}

fn governor() -> Governor {
    RateLimiter::keyed(Quota::per_minute(NonZeroU32::new(1 << 30).expect("not zero")))
}

fn nanos_per_call(times: usize, mut call: impl FnMut(usize)) -> f64 {
    let began = Instant::now();
    (0..times).for_each(&mut call);
    began.elapsed().as_nanos() as f64 / times as f64
}

/// Nanoseconds per call of all threads together.
fn threads(count: usize, order: &[u32], call: &(impl Fn(usize) + Sync)) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for part in order.chunks(order.len() / count) {
            scope.spawn(move || part.iter().for_each(|at| call(*at as usize)));
        }
    });
    began.elapsed().as_nanos() as f64 / order.len() as f64
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn line(what: &str, ours: &[f64], theirs: &[f64], goal: &str) {
    let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    let (ratio, low, high) = median(ratios);
    println!(
        "| {what} | {:.0} ns | {:.0} ns | {ratio:.2}x ({low:.2} to {high:.2}) | {goal} |",
        median(ours.to_vec()).0,
        median(theirs.to_vec()).0
    );
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4_096
}

fn main() {
    let clock = SystemClock::starting_at(tidegate::unit::Instant(1 << 60));
    let keys: Vec<Key> = (0..KEYS).map(key).collect();
    println!("| what | tidegate | rival | tidegate / rival, median (spread) | goal |\n|---|---|---|---|---|");
    rates(&clock, &keys);
    dimensions(&clock, &keys);
    reading(&clock);
}

fn rates(clock: &SystemClock, keys: &[Key]) {
    let before = resident();
    let (ours, theirs) = (limiter(clock, false, KEYS + KEYS / 8), governor());
    keys.iter().for_each(|raw| check(&ours, clock, raw));
    let bytes = resident() - before;
    assert_eq!(ours.keys_held(), KEYS);
    keys.iter().for_each(|raw| theirs.check_key(raw).expect("far below its limit"));
    for (zipf, name) in [(false, "uniform"), (true, "Zipf")] {
        for count in [1, 2] {
            let (mut mine, mut other) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                let order = calls(zipf, round as u64 * 2 + 1);
                mine.push(threads(count, &order, &|at| check(&ours, clock, &keys[at])));
                other.push(threads(count, &order, &|at| theirs.check_key(&keys[at]).expect("far below")));
            }
            let goal = if count == 1 { "at most 1.0x" } else { "at most 0.67x" };
            line(&format!("one RPM check, {name}, threads: {count}"), &mine, &other, goal);
        }
    }
    println!(
        "| memory of an active key, resident | {:.0} bytes | - | - | at most 160 |",
        bytes as f64 / KEYS as f64
    );
}

fn dimensions(clock: &SystemClock, keys: &[Key]) {
    let ours = limiter(clock, true, KEYS + KEYS / 8);
    let theirs: Vec<Governor> = (0..4).map(|_| governor()).collect();
    let account = |at: usize| &keys[at / 1_000];
    // Of the three scopes it sees the key alone.
    let each = |at: usize| {
        theirs.iter().for_each(|limiter| limiter.check_key(&keys[at]).expect("far below its limit"));
    };
    let server = limitador::RateLimiter::new(3 * KEYS as u64);
    for dimension in ["rpm", "tpm", "itpm", "otpm"] {
        for scope in ["key", "account", "tier"] {
            let variable = scope.try_into().expect("an expression");
            let mut rule = Rule::new("n", MOST, 60, Vec::new(), vec![variable]);
            rule.set_name(format!("{dimension} {scope}"));
            server.add_limit(rule);
        }
    }
    let served = |at: usize| {
        let text = |key: &Key| String::from_utf8_lossy(key).into_owned();
        let values =
            [("key", text(&keys[at])), ("account", text(account(at))), ("tier", "starter".to_owned())];
        let values: HashMap<String, String> = values.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let limited = server.check_rate_limited_and_update(&"n".into(), &Context::from(values), 1);
        assert!(limited.is_ok());
    };
    for at in 0..KEYS {
        admit(&ours, clock, &keys[at], account(at));
        each(at);
    }
    for (zipf, name) in [(false, "uniform"), (true, "Zipf")] {
        let (mut mine, mut other, mut third) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let order = calls(zipf, round as u64 * 2 + 1);
            let few = &order[..CALLS / 4];
            mine.push(threads(1, few, &|at| admit(&ours, clock, &keys[at], account(at))));
            other.push(threads(1, few, &each));
            third.push(threads(1, &order[..CALLS / 50], &served));
        }
        line(
            &format!("four dimensions, three scopes, {name}; governor once per dimension"),
            &mine,
            &other,
            "at most 0.33x",
        );
        line(&format!("four dimensions, three scopes, {name}; limitador"), &mine, &third, "at most 0.05x");
    }
    let counted = allocation_counter::measure(|| {
        for at in 0..100_000 {
            let request = Request { input_tokens: 9, ..wanted(&ours, &keys[at]) };
            if let Verdict::Admitted(ticket) = ours.admit(clock.now(), &request) {
                let used =
                    Settlement::Used { input_tokens: 9, cached_tokens: 0, output_tokens: 3, images: 0 };
                ours.settle(clock.now(), ticket, used);
            }
        }
    });
    println!(
        "| allocations in 100,000 requests, admitted and settled | {} | - | - | 0 |",
        counted.count_total
    );
}

fn reading(clock: &SystemClock) {
    let ours = limiter(clock, false, 1_024);
    let theirs = ArcSwapOption::from(ours.held());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut version = 1;
            while !stop.load(Ordering::Relaxed) {
                version += 1;
                ours.offer(table(version, false), clock.now()).expect("a valid table");
                theirs.store(ours.held().map(|held| Arc::new((*held).clone())));
            }
        });
        let (mut mine, mut other) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            mine.push(nanos_per_call(CALLS, |_| {
                std::hint::black_box(ours.table().as_ref().map(|held| held.stamp()));
            }));
            other.push(nanos_per_call(CALLS, |_| {
                std::hint::black_box(theirs.load().as_ref().map(|held| held.stamp()));
            }));
        }
        stop.store(true, Ordering::Relaxed);
        line("reading the table under constant swaps; arc-swap", &mine, &other, "at most 1.2x");
    });
}
