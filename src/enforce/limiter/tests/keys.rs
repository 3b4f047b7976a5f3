//! Keys beyond the cap: whatever is forgotten and shared, no key ever gets more than it would with
//! counters of its own.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Models `m` and `l`, each with a limit of its own on tokens, requests and requests at once.
fn tables(version: u64, limits: [u64; 2]) -> LimitTable {
    let limited = |limit: u64| {
        [
            (TPM, entry(M, Limit::Finite(limit))),
            (RPM, entry(M, Limit::Finite(limit / 10))),
            (Dimension::Concurrency, entry(M, Limit::Finite(3))),
        ]
    };
    let mut both = table(version, &limited(limits[0]));
    let others = table(version, &limited(limits[1])).rows;
    both.rows.extend(others.into_iter().map(|row| Row { model: "l".into(), ..row }));
    both.rows.sort_by(|a, b| (&a.model, &a.tier).cmp(&(&b.model, &b.tier)));
    both
}

/// Every request that the bounded limiter lets in is put to one that never forgets.
#[test]
fn i02_no_key_gets_more_than_with_counters_of_its_own() {
    let (mut admitted_count, mut refused_count, mut shared) = (0, 0, 0);
    for seed in 0..60 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let cap = rng.random_range(1..6);
        let (bounded, exact) = (Limiter::new("n".into(), cap), Limiter::new("n".into(), 10_000));
        let limits = [rng.random_range(100..3_000), rng.random_range(100..3_000)];
        for limiter in [&bounded, &exact] {
            limiter.offer(tables(1, limits), START).unwrap();
        }
        let (mut now, mut open) = (0.0, Vec::new());
        for step in 0..2_000 {
            now += rng.random_range(0.0..3.0) * f64::from(rng.random_range(0..8_u8)) / 8.0;
            let instant = at(now);
            if !open.is_empty() && rng.random_bool(0.45) {
                let (one, other) = open.swap_remove(rng.random_range(0..open.len()));
                let end = match rng.random_range(0..4) {
                    0 => Settlement::NotSent,
                    1 => Settlement::Broken { output_seen: rng.random_range(0..300) },
                    _ => Settlement::Used {
                        input_tokens: rng.random_range(0..600),
                        cached_tokens: 0,
                        output_tokens: 0,
                        images: 1,
                    },
                };
                bounded.settle(instant, one, end);
                exact.settle(instant, other, end);
                continue;
            }
            let mut wanted = request(if rng.random_bool(0.5) { "a" } else { "b" }, rng.random_range(0..12));
            wanted.model = if rng.random_bool(0.7) { "m" } else { "l" };
            wanted.input_tokens = rng.random_range(1..300);
            match bounded.admit(instant, &wanted) {
                Verdict::Admitted(ticket) => {
                    admitted_count += 1;
                    match exact.admit(instant, &wanted) {
                        Verdict::Admitted(other) => open.push((ticket, other)),
                        Verdict::Refused(refusal) => {
                            panic!("seed {seed} step {step}: key {} is refilled: {refusal:?}", wanted.key[0])
                        }
                    }
                }
                Verdict::Refused(_) => refused_count += 1,
            }
            assert!(bounded.keys_held() <= cap);
            shared += u64::from(bounded.keys_shared() > 0);
        }
        for (one, other) in open {
            bounded.settle(at(now), one, USED);
            exact.settle(at(now), other, USED);
        }
        assert_eq!(bounded.keys_shared(), 0, "nothing in flight is remembered");
    }
    assert!(admitted_count > 10_000 && refused_count > 10_000 && shared > 10_000, "{shared}");
}

#[test]
fn i02_a_key_that_leaves_the_overflow_takes_its_requests_in_flight_along() {
    let limiter = Limiter::new("n".into(), 1);
    let limits = [(Dimension::Concurrency, entry(M, Limit::Finite(2))), (TPM, entry(M, Limit::Finite(600)))];
    limiter.offer(table(1, &limits), START).unwrap();
    let first = admitted(limiter.admit(START, &request("a", 1)));
    let spilled = admitted(limiter.admit(START, &request("a", 2)));
    limiter.settle(at(1.0), first, USED);
    // The only slot is free again after a while, and key 2 takes it, with its request in flight.
    let own = admitted(limiter.admit(at(100.0), &request("a", 2)));
    assert_eq!(limiter.keys_held(), 1);
    refused(limiter.admit(at(100.0), &request("a", 2)));
    // What the one in the overflow used in the end is the key's debt wherever it is.
    let much = Settlement::Used { input_tokens: 2_000, cached_tokens: 0, output_tokens: 0, images: 1 };
    limiter.settle(at(100.0), spilled, much);
    limiter.settle(at(100.0), own, USED);
    refused(limiter.admit(at(100.0), &request("a", 2)));
    let _ = admitted(limiter.admit(at(1_000.0), &request("a", 2)));
}

#[test]
fn i02_a_key_of_another_model_is_full_by_its_own_limit_and_not_by_the_last_one_seen() {
    let limiter = Limiter::new("n".into(), 1);
    limiter.offer(tables(1, [6_000, 6_000]), START).unwrap();
    let mut one = request("a", 1);
    one.input_tokens = 6_000;
    let ticket = admitted(limiter.admit(START, &one));
    limiter.settle(
        START,
        ticket,
        Settlement::Used { input_tokens: 6_000, cached_tokens: 0, output_tokens: 0, images: 1 },
    );
    limiter.offer(tables(2, [60, 6_000]), at(1.0)).unwrap();
    // At the old limit key 1 would be full after a minute, and forgotten for another model's key.
    let mut other = request("a", 2);
    other.model = "l";
    for second in 60..70 {
        if let Verdict::Admitted(ticket) = limiter.admit(at(f64::from(second)), &other) {
            limiter.settle(at(f64::from(second)), ticket, USED);
        }
    }
    one.input_tokens = 10;
    refused(limiter.admit(at(70.0), &one));
}
