//! A replica of either kind.

use crate::sim::engine::replica::Replica;
use crate::sim::engine::servers::Servers;
use crate::sim::engine::{Event, Gauges, Place, Shape, Slab};
use crate::unit::Instant;

#[derive(Debug)]
pub(super) enum Worker {
    Batch(Box<Replica>),
    Servers(Servers),
}

// === impl Worker ===

impl Worker {
    pub fn new(shape: &Shape) -> Worker {
        if shape.jobs { Worker::Servers(Servers::new()) } else { Worker::Batch(Box::new(Replica::new())) }
    }

    pub fn alive(&self) -> bool {
        match self {
            Worker::Batch(replica) => replica.alive,
            Worker::Servers(servers) => servers.alive,
        }
    }

    /// Part of full speed.
    pub fn part(&mut self) -> &mut f64 {
        match self {
            Worker::Batch(replica) => &mut replica.part,
            Worker::Servers(servers) => &mut servers.part,
        }
    }

    /// What it does as replicas at full speed.
    pub fn speed(&self) -> f64 {
        match self {
            Worker::Batch(replica) if replica.alive => replica.part,
            Worker::Servers(servers) if servers.alive => servers.part,
            Worker::Batch(_) | Worker::Servers(_) => 0.0,
        }
    }

    pub fn ends(&self) -> Option<Instant> {
        match self {
            Worker::Batch(replica) => replica.ends,
            Worker::Servers(servers) => servers.ends,
        }
    }

    pub fn queued_work(&self) -> f64 {
        match self {
            Worker::Batch(replica) => replica.queued_work,
            Worker::Servers(servers) => servers.queued_work,
        }
    }

    /// Requests in line, then all: what routers that read gauges go by.
    pub fn line(&self) -> (usize, usize) {
        match self {
            Worker::Batch(replica) => replica.line(),
            Worker::Servers(servers) => servers.line(),
        }
    }

    pub fn gauges(&self, shape: &Shape) -> Gauges {
        match self {
            Worker::Batch(replica) => replica.gauges(shape),
            Worker::Servers(servers) => servers.gauges(shape),
        }
    }

    pub fn submit(
        &mut self,
        shape: &Shape,
        slab: &mut Slab,
        events: &mut Vec<Event>,
        now: Instant,
        place: Place,
    ) {
        match self {
            Worker::Batch(replica) => {
                replica.submit(shape, slab, place);
                if replica.ends.is_none() {
                    replica.begin(shape, slab, events, now);
                }
            }
            Worker::Servers(servers) => {
                servers.submit(slab, place);
                servers.begin(shape, slab, events, now);
            }
        }
    }

    pub fn die(&mut self, shape: &Shape, slab: &Slab) -> Vec<(Place, f64)> {
        match self {
            Worker::Batch(replica) => replica.die(shape, slab),
            Worker::Servers(servers) => servers.die(slab),
        }
    }

    /// Ends what ends now, and begins what comes next.
    pub fn step(&mut self, shape: &Shape, slab: &mut Slab, events: &mut Vec<Event>, now: Instant) {
        match self {
            Worker::Batch(replica) => {
                replica.finish(shape, slab, events, now);
                replica.begin(shape, slab, events, now);
            }
            Worker::Servers(servers) => {
                servers.finish(slab, events, now);
                servers.begin(shape, slab, events, now);
            }
        }
    }
}
