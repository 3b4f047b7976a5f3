//! The fleet: replicas whose capacity is known to nobody but the plant.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::dialect::Dialect;
use super::engine::Shared;
use super::replica::Replica;
use crate::sim::batch::Shape;
use crate::unit::{Instant, SystemClock};

/// Later than this and what the plant measures says more about the machine than about the limits.
pub const LATE_MAX: Duration = Duration::from_millis(200);

/// Simulated inference replicas on loopback. Needs a tokio runtime around it.
#[derive(Debug)]
pub struct Plant {
    shape: Shape,
    shared: Arc<Shared>,
    replicas: Vec<Replica>,
}

// === impl Plant ===

impl Plant {
    /// Starts `replicas` of them, each on a port of its own.
    ///
    /// # Errors
    /// When loopback has no port to give.
    pub fn start(replicas: usize, shape: Shape) -> io::Result<Plant> {
        Plant::speaking(Dialect::Vllm, replicas, shape)
    }

    /// The same with another server's metrics.
    ///
    /// # Errors
    /// As [`Plant::start`].
    pub fn speaking(dialect: Dialect, replicas: usize, shape: Shape) -> io::Result<Plant> {
        let shared = Arc::new(Shared {
            clock: SystemClock::starting_at(Instant::ZERO),
            delivered: AtomicU64::new(0),
            late_us: AtomicU64::new(0),
        });
        let replicas = (0..replicas).map(|_| Replica::start(shape, dialect, Arc::clone(&shared)));
        Ok(Plant { shape, replicas: replicas.collect::<io::Result<_>>()?, shared })
    }

    /// Base URLs of all replicas, dead or alive; metrics are at `/metrics`.
    pub fn replica_urls(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::url).collect()
    }

    /// What the living replicas can do, work a second.
    pub fn capacity(&self) -> f64 {
        let alive = self.replicas.iter().filter(|replica| replica.alive()).count();
        alive as f64 * f64::from(self.shape.rate)
    }

    /// Work delivered since the start; its rise over a second is the load.
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// The worst lateness of any step.
    pub fn late(&self) -> Duration {
        self.shared.late()
    }

    /// The second half of the replicas dies at once.
    pub fn kill_half(&mut self) {
        let half = self.replicas.len() / 2;
        self.replicas.iter_mut().skip(half).for_each(Replica::kill);
    }

    /// Every dead replica comes back where it was.
    ///
    /// # Errors
    /// When an address cannot be listened on again.
    pub fn revive(&mut self) -> io::Result<()> {
        self.replicas.iter_mut().try_for_each(Replica::revive)
    }
}
