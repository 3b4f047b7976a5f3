//! The reference plant: replicas of a token-serving engine with continuous batching, chunked
//! prefill, a bounded KV memory and preemption by recomputation.
//!
//! A step lasts `a0 + a_p·P + a_d·B + a_kv·KV` (P prompt tokens prefilled, B sequences decoding,
//! KV tokens held). Nothing happens per token: a sequence that decodes ends at a step that is
//! known when it begins, so a step costs what changes in it. Prompts are prefilled first come
//! first served within the step's token budget, as vLLM's scheduler does; a first token comes with
//! the step that ends a prompt.

mod provider;
mod replica;
mod servers;
#[cfg(test)]
mod tests;
mod worker;

use std::time::Duration;

use crate::sim::law::Ask;
use crate::unit::Instant;

use worker::Worker;

/// What one replica of the reference plant is: a model of 70 B parameters on four large GPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Nanoseconds a step takes by itself.
    pub step: f64,
    /// Nanoseconds a prompt token.
    pub prompt: f64,
    /// Nanoseconds a decoding sequence.
    pub decode: f64,
    /// Nanoseconds a token held in KV memory.
    pub held: f64,
    /// Sequences in a batch.
    pub slots: usize,
    /// Tokens of one step, decoded and prefilled together.
    pub budget: u32,
    /// Tokens that fit into KV memory.
    pub kv: u64,
    /// A client that has no first token by then goes away.
    pub patience: Duration,
    /// Work of one output token.
    pub output_cost: f64,
    /// No batch: each slot is a server that does one job at a time.
    pub jobs: bool,
    /// No replica at all: a provider that serves what its quota allows.
    pub quota: Option<Quota>,
}

/// What a provider allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quota {
    /// Requests a second, over time.
    pub per_second: f64,
    /// Requests at once.
    pub depth: f64,
    /// Refused calls count too.
    pub counts_refused: bool,
    /// Its answers say how it stands.
    pub headers: bool,
}

/// What became of a request that was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sent {
    Kept,
    /// The provider said no: nothing is kept.
    Refused,
    /// Nobody lives: nothing is kept.
    Lost,
}

/// One admitted request.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub ask: Ask,
    pub node: u32,
    pub arrived: Instant,
    /// None before the first token.
    pub first: Option<Instant>,
    /// Prompt tokens, or tokens to recompute, that are not yet prefilled.
    missing: u32,
    /// Output tokens before it last began to decode, and the step in which it did.
    decoded: u32,
    began: u64,
    decoding: bool,
    /// Tells one use of this place from another.
    turn: u32,
}

/// Where a sequence is kept.
pub type Place = u32;

/// What a step brought, by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    First(Place),
    Done(Place),
    Abandoned(Place),
}

/// All sequences of all replicas.
#[derive(Debug, Default)]
pub(in crate::sim) struct Slab {
    places: Vec<Sequence>,
    free: Vec<Place>,
}

/// The pool.
#[derive(Debug)]
pub struct Engine {
    shape: Shape,
    replicas: Vec<Worker>,
    slab: Slab,
    /// What happened and was not yet taken.
    events: Vec<Event>,
}

/// What a page of one replica shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    pub alive: bool,
    pub running: usize,
    pub waiting: usize,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub preempted: u64,
    /// Part of KV memory used.
    pub kv: f64,
}

// === impl Shape ===

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            step: 18e6,
            prompt: 70e3,
            decode: 60e3,
            held: 35.0,
            slots: 256,
            budget: 2048,
            kv: 460_000,
            patience: Duration::from_secs(30),
            output_cost: 2.5,
            jobs: false,
            quota: None,
        }
    }
}

impl Shape {
    /// Work of a request: a prompt token is 1.
    pub fn work(&self, prompt: u32, output: u32) -> f64 {
        f64::from(prompt) + self.output_cost * f64::from(output)
    }
}

// === impl Slab ===

impl Slab {
    pub fn insert(&mut self, sequence: Sequence) -> Place {
        if let Some(place) = self.free.pop() {
            let kept = self.get(place);
            let turn = kept.turn.wrapping_add(1);
            *kept = Sequence { turn, ..sequence };
            return place;
        }
        self.places.push(sequence);
        u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
    }

    #[expect(clippy::indexing_slicing, reason = "a place is only ever one that `insert` gave")]
    pub fn get(&mut self, place: Place) -> &mut Sequence {
        &mut self.places[place as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "a place is only ever one that `insert` gave")]
    pub fn read(&self, place: Place) -> &Sequence {
        &self.places[place as usize]
    }

    pub fn remove(&mut self, place: Place) {
        let kept = self.get(place);
        kept.turn = kept.turn.wrapping_add(1);
        self.free.push(place);
    }
}

// === impl Engine ===

impl Engine {
    pub fn new(shape: Shape, replicas: usize) -> Engine {
        let replicas = (0..replicas).map(|_| Worker::new(&shape)).collect();
        Engine { shape, replicas, slab: Slab::default(), events: Vec::new() }
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// When the next step of any replica ends.
    pub fn next_wake(&self) -> Option<Instant> {
        self.replicas.iter().filter_map(Worker::ends).min()
    }

    /// Ends the steps that end at `now`. Take what they brought with [`Engine::events`].
    pub fn step(&mut self, now: Instant) {
        for replica in &mut self.replicas {
            if replica.ends().is_some_and(|ends| ends <= now) {
                replica.step(&self.shape, &mut self.slab, &mut self.events, now);
            }
        }
    }

    /// Moves what happened since the last call to `into`, which is empty. Each place that ended is
    /// to be given back with [`Engine::forget`].
    pub fn events(&mut self, into: &mut Vec<Event>) {
        std::mem::swap(&mut self.events, into);
    }

    pub fn sequence(&self, place: Place) -> &Sequence {
        self.slab.read(place)
    }

    pub fn forget(&mut self, place: Place) {
        self.slab.remove(place);
    }

    /// To the living replica with the shortest line, and of those the one with the fewest requests.
    pub fn submit(&mut self, now: Instant, node: u32, ask: Ask) -> Sent {
        let living = self.replicas.iter_mut().filter(|replica| replica.alive());
        let Some(replica) = living.min_by_key(|replica| replica.line()) else { return Sent::Lost };
        if !replica.takes(&self.shape, now) {
            return Sent::Refused;
        }
        let (prompt, output) = (ask.prompt.max(1), ask.output.max(1));
        let place = self.slab.insert(Sequence {
            ask: Ask { prompt, output, ..ask },
            node,
            arrived: now,
            first: None,
            missing: prompt,
            decoded: 0,
            began: 0,
            decoding: false,
            turn: 0,
        });
        replica.submit(&self.shape, &mut self.slab, &mut self.events, now, place);
        Sent::Kept
    }

    /// A process that dies takes its sequences with it: `lost` is told each with the work that was
    /// done on it.
    pub fn die(&mut self, at: usize, mut lost: impl FnMut(&Sequence, f64)) {
        let Some(replica) = self.replicas.get_mut(at).filter(|replica| replica.alive()) else { return };
        for (place, work) in replica.die(&self.shape, &self.slab) {
            lost(self.slab.read(place), work);
            self.slab.remove(place);
        }
    }

    pub fn revive(&mut self, at: usize) {
        if let Some(replica) = self.replicas.get_mut(at).filter(|replica| !replica.alive()) {
            *replica = Worker::new(&self.shape);
        }
    }

    /// From its next step on it does `part` of what it could.
    pub fn slow(&mut self, at: usize, part: f64) {
        if let Some(replica) = self.replicas.get_mut(at) {
            *replica.part() = part.max(0.01);
        }
    }

    /// What living replicas can do, as replicas at full speed.
    pub fn speed(&self) -> f64 {
        self.replicas.iter().map(Worker::speed).sum()
    }

    pub fn alive(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.alive()).count()
    }

    /// Work of requests that wait for a place in a batch.
    pub fn queued_work(&self) -> f64 {
        self.replicas.iter().map(Worker::queued_work).sum()
    }

    /// Requests a minute that a provider allows now, and those left, where its answers say so.
    pub fn quota(&self) -> Option<(f64, f64)> {
        let quota = self.shape.quota.filter(|quota| quota.headers)?;
        self.replicas.first()?.left().map(|(part, left)| (quota.per_second * part * 60.0, left))
    }

    pub fn gauges(&self) -> impl Iterator<Item = Gauges> {
        self.replicas.iter().map(|replica| replica.gauges(&self.shape))
    }
}
