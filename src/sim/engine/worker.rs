//! A replica of either kind.

use crate::sim::engine::provider::Bucket;
use crate::sim::engine::replica::Replica;
use crate::sim::engine::servers::Servers;
use crate::sim::engine::{Event, Gauges, Place, Shape, Slab};
use crate::unit::Instant;

#[derive(Debug)]
pub(super) enum Worker {
    Batch(Box<Replica>),
    Servers(Servers),
    /// Whatever its quota lets in is served at once.
    Provider(Servers, Bucket),
}

// === impl Worker ===

impl Worker {
    pub fn new(shape: &Shape) -> Worker {
        if let Some(quota) = &shape.quota {
            return Worker::Provider(Servers::new(), Bucket::new(quota));
        }
        if shape.jobs { Worker::Servers(Servers::new()) } else { Worker::Batch(Box::new(Replica::new())) }
    }

    pub fn alive(&self) -> bool {
        match self {
            Worker::Batch(replica) => replica.alive,
            Worker::Servers(servers) | Worker::Provider(servers, _) => servers.alive,
        }
    }

    /// Part of full speed.
    pub fn part(&mut self) -> &mut f64 {
        match self {
            Worker::Batch(replica) => &mut replica.part,
            Worker::Servers(servers) => &mut servers.part,
            Worker::Provider(_, bucket) => &mut bucket.part,
        }
    }

    /// What it does as replicas at full speed.
    pub fn speed(&self) -> f64 {
        match self {
            Worker::Batch(replica) if replica.alive => replica.part,
            Worker::Servers(servers) if servers.alive => servers.part,
            Worker::Provider(servers, bucket) if servers.alive => bucket.part,
            Worker::Batch(_) | Worker::Servers(_) | Worker::Provider(..) => 0.0,
        }
    }

    pub fn ends(&self) -> Option<Instant> {
        match self {
            Worker::Batch(replica) => replica.ends,
            Worker::Servers(servers) | Worker::Provider(servers, _) => servers.ends,
        }
    }

    pub fn queued_work(&self) -> f64 {
        match self {
            Worker::Batch(replica) => replica.queued_work,
            Worker::Servers(servers) | Worker::Provider(servers, _) => servers.queued_work,
        }
    }

    /// Whether it lets one more in.
    pub fn takes(&mut self, shape: &Shape, now: Instant) -> bool {
        match (self, &shape.quota) {
            (Worker::Provider(_, bucket), Some(quota)) => bucket.take(quota, now),
            _ => true,
        }
    }

    /// Of a provider: the part of its quota that is in force, and the requests left.
    pub fn left(&self) -> Option<(f64, f64)> {
        match self {
            Worker::Provider(_, bucket) => Some((bucket.part, bucket.left())),
            Worker::Batch(_) | Worker::Servers(_) => None,
        }
    }

    /// Who waits, then all requests: what routers go by.
    pub fn line(&self) -> (usize, usize) {
        match self {
            Worker::Batch(replica) => replica.line(),
            Worker::Servers(servers) | Worker::Provider(servers, _) => servers.line(),
        }
    }

    pub fn gauges(&self, shape: &Shape) -> Gauges {
        match self {
            Worker::Batch(replica) => replica.gauges(shape),
            Worker::Servers(servers) | Worker::Provider(servers, _) => servers.gauges(shape),
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
            Worker::Servers(servers) | Worker::Provider(servers, _) => {
                servers.submit(slab, place);
                servers.begin(shape, slab, events, now);
            }
        }
    }

    pub fn die(&mut self, shape: &Shape, slab: &Slab) -> Vec<(Place, f64)> {
        match self {
            Worker::Batch(replica) => replica.die(shape, slab),
            Worker::Servers(servers) | Worker::Provider(servers, _) => servers.die(slab),
        }
    }

    /// Ends what ends now, and begins what comes next.
    pub fn step(&mut self, shape: &Shape, slab: &mut Slab, events: &mut Vec<Event>, now: Instant) {
        match self {
            Worker::Batch(replica) => {
                replica.finish(shape, slab, events, now);
                replica.begin(shape, slab, events, now);
            }
            Worker::Servers(servers) | Worker::Provider(servers, _) => {
                servers.finish(slab, events, now);
                servers.begin(shape, slab, events, now);
            }
        }
    }
}
