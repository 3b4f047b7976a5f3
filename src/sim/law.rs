//! What a rate-limiting law is to the simulator: ours, its rivals, and the oracle sit behind this.
//!
//! A law is told what a scrape showed (late, as a scrape is), and asked at the door. What a node
//! sees by itself (a first token, an end) it is told at once. Only the oracle reads [`Truth`] and
//! [`Ask::output`].

use std::time::Duration;

use crate::observe::PoolRound;
use crate::unit::Instant;

/// One request at the door.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub id: u64,
    pub tier: usize,
    /// Among the keys of all tiers together.
    pub key: u32,
    pub prompt: u32,
    pub images: u32,
    /// True output tokens: only the oracle may read it.
    pub output: u32,
}

/// What is known before the run.
#[derive(Clone, Debug)]
pub struct Terms {
    pub tiers: Vec<Tier>,
    /// Work per second with every replica well.
    pub nominal: f64,
    /// Work of one output token; a prompt token is 1.
    pub output_cost: f64,
    pub replicas: usize,
    /// Sequences a replica serves at once.
    pub slots: usize,
    /// Time to first token, of a mean prompt.
    pub slo: Duration,
    /// Between two scrapes.
    pub interval: Duration,
    /// From a scrape to the law that acts on it.
    pub delay: Duration,
    pub nodes: usize,
    /// Expected output tokens of a request.
    pub mean_output: f64,
    /// No pool of one's own: a provider with a quota, of which no page tells.
    pub provider: bool,
}

#[derive(Clone, Debug)]
pub struct Tier {
    /// 1 is the highest.
    pub priority: u32,
    pub weight: f64,
    /// Work per second.
    pub guarantee: f64,
    pub keys: u32,
}

/// What a scrape showed; a law sees it [`Terms::delay`] after it was taken.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Pages, failures included.
    pub round: &'a PoolRound,
    /// Part of KV memory used, by replica.
    pub kv: &'a [f64],
    /// Since the last scrape.
    pub first_tokens: u32,
    /// Of those, later than the SLO.
    pub late: u32,
}

/// What nobody can know: only the oracle is told, every simulated 100 ms, without delay.
#[derive(Clone, Copy, Debug)]
pub struct Truth<'a> {
    /// Work per second of living replicas at this mix.
    pub capacity: f64,
    /// Admitted work not yet begun: its prompt is not yet computed.
    pub queued_work: f64,
    pub replicas: usize,
    /// Work to be offered, by tier, in the next second.
    pub next_second: &'a [f64],
}

/// How an admitted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Served {
        output: u32,
        ttft: Duration,
        latency: Duration,
    },
    /// With its replica.
    Lost,
    /// The client left before the first token.
    Abandoned,
}

/// What a provider answers to a request that it was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// 429: over its quota.
    pub refused: bool,
    /// Requests a minute, and those left of it, where it says so.
    pub limit: Option<f64>,
    pub remaining: Option<f64>,
}

/// What admits.
pub trait Law {
    /// A scrape is being taken: whatever else a law reads at that instant is as old as it.
    fn scraped(&mut self, _now: Instant) {}

    fn tick(&mut self, now: Instant, seen: &Seen<'_>);

    /// Whatever decides for all nodes dies, or is back with what it had written down. Laws that
    /// live in the nodes have no such thing.
    fn controller(&mut self, _up: bool) {}

    fn know(&mut self, _now: Instant, _truth: &Truth<'_>) {}

    /// False is a 429 or 503.
    fn admit(&mut self, now: Instant, node: usize, ask: &Ask) -> bool;

    /// Where a provider serves: what it said. A refused request is [`End::Lost`] as well.
    fn answered(&mut self, _now: Instant, _node: usize, _ask: &Ask, _answer: &Answer) {}

    fn first_token(&mut self, now: Instant, node: usize, id: u64, ttft: Duration);

    fn done(&mut self, now: Instant, node: usize, ask: &Ask, end: &End);

    /// Work a second it lets in now; none where it limits something else.
    fn budget(&self) -> Option<f64>;
}
