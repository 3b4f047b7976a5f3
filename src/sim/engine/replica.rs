//! One replica: its batch, its queue, and the step in progress.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::sim::engine::{Event, Gauges, Place, Sequence, Shape, Slab};
use crate::unit::Instant;

#[derive(Debug)]
pub(super) struct Replica {
    pub alive: bool,
    /// Part of full speed.
    pub part: f64,
    /// End of the step in progress; none while idle.
    pub ends: Option<Instant>,
    /// Work of what waits.
    pub queued_work: f64,
    waiting: VecDeque<Place>,
    /// In the batch, prompt begun and not ended: at most one, as prompts are taken in order.
    partial: Option<Place>,
    /// Their prompts end with the step in progress.
    completing: Vec<Place>,
    decoding: usize,
    /// Step in which a decoding sequence ends, its place and turn.
    finish: BinaryHeap<Reverse<(u64, Place, u32)>>,
    /// Decoding sequences in order of admission; those that ended are left out when met.
    order: Vec<(Place, u32)>,
    step: u64,
    /// Prompt tokens of the step in progress.
    prefill: u32,
    /// Tokens held, and those that prompts in the batch will still need.
    kv: u64,
    reserved: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    preempted: u64,
}

// === impl Sequence ===

impl Sequence {
    /// Output tokens after step `step`.
    fn decoded_by(&self, step: u64) -> u32 {
        let since = if self.decoding { step.saturating_sub(self.began) } else { 0 };
        self.decoded.saturating_add(u32::try_from(since).unwrap_or(u32::MAX))
    }

    fn work_left(&self, shape: &Shape) -> f64 {
        shape.work(self.missing, self.ask.output.saturating_sub(self.decoded))
    }
}

// === impl Replica ===

impl Replica {
    pub fn new() -> Replica {
        Replica {
            alive: true,
            part: 1.0,
            ends: None,
            queued_work: 0.0,
            waiting: VecDeque::new(),
            partial: None,
            completing: Vec::new(),
            decoding: 0,
            finish: BinaryHeap::new(),
            order: Vec::new(),
            step: 0,
            prefill: 0,
            kv: 0,
            reserved: 0,
            prompt_tokens: 0,
            output_tokens: 0,
            preempted: 0,
        }
    }

    /// Prompts in line, then all requests.
    pub fn line(&self) -> (usize, usize) {
        (self.waiting.len() + usize::from(self.partial.is_some()), self.waiting.len() + self.running())
    }

    fn running(&self) -> usize {
        self.decoding + self.completing.len() + usize::from(self.partial.is_some())
    }

    pub fn gauges(&self, shape: &Shape) -> Gauges {
        Gauges {
            alive: self.alive,
            running: self.running(),
            waiting: self.waiting.len(),
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            preempted: self.preempted,
            kv: self.kv as f64 / shape.kv as f64,
        }
    }

    pub fn submit(&mut self, shape: &Shape, slab: &mut Slab, place: Place) {
        self.queued_work += slab.read(place).work_left(shape);
        self.waiting.push_back(place);
    }

    /// Everything it held, with the work done on each; it is dead and empty then.
    pub fn die(&mut self, shape: &Shape, slab: &Slab) -> Vec<(Place, f64)> {
        let step = self.step.saturating_sub(1);
        let mut places: Vec<Place> = self.waiting.drain(..).chain(self.partial).collect();
        places.append(&mut self.completing);
        let live = |(place, turn): (Place, u32)| {
            let sequence = slab.read(place);
            (sequence.turn == turn && sequence.decoding).then_some(place)
        };
        places.extend(self.order.drain(..).filter_map(live));
        let lost = places.into_iter().map(|place| {
            let sequence = slab.read(place);
            let prefilled = if sequence.first.is_some() {
                sequence.ask.prompt
            } else {
                sequence.ask.prompt.saturating_sub(sequence.missing)
            };
            (place, shape.work(prefilled, sequence.decoded_by(step)))
        });
        let lost = lost.collect();
        *self = Replica { alive: false, ..Replica::new() };
        lost
    }

    /// Plans the next step.
    pub fn begin(&mut self, shape: &Shape, slab: &mut Slab, events: &mut Vec<Event>, now: Instant) {
        self.give_up(shape, slab, events, now);
        self.preempt(shape, slab);
        let mut budget = shape.budget.saturating_sub(u32::try_from(self.decoding).unwrap_or(u32::MAX));
        let full = budget;
        if let Some(place) = self.partial.take() {
            self.prefill_of(slab, place, &mut budget);
        }
        while budget > 0 && self.partial.is_none() && self.running() < shape.slots {
            let Some(place) = self.waiting.front().copied() else { break };
            let sequence = slab.read(place);
            let needs = u64::from(sequence.missing);
            // Room to grow, as vLLM's watermark leaves it, or what was let in is preempted at once. A
            // prompt that never fits is let in alone, or it would block the queue for ever.
            if self.kv + self.reserved + needs > shape.kv - shape.kv / 100 && self.running() > 0 {
                break;
            }
            self.waiting.pop_front();
            self.queued_work -= sequence.work_left(shape);
            self.reserved += needs;
            self.prefill_of(slab, place, &mut budget);
        }
        if self.waiting.is_empty() {
            self.queued_work = 0.0;
        }
        self.prefill = full - budget;
        if self.prefill == 0 && self.decoding == 0 {
            self.ends = None;
            return;
        }
        self.step += 1;
        let nanos = shape.step
            + shape.prompt * f64::from(self.prefill)
            + shape.decode * self.decoding as f64
            + shape.held * self.kv as f64;
        self.ends = Some(now + Duration::from_nanos((nanos / self.part) as u64));
    }

    fn prefill_of(&mut self, slab: &mut Slab, place: Place, budget: &mut u32) {
        let sequence = slab.get(place);
        let chunk = sequence.missing.min(*budget);
        *budget -= chunk;
        sequence.missing -= chunk;
        if sequence.missing == 0 {
            self.completing.push(place);
        } else {
            self.partial = Some(place);
        }
    }

    /// Clients that waited too long for a first token go away, as far as they are first in line:
    /// who came later waited less.
    fn give_up(&mut self, shape: &Shape, slab: &mut Slab, events: &mut Vec<Event>, now: Instant) {
        let late =
            |sequence: &Sequence| sequence.first.is_none() && now.since(sequence.arrived) > shape.patience;
        while let Some(place) = self.waiting.front().copied().filter(|place| late(slab.read(*place))) {
            self.waiting.pop_front();
            self.queued_work -= slab.read(place).work_left(shape);
            events.push(Event::Abandoned(place));
        }
        if let Some(place) = self.partial.take_if(|place| late(slab.read(*place))) {
            let sequence = slab.read(place);
            let done = u64::from(sequence.ask.prompt.saturating_sub(sequence.missing));
            self.reserved = self.reserved.saturating_sub(u64::from(sequence.missing));
            self.kv = self.kv.saturating_sub(done);
            events.push(Event::Abandoned(place));
        }
    }

    /// Makes room for one token of every decoding sequence: the last that came goes back to the
    /// head of the queue and is computed again.
    fn preempt(&mut self, shape: &Shape, slab: &mut Slab) {
        while self.kv + self.reserved + self.decoding as u64 > shape.kv && self.decoding > 1 {
            let Some((place, turn)) = self.order.pop() else { return };
            let step = self.step;
            let sequence = slab.get(place);
            if sequence.turn != turn || !sequence.decoding {
                continue;
            }
            sequence.decoded = sequence.decoded_by(step);
            sequence.decoding = false;
            let held = sequence.ask.prompt.saturating_add(sequence.decoded);
            sequence.missing = held;
            // Its place in the heap of ends is void.
            sequence.turn = sequence.turn.wrapping_add(1);
            self.queued_work += slab.read(place).work_left(shape);
            self.kv = self.kv.saturating_sub(u64::from(held));
            self.decoding -= 1;
            self.preempted += 1;
            self.waiting.push_front(place);
        }
    }

    /// Ends the step in progress.
    pub fn finish(&mut self, shape: &Shape, slab: &mut Slab, events: &mut Vec<Event>, now: Instant) {
        let step = self.step;
        self.kv += u64::from(self.prefill) + self.decoding as u64;
        self.reserved = self.reserved.saturating_sub(u64::from(self.prefill));
        self.prompt_tokens += u64::from(self.prefill);
        self.output_tokens += self.decoding as u64;
        while let Some(Reverse((ends, place, turn))) = self.finish.peek().copied() {
            if ends > step {
                break;
            }
            self.finish.pop();
            if slab.read(place).turn == turn {
                self.decoding -= 1;
                self.done(slab, events, place);
            }
        }
        let mut completing = std::mem::take(&mut self.completing);
        for place in completing.drain(..) {
            self.output_tokens += 1;
            self.kv += 1;
            let sequence = slab.get(place);
            sequence.decoded += 1;
            if sequence.first.is_none() {
                sequence.first = Some(now);
                events.push(Event::First(place));
            }
            let left = sequence.ask.output.saturating_sub(sequence.decoded);
            if left == 0 {
                self.done(slab, events, place);
                continue;
            }
            (sequence.began, sequence.decoding) = (step, true);
            let turn = sequence.turn;
            self.decoding += 1;
            self.finish.push(Reverse((step + u64::from(left), place, turn)));
            self.order.push((place, turn));
        }
        self.completing = completing;
        if self.order.len() > 8 * shape.slots {
            self.order.retain(|(place, turn)| {
                let sequence = slab.read(*place);
                sequence.turn == *turn && sequence.decoding
            });
        }
    }

    fn done(&mut self, slab: &mut Slab, events: &mut Vec<Event>, place: Place) {
        let sequence = slab.get(place);
        sequence.decoding = false;
        let held = u64::from(sequence.ask.prompt) + u64::from(sequence.ask.output);
        self.kv = self.kv.saturating_sub(held);
        events.push(Event::Done(place));
    }
}
