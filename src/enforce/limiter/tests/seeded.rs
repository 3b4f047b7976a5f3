//! Random traffic, swaps and settlements against a plain re-computation.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// used / drained, as the definition has it.
struct Model {
    used: f64,
    at: f64,
    limit: f64,
}

impl Model {
    /// A changed limit counts from the instant of its change on.
    fn touch(&mut self, now: f64, limit: f64) {
        self.used = (self.used - (now - self.at) * self.limit / 60.0).max(0.0);
        (self.at, self.limit) = (now, limit);
    }
}

#[test]
fn admission_equals_the_model_and_every_promised_wait_comes_true() {
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut tpm: u64 = rng.random_range(600..60_000);
        let mut version = 1;
        let tables = |version, tpm| table(version, &[(TPM, entry(M, Limit::Finite(tpm)))]);
        let limiter = limiter(tables(1, tpm));
        let mut model = Model { used: 0.0, at: 0.0, limit: tpm as f64 };
        let (mut now, mut open) = (0.0, Vec::new());
        let mut one = request("a", 1);
        for step in 0..500 {
            now += rng.random_range(0.0..2.0);
            let instant = at(now);
            if rng.random_bool(0.1) {
                (version, tpm) = (version + 1, rng.random_range(600..60_000));
                limiter.offer(tables(version, tpm), instant).unwrap();
            }
            model.touch(now, tpm as f64);
            if rng.random_bool(0.4) && !open.is_empty() {
                let ticket: Ticket = open.swap_remove(rng.random_range(0..open.len()));
                let used = rng.random_range(0..2_000);
                model.used = (model.used + used as f64 - ticket.reserved_work() as f64).max(0.0);
                let outcome =
                    Settlement::Used { input_tokens: used, cached_tokens: 0, output_tokens: 0, images: 0 };
                limiter.settle(instant, ticket, outcome);
                continue;
            }
            one.input_tokens = rng.random_range(1..2_000);
            let cost = (one.input_tokens as f64).min(tpm as f64);
            let slack = tpm as f64 - model.used - cost;
            match limiter.admit(instant, &one) {
                Verdict::Admitted(ticket) => {
                    assert!(slack > -1e-3, "seed {seed} step {step}: {slack} short");
                    model.used += ticket.reserved_work() as f64;
                    open.push(ticket);
                }
                Verdict::Refused(refusal) => {
                    assert!(slack < 1e-3, "seed {seed} step {step}: {slack} left");
                    let wait = -slack * 60.0 / tpm as f64;
                    let promised = refusal.retry_after.as_secs_f64();
                    assert!((promised - wait).abs() < 1e-3, "seed {seed}: {promised} is not {wait}");
                    now += refusal.retry_after.as_secs_f64() + 1e-6;
                    model.touch(now, tpm as f64);
                    let ticket = admitted(limiter.admit(at(now), &one));
                    model.used += ticket.reserved_work() as f64;
                    open.push(ticket);
                }
            }
        }
        for ticket in open {
            limiter.settle(at(now), ticket, USED);
        }
        assert_eq!(limiter.report(at(now), START, 1).pools["p"].in_flight, 0);
    }
}
