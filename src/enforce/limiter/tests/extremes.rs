//! Numbers at the ends of what they can be: nothing overflows, falls or turns into more room.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::unit::MAX_FINITE;
use crate::wire::UsageReport;

const ENDS: [u64; 12] = [
    0,
    1,
    (1 << 31) - 1,
    1 << 31,
    MAX_FINITE - 1,
    MAX_FINITE,
    1 << 53,
    (1 << 63) - 1,
    1 << 63,
    1_000_000_000_000_000_000,
    u64::MAX - 1,
    u64::MAX,
];

fn any(rng: &mut ChaCha8Rng) -> u64 {
    match rng.random_bool(0.6) {
        true => ENDS[rng.random_range(0..ENDS.len())],
        false => rng.random_range(0..1_000_000),
    }
}

fn limit(rng: &mut ChaCha8Rng) -> Limit {
    match rng.random_range(0..4) {
        0 => M,
        _ => Limit::Finite(any(rng).min(MAX_FINITE)),
    }
}

fn random_table(rng: &mut ChaCha8Rng, version: u64) -> LimitTable {
    let dimensions = [RPM, TPM, Dimension::ImagesPerMinute, Dimension::Concurrency];
    let limits = dimensions.map(|dimension| {
        let (tier, key) = (limit(rng), limit(rng));
        (dimension, Entry { tier_limit: tier, key_limit: key, safe: tier, ceiling: M, ..Entry::default() })
    });
    let mut table = table(version, &limits);
    let pool = pool_of(&mut table);
    pool.output_cost_milli = [0, 1, 1_000, 1_000_000][rng.random_range(0..4)];
    (pool.waiting_work, pool.in_flight) = (limit(rng), limit(rng));
    pool.shares = BTreeMap::from([("n".into(), [0, 1, 333_333, PPM][rng.random_range(0..4)])]);
    table
}

#[test]
fn h07_no_count_overflows_falls_or_gives_room_at_the_ends_of_the_numbers() {
    for seed in 0..150 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let limiter = Limiter::new("n".into(), 3);
        let (mut now, mut version, mut open) = (START, 0, Vec::new());
        let mut offered_before = 0;
        for _ in 0..300 {
            if version == 0 || rng.random_bool(0.05) {
                version += 1;
                // What the table's own rules refuse is no table.
                let _ = limiter.offer(random_table(&mut rng, version), now);
            }
            let jump = if rng.random_bool(0.02) { any(&mut rng) } else { rng.random_range(0..1 << 30) };
            now = Instant(now.0.saturating_add(jump));
            if !open.is_empty() && rng.random_bool(0.5) {
                let ticket = open.swap_remove(rng.random_range(0..open.len()));
                let [input_tokens, output_tokens, images] = [(); 3].map(|()| any(&mut rng));
                let end = match rng.random_range(0..4) {
                    0 => Settlement::Broken { output_seen: output_tokens },
                    1 => Settlement::NotSent,
                    _ => Settlement::Used { input_tokens, cached_tokens: 0, output_tokens, images },
                };
                limiter.settle(now, ticket, end);
                continue;
            }
            let mut wanted = request("a", rng.random_range(0..6));
            wanted.input_tokens = any(&mut rng);
            wanted.output_max = rng.random_bool(0.7).then(|| any(&mut rng));
            wanted.images = any(&mut rng);
            let before = limiter.quotas(now, &Request::new("m", "a", wanted.key), None);
            let verdict = limiter.admit(now, &wanted);
            let after = limiter.quotas(now, &Request::new("m", "a", wanted.key), None);
            for (before, after) in before.iter().zip(&after) {
                let (Some(before), Some(after)) = (before, after) else { continue };
                assert!(after.remaining <= after.limit, "seed {seed}: {after:?}");
                let same = before.limit == after.limit;
                assert!(!same || after.remaining <= before.remaining, "seed {seed}: a request gave room");
            }
            if let Verdict::Admitted(ticket) = verdict {
                open.push(ticket);
            }
            let report = limiter.report(now, START, 1);
            let offered = report.rows.first().map_or(0, |row| row.offered.work);
            assert!(offered >= offered_before, "seed {seed}: a counter fell");
            offered_before = offered;
        }
        for ticket in open {
            limiter.settle(now, ticket, USED);
        }
        let report = limiter.report(now, START, 1);
        assert_eq!(report.pools["p"].in_flight, 0, "seed {seed}");
        assert_eq!(report.pools["p"].waiting_work, 0, "seed {seed}");
        // What is reported is read back exactly, above what a double can hold too.
        let text = serde_json::to_vec(&report).unwrap();
        assert_eq!(serde_json::from_slice::<UsageReport>(&text).unwrap(), report, "seed {seed}");
    }
}
