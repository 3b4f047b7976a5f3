//! A Prometheus-compatible server as the source of one pool: a query a signal, side by side
//! under one deadline, and the readings they make together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Method, Request};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bounds::{
    ABSENCES_MAX, ANSWER_BYTES_MAX, INSTANCES_MAX, PARSE_INLINE_BYTES_MAX, SOURCE_WARNINGS_MAX,
};
use crate::observe::answer::{Answer, ByJob, Sampled, answer};
use crate::observe::backoff::Backoff;
use crate::observe::fetch::Fetcher;
use crate::observe::promql::{down_query, query};
use crate::observe::select::{Signal, outcome_of};
use crate::observe::{Outcome, PoolRound, Reading};
use crate::policy::SignalMap;
use crate::unit::{Clock, Instant, PoolId, ReplicaId};

/// One pool's queries and the instances they have named before.
#[derive(Debug)]
pub struct PrometheusSource {
    /// As the policy names it.
    server: String,
    queries: BTreeMap<Signal, String>,
    known: BTreeMap<String, Known>,
    backoff: Backoff,
    /// For one large answer at a time.
    room: Arc<Semaphore>,
}

/// An instance that an answer has named.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Rounds running without it.
    absences: u32,
    sample: Option<Sample>,
}

/// The last sample of an instance's counters: on the server's clock, and where that is on ours.
#[derive(Clone, Copy, Debug)]
struct Sample {
    stamp: f64,
    at: Instant,
}

/// What was asked for: a signal, or which instances the server cannot reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Signal(Signal),
    Down,
}

/// One round's answers, complete enough to be believed.
#[derive(Debug, Default)]
struct Answers {
    signals: BTreeMap<Signal, Answer>,
    down: Answer,
}

/// Why there is no answer, and whether the server is to be left alone for a while.
struct Failure {
    reason: String,
    refused: bool,
    retry_after: Option<Duration>,
}

// === impl PrometheusSource ===

impl PrometheusSource {
    pub fn new(server: &str, map: &SignalMap) -> PrometheusSource {
        let queries = Signal::ALL
            .iter()
            .filter_map(|signal| Some((*signal, query(*signal, signal.alternatives(map))?)));
        PrometheusSource {
            server: server.trim_end_matches('/').to_owned(),
            queries: queries.collect(),
            known: BTreeMap::new(),
            backoff: Backoff::default(),
            room: Arc::new(Semaphore::new(1)),
        }
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    /// What it asks for each signal.
    pub fn queries(&self) -> &BTreeMap<Signal, String> {
        &self.queries
    }

    /// The round that answers of an earlier time make, as if they came now.
    pub fn replay(
        &mut self,
        pool: &PoolId,
        signals: BTreeMap<Signal, Answer>,
        down: Answer,
        now: Instant,
    ) -> PoolRound {
        self.round(pool, &Answers { signals, down }, now)
    }

    /// Whom it has named before.
    pub fn known(&self, pool: &PoolId) -> Vec<ReplicaId> {
        self.known.keys().map(|instance| replica(pool, instance)).collect()
    }

    /// Asks everything and reads the answers. The clock is read once the first query is out:
    /// sample ages count from the server's evaluation.
    pub async fn read(
        &mut self,
        fetcher: &Fetcher,
        pool: &PoolId,
        clock: &dyn Clock,
        deadline: Duration,
        jitter: f64,
    ) -> PoolRound {
        if let Some(pause) = self.backoff.pause(clock.now()) {
            let failed = format!("it refused; asked again in {} s", pause.as_secs() + 1);
            return PoolRound { failed: Some(failed), ..PoolRound::default() };
        }
        let mut queries = JoinSet::new();
        for (what, text) in self.questions() {
            let (fetcher, url) = (fetcher.clone(), format!("{}/api/v1/query", self.server));
            let room = Arc::clone(&self.room);
            queries.spawn(async move { (what, ask(&fetcher, &url, &text, deadline, &room).await) });
        }
        let sent = clock.now();
        let mut answers = Answers::default();
        let mut failed: Option<Failure> = None;
        while let Some(joined) = queries.join_next().await {
            match joined {
                Ok((Asked::Signal(signal), Ok(answer))) => {
                    answers.signals.insert(signal, answer);
                }
                Ok((Asked::Down, Ok(answer))) => answers.down = answer,
                // Shown, or told by absence as well: no reason to disbelieve the rest.
                Ok((Asked::Signal(Signal::Latency) | Asked::Down, Err(_))) => {}
                Ok((Asked::Signal(signal), Err(failure))) => {
                    let reason = format!("{}: {}", signal.name(), failure.reason);
                    failed = Some(Failure { reason, ..failure }.graver(failed));
                }
                Err(error) => {
                    let ended = Failure::of(format!("a query ended early: {error}"));
                    failed = Some(ended.graver(failed));
                }
            }
        }
        let Some(failure) = failed else {
            self.backoff.answered();
            return self.round(pool, &answers, sent);
        };
        if failure.refused {
            self.backoff.refused(clock.now(), failure.retry_after, jitter);
        }
        PoolRound { failed: Some(failure.reason), ..PoolRound::default() }
    }

    fn questions(&self) -> BTreeMap<Asked, String> {
        let signals = self.queries.iter().map(|(signal, text)| (Asked::Signal(*signal), text.clone()));
        let down = down_query(self.known.keys().map(String::as_str)).map(|text| (Asked::Down, text));
        signals.chain(down).collect()
    }

    /// Every instance an answer names, and those that answers named before.
    fn round(&mut self, pool: &PoolId, answers: &Answers, sent: Instant) -> PoolRound {
        let told: BTreeSet<&String> =
            answers.signals.values().chain([&answers.down]).flat_map(|answer| &answer.warnings).collect();
        let mut warnings: Vec<String> = told.into_iter().cloned().collect();
        let mut readings = BTreeMap::new();
        for instance in self.named(answers) {
            if self.known.len() < INSTANCES_MAX {
                self.known.entry(instance.clone()).or_default();
            }
            let sample = self.known.get(&instance).and_then(|known| known.sample);
            let jobs = jobs(&instance, answers);
            if jobs.twice && warnings.len() < SOURCE_WARNINGS_MAX {
                warnings.push(format!("`{instance}` is scraped by several jobs and counted once"));
            }
            let (reading, sample) = reading(pool, &instance, jobs.chosen, answers, sent, sample);
            if let Some(known) = self.known.get_mut(&instance) {
                known.sample = sample;
            }
            readings.insert(instance, reading);
        }
        for (instance, known) in &mut self.known {
            if readings.contains_key(instance) {
                known.absences = 0;
                continue;
            }
            known.absences += 1;
            let outcome = if answers.down.instances.contains_key(instance) {
                Outcome::Down("up is 0".to_owned())
            } else {
                Outcome::Silent("the server does not name it any more".to_owned())
            };
            readings
                .insert(instance.clone(), Reading { replica: replica(pool, instance), at: sent, outcome });
        }
        self.known.retain(|_, known| known.absences < ABSENCES_MAX);
        warnings.truncate(SOURCE_WARNINGS_MAX);
        PoolRound { replicas: readings.into_values().collect(), failed: None, warnings }
    }

    fn named(&self, answers: &Answers) -> BTreeSet<String> {
        // Being ready makes nothing a replica: a plain `up` names every target of the server.
        let told = answers.signals.iter().filter(|(signal, _)| **signal != Signal::Ready);
        let mut named: BTreeSet<String> =
            told.flat_map(|(_, answer)| answer.instances.keys()).cloned().collect();
        if let Some(ready) = answers.signals.get(&Signal::Ready) {
            named.extend(ready.instances.keys().filter(|name| self.known.contains_key(*name)).cloned());
        }
        named
    }
}

/// Which job's series of an instance are believed. All see the same replica: adding them up
/// would double it.
struct Jobs<'a> {
    chosen: &'a str,
    /// Some signal was there under more than one.
    twice: bool,
}

/// The freshest job, then the one with most signals, then the first by name.
fn jobs<'a>(instance: &str, answers: &'a Answers) -> Jobs<'a> {
    let mut found: BTreeMap<&str, (f64, u32)> = BTreeMap::new();
    let mut twice = false;
    for by_job in answers.signals.values().filter_map(|answer| answer.instances.get(instance)) {
        twice |= by_job.iter().count() > 1;
        for (job, sampled) in by_job.iter() {
            let (stamp, signals) = found.entry(job).or_insert((f64::NEG_INFINITY, 0));
            // A job is as fresh as the oldest of its counters.
            if let Some(other) = sampled.stamp {
                *stamp = if *stamp == f64::NEG_INFINITY { other } else { stamp.min(other) };
            }
            *signals += 1;
        }
    }
    let mut chosen: Option<(&str, (f64, u32))> = None;
    for (job, (stamp, signals)) in found {
        let better = chosen.is_none_or(|(_, (known, count))| {
            known.total_cmp(&stamp).then(count.cmp(&signals)) == std::cmp::Ordering::Less
        });
        if better {
            chosen = Some((job, (stamp, signals)));
        }
    }
    Jobs { chosen: chosen.map_or("", |(job, _)| job), twice }
}

/// The chosen job's part; an expression that lost its `job` has only one.
fn of_job<'a>(by_job: &'a ByJob, chosen: &str) -> Option<&'a Sampled> {
    by_job.of(chosen).or_else(|| by_job.iter().next().map(|(_, sampled)| sampled))
}

fn reading(
    pool: &PoolId,
    instance: &str,
    job: &str,
    answers: &Answers,
    sent: Instant,
    last: Option<Sample>,
) -> (Reading, Option<Sample>) {
    let mut sums = BTreeMap::new();
    let mut age: f64 = 0.0;
    let mut stamp: Option<f64> = None;
    for (signal, answer) in &answers.signals {
        let Some(sampled) = answer.instances.get(instance).and_then(|by_job| of_job(by_job, job)) else {
            continue;
        };
        if let Some(sum) = &sampled.sum {
            sums.insert(*signal, sum.clone());
        }
        age = age.max(sampled.age.unwrap_or_default());
        stamp = match (stamp, sampled.stamp) {
            (Some(known), Some(other)) => Some(known.min(other)),
            (known, other) => known.or(other),
        };
    }
    let ready_missing = answers.signals.contains_key(&Signal::Ready) && !sums.contains_key(&Signal::Ready);
    let outcome = if ready_missing {
        Outcome::Silent("no series of `ready` names it".to_owned())
    } else {
        outcome_of(sums)
    };
    // Older than the clock itself is as old as the clock.
    let nanos = Duration::try_from_secs_f64(age).unwrap_or(Duration::MAX).as_nanos();
    let at = Instant(sent.0.saturating_sub(u64::try_from(nanos).unwrap_or(u64::MAX)));
    // The same scrape seen again is the same instant. Queries take longer and shorter: an age
    // that jitters by a millisecond would make it a new reading, in which no work was done.
    let same = last.filter(|last| stamp == Some(last.stamp));
    let at = same.map_or(at, |last| last.at);
    let sample = stamp.map(|stamp| Sample { stamp, at });
    (Reading { replica: replica(pool, instance), at, outcome }, sample)
}

/// A series without an instance speaks for the pool as a whole.
fn replica(pool: &PoolId, instance: &str) -> ReplicaId {
    if instance.is_empty() { ReplicaId::new(pool.as_str()) } else { ReplicaId::new(instance) }
}

async fn ask(
    fetcher: &Fetcher,
    url: &str,
    text: &str,
    deadline: Duration,
    room: &Arc<Semaphore>,
) -> Result<Answer, Failure> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(format!("query={}", form_encoded(text)))))
        .map_err(|error| Failure::of(format!("no request can be made: {error}")))?;
    let fetched = fetcher
        .fetch(request, deadline, ANSWER_BYTES_MAX, room)
        .await
        .map_err(|error| Failure::of(error.to_string()))?;
    let refusal = |reason| Failure { reason, refused: true, retry_after: fetched.retry_after };
    if (300..400).contains(&fetched.status) {
        return Err(refusal(format!("HTTP {}: redirects are not followed", fetched.status)));
    }
    // Parsing megabytes takes longer than other sources should wait.
    let (status, body) = (fetched.status, fetched.body.clone());
    let read = if body.len() <= PARSE_INLINE_BYTES_MAX {
        answer(status, &body)
    } else {
        let parsed = tokio::task::spawn_blocking(move || answer(status, &body)).await;
        parsed.unwrap_or_else(|error| Err(format!("the answer could not be read: {error}")))
    };
    // A query that is wrong is wrong every time, at no cost: its answer is 400 and no refusal.
    let refused = !matches!(status, 200..300 | 400 | 422) || !looks_like_json(&fetched.body);
    read.map_err(|reason| if refused { refusal(reason) } else { Failure::of(reason) })
}

/// A page for people instead of an answer comes from whoever stands in front.
fn looks_like_json(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'{')
}

pub fn form_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

// === impl Failure ===

impl Failure {
    fn of(reason: String) -> Self {
        Self { reason, refused: false, retry_after: None }
    }

    /// The graver of two: a refusal, and the longer pause. Which query was first is chance.
    fn graver(self, other: Option<Self>) -> Self {
        let weight = |failure: &Self| (failure.refused, failure.retry_after);
        match other {
            Some(other)
                if weight(&other) > weight(&self)
                    || weight(&other) == weight(&self) && other.reason <= self.reason =>
            {
                other
            }
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(series: &[(&str, &str, f64, f64)]) -> Answer {
        let result: Vec<serde_json::Value> = series
            .iter()
            .map(|(instance, part, value, at)| {
                serde_json::json!({"metric": {"instance": instance, "tidegate_part": part},
                    "value": [at, value.to_string()]})
            })
            .collect();
        let body =
            serde_json::json!({"status": "success", "data": {"resultType": "vector", "result": result}});
        answer(200, body.to_string().as_bytes()).unwrap()
    }

    fn source() -> PrometheusSource {
        PrometheusSource::new("http://127.0.0.1:9090/", &SignalMap::default())
    }

    #[test]
    fn a_reading_is_as_old_as_its_sample() {
        let work = vector(&[("a", "value", 500.0, 1000.0), ("a", "at", 999.25, 1000.0)]);
        let running = vector(&[("a", "", 3.0, 1000.1)]);
        let signals = [(Signal::WorkDone, work), (Signal::Running, running)].into();
        let answers = Answers { signals, down: Answer::default() };
        let readings = source().round(&PoolId::from("p"), &answers, Instant(10_000_000_000)).replicas;
        assert_eq!(readings.len(), 1);
        assert_eq!(readings[0].at, Instant(9_250_000_000));
        let Outcome::Up(signals) = &readings[0].outcome else { panic!("{:?}", readings[0]) };
        assert_eq!((signals.work_done, signals.running), (Some(500.0), Some(3.0)));
    }

    #[test]
    fn the_same_scrape_seen_twice_is_no_new_reading() {
        let mut source = source();
        let mut seen = |sent: u64, evaluated: f64, sampled: f64, work: f64| {
            let at = sampled.to_string();
            let answer = vector(&[("a", "value", work, evaluated), ("a", "at", sampled, evaluated)]);
            let answers = Answers { signals: [(Signal::WorkDone, answer)].into(), down: Answer::default() };
            let readings = source.round(&PoolId::from("p"), &answers, Instant(sent * 1_000_000)).replicas;
            assert_eq!(readings.len(), 1, "{at}");
            readings[0].at
        };
        // Sent at 10.000 s, evaluated 9 ms later; then the same scrape, evaluated 1 ms after sending.
        let first = seen(10_000, 500.009, 499.0, 7e3);
        assert_eq!(first, Instant(8_991_000_000));
        assert_eq!(seen(12_000, 502.001, 499.0, 7e3), first);
        assert_eq!(seen(14_000, 504.0, 503.5, 9e3), Instant(13_500_000_000));
    }

    #[test]
    fn an_instance_that_vanishes_is_down_or_silent_and_then_forgotten() {
        let pool = PoolId::from("p");
        let both = vector(&[("a", "", 1.0, 1.0), ("b", "", 1.0, 1.0)]);
        let mut source = source();
        let seen = Answers { signals: [(Signal::Running, both)].into(), down: Answer::default() };
        assert_eq!(source.round(&pool, &seen, Instant(1)).replicas.len(), 2);
        let gone = Answers {
            signals: [(Signal::Running, Answer::default())].into(),
            down: vector(&[("a", "", 0.0, 2.0)]),
        };
        let readings = source.round(&pool, &gone, Instant(2)).replicas;
        assert_eq!(readings[0].outcome, Outcome::Down("up is 0".to_owned()));
        assert!(matches!(readings[1].outcome, Outcome::Silent(_)));
        for _ in 0..ABSENCES_MAX {
            let _ = source.round(&pool, &gone, Instant(3));
        }
        assert!(source.round(&pool, &gone, Instant(4)).replicas.is_empty());
    }

    #[test]
    fn what_is_only_ready_is_no_replica_and_a_replica_that_is_not_is_down() {
        let pool = PoolId::from("p");
        let mut source = source();
        let up = vector(&[("a", "", 1.0, 1.0), ("node-exporter", "", 1.0, 1.0)]);
        let running = vector(&[("a", "", 2.0, 1.0)]);
        let signals = [(Signal::Ready, up), (Signal::Running, running)].into();
        let readings =
            source.round(&pool, &Answers { signals, down: Answer::default() }, Instant(1)).replicas;
        assert_eq!(readings.len(), 1);
        let up = vector(&[("a", "", 0.0, 2.0), ("node-exporter", "", 1.0, 2.0)]);
        let signals = [(Signal::Ready, up), (Signal::Running, Answer::default())].into();
        let readings =
            source.round(&pool, &Answers { signals, down: Answer::default() }, Instant(2)).replicas;
        assert_eq!(readings.len(), 1);
        assert_eq!(readings[0].outcome, Outcome::Down("ready is 0".to_owned()));
    }

    #[test]
    fn a_series_without_instance_is_the_pool() {
        let answers = Answers {
            signals: [(Signal::Running, vector(&[("", "", 4.0, 1.0)]))].into(),
            down: Answer::default(),
        };
        let readings = source().round(&PoolId::from("images"), &answers, Instant(1)).replicas;
        assert_eq!(readings[0].replica.as_str(), "images");
    }

    #[test]
    fn queries_survive_the_form() {
        assert_eq!(form_encoded("a{b=\"c d\"} + 1"), "a%7Bb%3D%22c%20d%22%7D%20%2B%201");
    }
}
