//! One run: the same requests, in the order of time, past one law.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::observe::{PoolRound, Signals};
use crate::sim::Chance;
use crate::sim::engine::{Engine, Event, Gauges, Sent};
use crate::sim::law::{Answer, Ask, End, Law, Seen, Truth};
use crate::sim::page::Page;
use crate::sim::trial::demand::{Arrival, BINS, Demand};
use crate::sim::trial::score::{Ledger, Outcome, Report, report};
use crate::sim::trial::{Happening, Trial};
use crate::unit::{Instant, ReplicaId};

/// The truth is told, and the pool looked at, this often.
const TRUTH_EVERY: Duration = Duration::from_millis(1000 / BINS as u64);
/// After the last arrival, what is under way may end within this.
const DRAIN: Duration = Duration::from_secs(180);
const SECOND: u64 = 1_000_000_000;

/// Runs a trial's demand past a law.
pub fn run(trial: &Trial, demand: &Demand, seed: u64, law: &mut dyn Law) -> Report {
    report(trial, &demand.terms, &record(trial, demand, seed, law))
}

/// The same, with what happened in every second.
pub fn record(trial: &Trial, demand: &Demand, seed: u64, law: &mut dyn Law) -> Ledger {
    let mut run = Run::new(trial, demand, seed, law);
    run.all();
    run.ledger.close();
    run.ledger
}

/// What a scrape showed, on its way to the law.
struct Scrape {
    due: Instant,
    round: PoolRound,
    kv: Vec<f64>,
    first_tokens: u32,
    late: u32,
}

/// A refused client's next attempt.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Retry {
    at: Instant,
    /// Which arrival it is, and which attempt comes.
    arrival: usize,
    attempt: u32,
}

struct Run<'a> {
    trial: &'a Trial,
    demand: &'a Demand,
    law: &'a mut dyn Law,
    chance: Chance,
    now: Instant,
    engine: Engine,
    pages: Vec<(ReplicaId, Page)>,
    ledger: Ledger,
    /// The next of each, in order of time.
    arrival: usize,
    happening: usize,
    truth: Instant,
    scrape: Instant,
    scrapes: VecDeque<Scrape>,
    retries: BinaryHeap<Reverse<Retry>>,
    first_tokens: u32,
    late: u32,
    ids: u64,
    events: Vec<Event>,
    coming: Vec<f64>,
}

// === impl Run ===

impl<'a> Run<'a> {
    fn new(trial: &'a Trial, demand: &'a Demand, seed: u64, law: &'a mut dyn Law) -> Run<'a> {
        let page = |at: usize| (ReplicaId::new(format!("replica-{at}")), Page::default());
        Run {
            trial,
            demand,
            law,
            chance: Chance::seeded(seed ^ 0x0072_756e),
            now: Instant::ZERO,
            engine: Engine::new(trial.shape, trial.replicas),
            pages: (0..trial.replicas).map(page).collect(),
            ledger: Ledger::new(trial, &demand.terms),
            arrival: 0,
            happening: 0,
            truth: Instant::ZERO,
            scrape: Instant::ZERO + trial.interval,
            scrapes: VecDeque::new(),
            retries: BinaryHeap::new(),
            first_tokens: 0,
            late: 0,
            ids: 0,
            events: Vec::new(),
            coming: vec![0.0; trial.tiers.len()],
        }
    }

    fn all(&mut self) {
        let asked_until = Instant((self.trial.seconds * SECOND as f64) as u64);
        let end = asked_until + DRAIN;
        loop {
            let arrival = self.demand.arrivals.get(self.arrival).map(|arrival| arrival.at);
            let retry = self.retries.peek().map(|Reverse(retry)| retry.at);
            let wake = self.engine.next_wake();
            let told = self.scrapes.front().map(|scrape| scrape.due);
            let happens = self.trial.happenings.get(self.happening);
            let happens = happens.map(|(at, _)| Instant((at * SECOND as f64) as u64));
            let idle = arrival.is_none() && retry.is_none() && wake.is_none();
            let others = [arrival, retry, wake, told, happens].into_iter().flatten();
            let now = others.fold(self.truth.min(self.scrape), Instant::min);
            if now > end || idle && now >= asked_until {
                break;
            }
            self.now = now;
            // What the world does comes before what is seen of it, and that before who asks.
            match Some(now) {
                at if happens == at => self.happen(),
                at if wake == at => {
                    self.engine.step(now);
                    self.settle_events();
                }
                at if at == Some(self.truth) => self.tell_truth(),
                at if at == Some(self.scrape) => self.look(),
                at if told == at => self.tick(),
                at if retry == at => self.try_again(),
                _ => {
                    if let Some(arrival) = self.demand.arrivals.get(self.arrival).copied() {
                        self.arrival += 1;
                        self.ask(arrival, self.arrival - 1, 1);
                    }
                }
            }
        }
    }

    fn ask(&mut self, arrival: Arrival, index: usize, attempt: u32) {
        self.ids += 1;
        let ask = Ask { id: self.ids, ..arrival.ask };
        self.ledger.offered(self.now, &ask, attempt == 1);
        let node = arrival.node as usize;
        if !self.law.admit(self.now, node, &ask) {
            self.refused(index, attempt);
            return;
        }
        self.ledger.admitted(self.now, &ask);
        let sent = self.engine.submit(self.now, node_tag(arrival.node, attempt), ask);
        if self.trial.shape.quota.is_some() {
            let (limit, remaining) = self.engine.quota().unzip();
            let answer = Answer { refused: sent == Sent::Refused, limit, remaining };
            self.law.answered(self.now, node, &ask, &answer);
        }
        if sent == Sent::Kept {
            self.settle_events();
            return;
        }
        let (now, first_attempt) = (self.now, attempt == 1);
        if sent == Sent::Refused {
            self.ledger.refused(now);
        } else {
            let outcome = Outcome { ask: &ask, arrived: now, first: None, ended: now, first_attempt };
            self.ledger.lost(&outcome, 0.0);
        }
        self.law.done(now, node, &ask, &End::Lost);
    }

    fn refused(&mut self, arrival: usize, attempt: u32) {
        let Some(retries) = self.trial.retries else { return };
        if attempt < retries.tries && self.chance.happens(retries.part) {
            let after = retries.after * self.chance.between(0.5, 1.5);
            let at = self.now + Duration::from_secs_f64(after);
            self.retries.push(Reverse(Retry { at, arrival, attempt: attempt + 1 }));
        }
    }

    fn try_again(&mut self) {
        let Some(Reverse(retry)) = self.retries.pop() else { return };
        if let Some(arrival) = self.demand.arrivals.get(retry.arrival).copied() {
            self.ask(arrival, retry.arrival, retry.attempt);
        }
    }

    /// What steps brought goes to the law and into the ledger.
    fn settle_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.engine.events(&mut events);
        for event in events.drain(..) {
            let (Event::First(place) | Event::Done(place) | Event::Abandoned(place)) = event;
            let sequence = self.engine.sequence(place);
            let (node, first_attempt) = node_of(sequence.node);
            let (ask, arrived, first) = (&sequence.ask, sequence.arrived, sequence.first);
            let outcome = Outcome { ask, arrived, first, ended: self.now, first_attempt };
            let slo = self.trial.slo_of(ask.prompt);
            let ttft = first.unwrap_or(self.now).since(arrived);
            match event {
                Event::First(_) => {
                    self.first_tokens += 1;
                    self.late += u32::from(ttft > slo);
                    self.ledger.first_token(self.now, ttft);
                    self.law.first_token(self.now, node, ask.id, ttft);
                    continue;
                }
                Event::Done(_) => {
                    self.ledger.served(&outcome, slo);
                    let latency = self.now.since(arrived);
                    self.law.done(self.now, node, ask, &End::Served { output: ask.output, ttft, latency });
                }
                Event::Abandoned(_) => {
                    self.late += 1;
                    self.ledger.abandoned(&outcome);
                    self.law.done(self.now, node, ask, &End::Abandoned);
                }
            }
            self.engine.forget(place);
        }
        self.events = events;
    }

    fn happen(&mut self) {
        let Some((_, what)) = self.trial.happenings.get(self.happening) else { return };
        self.happening += 1;
        match what {
            Happening::Die { replicas } => replicas.iter().for_each(|at| self.die(*at)),
            Happening::Revive { replicas } => replicas.iter().for_each(|at| self.engine.revive(*at)),
            Happening::Slow { replicas, part } => {
                replicas.iter().for_each(|at| self.engine.slow(*at, *part));
            }
            Happening::Show { replicas, untrue } => {
                for at in replicas {
                    if let Some((_, page)) = self.pages.get_mut(*at) {
                        page.set(*untrue);
                    }
                }
            }
            Happening::Controller { up } => self.law.controller(*up),
            // The demand was drawn with it.
            Happening::Flood { .. } | Happening::Output { .. } => {}
        }
    }

    fn die(&mut self, at: usize) {
        let (now, ledger, law) = (self.now, &mut self.ledger, &mut *self.law);
        self.engine.die(at, |sequence, work| {
            let (node, first_attempt) = node_of(sequence.node);
            let (ask, arrived, first) = (&sequence.ask, sequence.arrived, sequence.first);
            ledger.lost(&Outcome { ask, arrived, first, ended: now, first_attempt }, work);
            law.done(now, node, ask, &End::Lost);
        });
        if let Some((_, page)) = self.pages.get_mut(at) {
            page.restarted();
        }
    }

    fn capacity(&self) -> f64 {
        self.engine.speed() * self.demand.per_replica(self.now.seconds_since(Instant::ZERO))
    }

    fn tell_truth(&mut self) {
        let bin = (self.truth.0 / (SECOND / BINS as u64)) as usize;
        let tiers = self.coming.len();
        self.coming.fill(0.0);
        let window = self.demand.coming.chunks(tiers.max(1)).skip(bin).take(BINS);
        for (sum, work) in window.flat_map(|bin| bin.iter().enumerate()) {
            if let Some(sum) = self.coming.get_mut(sum) {
                *sum += work;
            }
        }
        let (capacity, queued_work) = (self.capacity(), self.engine.queued_work());
        let truth = Truth { capacity, queued_work, replicas: self.engine.alive(), next_second: &self.coming };
        self.law.know(self.now, &truth);
        if bin.is_multiple_of(BINS) {
            self.ledger.sampled(bin / BINS, capacity, queued_work);
        }
        self.truth = self.truth + TRUTH_EVERY;
    }

    /// A scrape of every replica.
    fn look(&mut self) {
        let now = self.now;
        let shown = |((replica, page), gauges): (&mut (ReplicaId, Page), Gauges)| {
            page.show(now, replica, gauges.alive.then(|| signals(&gauges)))
        };
        let readings = self.pages.iter_mut().zip(self.engine.gauges()).map(shown).collect();
        self.law.scraped(now);
        self.scrapes.push_back(Scrape {
            due: now + self.trial.delay,
            round: PoolRound { replicas: readings, ..PoolRound::default() },
            kv: self.engine.gauges().map(|gauges| gauges.kv).collect(),
            first_tokens: std::mem::take(&mut self.first_tokens),
            late: std::mem::take(&mut self.late),
        });
        self.scrape = self.scrape + self.trial.interval;
    }

    fn tick(&mut self) {
        let Some(scrape) = self.scrapes.pop_front() else { return };
        let Scrape { round, kv, first_tokens, late, .. } = &scrape;
        self.law.tick(self.now, &Seen { round, kv, first_tokens: *first_tokens, late: *late });
        self.ledger.ticked(self.now, self.law.budget());
    }
}

fn signals(gauges: &Gauges) -> Signals {
    Signals {
        running: Some(gauges.running as f64),
        waiting: Some(gauges.waiting as f64),
        work_done: Some(gauges.prompt_tokens as f64),
        work_done_output: Some(gauges.output_tokens as f64),
        latency: None,
        errors: None,
    }
}

/// The node, and whether this is the client's first attempt, as the plant carries both.
fn node_tag(node: u32, attempt: u32) -> u32 {
    node * 2 + u32::from(attempt > 1)
}

fn node_of(tag: u32) -> (usize, bool) {
    ((tag / 2) as usize, tag.is_multiple_of(2))
}
