//! Sources that lie, freeze, flap, or show a part: what is believed all the same.

use super::*;

/// `readings`, one of them said differently.
fn with(mut readings: Vec<Reading>, at: usize, change: impl Fn(&mut Signals)) -> Vec<Reading> {
    if let Some(Outcome::Up(signals)) = readings.get_mut(at).map(|reading| &mut reading.outcome) {
        change(signals);
    }
    readings
}

fn settled(count: usize) -> Told {
    let mut told = Told { served: true, ..Told::default() };
    for _ in 0..5 {
        told.busy(count);
    }
    told
}

#[test]
fn a04_impossible_numbers_and_readings_from_the_future_are_turned_away_and_age() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e308] {
        let mut told = settled(1);
        let mut seen = Vec::new();
        for _ in 0..6 {
            let estimate = told.round(false, |tick| with(busy(1, tick), 0, |all| all.work_done = Some(bad)));
            assert_eq!((estimate.rejected, estimate.per_replica), (1, Some(900.0)), "{bad}");
            seen.push(estimate.freshness);
        }
        assert_eq!((seen[0], seen[2], seen[5]), (Freshness::Fresh, Freshness::Held, Freshness::Stale));
    }
    let mut told = settled(1);
    let ahead = told.round(false, |tick| vec![up("r0", tick + 1, 1e9, 1e9, 5.0)]);
    assert_eq!((ahead.rejected, ahead.per_replica), (1, Some(900.0)));
    let tiny = told.round(false, |tick| with(busy(1, tick), 0, |all| all.waiting = Some(5e-324)));
    assert_eq!(tiny.rejected, 0, "a denormal is a small number, and nobody waits");
}

#[test]
fn a05_a_reset_gives_no_rate_for_one_interval_and_then_rates_again() {
    let mut told = settled(2);
    let shift = told.tick;
    let anew = |tick: u64| {
        let done = 1000.0 * (tick - shift) as f64;
        (0..2).map(|name| up(&format!("r{name}"), tick, done, done / 5.0, 5.0)).collect::<Vec<_>>()
    };
    let reset = told.round(false, anew);
    assert_eq!((reset.delivered, reset.capacity), (None, Some(1800.0)));
    let next = told.round(false, anew);
    assert_eq!((next.delivered, next.capacity), (Some(1800.0), Some(1800.0)));
}

#[test]
fn a05_a_step_of_more_than_ten_times_is_no_rate_for_three_samples_and_then_grows_slowly() {
    let mut told = settled(1);
    let begun = told.tick as f64;
    let fast = |tick: u64| {
        let (input, output) = (1000.0 * begun, 200.0 * begun);
        let step = 1000.0 * (tick as f64 - begun);
        vec![up("r0", tick, input + 1000.0 * step, output + 200.0 * step, 5.0)]
    };
    let rates: Vec<f64> = (0..6).map(|_| told.round(false, fast).per_replica.unwrap()).collect();
    assert_eq!(rates[..3], [900.0, 900.0, 900.0]);
    for step in rates[2..].windows(2) {
        assert!((step[1] / step[0] - 1.25).abs() < 1e-9, "{rates:?}");
    }
}

#[test]
fn a06_less_than_half_of_a_pool_is_not_a_smaller_pool() {
    let mut told = settled(8);
    let part = |count: usize| {
        move |tick: u64| {
            let mut readings = busy(8, tick);
            for (at, reading) in readings.iter_mut().enumerate().skip(count) {
                *reading = silent(&format!("r{at}"), tick);
            }
            readings
        }
    };
    let ladder: Vec<(Freshness, f64)> = (0..200)
        .map(|_| {
            let estimate = told.round(false, part(3));
            (estimate.freshness, estimate.ready)
        })
        .collect();
    assert_eq!(ladder[1], (Freshness::Fresh, 8.0));
    assert_eq!(ladder[2], (Freshness::Held, 8.0));
    assert_eq!((ladder[5], ladder[199]), ((Freshness::Stale, 8.0), (Freshness::Stale, 8.0)));
    // With half of them seen it is fresh, and who is not seen has not stopped working.
    let mut told = settled(8);
    let whole = told.busy(8).waiting;
    let parts: Vec<(Freshness, f64)> = (0..4)
        .map(|_| {
            let estimate = told.round(false, part(4));
            (estimate.freshness, estimate.waiting)
        })
        .collect();
    assert_eq!(parts, vec![(Freshness::Fresh, whole); 4]);
}

#[test]
fn a07_one_of_three_can_neither_raise_nor_lower_what_is_measured() {
    for factor in [0.0, 0.01, 9.0, 100.0, 1e6] {
        let mut told = settled(3);
        for _ in 0..20 {
            let estimate = told.round(false, |tick| {
                with(busy(3, tick), 1, |all| {
                    all.work_done = all.work_done.map(|done| done * factor);
                    all.work_done_output = all.work_done_output.map(|done| done * factor);
                    all.waiting = all.waiting.map(|waiting| waiting * factor);
                    all.running = all.running.map(|running| running * factor);
                })
            });
            assert_eq!((estimate.per_replica, estimate.freshness), (Some(900.0), Freshness::Fresh));
            assert!((10.0..=20.0).contains(&estimate.waiting), "{}", estimate.waiting);
            assert_eq!(estimate.running_saturated, Some(8.0));
        }
    }
}

#[test]
fn a07_one_that_claims_a_backlog_alone_is_no_backlog() {
    let mut told = Told { served: true, ..Told::default() };
    for _ in 0..10 {
        let estimate = told.round(false, |tick| {
            let mut readings: Vec<Reading> = (0..3)
                .map(|name| up(&format!("r{name}"), tick, 10.0 * tick as f64, 2.0 * tick as f64, 0.0))
                .collect();
            readings[2] = up("r2", tick, 1e5 * tick as f64, 2.0, 1e6);
            readings
        });
        assert_eq!((estimate.backlogged, estimate.capacity, estimate.waiting), (false, None, 0.0));
    }
}

#[test]
fn a08_a_page_that_never_changes_under_traffic_grows_old() {
    let frozen = |_: u64, tick: u64| names(1, tick, |name, tick| up(name, tick, 7000.0, 900.0, 5.0));
    let mut told = settled(1);
    let seen: Vec<Freshness> = (0..20).map(|_| told.round(false, |tick| frozen(0, tick)).freshness).collect();
    assert!(seen[..10].iter().all(|fresh| *fresh == Freshness::Fresh), "{seen:?}");
    assert_eq!(seen[19], Freshness::Stale);
    let moved = told.round(false, |tick| vec![up("r0", tick, 7001.0, 900.0, 5.0)]);
    assert_eq!((moved.freshness, moved.frozen), (Freshness::Fresh, 0), "it moves again");
    // Nobody was served: a page that stands still is then a page of an idle pool.
    let mut idle = settled(1);
    idle.served = false;
    let seen: Vec<Freshness> = (0..40).map(|_| idle.round(false, |tick| frozen(0, tick)).freshness).collect();
    assert!(seen.iter().all(|fresh| *fresh == Freshness::Fresh), "{seen:?}");
}

#[test]
fn a08_one_frozen_replica_of_three_stops_counting_and_an_idle_one_does_not() {
    let mut told = settled(3);
    let last = told.tick;
    for _ in 0..20 {
        told.round(false, |tick| {
            let mut readings = busy(3, tick);
            let mut old = busy(3, last).remove(2);
            old.at = at(tick);
            readings[2] = old;
            readings
        });
    }
    let estimate = told.round(false, |tick| busy(2, tick).into_iter().chain([silent("r2", tick)]).collect());
    assert_eq!((estimate.frozen, estimate.freshness, estimate.ready), (1, Freshness::Fresh, 2.5));
    let mut told = settled(3);
    let last = told.tick;
    for _ in 0..40 {
        let estimate = told.round(false, |tick| {
            let mut readings = busy(3, tick);
            readings[2] = up("r2", tick, 1000.0 * last as f64, 200.0 * last as f64, 0.0);
            if let Outcome::Up(signals) = &mut readings[2].outcome {
                signals.running = Some(0.0);
            }
            readings
        });
        assert_eq!((estimate.frozen, estimate.ready), (0, 3.0), "the others say where the traffic went");
    }
}

#[test]
fn a10_a_source_that_flaps_every_scrape_moves_nothing() {
    let mut told = settled(4);
    for round in 0..60 {
        let estimate =
            told.round(false, |tick| if round % 2 == 0 { names(4, tick, silent) } else { busy(4, tick) });
        assert_eq!((estimate.ready, estimate.freshness), (4.0, Freshness::Fresh));
        assert_eq!(estimate.per_replica, Some(900.0));
    }
}

#[test]
fn a10_a_replica_that_flaps_ends_up_not_counting_instead_of_coming_and_going() {
    for (gone, there) in [(1, 1), (1, 3), (2, 2), (3, 3)] {
        let mut told = settled(4);
        let mut ready = Vec::new();
        for round in 0..120 {
            let estimate = told.round(true, |tick| {
                let mut readings = busy(4, tick);
                if round % (gone + there) < gone {
                    readings[3] = down("r3", tick);
                }
                readings
            });
            ready.push(estimate.ready);
        }
        assert!(ready[60..].iter().all(|ready| *ready == 3.0), "{gone} gone, {there} there: {ready:?}");
    }
}

#[test]
fn b03_b05_a_gap_or_a_repeated_second_is_no_rate() {
    let mut told = settled(1);
    // The same second twice, and one that lies before: a smeared or stepped clock.
    for behind in [0, 1] {
        let tick = told.tick;
        let mut readings = busy(1, tick - behind);
        readings[0] = up("r0", tick - behind, 1e6, 1e6, 5.0);
        let round = PoolRound { replicas: readings, ..PoolRound::default() };
        let witness = told.witness(false);
        let estimate =
            told.pool.update(at(tick), INTERVAL, &policy(OutputCost::Stated(4.0)), &round, witness);
        assert_eq!((estimate.delivered, estimate.per_replica), (None, Some(900.0)));
    }
    // Ten minutes later: nobody knows whether it was busy throughout.
    told.tick += 300;
    let after = told.round(false, |tick| vec![up("r0", tick, 6000.0, 1200.0, 5.0)]);
    assert_eq!((after.delivered, after.per_replica), (None, Some(900.0)));
    assert_eq!(after.ready, 1.0);
}
