//! Handmade records: one that keeps every promise, and one spoiled for each.

use super::*;
use crate::demo::ledger::Served;

const FULL: f64 = 32_000.0;

/// 90 s in which every promise is kept.
fn good() -> Record {
    let seconds = (0..90_u32).map(|t| {
        let halved = (30..60).contains(&t);
        let capacity = if halved { FULL / 2.0 } else { FULL };
        let known = if (34..64).contains(&t) { 15_000.0 } else { 30_000.0 };
        let limits =
            [12_000.0, if halved { 2_600.0 } else { 12_000.0 }, if halved { 700.0 } else { 8_000.0 }];
        let demands = [7_000.0, 16_000.0, 22_000.0];
        let mut second = Second {
            capacity,
            load: capacity * 0.95,
            budget: Some(known),
            tick: Some(u64::from(t / 2)),
            ..Second::default()
        };
        second.seen.first_tokens = vec![if (30..36).contains(&t) { 2.0 } else { 0.2 }; 50];
        second.seen.good = capacity * 0.9;
        for (tier, (limit, demand)) in limits.into_iter().zip(demands).enumerate() {
            second.tiers[tier] = Terms {
                limit: Some(limit),
                limit_max: Some(limit),
                guarantee: [10_240.0, 2_560.0, 640.0][tier],
            };
            let refused_limit = f64::max(demand - limit, 0.0);
            second.seen.tiers[tier] = Served { demand, refused_limit, ..Served::default() };
        }
        second
    });
    Record {
        seconds: seconds.collect(),
        halved: 30,
        returned: 60,
        slo: Duration::from_secs(1),
        cost_max: 1600.0,
    }
}

fn outcomes(record: &Record) -> Vec<Kept> {
    record.verdicts().into_iter().map(|verdict| verdict.outcome).collect()
}

/// Exactly the promise at `index` is broken.
fn breaks(index: usize, spoil: impl FnOnce(&mut Record)) {
    let mut record = good();
    spoil(&mut record);
    let mut wanted = vec![Kept::Kept; 6];
    wanted[index] = Kept::Broken;
    assert_eq!(outcomes(&record), wanted, "{:#?}", record.verdicts());
}

#[test]
fn a_good_demo_keeps_every_promise() {
    assert_eq!(outcomes(&good()), vec![Kept::Kept; 6], "{:#?}", good().verdicts());
}

#[test]
fn a_budget_that_stays_high_is_seen() {
    breaks(0, |record| record.seconds[36].budget = Some(17_000.0));
}

#[test]
fn three_ticks_are_not_judged() {
    let mut record = good();
    // The last tick before the halving was 14, so 17 is the first that counts.
    record.seconds[33].budget = Some(32_000.0);
    assert_eq!(outcomes(&record)[0], Kept::Kept);
}

#[test]
fn one_refused_enterprise_request_is_seen_outside_the_settling_only() {
    breaks(1, |record| record.seconds[45].seen.tiers[0].refused_capacity = 300.0);
    breaks(1, |record| record.seconds[45].seen.tiers[0].failed = 300.0);
    let mut record = good();
    record.seconds[31].seen.tiers[0].failed = 5000.0;
    record.seconds[65].seen.tiers[0].failed = 5000.0;
    assert_eq!(outcomes(&record)[1], Kept::Kept);
}

#[test]
fn demand_above_the_guarantee_may_be_refused_down_to_it() {
    let mut record = good();
    for second in &mut record.seconds {
        second.seen.tiers[0] = Served { demand: 20_000.0, refused_limit: 9_760.0, ..Served::default() };
    }
    assert_eq!(outcomes(&record)[1], Kept::Kept);
}

#[test]
fn shares_out_of_order_are_seen() {
    breaks(2, |record| {
        for second in &mut record.seconds[30..60] {
            second.seen.tiers[1].refused_limit = 16_000.0;
        }
    });
}

#[test]
fn slow_first_tokens_are_seen_after_each_step() {
    breaks(3, |record| record.seconds[59].seen.first_tokens = vec![1.1; 50]);
    breaks(3, |record| record.seconds[72].seen.first_tokens = vec![1.1; 50]);
}

#[test]
fn a_budget_that_comes_back_late_is_seen() {
    breaks(4, |record| {
        for second in &mut record.seconds[60..80] {
            second.budget = Some(26_000.0);
        }
    });
}

#[test]
fn more_admitted_than_the_limit_is_seen() {
    breaks(5, |record| {
        for second in &mut record.seconds[10..20] {
            second.tiers[2].limit_max = Some(6_000.0);
            second.seen.tiers[2] = Served { demand: 12_000.0, ..Served::default() };
        }
    });
}

#[test]
fn without_limits_or_time_nothing_is_kept() {
    let mut short = good();
    short.seconds.truncate(30);
    assert!(outcomes(&short)[2..5].iter().all(|outcome| *outcome == Kept::Untested), "{short:#?}");
    let mut without = good();
    for second in &mut without.seconds {
        (second.budget, second.tick) = (None, None);
        second.tiers = [Terms::default(); 3];
    }
    for index in [0, 1, 4, 5] {
        assert_eq!(outcomes(&without)[index], Kept::Untested);
    }
}

#[test]
fn totals_are_over_capacity() {
    let totals = good().totals();
    assert!((totals.goodput - 0.9).abs() < 1e-9 && (totals.utilisation - 0.95).abs() < 1e-9);
    assert_eq!(totals.ttft_p99_worst, Some(2.0));
    assert_eq!(totals.ttft_p99_halved, Some(0.2));
}
