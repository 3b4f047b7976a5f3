//! What is remembered of every provider: held, parked, backing off, and the limits it stated.
//!
//! Limits and overload are those of one model at a provider; money is the provider's whole
//! account's. Bounded by the node's upstreams and [`PROVIDER_MODELS_MAX`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bounds::PROVIDER_FAILURES_MAX;
use crate::bounds::PROVIDER_LIMITS_MAX;
use crate::bounds::PROVIDER_MODELS_MAX;
use crate::bounds::PROVIDER_PARK;
use crate::bounds::PROVIDER_PAUSE_MAX;
use crate::bounds::PROVIDER_PAUSE_MIN;
use crate::bounds::REPORT_LIMITS_MAX;
use crate::bounds::REPORT_PROVIDERS_MAX;
use crate::enforce::allowance::Allowance;
use crate::enforce::meters::{Amounts, Meters, Over};
use crate::enforce::provider::attempt::{Attempt, actual};
use crate::enforce::provider::fields::Reading;
use crate::enforce::provider::learn::{Class, Lesson};
use crate::enforce::provider::pace::Pace;
use crate::enforce::ticket::Settlement;
use crate::unit::{Instant, ModelId, ProviderId};
use crate::wire::usage::{Hold, LearnedLimit, LimitWindow, ProviderUsage, Quantity};

/// All providers of a node.
#[derive(Debug, Default)]
pub struct Providers(BTreeMap<ProviderId, Provider>);

/// Whether a provider may be asked for a model now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Its hold is over and another request is finding out whether it serves again.
    OnTrial,
    Held {
        until: Instant,
        why: Hold,
    },
}

#[derive(Debug, Default)]
struct Provider {
    counts: ProviderUsage,
    /// No model of it is asked for.
    parked: Option<Instant>,
    /// What this node has asked of it, against the policy's limits.
    meters: Meters,
    lines: BTreeMap<ModelId, Line>,
}

/// One model at one provider.
#[derive(Debug, Default)]
struct Line {
    held: Option<Held>,
    /// Refusals in a row that did not say for how long: each doubles the pause.
    level: u32,
    failures: u32,
    /// A hold was, and no request has been served since; when the last one was sent to find out.
    trial: Option<Option<Instant>>,
    readings: BTreeMap<(Quantity, LimitWindow), (Reading, Instant)>,
    /// Where it states nothing.
    pace: Pace,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    since: Instant,
    until: Instant,
    why: Hold,
}

// === impl Providers ===

impl Providers {
    pub fn readiness(&self, now: Instant, provider: &ProviderId, model: &str) -> Readiness {
        let Some(provider) = self.0.get(provider) else { return Readiness::Ready };
        if let Some(until) = provider.parked.filter(|until| *until > now) {
            return Readiness::Held { until, why: Hold::Exhausted };
        }
        let Some(line) = provider.lines.get(model) else { return Readiness::Ready };
        match (line.held, line.trial) {
            (Some(Held { until, why, .. }), _) if until > now => Readiness::Held { until, why },
            (_, trial) => match (line.pace.held_until(now), trial) {
                (Some(until), _) => Readiness::Held { until, why: Hold::Limited },
                (_, Some(Some(sent))) if now.since(sent) < PROVIDER_PAUSE_MAX => Readiness::OnTrial,
                _ => Readiness::Ready,
            },
        }
    }

    pub fn skipped(&mut self, provider: &ProviderId) {
        let counts = &mut self.0.entry(provider.clone()).or_default().counts;
        counts.skipped = counts.skipped.saturating_add(1);
    }

    /// The policy's limit of a provider that a request does not fit in.
    pub fn over(
        &mut self,
        now: Instant,
        provider: &ProviderId,
        limits: &[Allowance],
        amounts: &Amounts,
    ) -> Option<Over> {
        self.0.entry(provider.clone()).or_default().meters.test(now, limits, amounts, false)
    }

    /// A request is sent to it: charged as it is expected to be, until it is settled.
    pub fn begin(
        &mut self,
        now: Instant,
        provider: &ProviderId,
        model: &str,
        limits: &[Allowance],
        amounts: &Amounts,
    ) -> Attempt {
        let name = provider.clone();
        let provider = self.0.entry(name.clone()).or_default();
        let charged = provider.meters.charge(now, limits, amounts);
        provider.counts.attempts = provider.counts.attempts.saturating_add(1);
        if let Some(line) = provider.lines.get_mut(model) {
            line.pace.sent(now);
            line.trial = line.trial.map(|_| Some(now));
        }
        Attempt { provider: name, limits: limits.into(), charged, reserved: *amounts }
    }

    /// What it came to takes the place of what was expected.
    pub fn settle(&mut self, now: Instant, attempt: Attempt, end: Settlement) {
        let Attempt { provider, limits, charged, reserved } = attempt;
        let Some(provider) = self.0.get_mut(&provider) else { return };
        provider.meters.correct(now, &limits, charged, &reserved, &actual(&reserved, end));
    }

    /// What came of a request that was sent to it at `sent`.
    pub fn learn(
        &mut self,
        now: Instant,
        sent: Instant,
        provider: &ProviderId,
        model: &ModelId,
        lesson: &Lesson,
    ) {
        let provider = self.0.entry(provider.clone()).or_default();
        provider.count(lesson.class);
        if lesson.class == Class::Money {
            let until = now + lesson.wait.filter(|wait| !wait.is_zero()).unwrap_or(PROVIDER_PARK);
            provider.parked = provider.parked.max(Some(until));
        }
        if provider.lines.len() >= PROVIDER_MODELS_MAX && !provider.lines.contains_key(model) {
            return;
        }
        let line = provider.lines.entry(model.clone()).or_default();
        line.learn(now, sent, lesson);
    }

    /// Forgets every hold: who reloads has paid, or has another credential.
    pub fn release(&mut self) {
        for provider in self.0.values_mut() {
            provider.parked = None;
            for line in provider.lines.values_mut() {
                *line = Line { readings: std::mem::take(&mut line.readings), ..Line::default() };
            }
        }
    }

    /// Forgets providers that the node has no upstream for any more.
    pub fn keep(&mut self, known: impl Fn(&ProviderId) -> bool) {
        self.0.retain(|name, _| known(name));
    }

    pub fn usage(&self, now: Instant) -> BTreeMap<ProviderId, ProviderUsage> {
        let all = self.0.iter().take(REPORT_PROVIDERS_MAX);
        all.map(|(name, provider)| (name.clone(), provider.usage(now))).collect()
    }
}

// === impl Provider ===

impl Provider {
    fn count(&mut self, class: Class) {
        let counts = &mut self.counts;
        let count = match class {
            Class::Served => &mut counts.served,
            Class::Quota => &mut counts.limited,
            Class::Period | Class::Money => &mut counts.exhausted,
            Class::Overload => &mut counts.overloaded,
            Class::Failure => &mut counts.failed,
            Class::Fault => &mut counts.rejected,
        };
        *count = count.saturating_add(1);
    }

    fn usage(&self, now: Instant) -> ProviderUsage {
        let parked = self.parked.map(|until| (until, Hold::Exhausted));
        let holds = self.lines.values().filter_map(|line| line.held.map(|held| (held.until, held.why)));
        let longest = holds.chain(parked).filter(|(until, _)| *until > now).max_by_key(|(until, _)| *until);
        let limits = self.lines.iter().flat_map(|(model, line)| {
            line.readings.values().map(|(reading, at)| {
                let age = now.since(*at);
                let reset = reading.reset.map(|reset| millis(reset.saturating_sub(age)));
                LearnedLimit {
                    model: model.clone(),
                    quantity: reading.quantity,
                    window: reading.window,
                    limit: reading.limit,
                    remaining: reading.remaining,
                    reset_ms: reset,
                }
            })
        });
        ProviderUsage {
            held_ms: longest.map_or(0, |(until, _)| millis(until.since(now))),
            hold: longest.map(|(_, why)| why),
            limits: limits.take(REPORT_LIMITS_MAX).collect(),
            ..self.counts.clone()
        }
    }
}

// === impl Line ===

impl Line {
    fn learn(&mut self, now: Instant, sent: Instant, lesson: &Lesson) {
        for reading in &lesson.readings {
            let key = (reading.quantity, reading.window);
            if self.readings.len() < PROVIDER_LIMITS_MAX || self.readings.contains_key(&key) {
                self.readings.insert(key, (*reading, now));
            }
        }
        // Who states its limits is asked by them.
        if lesson.readings.iter().any(|reading| reading.limit.or(reading.remaining).is_some()) {
            self.pace = Pace::default();
        }
        // What was sent before the hold began says nothing new of it.
        let news = self.held.is_none_or(|held| sent >= held.since);
        let stated = lesson.wait.filter(|wait| !wait.is_zero());
        match lesson.class {
            Class::Served => {
                if news {
                    (self.trial, self.failures, self.level) = (None, 0, self.level / 2);
                }
                if let Some(pause) = stated {
                    self.hold(now, pause, Hold::Limited);
                }
            }
            Class::Quota => {
                if stated.is_none() {
                    self.pace.refused(now, news);
                }
                let pause = stated.unwrap_or_else(|| self.pause(news));
                self.hold(now, pause, Hold::Limited);
                self.trial = Some(None);
            }
            Class::Period => {
                self.hold(now, stated.unwrap_or(PROVIDER_PARK), Hold::Exhausted);
                self.trial = Some(None);
            }
            Class::Overload => {
                let pause = self.pause(news).max(stated.unwrap_or_default());
                self.hold(now, pause, Hold::Overloaded);
                self.trial = Some(None);
            }
            Class::Failure => {
                self.failures = self.failures.saturating_add(1);
                // One that fails on trial has shown enough.
                if self.failures >= PROVIDER_FAILURES_MAX || (news && self.trial.is_some()) {
                    let pause = self.pause(news);
                    self.hold(now, pause, Hold::Failed);
                    self.trial = Some(None);
                }
            }
            // It answers; whether it would have served is not known.
            Class::Fault => {
                self.failures = 0;
                self.trial = self.trial.map(|_| None);
            }
            Class::Money => {}
        }
    }

    fn hold(&mut self, now: Instant, pause: Duration, why: Hold) {
        let until = now + pause;
        match &mut self.held {
            Some(held) if held.until > now => {
                if until > held.until {
                    (held.until, held.why) = (until, why);
                }
            }
            held => *held = Some(Held { since: now, until, why }),
        }
    }

    fn pause(&mut self, news: bool) -> Duration {
        let pause = PROVIDER_PAUSE_MIN.saturating_mul(1_u32.checked_shl(self.level).unwrap_or(u32::MAX));
        if news {
            self.level = self.level.saturating_add(1).min(16);
        }
        pause.min(PROVIDER_PAUSE_MAX)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant::ZERO + Duration::from_secs_f64(seconds)
    }

    fn lesson(class: Class, wait: Option<u64>) -> Lesson {
        Lesson { class, wait: wait.map(Duration::from_secs), readings: Vec::new() }
    }

    struct Desk(Providers, ProviderId);

    impl Desk {
        fn new() -> Desk {
            Desk(Providers::default(), "one".into())
        }

        fn hears(&mut self, seconds: f64, class: Class, wait: Option<u64>) {
            let _ = self.0.begin(at(seconds), &self.1, "m", &[], &Amounts::default());
            self.0.learn(at(seconds), at(seconds), &self.1, &"m".into(), &lesson(class, wait));
        }

        /// Seconds until it may be asked for the model.
        fn held(&self, seconds: f64, model: &str) -> Option<(f64, Hold)> {
            match self.0.readiness(at(seconds), &self.1, model) {
                Readiness::Held { until, why } => Some((until.seconds_since(at(seconds)), why)),
                _ => None,
            }
        }
    }

    #[test]
    fn a_quota_holds_one_model_as_long_as_it_says_and_else_longer_every_time() {
        let mut desk = Desk::new();
        desk.hears(0.0, Class::Quota, Some(7));
        assert_eq!(desk.held(0.0, "m"), Some((7.0, Hold::Limited)));
        assert_eq!((desk.held(0.0, "other"), desk.held(7.0, "m")), (None, None));
        let mut now = 10.0;
        for pause in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            desk.hears(now, Class::Quota, None);
            assert_eq!(desk.held(now, "m"), Some((pause, Hold::Limited)));
            now += pause;
        }
        // Zero is no statement.
        desk.hears(now, Class::Quota, Some(0));
        assert_eq!(desk.held(now, "m"), Some((60.0, Hold::Limited)));
    }

    #[test]
    fn refusals_of_requests_sent_before_the_hold_count_once() {
        let mut desk = Desk::new();
        for _ in 0..50 {
            let (name, model) = (desk.1.clone(), "m".into());
            desk.0.learn(at(1.0), at(0.0), &name, &model, &lesson(Class::Overload, None));
        }
        assert_eq!(desk.held(1.0, "m"), Some((2.0, Hold::Overloaded)), "doubled at most once");
    }

    #[test]
    fn after_a_hold_one_request_finds_out_and_the_rest_go_elsewhere_first() {
        let mut desk = Desk::new();
        desk.hears(0.0, Class::Overload, None);
        let one = desk.1.clone();
        assert_eq!(desk.0.readiness(at(1.0), &one, "m"), Readiness::Ready);
        let _ = desk.0.begin(at(1.0), &one, "m", &[], &Amounts::default());
        assert_eq!(desk.0.readiness(at(1.1), &one, "m"), Readiness::OnTrial);
        // Whoever should have told is gone.
        assert_eq!(desk.0.readiness(at(61.1), &one, "m"), Readiness::Ready);
        desk.0.learn(at(1.2), at(1.0), &one, &"m".into(), &lesson(Class::Served, None));
        let _ = desk.0.begin(at(1.3), &one, "m", &[], &Amounts::default());
        assert_eq!(desk.0.readiness(at(1.3), &one, "m"), Readiness::Ready);
    }

    #[test]
    fn money_parks_the_whole_provider_until_the_stated_reset_or_for_a_bounded_time() {
        let mut desk = Desk::new();
        desk.hears(0.0, Class::Money, Some(86_400));
        for model in ["m", "other"] {
            assert_eq!(desk.held(1.0, model), Some((86_399.0, Hold::Exhausted)));
        }
        let mut desk = Desk::new();
        desk.hears(0.0, Class::Money, None);
        assert_eq!(desk.held(0.0, "m"), Some((300.0, Hold::Exhausted)));
        desk.0.release();
        assert_eq!(desk.held(0.0, "m"), None, "a reload is a new try");
        // A day's quota is one model's.
        desk.hears(0.0, Class::Period, Some(3_600));
        assert_eq!((desk.held(0.0, "m"), desk.held(0.0, "x")), (Some((3_600.0, Hold::Exhausted)), None));
    }

    #[test]
    fn who_states_nothing_is_asked_at_the_pace_it_served_and_who_states_its_limits_by_them() {
        let reading = Reading {
            quantity: Quantity::Requests,
            window: LimitWindow::Minute,
            limit: Some(600),
            remaining: Some(300),
            reset: None,
        };
        let stating = Lesson { class: Class::Served, wait: None, readings: vec![reading] };
        for (wait, states, paced) in [(None, false, true), (Some(1), false, false), (None, true, false)] {
            let mut desk = Desk::new();
            // A served one makes it known.
            desk.hears(0.0, Class::Served, None);
            for request in 0..40 {
                desk.hears(0.1 + f64::from(request) / 20.0, Class::Served, None);
            }
            desk.hears(2.1, Class::Quota, wait);
            assert_eq!(desk.held(2.2, "m"), Some((0.9, Hold::Limited)));
            desk.hears(3.2, Class::Served, None);
            if states {
                desk.0.learn(at(3.2), at(3.2), &desk.1, &"m".into(), &stating);
            }
            let mut asked = 0;
            while desk.held(4.0, "m").is_none() && asked < 100 {
                desk.hears(4.0, Class::Served, None);
                asked += 1;
            }
            let pause = desk.held(4.0, "m");
            match paced {
                true => assert!((5..=12).contains(&asked) && pause.unwrap().0 < 0.2, "{asked} {pause:?}"),
                false => assert_eq!((asked, pause), (100, None)),
            }
            assert_eq!(desk.held(4.0, "other"), None, "one model's");
            desk.0.release();
            assert_eq!(desk.held(4.0, "m"), None, "a reload is a new try");
        }
    }

    #[test]
    fn failures_hold_in_a_row_only_and_faults_never() {
        let mut desk = Desk::new();
        for class in [Class::Failure, Class::Failure, Class::Served, Class::Failure, Class::Failure] {
            desk.hears(0.0, class, None);
            assert_eq!(desk.held(0.0, "m"), None);
        }
        for _ in 0..100 {
            desk.hears(0.0, Class::Fault, Some(60));
        }
        assert_eq!(desk.held(0.0, "m"), None);
        for _ in 0..3 {
            desk.hears(0.0, Class::Failure, None);
        }
        assert_eq!(desk.held(0.0, "m"), Some((1.0, Hold::Failed)));
        // The first failure after it is enough.
        desk.hears(1.0, Class::Failure, None);
        assert_eq!(desk.held(1.0, "m"), Some((2.0, Hold::Failed)));
    }

    #[test]
    fn the_report_says_what_was_learned_and_stays_bounded() {
        let mut desk = Desk::new();
        let reading = Reading {
            quantity: Quantity::Tokens,
            window: LimitWindow::Minute,
            limit: Some(100),
            remaining: Some(3),
            reset: Some(Duration::from_secs(10)),
        };
        let served = Lesson { class: Class::Served, wait: None, readings: vec![reading] };
        let one = desk.1.clone();
        for model in 0..2_000 {
            let model = ModelId::new(format!("m{model}"));
            desk.0.learn(at(0.0), at(0.0), &one, &model, &served);
        }
        desk.hears(1.0, Class::Money, Some(60));
        let usage = desk.0.usage(at(4.0));
        let told = &usage["one"];
        assert_eq!((told.served, told.exhausted, told.attempts), (2_000, 1, 1));
        assert_eq!((told.held_ms, told.hold), (57_000, Some(Hold::Exhausted)));
        assert_eq!((told.limits.len(), told.limits[0].reset_ms), (REPORT_LIMITS_MAX, Some(6_000)));
        assert!(desk.0.0["one"].lines.len() <= PROVIDER_MODELS_MAX);
        desk.0.keep(|_| false);
        assert!(desk.0.usage(at(4.0)).is_empty());
    }
}
