//! Another kind of replica: servers that each do one job at a time, as image models do.
//!
//! A request is one unit of work, whatever its time; [`Ask::output`](crate::sim::law::Ask::output)
//! says how many milliseconds its job takes. It waits until a server is free, and its first token
//! is the beginning of its job.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::sim::engine::{Event, Gauges, Place, Shape, Slab};
use crate::unit::Instant;

#[derive(Debug)]
pub(super) struct Servers {
    pub alive: bool,
    pub part: f64,
    /// End of the next job.
    pub ends: Option<Instant>,
    pub queued_work: f64,
    waiting: VecDeque<Place>,
    busy: BinaryHeap<Reverse<(Instant, Place)>>,
    done: u64,
}

// === impl Servers ===

impl Servers {
    pub fn new() -> Servers {
        Servers {
            alive: true,
            part: 1.0,
            ends: None,
            queued_work: 0.0,
            waiting: VecDeque::new(),
            busy: BinaryHeap::new(),
            done: 0,
        }
    }

    pub fn line(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting.len() + self.busy.len())
    }

    pub fn gauges(&self, shape: &Shape) -> Gauges {
        Gauges {
            alive: self.alive,
            running: self.busy.len(),
            waiting: self.waiting.len(),
            prompt_tokens: self.done,
            output_tokens: 0,
            preempted: 0,
            kv: self.busy.len() as f64 / shape.slots.max(1) as f64,
        }
    }

    pub fn submit(&mut self, slab: &Slab, place: Place) {
        self.queued_work += f64::from(slab.read(place).ask.prompt);
        self.waiting.push_back(place);
    }

    pub fn die(&mut self, slab: &Slab) -> Vec<(Place, f64)> {
        let waiting = self.waiting.drain(..).map(|place| (place, 0.0));
        let begun =
            self.busy.drain().map(|Reverse((_, place))| (place, f64::from(slab.read(place).ask.prompt)));
        let lost = waiting.chain(begun).collect();
        *self = Servers { alive: false, ..Servers::new() };
        lost
    }

    /// Free servers take what waits.
    pub fn begin(&mut self, shape: &Shape, slab: &mut Slab, events: &mut Vec<Event>, now: Instant) {
        while let Some(place) = self.waiting.front().copied() {
            let sequence = slab.get(place);
            let late = now.since(sequence.arrived) > shape.patience;
            if !late && self.busy.len() >= shape.slots {
                break;
            }
            self.waiting.pop_front();
            self.queued_work -= f64::from(sequence.ask.prompt);
            if late {
                events.push(Event::Abandoned(place));
                continue;
            }
            sequence.first = Some(now);
            events.push(Event::First(place));
            let seconds = f64::from(sequence.ask.output) / 1e3 / self.part;
            self.busy.push(Reverse((now + Duration::from_secs_f64(seconds), place)));
        }
        self.ends = self.busy.peek().map(|Reverse((at, _))| *at);
    }

    /// Ends the jobs that are done.
    pub fn finish(&mut self, slab: &Slab, events: &mut Vec<Event>, now: Instant) {
        while let Some(Reverse((at, place))) = self.busy.peek().copied() {
            if at > now {
                break;
            }
            self.busy.pop();
            self.done += u64::from(slab.read(place).ask.prompt);
            events.push(Event::Done(place));
        }
    }
}
