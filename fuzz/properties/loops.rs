//! A controller at the end of an input: whatever was believed must still make a table.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tidegate::control::{Controller, State};
use tidegate::observe::Round;
use tidegate::policy::Policy;
use tidegate::policy::load::load_bytes;
use tidegate::unit::Instant;
use tidegate::wire::{Held, LimitTable, Offer};

/// What inputs that are not policies meet; their names are in the corpora.
const POLICY: &str = "\
product: fuzz
pools:
  p: {preset: vllm, targets: [http://10.0.0.1:8000, http://10.0.0.2:8000], slo: 1s}
models:
  m: {pool: p}
tiers:
  paid: {priority: 1, weight: 4, guarantee: 60k tpm, ceiling: unlimited, key_limits: unlimited}
  free: {priority: 2, weight: 1, guarantee: 0 tpm, ceiling: 2M tpm, key_limits: [60 rpm, 5 concurrent]}
";

pub struct Loop {
    pub controller: Controller,
    pub now: Instant,
    held: Option<Held>,
}

// === impl Loop ===

impl Loop {
    pub fn new(policy: Policy) -> Loop {
        let now = Instant::ZERO + Duration::from_secs(1);
        Loop { controller: Controller::new(Arc::new(policy), State::default()), now, held: None }
    }

    /// Of [`POLICY`].
    pub fn small() -> Loop {
        static READ: OnceLock<Policy> = OnceLock::new();
        let read =
            || load_bytes(vec![("small.yaml".to_owned(), POLICY.into())]).expect("a good policy").policy;
        Loop::new(READ.get_or_init(read).clone())
    }

    /// One tick. Its table is one that every node takes, and what is remembered can be stored.
    pub fn tick(&mut self, round: &Round) -> Arc<LimitTable> {
        self.now = self.now + self.controller.policy().interval;
        let tick = self.controller.tick(self.now, round);
        let encoded = tick.table.encode().expect("a table is small enough to be published");
        let decoded = LimitTable::decode(&encoded).expect("a table is one that a node takes");
        assert_eq!(decoded, *tick.table);
        match Held::offer(self.held.as_ref(), decoded, self.now).expect("no version is used twice") {
            Offer::Applied(held) | Offer::Renewed(held) => self.held = Some(held),
            Offer::Stale => panic!("the controller made {:?} after a later one", tick.table.stamp),
        }
        let stored = serde_json::to_vec(self.controller.state()).expect("the state can be stored");
        let read: State = serde_json::from_slice(&stored).expect("the state can be read again");
        assert_eq!(serde_json::to_vec(&read).expect("and stored"), stored, "the state changed on disk");
        tick.table
    }
}
