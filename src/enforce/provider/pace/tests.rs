//! A pace against a provider's bucket that tells nothing: what it settles at, what it never does.

use super::*;

fn at(seconds: f64) -> Instant {
    Instant::ZERO + Duration::from_secs_f64(seconds)
}

/// Sends evenly, as many a second as are asked for, where the pace lets it.
fn sends(pace: &mut Pace, from: f64, to: f64, per_second: f64) -> f64 {
    let times = (0..((to - from) * per_second).round() as u32).map(|n| at(from + f64::from(n) / per_second));
    let mut sent = 0.0;
    for now in times {
        if pace.held_until(now).is_none() {
            pace.sent(now);
            sent += 1.0;
        }
    }
    sent
}

/// A pace whose anchor is about so many requests a second, set at the tenth second.
fn anchored(per_second: f64) -> Pace {
    let mut pace = Pace::default();
    sends(&mut pace, 0.0, 8.0, per_second);
    pace.refused(at(8.0), true);
    sends(&mut pace, 8.0, 9.9, per_second / 2.0);
    for _ in 0..(2.0 * per_second - pace.span.unwrap().sent + 1.0) as u32 {
        pace.sent(at(9.9));
    }
    pace.refused(at(10.0), true);
    pace
}

/// A provider's bucket, and the node's pause of a second after each refusal.
struct Provider {
    pace: Pace,
    quota: f64,
    depth: f64,
    tokens: f64,
    counts_refused: bool,
    held: f64,
    now: f64,
}

impl Provider {
    fn new(quota: f64, counts_refused: bool) -> Provider {
        let pace = Pace::default();
        Provider { pace, quota, depth: quota, tokens: quota, counts_refused, held: 0.0, now: 0.0 }
    }

    /// Served and refused in so many seconds, with 30 requests a second at the door.
    fn asked(&mut self, seconds: f64) -> (f64, f64) {
        let (mut served, mut refused) = (0.0, 0.0);
        for _ in 0..(seconds * 30.0) as u32 {
            self.now += 1.0 / 30.0;
            self.tokens = (self.tokens + self.quota / 30.0).min(self.depth);
            let now = at(self.now);
            if self.now < self.held || self.pace.held_until(now).is_some() {
                continue;
            }
            self.pace.sent(now);
            let serves = self.tokens >= 1.0;
            if serves || self.counts_refused {
                self.tokens -= 1.0;
            }
            if serves {
                served += 1.0;
            } else {
                refused += 1.0;
                self.held = self.now + 1.0;
                self.pace.refused(now, true);
            }
        }
        (served, refused)
    }
}

#[test]
fn nothing_limits_it_before_the_first_refusal_and_too_few_requests_measure_nothing() {
    let mut pace = Pace::default();
    assert_eq!(sends(&mut pace, 0.0, 10.0, 500.0), 5_000.0);
    assert_eq!(pace.rate(at(10.0)), None);
    let mut pace = Pace::default();
    for second in 0..4 {
        pace.sent(at(f64::from(second)));
        pace.refused(at(f64::from(second)), true);
    }
    assert_eq!(pace.rate(at(4.0)), None);
    let mut pace = anchored(20.0);
    let before = pace.rate(at(10.0)).unwrap();
    for second in 11..15 {
        pace.sent(at(f64::from(second)));
        pace.refused(at(f64::from(second)), true);
    }
    assert!(pace.rate(at(15.0)).unwrap() >= before, "who serves nothing for a while has not said its rate");
}

#[test]
fn between_two_refusals_is_served_what_the_quota_is_and_a_little_less_is_sent_first() {
    let rate = anchored(20.0).rate(at(10.0)).unwrap();
    assert!((17.5..18.5).contains(&rate), "{rate}");
    // Half as much flows in: the next span says so at once.
    let mut pace = anchored(20.0);
    assert!((10.0..=12.0).contains(&sends(&mut pace, 11.0, 11.1, 200.0)), "part of a second's at once");
    pace.refused(at(11.1), true);
    let rate = pace.rate(at(11.1)).unwrap();
    assert!((7.0..9.1).contains(&rate), "{rate}");
}

#[test]
fn after_a_lull_the_rate_of_late_counts() {
    let mut pace = anchored(20.0);
    sends(&mut pace, 10.0, 110.0, 2.0);
    sends(&mut pace, 110.0, 116.0, 50.0);
    pace.refused(at(116.0), true);
    let rate = pace.rate(at(116.0)).unwrap();
    assert!((13.0..20.0).contains(&rate), "{rate}");
}

#[test]
fn refusals_of_what_was_on_its_way_are_taken_back_from_what_was_measured() {
    let mut pace = anchored(20.0);
    let (before, over) = (pace.limit.unwrap().anchor, pace.limit.unwrap().over);
    for _ in 0..10 {
        pace.refused(at(10.1), false);
    }
    let anchor = pace.limit.unwrap().anchor;
    assert!((before - anchor - 10.0 / over).abs() < 1e-9, "{before} {anchor}");
    for _ in 0..1_000 {
        pace.refused(at(10.1), false);
    }
    assert_eq!(pace.limit.unwrap().anchor, before / 2.0);
}

#[test]
fn a_steady_quota_is_used_and_hardly_ever_refuses() {
    for counts in [false, true] {
        let mut provider = Provider::new(20.0, counts);
        let (served, refused) = provider.asked(600.0);
        assert!(served >= 0.985 * 600.0 * 20.0, "counts {counts}: {served}");
        assert!(refused <= 0.008 * served, "counts {counts}: {refused} of {served}");
    }
}

#[test]
fn a_quota_that_halves_is_met_within_two_refusals() {
    let mut provider = Provider::new(20.0, false);
    provider.asked(100.0);
    provider.quota = 10.0;
    let (served, refused) = provider.asked(5.0);
    assert!(refused <= 4.0 && served >= 45.0, "{served} served, {refused} refused");
    let rate = provider.pace.rate(at(provider.now)).unwrap();
    assert!((8.5..11.0).contains(&rate), "{rate}");
}

#[test]
fn a_quota_that_doubles_is_found_within_half_a_minute() {
    let mut provider = Provider::new(10.0, false);
    provider.asked(100.0);
    (provider.quota, provider.depth) = (20.0, 20.0);
    provider.asked(35.0);
    let (served, refused) = provider.asked(60.0);
    assert!(served >= 0.97 * 60.0 * 20.0, "{served}");
    assert!(refused <= 0.015 * served, "{refused}");
}

#[test]
fn a_pace_that_is_not_used_does_not_grow() {
    let mut pace = anchored(20.0);
    sends(&mut pace, 10.0, 500.0, 5.0);
    let rate = pace.rate(at(500.0)).unwrap();
    assert!(rate < 18.6, "{rate}");
    let mut pace = anchored(20.0);
    sends(&mut pace, 10.0, 40.0, 200.0);
    assert!(pace.rate(at(40.0)).unwrap() > 100.0);
}

#[test]
fn it_is_forgotten_after_long_quiet() {
    let pace = anchored(20.0);
    let (before, after) = (at(10.0) + PROVIDER_PACE_QUIET / 2, at(10.0) + PROVIDER_PACE_QUIET);
    assert!(pace.rate(before).is_some());
    assert_eq!((pace.rate(after), pace.held_until(after)), (None, None));
}

/// Any order of requests, refusals and pauses: a pace between its bounds, and never a wait that is
/// longer than the longest pause, or none at all.
#[test]
fn whatever_is_answered_it_stays_within_its_bounds() {
    let least = 1.0 / PROVIDER_PAUSE_MAX.as_secs_f64() - 1e-9;
    let most = f64::from(PROVIDER_PACE_MAX);
    for seed in 1_u64..=200 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut draw = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut pace, mut now) = (Pace::default(), Instant::ZERO);
        // Some runs are refused often, some rarely; some are asked in bursts.
        let (refusals, gap) =
            (2 + draw(40), [1_000, 1_000_000, 1_000_000_000, 100_000_000_000][draw(4) as usize]);
        for _ in 0..2_000 {
            now = now + Duration::from_nanos(draw(3) * draw(gap));
            match pace.held_until(now) {
                Some(until) => {
                    assert!(until > now && until <= now + PROVIDER_PAUSE_MAX, "seed {seed}: {pace:?}");
                    if draw(2) == 0 {
                        now = until + Duration::from_nanos(1);
                        assert_eq!(pace.held_until(now), None, "seed {seed}: {pace:?}");
                    }
                }
                None => pace.sent(now),
            }
            if draw(refusals) == 0 {
                pace.refused(now, draw(3) > 0);
            }
            if let Some(rate) = pace.rate(now) {
                assert!((least..=most).contains(&rate), "seed {seed}: {rate} {pace:?}");
            }
        }
    }
}
