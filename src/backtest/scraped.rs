//! A record put together from what a Prometheus has kept: signals by the policy's own expressions,
//! demand and limits from what nodes and controller exported.
//!
//! It is read window by window, so that a long time takes no more memory than a short one. What no
//! metric says (what the controller remembered when it begins) is not there: it begins anew.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::backtest::compare::{Note, When};
use crate::backtest::demand::{self, Known, Matrices, Nodes};
use crate::backtest::gaps::{Gap, Gaps};
use crate::backtest::published::{self, Published};
use crate::bounds::{BACKTEST_STEPS_MAX, RANGE_STEPS_MAX};
use crate::control::entry::Recorded;
use crate::observe::answer::Answer;
use crate::observe::matrix::{Matrix, Window};
use crate::observe::prometheus::PrometheusSource;
use crate::observe::promql::{down_query, query};
use crate::observe::select::Signal;
use crate::observe::{PoolRound, Round};
use crate::policy::Policy;
use crate::unit::{Instant, PoolId};
use crate::wire::LimitTable;

/// The clock when the replay begins: older samples have a time too.
const BEGUN: Duration = Duration::from_secs(86_400);

/// Instances of one gap that are named.
const NAMED: usize = 3;

const PLAIN: [&str; 6] =
    [demand::REQUESTS, demand::INFO, demand::IN_FLIGHT, demand::WAITING, demand::SENT, demand::FAILED];
const PUBLISHED: [&str; 4] = [published::LIMITS, published::SHARES, published::GUARANTEES, published::POLICY];
/// Without these the replay has nothing to say of who would be refused.
const NEEDED: [(&str, &str); 3] = [
    (demand::WORK, "who would have been refused is not known; scrape the nodes' admin listeners"),
    (demand::REQUESTS, "how many requests are refused is not known; scrape the nodes' admin listeners"),
    (published::LIMITS, "what was published is not known; scrape the controller"),
];

/// Entries of a record, one an interval.
pub struct Scraped<A> {
    ask: A,
    from: Duration,
    step: Duration,
    /// Steps asked for so far, of so many.
    next: u64,
    steps: u64,
    ready: VecDeque<Recorded>,
    sources: BTreeMap<PoolId, PrometheusSource>,
    /// Each signal's first expression, for people.
    expressions: BTreeMap<String, String>,
    nodes: Nodes,
    known: Known,
    published: Published,
    gaps: Gaps,
    failed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ScrapedError {
    #[error("--to is not after --from")]
    Backwards,
    #[error("{0} steps of the policy's interval are more than {BACKTEST_STEPS_MAX}; ask for a shorter time")]
    TooLong(u64),
    #[error("{0}")]
    Server(String),
}

// === impl Scraped ===

impl<A: FnMut(&str, Window) -> Result<Matrix, String>> Scraped<A> {
    /// From one time to another, since 1970, at the policy's interval; `ask` is a range query.
    ///
    /// # Errors
    /// A time that is too long, or none.
    pub fn new(policy: &Policy, from: Duration, to: Duration, ask: A) -> Result<Scraped<A>, ScrapedError> {
        let span = to.checked_sub(from).filter(|span| !span.is_zero()).ok_or(ScrapedError::Backwards)?;
        let steps = span.as_nanos().checked_div(policy.interval.as_nanos()).unwrap_or(0);
        let steps = u64::try_from(steps).unwrap_or(u64::MAX).saturating_add(1);
        if steps > BACKTEST_STEPS_MAX {
            return Err(ScrapedError::TooLong(steps));
        }
        let measured = || policy.pools.iter().filter(|(_, pool)| !pool.is_fixed());
        let expressions = measured().flat_map(|(id, pool)| {
            let of =
                |signal: &Signal| Some((of_pool(id, *signal), signal.alternatives(&pool.signals).first()?));
            Signal::ALL.iter().filter_map(of).map(|(name, first)| (name, first.clone())).collect::<Vec<_>>()
        });
        let sources = measured().map(|(id, pool)| (id.clone(), PrometheusSource::new("", &pool.signals)));
        Ok(Scraped {
            ask,
            from,
            step: policy.interval,
            next: 0,
            steps,
            ready: VecDeque::new(),
            expressions: expressions.collect(),
            sources: sources.collect(),
            nodes: Nodes::default(),
            known: Known::new(),
            published: Published::new(policy),
            gaps: Gaps::default(),
            failed: false,
        })
    }

    /// What the record lacks: series that are not there at all, and gaps in those that are.
    pub fn notes(self) -> Vec<Note> {
        let when = |step: u64| {
            let since = self.step * u32::try_from(step).unwrap_or(u32::MAX);
            When { now: Instant::ZERO + BEGUN + since, unix: Some(self.from + since) }
        };
        let begun = "the controller begins without memory here: its first decisions are a cold start. \
                     What was refused for a limit counts as refused for the tier's";
        let mut notes = vec![Note { at: when(0), text: begun.to_owned() }];
        let lacks = NEEDED.iter().filter(|(name, _)| !self.gaps.saw(&format!("`{name}`")));
        notes.extend(lacks.map(|(name, effect)| Note {
            at: when(0),
            text: format!("there is no series of `{name}`: {effect}"),
        }));
        let absent = self.expressions.iter().filter(|(name, _)| !self.gaps.saw(name));
        notes.extend(absent.map(|(name, expression)| Note {
            at: when(0),
            text: format!("there is no series of {name}: `{expression}`"),
        }));
        // A fleet has its gaps together.
        let mut gaps: BTreeMap<(Reverse<u64>, u64, String), Vec<String>> = BTreeMap::new();
        for Gap { series: (what, instance), from, to } in self.gaps.end() {
            gaps.entry((Reverse(to - from + 1), from, what)).or_default().push(instance);
        }
        notes.extend(gaps.iter().map(|((Reverse(steps), from, what), instances)| {
            let seconds = (self.step * u32::try_from(*steps).unwrap_or(u32::MAX)).as_secs_f64();
            let named: Vec<&str> = instances.iter().take(NAMED).map(String::as_str).collect();
            let more = match instances.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let text = format!("no sample of {what} for {seconds:.0} s: {}{more}", named.join(", "));
            Note { at: when(*from), text }
        }));
        notes
    }

    fn window(&mut self) -> Result<(), String> {
        let first = self.next;
        let steps = u32::try_from(self.steps - first).unwrap_or(u32::MAX).min(RANGE_STEPS_MAX);
        let since = self.step * u32::try_from(first).unwrap_or(u32::MAX);
        let window = Window { start: self.from + since, step: self.step, steps };
        let mut seen = vec![BTreeSet::new(); steps as usize];
        let mut rounds: Vec<BTreeMap<PoolId, PoolRound>> = vec![BTreeMap::new(); steps as usize];
        for (pool, source) in &mut self.sources {
            let read = signals(&mut self.ask, pool, source, window, Instant::ZERO + BEGUN + since)?;
            for ((round, seen), (read, names)) in rounds.iter_mut().zip(&mut seen).zip(read) {
                round.insert(pool.clone(), read);
                seen.extend(names);
            }
        }
        let matrices = self.matrices(window)?;
        let reports = self.nodes.reports(&matrices, window, self.from);
        let published = self.published(window)?;
        watch(&matrices, &[demand::WORK, demand::REQUESTS], window, &mut seen);
        watch(&published, &[published::LIMITS], window, &mut seen);
        let tables = self.published.tables(&published, window);
        for (((step, round), reports), (table, policy)) in (0..steps).zip(rounds).zip(reports).zip(tables) {
            let usage: Vec<_> = reports.into_iter().map(|(_, report)| report).collect();
            self.known.extend(usage.iter().map(|report| (report.node.clone(), Arc::new(report.clone()))));
            let now = Instant::ZERO + BEGUN + since + self.step * step;
            self.ready.push_back(self.entry(
                (now, window.at(step)),
                Round { pools: round, usage },
                table,
                policy,
            ));
        }
        seen.into_iter().for_each(|seen| self.gaps.step(seen));
        self.next += u64::from(steps);
        Ok(())
    }

    fn entry(
        &self,
        at: (Instant, Duration),
        round: Round,
        table: Arc<LimitTable>,
        policy: String,
    ) -> Recorded {
        Recorded::seen(at, policy, round, table, self.known.clone())
    }

    fn matrices(&mut self, window: Window) -> Result<Matrices, String> {
        let with_time = query(Signal::WorkDone, &[demand::WORK.to_owned()]).unwrap_or_default();
        let mut matrices = Matrices::from([(demand::WORK, (self.ask)(&with_time, window)?)]);
        for name in PLAIN {
            matrices.insert(name, (self.ask)(name, window)?);
        }
        Ok(matrices)
    }

    fn published(&mut self, window: Window) -> Result<Matrices, String> {
        PUBLISHED.into_iter().map(|name| Ok((name, (self.ask)(name, window)?))).collect()
    }
}

impl<A: FnMut(&str, Window) -> Result<Matrix, String>> Iterator for Scraped<A> {
    type Item = Result<Recorded, ScrapedError>;

    fn next(&mut self) -> Option<Self::Item> {
        let wanted = self.ready.is_empty() && self.next < self.steps && !self.failed;
        if wanted && let Err(reason) = self.window() {
            self.failed = true;
            return Some(Err(ScrapedError::Server(reason)));
        }
        self.ready.pop_front().map(Ok)
    }
}

type Read = Vec<(PoolRound, BTreeSet<(String, String)>)>;

/// A pool's rounds over a window, made as the daemon makes them, and which series were there.
fn signals(
    ask: &mut impl FnMut(&str, Window) -> Result<Matrix, String>,
    pool: &PoolId,
    source: &mut PrometheusSource,
    window: Window,
    begun: Instant,
) -> Result<Read, String> {
    let mut asked: BTreeMap<Signal, Vec<Answer>> = BTreeMap::new();
    for (signal, query) in source.queries().clone() {
        match ask(&query, window) {
            Ok(matrix) => {
                asked.insert(signal, matrix.answers(window));
            }
            // Shown, never steered by.
            Err(_) if signal == Signal::Latency => {}
            Err(error) => return Err(error),
        }
    }
    let instances: BTreeSet<&String> =
        asked.values().flatten().flat_map(|answer| answer.instances.keys()).collect();
    let down = match down_query(instances.into_iter().map(String::as_str)) {
        Some(query) => ask(&query, window)?.answers(window),
        None => vec![Answer::default(); window.steps as usize],
    };
    let mut read = Read::new();
    for (step, down) in (0..window.steps).zip(down) {
        let mut answers = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (signal, steps) in &mut asked {
            let Some(answer) = steps.get_mut(step as usize).map(std::mem::take) else { continue };
            seen.extend(answer.instances.keys().map(|instance| (of_pool(pool, *signal), instance.clone())));
            answers.insert(*signal, answer);
        }
        read.push((source.replay(pool, answers, down, begun + window.step * step), seen));
    }
    Ok(read)
}

fn watch(
    matrices: &Matrices,
    names: &[&'static str],
    window: Window,
    seen: &mut [BTreeSet<(String, String)>],
) {
    for (name, matrix) in matrices.iter().filter(|(name, _)| names.contains(*name)) {
        for (seen, values) in seen.iter_mut().zip(matrix.by_step(window)) {
            let instances = values.into_iter().filter_map(|(labels, _)| labels.get("instance"));
            seen.extend(instances.map(|instance| (format!("`{name}`"), instance.clone())));
        }
    }
}

fn of_pool(pool: &PoolId, signal: Signal) -> String {
    format!("`{}` of pool {pool}", signal.name())
}
