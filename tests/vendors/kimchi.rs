//! Plans with limits that follow load.

use std::collections::BTreeSet;

use tidegate::unit::{Dimension, Limit};
use tidegate::wire::Credit;

use crate::rig::*;

const TPM: Dimension = Dimension::TokensPerMinute;
const SIZES: [&str; 3] = ["llama-3.1-8b", "qwen3-coder-30b", "minimax-m2.7"];
const TIERS: [&str; 3] = ["enterprise", "starter", "free"];

/// At every tick, whatever the load: a paid tier has no less than the one below, and a smaller model
/// no less than a larger one, in what is granted together and in what one key may use.
#[test]
fn s0_12_s0_14_s0_15_orders_hold_at_every_tick_while_load_moves() {
    let (mut moved, mut before) = (0, Limit::Unlimited);
    for seed in 1..20_u64 {
        let mut control = Loop::new(policy("kimchi"));
        let mut chance = seed;
        let mut draw = move |below: u64| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) % below
        };
        let mut load = Load { replicas: 4, each: 2_000.0, running: 8.0, waiting: 2.0 };
        let mut asked = [0_u64; 9];
        for turn in 0..150 {
            if turn % 10 == 0 {
                // Down to where guarantees do not fit, and up again.
                load = Load {
                    replicas: 1 + draw(12) as usize,
                    each: 100.0 + draw(8_000) as f64,
                    running: 1.0 + draw(30) as f64,
                    waiting: draw(40) as f64,
                };
                asked.iter_mut().for_each(|asked| *asked = draw(20_000) * draw(3));
            }
            let place = |list: &[&str], name: &str| list.iter().position(|one| *one == name).unwrap();
            let offered = |model: &str, tier: &str| asked[place(&SIZES, model) * 3 + place(&TIERS, tier)];
            let tick = control.turn(load, offered);
            let entry = |model: &str, tier: &str| tick.table.row(model, tier).unwrap().limits[&TPM];
            for model in SIZES {
                for pair in TIERS.windows(2) {
                    let (high, low) = (entry(model, pair[0]), entry(model, pair[1]));
                    assert!(
                        high.tier_limit >= low.tier_limit,
                        "{seed} {turn} {model}: {pair:?} {high:?} {low:?}"
                    );
                    assert!(high.key_limit > low.key_limit, "{model}: {pair:?}");
                }
            }
            for tier in TIERS {
                for pair in SIZES.windows(2) {
                    let (small, large) = (entry(pair[0], tier), entry(pair[1], tier));
                    let said = format!("{seed} {turn} {tier}: {pair:?} {small:?} {large:?}");
                    assert!(small.tier_limit >= large.tier_limit, "{said}");
                    assert!(small.key_limit > large.key_limit, "{said}");
                }
            }
            let now = entry("minimax-m2.7", "free").tier_limit;
            moved += u32::from(now != before);
            before = now;
        }
    }
    assert!(moved > 100, "the load moved nothing: {moved}");
}

#[test]
fn s0_1_s0_8_s0_9_s0_10_the_plans_their_two_limits_and_their_gates() {
    for (name, model) in &policy("kimchi").models {
        assert_eq!(model.tiers.keys().map(|tier| tier.as_str()).collect::<BTreeSet<_>>(), TIERS.into());
        for (tier, grant) in &model.tiers {
            let units: Vec<&Dimension> = grant.key_limits.keys().collect();
            assert_eq!(units, [&Dimension::RequestsPerMinute, &TPM], "{name} {tier}");
            let gate = if tier.as_str() == "free" { Credit::Required } else { Credit::Ignored };
            assert_eq!(grant.credit, gate);
        }
        assert!(model.entry.price.is_some() && model.entry.providers.len() > 1, "S0-7: {name}");
    }
}

/// What the rows together need, the language has and a shipped policy shows.
#[test]
fn x_2_every_dimension_and_scope_is_in_a_shipped_policy() {
    let mut units = BTreeSet::new();
    let mut budgets = BTreeSet::new();
    for name in ["kimchi", "kimi", "predictions", "media"] {
        for model in policy(name).models.values() {
            for grant in model.tiers.values() {
                units.extend(grant.key_limits.keys().chain(grant.account_limits.keys()).copied());
                budgets.extend(grant.budgets.keys().copied());
            }
        }
    }
    use Dimension::*;
    assert!(
        [RequestsPerMinute, TokensPerMinute, ImagesPerMinute, Concurrency, Jobs]
            .iter()
            .all(|unit| units.contains(unit))
    );
    assert!(budgets.contains(&tidegate::wire::Budget::TokensPerDay));
    assert!(!policy("kimchi").providers.is_empty());
}
