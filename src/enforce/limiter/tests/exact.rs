//! Random admissions, settlements, refusals, table swaps and restarts against a model that keeps
//! every event and works out each answer from all of them: verdict and wait agree to the nanosecond.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::wire::{Product, Window};

const MINUTE: i128 = 60_000_000_000;
const KEYS: u8 = 6;

/// Everything that ever happened to one limit of one party: when, and how many units.
#[derive(Clone, Default)]
struct Log(Vec<(i128, i128)>);

/// A limit's values: from when on, how many a minute.
type Course = Vec<(i128, i128)>;

impl Log {
    /// Units times a minute's nanoseconds that are used and not drained.
    fn used(&self, course: &Course, now: i128) -> i128 {
        let (mut used, mut at) = (0, 0);
        for (when, amount) in self.0.iter().copied().chain([(now, 0)]) {
            used = (used - drained(course, at, when)).max(0);
            used = (used + amount * MINUTE).max(0);
            at = when;
        }
        used
    }

    fn in_minute(&self, now: i128) -> i128 {
        self.0.iter().filter(|(when, _)| when / MINUTE == now / MINUTE).map(|(_, amount)| amount).sum()
    }
}

fn drained(course: &Course, from: i128, to: i128) -> i128 {
    let ends = course.iter().skip(1).map(|(start, _)| *start).chain([i128::MAX]);
    let pieces = course.iter().zip(ends);
    pieces.map(|((start, rate), end)| rate * (end.min(to) - (*start).max(from)).max(0)).sum()
}

struct Open {
    ticket: Ticket,
    key: u8,
    account: u8,
    tokens: i128,
    minute: i128,
}

/// Requests of keys, tokens of keys, requests of accounts.
#[derive(Default)]
struct Model {
    course: [Course; 3],
    logs: BTreeMap<(usize, u8), Log>,
    concurrent: u64,
}

impl Model {
    fn wait(&self, limit: usize, party: u8, now: i128, cost: i128, window: Window) -> Option<i128> {
        let most = self.course[limit].last().unwrap().1;
        let log = self.logs.get(&(limit, party)).cloned().unwrap_or_default();
        if window == Window::Minute {
            let full = log.in_minute(now) + cost.min(most) > most;
            return full.then_some(MINUTE - now % MINUTE);
        }
        let missing = log.used(&self.course[limit], now) + cost.min(most) * MINUTE - most * MINUTE;
        (missing > 0).then(|| (missing + most - 1) / most)
    }

    fn add(&mut self, key: u8, account: u8, now: i128, requests: i128, tokens: i128) {
        for (limit, party, amount) in [(0, key, requests), (1, key, tokens), (2, account, requests)] {
            self.logs.entry((limit, party)).or_default().0.push((now, amount));
        }
    }
}

fn tables(version: u64, limits: [u64; 3], concurrent: u64, window: Window) -> LimitTable {
    let requests = Entry { account_limit: Limit::Finite(limits[2]), ..entry(M, Limit::Finite(limits[0])) };
    let all = [
        (RPM, requests),
        (TPM, entry(M, Limit::Finite(limits[1]))),
        (Dimension::Concurrency, entry(M, Limit::Finite(concurrent))),
    ];
    let mut table = table(version, &all);
    table.products.insert("v".into(), Product { window, ..Product::default() });
    table.rows.iter_mut().for_each(|row| row.product = Some("v".into()));
    table.valid_for_ms = 1 << 40;
    table
}

#[expect(clippy::too_many_lines, reason = "one run beside its model, event by event")]
fn run(seed: u64, steps: usize) -> (u64, u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let window = if seed.is_multiple_of(2) { Window::Rolling } else { Window::Minute };
    let draw = |rng: &mut ChaCha8Rng| {
        [rng.random_range(2..40_u64), rng.random_range(200..20_000), rng.random_range(4..60)]
    };
    let mut model = Model { concurrent: rng.random_range(2..9), ..Model::default() };
    let mut limiter = Limiter::new("n".into(), 100);
    let (mut now, mut version, mut open) = (START.0, 0, Vec::<Open>::new());
    let (mut passed, mut stopped) = (0, 0);
    for step in 0..steps {
        now += rng.random_range(0..2_000_000_000) * u64::from(rng.random_bool(0.7));
        let at = i128::from(now);
        let instant = Instant(now);
        if version == 0 || rng.random_bool(0.03) {
            version += 1;
            let limits = draw(&mut rng);
            limiter.offer(tables(version, limits, model.concurrent, window), instant).unwrap();
            for (course, limit) in model.course.iter_mut().zip(limits) {
                course.push((at, i128::from(limit)));
            }
        }
        if rng.random_bool(0.003) {
            // The node dies, and everything in flight with it.
            let held = limiter.held().unwrap().table.as_ref().clone();
            limiter = Limiter::new("n".into(), 100);
            limiter.restore(held, instant).unwrap();
            open.clear();
            model.logs.clear();
        }
        if !open.is_empty() && rng.random_bool(0.45) {
            let Open { ticket, key, account, tokens, minute } =
                open.swap_remove(rng.random_range(0..open.len()));
            let used = rng.random_range(0..3_000_u64);
            let (outcome, requests, actual) = match rng.random_range(0..4) {
                0 => (Settlement::NotSent, 0, 0),
                1 => (Settlement::Rejected, 1, 0),
                2 => (Settlement::Broken { output_seen: 0 }, 1, tokens),
                _ => {
                    let (input_tokens, output_tokens) = (used / 2, used - used / 2);
                    let used = Settlement::Used { input_tokens, cached_tokens: 0, output_tokens, images: 0 };
                    (used, 1, i128::from(input_tokens + output_tokens))
                }
            };
            limiter.settle(instant, ticket, outcome);
            if window == Window::Rolling || minute == at / MINUTE {
                model.add(key, account, at, requests - 1, actual - tokens);
            }
            continue;
        }
        let key = rng.random_range(0..KEYS);
        let account = key / 2;
        let tokens = rng.random_range(1..3_000);
        let mut wanted = request(if rng.random_bool(0.5) { "a" } else { "b" }, key);
        (wanted.account, wanted.input_tokens) = (Some([100 + account; 32]), tokens);
        let tokens = i128::from(tokens);
        let waits = [
            model.wait(0, key, at, 1, window),
            model.wait(1, key, at, tokens, window),
            model.wait(2, account, at, 1, window),
            (open.iter().filter(|open| open.key == key).count() as u64 >= model.concurrent)
                .then_some(i128::from(RETRY_SOON.as_secs()) * 1_000_000_000),
        ];
        match (limiter.admit(instant, &wanted), waits.into_iter().flatten().max()) {
            (Verdict::Admitted(ticket), None) => {
                passed += 1;
                model.add(key, account, at, 1, tokens);
                // What the estimate reserves beyond the input is none: the client allows no output.
                open.push(Open { ticket, key, account, tokens, minute: at / MINUTE });
            }
            (Verdict::Refused(refusal), Some(wait)) => {
                stopped += 1;
                let promised = refusal.retry_after.as_nanos() as i128;
                assert_eq!(promised, wait, "seed {seed} step {step}: {refusal:?}");
            }
            (verdict, wait) => panic!("seed {seed} step {step}: {verdict:?}, the model says {wait:?}"),
        }
    }
    for Open { ticket, .. } in open {
        limiter.settle(Instant(now), ticket, Settlement::NotSent);
    }
    let report = limiter.report(Instant(now), START, 1);
    assert_eq!((report.pools["p"].in_flight, report.pools["p"].waiting_work), (0, 0));
    (passed, stopped)
}

#[test]
fn h17_any_run_agrees_with_a_model_that_keeps_every_event() {
    let long = std::env::var_os("TIDEGATE_LONG").is_some();
    let (seeds, steps) = if long { (2_000, 2_000) } else { (60, 600) };
    let (mut passed, mut stopped) = (0, 0);
    for seed in 0..seeds {
        let (more_passed, more_stopped) = run(seed, steps);
        (passed, stopped) = (passed + more_passed, stopped + more_stopped);
    }
    println!("{passed} admitted and {stopped} refused as the model says");
    assert!(passed > 2_000 && stopped > 2_000, "{passed} {stopped}");
}
