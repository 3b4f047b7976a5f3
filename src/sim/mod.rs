//! The simulator: the controller's step, the table and the limiter under a seeded clock.
//!
//! Nothing is re-implemented here: [`World`] calls the same [`crate::control::Controller::tick`],
//! [`crate::wire::Held::offer`] and [`crate::enforce::limiter::Limiter`] as the daemon and the
//! node. Only the edges are made: arrivals, replicas, the network, faults. A seed draws which
//! faults exist and how strong; two phases follow (VOPR): safety under faults, then everything is
//! healed and the promises of a healthy system must hold again. A broken promise names itself and
//! the seed.

pub mod batch;
pub mod check;
pub mod engine;
mod health;
pub mod law;
pub mod laws;
pub mod page;
pub mod plant;
pub mod scenario;
mod sources;
pub mod trial;
mod world;

pub use check::{Broken, Promise};
pub use page::Untrue;
pub use scenario::{Fault, Scenario};
pub use world::{Outcome, Seen, Survived, World, alone};

use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};

/// The one source of chance.
#[derive(Clone, Debug)]
pub struct Chance(ChaCha8Rng);

// === impl Chance ===

impl Chance {
    pub fn seeded(seed: u64) -> Chance {
        Chance(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.0.random::<f64>()
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..count`; 0 for an empty range.
    pub fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count.saturating_sub(1))
    }

    pub fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Seconds to the next arrival of a Poisson process.
    pub fn wait(&mut self, per_second: f64) -> f64 {
        -(1.0 - self.unit()).ln() / per_second
    }

    /// A whole number around `median`, log-normal, within bounds.
    pub fn size(&mut self, median: f64, sigma: f64, low: u64, high: u64) -> u64 {
        let drawn = LogNormal::new(median.ln(), sigma).map_or(median, |size| size.sample(&mut self.0));
        (drawn as u64).clamp(low, high)
    }
}
