//! What a seed means: the pool, the tenants, and which faults come when.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::policy::{Grant, INTERVAL, ModelPolicy, OutputCost, Policy, PoolPolicy, SignalMap, SourcePolicy};
use crate::sim::Chance;
use crate::sim::page::Untrue;
use crate::unit::{Dimension, Limit, ModelId, PoolId, TierId, WorkUnit};

/// Faults happen before this part of the run; after it everything is healed.
const FAULTS_UNTIL: f64 = 0.75;
/// Work of one output token in the plant, and as the policy states it.
pub const OUTPUT_COST: f64 = 4.0;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub seconds: f64,
    pub healed_at: f64,
    pub replicas: usize,
    /// Work per second of one replica.
    pub replica_rate: f64,
    pub slots: usize,
    pub nodes: usize,
    pub tenants: Vec<Tenant>,
    pub policy: Policy,
    /// In order of time.
    pub faults: Vec<(f64, Fault)>,
    /// Seconds a table takes to a node, a report to the controller.
    pub delay: f64,
    /// Part of the requests whose client hangs up midway.
    pub hang_ups: f64,
}

/// One tier's traffic.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub tier: TierId,
    /// Requests per second.
    pub arrivals: f64,
    pub keys: usize,
}

/// Every fault ends by itself or is undone by the healing at the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Replicas die with what they were serving.
    Die {
        replicas: Vec<usize>,
    },
    Revive {
        replicas: Vec<usize>,
    },
    /// The pages of these replicas show something else than the truth, or the truth again.
    Show {
        replicas: Vec<usize>,
        untrue: Option<Untrue>,
    },
    /// Counters of these replicas begin anew; nothing else happens.
    ResetCounters {
        replicas: Vec<usize>,
    },
    /// The controller's process stands still.
    Pause {
        seconds: f64,
    },
    /// One replica serves at a part of its rate, and says nothing of it.
    Slow {
        replica: usize,
        part: f64,
    },
    /// The node and the controller do not hear each other.
    Partition {
        node: usize,
    },
    Rejoin {
        node: usize,
    },
    /// The controller is killed; it comes back with its state, or without.
    Kill {
        keep_state: bool,
        back_after: f64,
    },
    /// The node starts anew from the table on its disk.
    RestartNode {
        node: usize,
    },
    /// A table from the past is offered again.
    Replay {
        node: usize,
    },
    /// One tier asks this many times as much.
    Flood {
        tier: usize,
        factor: f64,
    },
    /// An operator halves, or doubles back, one tier's ceiling.
    EditCeiling {
        tier: usize,
        factor: f64,
    },
    /// Everything is as at the start.
    Heal,
}

// === impl Scenario ===

impl Scenario {
    pub fn draw(seed: u64, seconds: f64) -> Scenario {
        let mut chance = Chance::seeded(seed);
        let replicas = 2 + chance.below(6);
        let replica_rate = chance.between(3000.0, 9000.0);
        let slots = 24 + chance.below(30);
        let nodes = 1 + chance.below(4);
        let capacity = replica_rate * replicas as f64;
        let load = chance.between(0.5, 1.9);
        let policy = policy(&mut chance, capacity);
        let tenants = tenants(&mut chance, &policy, capacity * load);
        let healed_at = seconds * FAULTS_UNTIL;
        let mut faults = faults(&mut chance, replicas, nodes, tenants.len(), healed_at);
        let delay = chance.between(0.01, 0.3);
        let hang_ups = if chance.happens(0.5) { chance.between(0.0, 0.1) } else { 0.0 };
        faults.extend(untrue_pages(&mut chance, replicas, healed_at));
        faults.sort_by(|a, b| a.0.total_cmp(&b.0));
        Scenario {
            seed,
            seconds,
            healed_at,
            replicas,
            replica_rate,
            slots,
            nodes,
            tenants,
            policy,
            faults,
            delay,
            hang_ups,
        }
    }

    /// Work per second with every replica well.
    pub fn capacity(&self) -> f64 {
        self.replica_rate * self.replicas as f64
    }
}

/// Three tiers whose guarantees fit into half of the pool.
fn policy(chance: &mut Chance, capacity: f64) -> Policy {
    let grant = |chance: &mut Chance, priority: u32, guaranteed: f64| {
        let guarantee = (guaranteed * capacity * 60.0) as u64;
        let ceiling = if chance.happens(0.3) {
            Limit::from_f64(capacity * 60.0 * chance.between(0.5, 1.2))
        } else {
            Limit::Unlimited
        };
        let key_limits = if chance.happens(0.3) {
            BTreeMap::from([(Dimension::Concurrency, Limit::Finite(64))])
        } else {
            BTreeMap::new()
        };
        Grant {
            priority,
            weight: f64::from(1u32 << (3 - priority)),
            guarantee,
            safe: guarantee,
            ceiling: ceiling.max(Limit::Finite(guarantee)),
            tier_limits: BTreeMap::new(),
            key_limits,
            ..Grant::default()
        }
    };
    let tiers = BTreeMap::from([
        (TierId::new("enterprise"), grant(chance, 1, 0.28)),
        (TierId::new("starter"), grant(chance, 2, 0.10)),
        (TierId::new("free"), grant(chance, 3, 0.02)),
    ]);
    let pool = PoolPolicy {
        product: "sim".to_owned(),
        unit: WorkUnit::Tokens,
        output_cost: OutputCost::Stated(OUTPUT_COST),
        slo: Duration::from_secs(2),
        source: SourcePolicy::targets(Vec::new()),
        signals: SignalMap::default(),
    };
    Policy {
        digest: "0".to_owned(),
        interval: INTERVAL,
        pools: BTreeMap::from([(PoolId::new("pool"), pool)]),
        models: BTreeMap::from([(ModelId::new("model"), ModelPolicy::new(PoolId::new("pool"), tiers))]),
        ..Policy::default()
    }
}

fn tenants(chance: &mut Chance, policy: &Policy, offered: f64) -> Vec<Tenant> {
    let mean_work = 430.0;
    let enterprise = chance.between(0.1, 0.3);
    let starter = chance.between(0.2, 0.4);
    let parts = [("enterprise", enterprise), ("starter", starter), ("free", 1.0 - enterprise - starter)];
    let tenant = |(tier, part): (&str, f64)| Tenant {
        tier: TierId::new(tier),
        arrivals: part * offered / mean_work,
        keys: 4,
    };
    debug_assert_eq!(policy.models.len(), 1);
    parts.into_iter().map(tenant).collect()
}

/// Swarm: each kind of fault exists in this seed or not.
fn faults(chance: &mut Chance, replicas: usize, nodes: usize, tiers: usize, until: f64) -> Vec<(f64, Fault)> {
    let mut faults = Vec::new();
    let some = |chance: &mut Chance| -> Vec<usize> {
        let count = 1 + chance.below(replicas / 2);
        (0..count).collect()
    };
    let span = |chance: &mut Chance| {
        let at = chance.between(60.0, until - 60.0);
        (at, (at + chance.between(3.0, 90.0)).min(until))
    };
    if chance.happens(0.7) {
        let ((at, end), replicas) = (span(chance), some(chance));
        faults.push((at, Fault::Die { replicas: replicas.clone() }));
        faults.push((end, Fault::Revive { replicas }));
    }
    if chance.happens(0.4) {
        let (at, end) = span(chance);
        let replicas: Vec<usize> = if chance.happens(0.5) { (0..replicas).collect() } else { some(chance) };
        faults.push((at, Fault::Show { replicas: replicas.clone(), untrue: Some(Untrue::Silent) }));
        faults.push((end, Fault::Show { replicas, untrue: None }));
    }
    if chance.happens(0.3) {
        let ((at, end), replica) = (span(chance), chance.below(replicas));
        faults.push((at, Fault::Slow { replica, part: chance.between(0.3, 0.8) }));
        faults.push((end, Fault::Slow { replica, part: 1.0 }));
    }
    if chance.happens(0.4) {
        let ((at, end), node) = (span(chance), chance.below(nodes));
        faults.push((at, Fault::Partition { node }));
        faults.push((end, Fault::Rejoin { node }));
    }
    for _ in 0..chance.below(4) {
        let keep_state = chance.happens(0.7);
        let back_after = chance.between(0.1, 40.0);
        faults.push((span(chance).0, Fault::Kill { keep_state, back_after }));
    }
    if chance.happens(0.3) {
        faults.push((span(chance).0, Fault::RestartNode { node: chance.below(nodes) }));
    }
    if chance.happens(0.5) {
        faults.push((span(chance).0, Fault::Replay { node: chance.below(nodes) }));
    }
    if chance.happens(0.4) {
        let ((at, end), tier) = (span(chance), chance.below(tiers));
        faults.push((at, Fault::Flood { tier, factor: chance.between(2.0, 6.0) }));
        faults.push((end, Fault::Flood { tier, factor: 1.0 }));
    }
    if chance.happens(0.4) {
        let ((at, end), tier) = (span(chance), chance.below(tiers));
        faults.push((at, Fault::EditCeiling { tier, factor: 0.5 }));
        faults.push((end, Fault::EditCeiling { tier, factor: 1.0 }));
    }
    faults.push((until, Fault::Heal));
    faults.sort_by(|a, b| a.0.total_cmp(&b.0));
    faults
}

/// What sources and the controller's own clock do, drawn after everything else.
fn untrue_pages(chance: &mut Chance, replicas: usize, until: f64) -> Vec<(f64, Fault)> {
    let mut faults = Vec::new();
    let all: Vec<usize> = (0..replicas).collect();
    let one = |chance: &mut Chance| vec![chance.below(replicas)];
    type Draw = fn(&mut Chance) -> Untrue;
    let kinds: [(f64, Draw); 5] = [
        (0.25, |chance| Untrue::Times {
            work: if chance.happens(0.5) { 100.0 } else { 0.01 },
            load: if chance.happens(0.5) { 1000.0 } else { 0.0 },
        }),
        (0.25, |_| Untrue::Frozen),
        (0.2, |_| Untrue::Garbled),
        (0.2, |chance| Untrue::Flaps { every: 1 + chance.below(3) as u64, refuses: chance.happens(0.5) }),
        (0.2, |_| Untrue::Silent),
    ];
    for (likely, kind) in kinds {
        if !chance.happens(likely) {
            continue;
        }
        let untrue = kind(chance);
        let some = match untrue {
            Untrue::Times { .. } => one(chance),
            // More than half of the pool, so that what is left is no sample of it.
            Untrue::Silent => all.iter().copied().skip((replicas - 1) / 2).collect(),
            _ if chance.happens(0.5) => one(chance),
            _ => all.clone(),
        };
        let at = chance.between(60.0, until - 60.0);
        let end = (at + chance.between(10.0, 90.0)).min(until);
        faults.push((at, Fault::Show { replicas: some.clone(), untrue: Some(untrue) }));
        faults.push((end, Fault::Show { replicas: some, untrue: None }));
    }
    if chance.happens(0.3) {
        let some = if chance.happens(0.5) { one(chance) } else { all };
        faults.push((chance.between(60.0, until), Fault::ResetCounters { replicas: some }));
    }
    if chance.happens(0.2) {
        let seconds = chance.between(15.0, 60.0);
        faults.push((chance.between(60.0, until - 60.0), Fault::Pause { seconds }));
    }
    faults
}
