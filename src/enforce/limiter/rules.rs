//! A table as requests read it: compiled once, never changed, shared by all shards.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::enforce::allowance::{Allowance, Portion};
use crate::enforce::bucket::{Bucket, Rate};
use crate::enforce::meters::{Meters, RATES, place};
use crate::enforce::slot::{Flow, Flows, Share};
use crate::enforce::ticket::{Costs, Limits, RefusalReason, Request, Scope, Settlement, Ticket};
use crate::planted::without;
use crate::unit::{Dimension, Instant, Limit, MAX_FINITE, ModelId, WorkUnit};
use crate::wire::{CachedInput, Entry, Held, Row, Window, Yields};

use super::cells::{PoolCell, RowCell};
use super::sync::{Mutex, MutexGuard, lock};

/// Output tokens assumed before any request of a row was settled.
pub const OUTPUT_UNKNOWN: u64 = 256;

/// What a node obeys, by places that never change: rows, models and pools of all tables so far.
#[derive(Debug, Default)]
pub struct Rules {
    hasher: DefaultHashBuilder,
    index: HashTable<u32>,
    pub rows: Vec<RowRules>,
    /// Of each row, the areas under the rates of its keys and accounts.
    pub flows: Vec<Flows>,
    pub models: Vec<ModelRules>,
    pub pools: Vec<PoolRules>,
    /// Models of the table.
    live: BTreeMap<ModelId, ()>,
}

/// A row of a table, flattened for the request path.
#[derive(Clone, Debug)]
pub struct RowRules {
    pub cell: Arc<RowCell>,
    /// The table in force has it.
    pub live: bool,
    pub pool: u32,
    pub model: u32,
    /// What the counters of its keys and accounts span.
    pub span: u32,
    pub yields: Yields,
    pub portion: Portion,
    pub unit: WorkUnit,
    pub output_cost_milli: u64,
    /// Most output tokens of one choice.
    pub output_max: Option<u64>,
    pub window: Window,
    pub cached: CachedInput,
    /// While the table is valid.
    pub tier: Box<[Allowance]>,
    pub entries: Box<[(Dimension, Entry)]>,
    pub key: Box<[Allowance]>,
    pub account: Box<[Allowance]>,
    pub share: Option<Share>,
    /// Of the tier, in work.
    pub guarantee: Option<Allowance>,
}

/// What a tier is guaranteed, and what of it was admitted.
pub type Due<'a> = (&'a Allowance, MutexGuard<'a, Bucket>);

#[derive(Clone, Debug)]
pub struct ModelRules {
    pub state: Arc<Mutex<Meters>>,
    /// All tiers together.
    pub limits: Box<[Allowance]>,
}

#[derive(Clone, Debug)]
pub struct PoolRules {
    pub cell: Arc<PoolCell>,
    /// None when the table in force has no such pool.
    pub limits: Option<PoolLimits>,
}

#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    pub portion: Portion,
    pub waiting_work: Limit,
    /// Time to first token; zero where nobody says.
    pub slo: Duration,
    pub in_flight: Limit,
}

// === impl Rules ===

impl Rules {
    pub fn new(
        rows: Vec<RowRules>,
        flows: Vec<Flows>,
        models: Vec<ModelRules>,
        pools: Vec<PoolRules>,
    ) -> Rules {
        let mut rules = Rules { rows, flows, models, pools, ..Rules::default() };
        for (at, row) in rules.rows.iter().enumerate().filter(|(_, row)| row.live) {
            rules.live.insert(row.cell.model.clone(), ());
            let hash =
                |row: &RowRules| rules.hasher.hash_one((row.cell.model.as_str(), row.cell.tier.as_str()));
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            let rehash = |at: &u32| rules.rows.get(*at as usize).map_or(0, hash);
            rules.index.insert_unique(hash(row), at, rehash);
        }
        rules
    }

    pub fn find(&self, model: &str, tier: &str) -> Result<(u32, &RowRules), RefusalReason> {
        let row = |at: u32| self.rows.get(at as usize);
        let is_it = |at: &u32| {
            row(*at).is_some_and(|row| row.cell.tier.as_str() == tier && row.cell.model.as_str() == model)
        };
        match self.index.find(self.hasher.hash_one((model, tier)), is_it).copied() {
            Some(at) => row(at).map(|row| (at, row)).ok_or(RefusalReason::UnknownModel),
            None if self.live.contains_key(model) => Err(RefusalReason::UnknownTier),
            None => Err(RefusalReason::UnknownModel),
        }
    }

    pub fn row(&self, at: u32) -> Option<&RowRules> {
        self.rows.get(at as usize)
    }

    /// Of models that have limits.
    pub fn model(&self, at: u32) -> Option<&ModelRules> {
        self.models.get(at as usize).filter(|model| !model.limits.is_empty())
    }

    pub fn pool(&self, at: u32) -> Option<&PoolRules> {
        self.pools.get(at as usize)
    }
}

// === impl PoolLimits ===

impl PoolLimits {
    pub fn bind(&self) -> bool {
        self.waiting_work != Limit::Unlimited || self.in_flight != Limit::Unlimited
    }
}

// === impl RowRules ===

impl RowRules {
    /// The tier's limits once the table is not renewed in time.
    pub fn steered(&self, held: &Held, now: Instant) -> Built {
        let limits = self.entries.iter().filter_map(|(dimension, entry)| {
            let limit = self.portion.tier_limit(held, entry, now);
            Allowance::of(*dimension, limit, Scope::Tier, self.portion)
        });
        Built::of(limits)
    }

    /// What was admitted of a guarantee, drained up to `now`.
    pub fn due<'a>(&'a self, guarantee: &'a Allowance, now: Instant) -> Due<'a> {
        let mut admitted = lock(&self.cell.guaranteed);
        admitted.touch(now, guarantee.rate, guarantee.depth);
        (guarantee, admitted)
    }

    pub fn limits(&self, scope: Scope) -> &[Allowance] {
        if scope == Scope::Account { &self.account } else { &self.key }
    }

    /// The limits of a key or account that has some of its own.
    pub fn overridden(&self, scope: Scope, own: &Limits) -> Built {
        let limits = Dimension::ALL.into_iter().filter_map(|dimension| match own.get(&dimension) {
            Some(limit) => Allowance::of(dimension, *limit, scope, self.portion),
            None => self.limits(scope).iter().find(|limit| limit.dimension == dimension).copied(),
        });
        Built::of(limits)
    }

    /// The estimate at arrival, and the output tokens in it.
    pub fn estimate(&self, request: &Request<'_>) -> (Costs, u64) {
        let bound = self.output_bound(request);
        let output = match self.cell.output().filter(|_| !without("learned-output")) {
            Some(learned) => bound.min(learned.ceil() as u64),
            None => bound.min(OUTPUT_UNKNOWN),
        };
        (self.costs(request.input_tokens, 0, output, request.images), output)
    }

    /// The client's own bound, or the model's for as many choices as were asked for.
    pub fn output_bound(&self, request: &Request<'_>) -> u64 {
        let model = || self.output_max.map(|most| most.saturating_mul(request.images.max(1)));
        request.output_max.or_else(model).unwrap_or(MAX_FINITE)
    }

    pub fn costs(&self, input: u64, cached: u64, output: u64, images: u64) -> Costs {
        let weighted = u128::from(output) * u128::from(self.output_cost_milli);
        let weighted = u64::try_from(weighted.div_ceil(1_000)).unwrap_or(u64::MAX);
        let work = input.saturating_add(weighted).min(MAX_FINITE);
        let cached = if self.cached == CachedInput::Counted { cached } else { 0 };
        let input = input.saturating_add(cached).min(MAX_FINITE);
        let output = output.min(MAX_FINITE);
        let images = images.min(MAX_FINITE);
        let work = match self.unit {
            WorkUnit::Tokens => work,
            WorkUnit::Requests => 1,
            WorkUnit::Images => images,
        };
        Costs {
            requests: 1,
            tokens: input.saturating_add(output).min(MAX_FINITE),
            input,
            output,
            images,
            work,
        }
    }

    /// What a request has cost in the end.
    pub fn actual(&self, ticket: &Ticket, outcome: Settlement) -> Costs {
        let reserved = ticket.reserved;
        match outcome {
            // The row left the table meanwhile; what was reserved is the best that is known.
            Settlement::Used { .. } | Settlement::Broken { .. } | Settlement::Died { .. } if !self.live => {
                reserved
            }
            Settlement::Used { input_tokens, cached_tokens, output_tokens, images } => {
                self.costs(input_tokens, cached_tokens, output_tokens, images)
            }
            Settlement::Broken { output_seen } | Settlement::Died { output_seen } => {
                let seen = self.costs(ticket.input_tokens, 0, output_seen, reserved.images);
                Costs {
                    requests: 1,
                    tokens: seen.tokens.max(reserved.tokens),
                    input: seen.input.max(reserved.input),
                    output: seen.output.max(reserved.output),
                    images: reserved.images,
                    work: seen.work.max(reserved.work),
                }
            }
            Settlement::NotSent => Costs::default(),
            Settlement::UpstreamError | Settlement::Rejected => Costs { requests: 1, ..Costs::default() },
        }
    }
}

/// Limits built for one request, without memory of their own.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    limits: [Allowance; Dimension::ALL.len()],
    count: usize,
}

// === impl Built ===

impl Built {
    fn of(limits: impl Iterator<Item = Allowance>) -> Built {
        let none = Allowance { dimension: Dimension::Jobs, limit: 0, rate: 0, depth: 0, count: 0 };
        let mut built = Built { limits: [none; Dimension::ALL.len()], count: 0 };
        for (place, limit) in built.limits.iter_mut().zip(limits) {
            *place = limit;
            built.count += 1;
        }
        built
    }

    pub fn limits(&self) -> &[Allowance] {
        self.limits.get(..self.count).unwrap_or_default()
    }

    /// Its rates, by their places.
    pub fn rates(&self) -> [Rate; RATES] {
        let mut rates = [0; RATES];
        for limit in self.limits() {
            if let Some(rate) = place(limit.dimension).and_then(|at| rates.get_mut(at)) {
                *rate = limit.rate;
            }
        }
        rates
    }
}

/// The flows of a row's keys and accounts, under its rates from `now` on.
pub fn flows(before: Option<&Flows>, row: &RowRules, now: Instant) -> Flows {
    let mut flows = before.copied().unwrap_or_default();
    for (flows, limits) in flows.iter_mut().zip([&row.key, &row.account]) {
        for limit in limits {
            // What is not limited any more goes on draining as it did.
            if let Some(flow) = place(limit.dimension).and_then(|at| flows.get_mut(at)) {
                *flow = Flow::turned(flow, now, limit.rate);
            }
        }
    }
    let [of_keys, _] = &mut flows;
    if let Some(share) = &row.share
        && let Some(flow) = of_keys.get_mut(share.lane)
    {
        *flow = flow.turned(now, share.allowance.rate);
    }
    flows
}

/// A key's fair share of a row, where the table has one and its limits leave a lane to count it in.
pub fn share_of(row: &Row, unit: WorkUnit, key: &[Allowance], portion: Portion) -> Option<Share> {
    let dimension = unit.dimension();
    let entry = row.limits.get(&dimension)?;
    let allowance = Allowance::share(dimension, entry.key_share, portion)?;
    let taken = |lane: &usize| key.iter().any(|limit| place(limit.dimension) == Some(*lane));
    (0..RATES).rev().find(|lane| !taken(lane)).map(|lane| Share { lane, allowance })
}

/// What a tier is guaranteed here; none where nothing is.
pub fn guarantee_of(row: &Row, unit: WorkUnit, portion: Portion) -> Option<Allowance> {
    let guarantee = row.limits.get(&unit.dimension())?.guarantee;
    Allowance::of(unit.dimension(), guarantee, Scope::Tier, portion).filter(|due| due.rate > 0)
}

/// Limits of one scope of a row.
pub fn limits_of(row: &Row, scope: Scope, portion: Portion) -> Box<[Allowance]> {
    let limit = |entry: &Entry| match scope {
        Scope::Tier => portion.part(entry, entry.tier_limit),
        Scope::Account => entry.account_limit,
        _ => entry.key_limit,
    };
    let finite = row
        .limits
        .iter()
        .filter_map(|(dimension, entry)| Allowance::of(*dimension, limit(entry), scope, portion));
    finite.collect()
}
