//! Every request of a run, made before it: all laws of a seed meet the same ones.

use crate::sim::Chance;
use crate::sim::law::{Ask, Terms, Tier};
use crate::sim::trial::calibrate::{Rate, saturated};
use crate::sim::trial::sizes::tokens;
use crate::sim::trial::trace::Trace;
use crate::sim::trial::{Happening, Trial};
use crate::unit::Instant;

/// Bins of [`Demand::coming`], a second.
pub const BINS: usize = 10;
/// Copies of a trace are moved by up to this many seconds.
const JITTER: f64 = 10.0;

/// One request, before anyone was asked. Its id is given at the door.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub ask: Ask,
    pub node: u32,
}

/// What will be asked, and what the pool can do about it.
#[derive(Clone, Debug)]
pub struct Demand {
    /// In order of time.
    pub arrivals: Vec<Arrival>,
    /// Work by tenth of a second and tier.
    pub coming: Vec<f64>,
    /// What one replica does at the mix of each stretch: from when on, seconds.
    pub rates: Vec<(f64, Rate)>,
    pub terms: Terms,
}

/// How much more often than at first each key asks, and the share of each in the whole.
struct Mix {
    /// Tier, key among all keys, share at first, times.
    keys: Vec<(usize, Option<u32>, u32, f64, f64)>,
}

// === impl Demand ===

impl Demand {
    /// The same for the same trial, trace and seed.
    pub fn draw(trial: &Trial, trace: Option<&Trace>, seed: u64) -> Demand {
        let rates = rates(trial, trace);
        let base =
            rates.first().map_or(Rate { work: 1.0, requests: 1.0, mean_output: 1.0 }, |(_, rate)| *rate);
        let nominal = base.work * trial.replicas as f64;
        let mean_prompt = base.work / base.requests.max(1e-9) - trial.shape.output_cost * base.mean_output;
        let mut chance = Chance::seeded(seed ^ 0x6465_6d61_6e64);
        let mut arrivals = match trace {
            Some(trace) => traced(trial, trace, nominal, &mut chance),
            None => generated(trial, base.requests * trial.replicas as f64, &mut chance),
        };
        arrivals.sort_by_key(|arrival| arrival.at);
        let tiers = trial.tiers.len().max(1);
        let mut coming = vec![0.0; (trial.seconds.ceil() as usize + 2) * BINS * tiers];
        for arrival in &arrivals {
            let bin = (arrival.at.seconds_since(Instant::ZERO) * BINS as f64) as usize;
            if let Some(work) = coming.get_mut(bin * tiers + arrival.ask.tier) {
                *work += trial.shape.work(arrival.ask.prompt, arrival.ask.output);
            }
        }
        let tier = |tier: &super::TierTerms| Tier {
            priority: tier.priority,
            weight: tier.weight,
            guarantee: tier.guarantee * nominal,
            keys: tier.keys,
        };
        let terms = Terms {
            tiers: trial.tiers.iter().map(tier).collect(),
            nominal,
            output_cost: trial.shape.output_cost,
            replicas: trial.replicas,
            slots: trial.shape.slots,
            slo: trial.slo_of(tokens(mean_prompt)),
            interval: trial.interval,
            delay: trial.delay,
            nodes: trial.nodes,
            mean_output: base.mean_output,
            provider: trial.shape.quota.is_some(),
        };
        Demand { arrivals, coming, rates, terms }
    }

    /// Work a second that one replica at full speed does at the mix of this time.
    pub fn per_replica(&self, at: f64) -> f64 {
        let past = self.rates.iter().take_while(|(from, _)| *from <= at);
        past.last().map_or(0.0, |(_, rate)| rate.work)
    }
}

/// What one replica does at every mix that the trial has.
fn rates(trial: &Trial, trace: Option<&Trace>) -> Vec<(f64, Rate)> {
    let mut times = vec![(0.0, 1.0)];
    for (at, what) in &trial.happenings {
        if let Happening::Output { times: factor } = what {
            times.push((*at, *factor));
        }
    }
    let rate = |(at, times): (f64, f64)| {
        let mut chance = Chance::seeded(1);
        let rate = saturated(trial.shape, || {
            let (prompt, output) = match trace {
                Some(trace) => trace.any(&mut chance),
                None => trial.sizes.draw(&mut chance),
            };
            (prompt, tokens(f64::from(output) * times))
        });
        (at, rate)
    };
    if let Some(quota) = trial.shape.quota {
        let (work, requests) = (quota.per_second, quota.per_second);
        return vec![(0.0, Rate { work, requests, mean_output: 1.0 })];
    }
    times.into_iter().map(rate).collect()
}

/// Arrivals of a Poisson process whose rate follows the trial's load, its wave and its bursts.
fn generated(trial: &Trial, requests: f64, chance: &mut Chance) -> Vec<Arrival> {
    let mut mix = Mix::new(trial);
    let mut happenings = trial.happenings.iter().peekable();
    let mut burst = Burst::new(trial);
    let mut arrivals = Vec::new();
    let mut left = -(1.0 - chance.unit()).ln();
    for second in 0..trial.seconds.ceil() as usize {
        let begins = second as f64;
        while let Some((_, what)) = happenings.next_if(|(at, _)| *at <= begins) {
            mix.happens(what);
        }
        let swing = burst.next(chance) * wave(trial, begins);
        let rate = (trial.load * requests * mix.times() * swing).max(1e-9);
        let mut at = 0.0;
        // The integral of the rate up to the next arrival is drawn once and used up second by second.
        while left <= (1.0 - at) * rate {
            at += left / rate;
            left = -(1.0 - chance.unit()).ln();
            let (prompt, output) = trial.sizes.draw(chance);
            let output = tokens(f64::from(output) * trial.output_times(begins));
            arrivals.push(mix.arrival(begins + at, prompt, output, trial, chance));
        }
        left -= (1.0 - at) * rate;
    }
    arrivals
}

/// The trace as often as the load asks for, each copy's requests moved by a few seconds.
fn traced(trial: &Trial, trace: &Trace, nominal: f64, chance: &mut Chance) -> Vec<Arrival> {
    let mut mix = Mix::new(trial);
    let mut happenings = trial.happenings.iter().peekable();
    let rows = trace.until(trial.seconds);
    let work: f64 = rows.clone().map(|(_, prompt, output)| trial.shape.work(prompt, output)).sum();
    let copies = trial.load * nominal * trial.seconds / work.max(1.0);
    let mut arrivals = Vec::new();
    for (at, prompt, output) in rows {
        while let Some((_, what)) = happenings.next_if(|(when, _)| *when <= at) {
            mix.happens(what);
        }
        let many = copies * mix.times() * wave(trial, at);
        let many = many.floor() as usize + usize::from(chance.happens(many.fract()));
        let output = tokens(f64::from(output) * trial.output_times(at));
        for _ in 0..many {
            let moved = at + chance.between(0.0, JITTER);
            if moved < trial.seconds {
                arrivals.push(mix.arrival(moved, prompt, output, trial, chance));
            }
        }
    }
    arrivals
}

fn wave(trial: &Trial, at: f64) -> f64 {
    trial.wave.map_or(1.0, |wave| {
        let swing = (wave.ratio - 1.0) / (wave.ratio + 1.0);
        // It begins at its mean, on the way up.
        1.0 + swing * (at / wave.period * std::f64::consts::TAU).sin()
    })
}

/// The rate's own restlessness: a first-order process, log-normal, mean 1.
struct Burst {
    state: f64,
    keep: f64,
    sigma: f64,
}

// === impl Burst ===

impl Burst {
    fn new(trial: &Trial) -> Burst {
        let sigma = (1.0 + trial.burst * trial.burst).ln().sqrt();
        Burst { state: 0.0, keep: (-1.0 / trial.burst_seconds.max(0.1)).exp(), sigma }
    }

    fn next(&mut self, chance: &mut Chance) -> f64 {
        // The sum of twelve is normal enough for a rate, and free of tails.
        let normal: f64 = (0..12).map(|_| chance.unit()).sum::<f64>() - 6.0;
        self.state = self.keep * self.state + (1.0 - self.keep * self.keep).sqrt() * normal;
        (self.sigma * self.state - self.sigma * self.sigma / 2.0).exp()
    }
}

// === impl Mix ===

impl Mix {
    fn new(trial: &Trial) -> Mix {
        let mut keys = Vec::new();
        let mut first = 0;
        for (at, tier) in trial.tiers.iter().enumerate() {
            let harmonic: f64 = (1..=tier.keys).map(|rank| 1.0 / f64::from(rank)).sum();
            for key in 0..tier.keys {
                let share = tier.part / (harmonic * f64::from(key + 1));
                keys.push((at, Some(key), first + key, share, 1.0));
            }
            first += tier.keys;
        }
        let sum: f64 = keys.iter().map(|key| key.3).sum();
        keys.iter_mut().for_each(|key| key.3 /= sum.max(1e-9));
        Mix { keys }
    }

    fn happens(&mut self, what: &Happening) {
        let Happening::Flood { tier, key, times } = what else { return };
        for (of, which, _, _, now) in &mut self.keys {
            if of == tier && (key.is_none() || key == which) {
                *now = *times;
            }
        }
    }

    /// How much more is asked than at first.
    fn times(&self) -> f64 {
        self.keys.iter().map(|(_, _, _, share, times)| share * times).sum()
    }

    fn arrival(&self, at: f64, prompt: u32, output: u32, trial: &Trial, chance: &mut Chance) -> Arrival {
        let mut left = chance.unit() * self.times();
        let mut chosen = (0, 0);
        for (tier, _, key, share, times) in &self.keys {
            if share * times > 0.0 {
                chosen = (*tier, *key);
            }
            left -= share * times;
            if left < 0.0 {
                break;
            }
        }
        let (tier, key) = chosen;
        Arrival {
            at: Instant((at * 1e9) as u64),
            ask: Ask { id: 0, tier, key, prompt, images: u32::from(trial.shape.jobs), output },
            node: u32::try_from(chance.below(trial.nodes)).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_and_its_parts_are_those_asked_for() {
        let trial = Trial { seconds: 3000.0, ..Trial::default() };
        let demand = Demand::draw(&trial, None, 7);
        let work = |keep: &dyn Fn(&Arrival) -> bool| -> f64 {
            let of = |arrival: &&Arrival| keep(arrival);
            let asks = demand.arrivals.iter().filter(of).map(|arrival| arrival.ask);
            asks.map(|ask| trial.shape.work(ask.prompt, ask.output)).sum::<f64>() / trial.seconds
        };
        let all = work(&|_| true);
        assert!((all / (1.3 * demand.terms.nominal) - 1.0).abs() < 0.04, "{all} {:?}", demand.terms);
        assert!((work(&|arrival| arrival.ask.tier == 0) / all - 0.3).abs() < 0.02);
        let harmonic = 2.717_857;
        let first = work(&|arrival| arrival.ask.key == 8) / work(&|arrival| arrival.ask.tier == 1);
        assert!((first - 1.0 / harmonic).abs() < 0.02, "{first}");
        assert!((demand.coming.iter().sum::<f64>() / (all * trial.seconds) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn what_happens_changes_what_is_asked() {
        let happenings = vec![
            (300.0, Happening::Flood { tier: 2, key: None, times: 6.0 }),
            (600.0, Happening::Output { times: 2.0 }),
        ];
        let trial = Trial { seconds: 900.0, burst: 0.0, happenings, ..Trial::default() };
        let demand = Demand::draw(&trial, None, 1);
        let between = |from: f64, to: f64| {
            let at = move |arrival: &&Arrival| (from..to).contains(&arrival.at.seconds_since(Instant::ZERO));
            demand.arrivals.iter().filter(at).map(|arrival| arrival.ask)
        };
        let free = |from, to| between(from, to).filter(|ask| ask.tier == 2).count() as f64;
        assert!((free(300.0, 600.0) / free(0.0, 300.0) / 6.0 - 1.0).abs() < 0.1);
        let output = |from, to| {
            between(from, to).map(|ask| f64::from(ask.output)).sum::<f64>() / between(from, to).count() as f64
        };
        assert!((output(600.0, 900.0) / output(300.0, 600.0) / 2.0 - 1.0).abs() < 0.05);
        assert!(demand.per_replica(700.0) > 0.0 && demand.rates.len() == 2);
    }

    #[test]
    fn arrivals_are_as_bursty_as_asked() {
        let dispersion = |burst| {
            let trial = Trial { seconds: 3000.0, burst, ..Trial::default() };
            let demand = Demand::draw(&trial, None, 3);
            let mut counts = vec![0.0; 600];
            for arrival in &demand.arrivals {
                counts[(arrival.at.seconds_since(Instant::ZERO) / 5.0) as usize] += 1.0;
            }
            let mean = counts.iter().sum::<f64>() / 600.0;
            counts.iter().map(|count| (count - mean) * (count - mean)).sum::<f64>() / 600.0 / mean
        };
        assert!((0.8..1.25).contains(&dispersion(0.0)), "{}", dispersion(0.0));
        assert!((2.0..6.0).contains(&dispersion(0.12)), "{}", dispersion(0.12));
    }
}
