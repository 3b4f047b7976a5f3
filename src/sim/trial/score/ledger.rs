//! What happened in a run, second by second.

use std::time::Duration;

use crate::sim::law::{Ask, Terms};
use crate::sim::trial::Trial;
use crate::unit::Instant;

/// A decode slower than this, seconds a token on average, is not in time.
const TPOT_MAX: f64 = 0.2;
/// First tokens are counted by millisecond, up to this.
const TTFT_BINS: usize = 60_000;

/// One second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    /// Work at the door, every attempt.
    pub offered: f64,
    /// Work let in.
    pub admitted: f64,
    /// Requests let in, and those of them that a provider refused.
    pub sent: u32,
    pub refused: u32,
    /// Work that arrived in this second and was served in time.
    pub good: f64,
    /// Work done in this second on requests that were served in time.
    pub delivered: f64,
    /// Work done in this second on requests that died with their replica.
    pub lost: f64,
    /// What the pool could do.
    pub capacity: f64,
    /// Work waiting, at its end.
    pub queued: f64,
    /// Requests let in that did not die with their replica, and how many of them were late.
    pub arrived: u32,
    pub late: u32,
    /// Latest first token that came in it, seconds.
    pub ttft: f64,
}

/// One tier in one second: work at the door for the first time, and what of it was served in time.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfTier {
    pub offered: f64,
    /// Of every attempt.
    pub admitted: f64,
    pub good: f64,
}

/// One key over the scored time.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfKey {
    pub tier: usize,
    pub offered: f64,
    pub good: f64,
}

/// Everything that is scored.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub from: usize,
    pub seconds: Vec<Second>,
    /// By second, then tier.
    pub tiers: Vec<OfTier>,
    pub tier_count: usize,
    pub keys: Vec<OfKey>,
    /// Time and budget at every tick.
    pub budgets: Vec<(f64, f64)>,
    pub first_tokens: Vec<u32>,
    output_cost: f64,
    /// Changes of the rates at which good, and lost, answers are written.
    writing: Vec<[f64; 2]>,
}

/// How an admitted request ended, for the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    pub ask: &'a Ask,
    pub arrived: Instant,
    /// None without a first token.
    pub first: Option<Instant>,
    pub ended: Instant,
    pub first_attempt: bool,
}

// === impl Ledger ===

impl Ledger {
    pub fn new(trial: &Trial, terms: &Terms) -> Ledger {
        let seconds = trial.seconds.ceil() as usize;
        let of = |(tier, terms): (usize, &crate::sim::law::Tier)| {
            (0..terms.keys).map(move |_| OfKey { tier, ..OfKey::default() })
        };
        Ledger {
            from: trial.warm as usize,
            seconds: vec![Second::default(); seconds],
            tiers: vec![OfTier::default(); seconds * terms.tiers.len()],
            tier_count: terms.tiers.len(),
            keys: terms.tiers.iter().enumerate().flat_map(of).collect(),
            budgets: Vec::new(),
            first_tokens: vec![0; TTFT_BINS + 1],
            output_cost: terms.output_cost,
            writing: vec![[0.0; 2]; seconds + 1],
        }
    }

    fn work(&self, ask: &Ask) -> f64 {
        f64::from(ask.prompt) + self.output_cost * f64::from(ask.output)
    }

    pub fn offered(&mut self, now: Instant, ask: &Ask, first_attempt: bool) {
        let (work, at) = (self.work(ask), second(now));
        let Some(second) = self.seconds.get_mut(at) else { return };
        second.offered += work;
        if !first_attempt {
            return;
        }
        if let Some(tier) = self.tiers.get_mut(at * self.tier_count + ask.tier) {
            tier.offered += work;
        }
        if at >= self.from
            && let Some(key) = self.keys.get_mut(ask.key as usize)
        {
            key.offered += work;
        }
    }

    pub fn admitted(&mut self, now: Instant, ask: &Ask) {
        let (work, at) = (self.work(ask), second(now));
        if let Some(second) = self.seconds.get_mut(at) {
            second.admitted += work;
            second.sent += 1;
        }
        if let Some(tier) = self.tiers.get_mut(at * self.tier_count + ask.tier) {
            tier.admitted += work;
        }
    }

    /// A provider refused what was let in.
    pub fn refused(&mut self, now: Instant) {
        if let Some(second) = self.seconds.get_mut(second(now)) {
            second.refused += 1;
        }
    }

    pub fn first_token(&mut self, now: Instant, ttft: Duration) {
        let at = second(now);
        if let Some(second) = self.seconds.get_mut(at) {
            second.ttft = second.ttft.max(ttft.as_secs_f64());
        }
        if at >= self.from {
            self.count_ttft(ttft);
        }
    }

    fn count_ttft(&mut self, ttft: Duration) {
        let bin = usize::try_from(ttft.as_millis()).unwrap_or(usize::MAX).min(TTFT_BINS);
        if let Some(count) = self.first_tokens.get_mut(bin) {
            *count += 1;
        }
    }

    /// It was served to its end. `slo`: until when its first token was in time.
    pub fn served(&mut self, outcome: &Outcome<'_>, slo: Duration) {
        let Some(first) = outcome.first else { return };
        let tokens = f64::from(outcome.ask.output.saturating_sub(1)).max(1.0);
        let good =
            first.since(outcome.arrived) <= slo && outcome.ended.seconds_since(first) / tokens <= TPOT_MAX;
        self.arrived(outcome.arrived, !good);
        if !good {
            return;
        }
        let (work, at) = (self.work(outcome.ask), second(outcome.arrived));
        if let Some(second) = self.seconds.get_mut(at) {
            second.good += work;
        }
        if let Some(tier) = self.tiers.get_mut(at * self.tier_count + outcome.ask.tier) {
            tier.good += work;
        }
        if at >= self.from
            && let Some(key) = self.keys.get_mut(outcome.ask.key as usize)
        {
            key.good += work;
        }
        if let Some(second) = self.seconds.get_mut(second(first)) {
            second.delivered += f64::from(outcome.ask.prompt);
        }
        self.write(0, first, outcome.ended, self.output_cost * f64::from(outcome.ask.output));
    }

    /// Its client went away without a first token, after this long.
    pub fn abandoned(&mut self, outcome: &Outcome<'_>) {
        self.arrived(outcome.arrived, true);
        if second(outcome.ended) >= self.from {
            self.count_ttft(outcome.ended.since(outcome.arrived));
        }
    }

    /// It died with its replica, on which `work` was done for it: nobody's fault, and nobody's
    /// merit.
    pub fn lost(&mut self, outcome: &Outcome<'_>, work: f64) {
        self.write(1, outcome.first.unwrap_or(outcome.arrived), outcome.ended, work);
        // Nobody could have served it, so nobody was asked.
        if !outcome.first_attempt {
            return;
        }
        let (asked, at) = (self.work(outcome.ask), second(outcome.arrived));
        if let Some(tier) = self.tiers.get_mut(at * self.tier_count + outcome.ask.tier) {
            tier.offered -= asked;
        }
        if at >= self.from
            && let Some(key) = self.keys.get_mut(outcome.ask.key as usize)
        {
            key.offered -= asked;
        }
    }

    fn arrived(&mut self, at: Instant, late: bool) {
        if let Some(second) = self.seconds.get_mut(second(at)) {
            second.arrived += 1;
            second.late += u32::from(late);
        }
    }

    /// Spreads work evenly over a span.
    fn write(&mut self, which: usize, from: Instant, to: Instant, work: f64) {
        let (from, to) = (from.seconds_since(Instant::ZERO), to.seconds_since(Instant::ZERO));
        if to - from < 1e-6 {
            self.add(which, from as usize, work);
            return;
        }
        let rate = work / (to - from);
        for (at, rate) in [(from, rate), (to, -rate)] {
            let second = at as usize;
            self.add(which, second, rate * (second as f64 + 1.0 - at));
            if let Some(change) = self.writing.get_mut(second + 1).and_then(|both| both.get_mut(which)) {
                *change += rate;
            }
        }
    }

    fn add(&mut self, which: usize, at: usize, work: f64) {
        if let Some(second) = self.seconds.get_mut(at) {
            let of = if which == 0 { &mut second.delivered } else { &mut second.lost };
            *of += work;
        }
    }

    /// The pool at the end of a second.
    pub fn sampled(&mut self, at: usize, capacity: f64, queued: f64) {
        if let Some(second) = self.seconds.get_mut(at) {
            (second.capacity, second.queued) = (capacity, queued);
        }
    }

    pub fn ticked(&mut self, now: Instant, budget: Option<f64>) {
        if let Some(budget) = budget {
            self.budgets.push((now.seconds_since(Instant::ZERO), budget));
        }
    }

    /// Nothing more happens.
    pub fn close(&mut self) {
        let mut rates = [0.0; 2];
        for (second, change) in self.seconds.iter_mut().zip(&self.writing) {
            let ([good, lost], [of_good, of_lost]) = (&mut rates, change);
            *good += of_good;
            *lost += of_lost;
            second.delivered += *good;
            second.lost += *lost;
        }
        self.writing.fill([0.0; 2]);
    }
}

fn second(at: Instant) -> usize {
    usize::try_from(at.0 / 1_000_000_000).unwrap_or(usize::MAX)
}
