//! What the pages of both programs share: families declared once, rows folded to a bound, one
//! encoding a second however often it is asked for, the build and the process.
//!
//! Families are drawn from a snapshot when the page is written, so all numbers on it belong
//! together and what has gone leaves no stale series.

mod process;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use serde::Deserialize;

use crate::bounds::PAGE_MAX_AGE;
use crate::bounds::ROWS_SHOWN_MAX;
use crate::unit::{Clock, Instant, ModelId, PoolId, SystemClock, TierId};

/// The commit of this build, where whoever built it said so in the environment:
/// `TIDEGATE_REVISION=$(git rev-parse --short=12 HEAD) cargo build`.
pub const REVISION: Option<&str> = option_env!("TIDEGATE_REVISION");

/// How much of a policy's rows a page shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// Every model and tier.
    #[default]
    Full,
    /// The sums of each tier over the models of a pool; the model is called `all`.
    Tier,
    /// Pools only.
    Pool,
}

/// What a page shows, and how old it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageOptions {
    pub detail: Detail,
    /// Answered from memory for this long.
    pub max_age: Duration,
}

/// One family of metrics: declared as a constant, so that names stand in one place per room.
#[derive(Clone, Copy, Debug)]
pub struct Family<const N: usize> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: [&'static str; N],
}

/// A page in the making.
#[derive(Debug, Default)]
pub struct Sheet(Vec<MetricFamily>);

/// The last page, and when it was written.
pub struct Page {
    clock: Arc<dyn Clock>,
    max_age: Duration,
    last: Mutex<Option<(Instant, Bytes)>>,
}

/// Where a row's numbers go: to itself, or to a sum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowName {
    pub pool: PoolId,
    pub model: ModelId,
    pub tier: TierId,
}

/// Names rows by a level of detail, and sums what is beyond the bound.
#[derive(Debug)]
pub struct Folding {
    detail: Detail,
    shown: usize,
}

/// The version and the commit of whoever writes the page.
const BUILD: Family<2> =
    Family::gauge("tidegate_build_info", "Version and revision of this build.", ["version", "revision"]);

// === impl Detail ===

impl FromStr for Detail {
    type Err = String;

    fn from_str(text: &str) -> Result<Detail, String> {
        match text {
            "full" => Ok(Detail::Full),
            "tier" => Ok(Detail::Tier),
            "pool" => Ok(Detail::Pool),
            _ => Err("write full, tier or pool".to_owned()),
        }
    }
}

// === impl PageOptions ===

impl Default for PageOptions {
    fn default() -> PageOptions {
        PageOptions { detail: Detail::Full, max_age: PAGE_MAX_AGE }
    }
}

impl PageOptions {
    /// Written anew for every reader: for a program that embeds what it observes.
    pub fn fresh() -> PageOptions {
        PageOptions { max_age: Duration::ZERO, ..PageOptions::default() }
    }
}

// === impl Family ===

impl<const N: usize> Family<N> {
    pub const fn gauge(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Family<N> {
        Family { name, help, kind: MetricType::GAUGE, labels }
    }

    pub const fn counter(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Family<N> {
        Family { name, help, kind: MetricType::COUNTER, labels }
    }

    fn metric(&self, values: [&str; N], value: f64) -> Metric {
        let pairs = self.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }
}

// === impl Sheet ===

impl Sheet {
    /// One family with its samples; left out when it has none, and so is a number that is none.
    pub fn add<'a, const N: usize>(
        &mut self,
        family: &Family<N>,
        samples: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) {
        let real = samples.into_iter().filter(|(_, value)| !value.is_nan());
        let metrics: Vec<Metric> = real.map(|(values, value)| family.metric(values, value)).collect();
        if metrics.is_empty() {
            return;
        }
        let mut drawn = MetricFamily::default();
        drawn.set_name(family.name.to_owned());
        drawn.set_help(family.help.to_owned());
        drawn.set_field_type(family.kind);
        drawn.set_metric(metrics);
        self.0.push(drawn);
    }

    /// A family without labels.
    pub fn one(&mut self, family: &Family<0>, value: f64) {
        self.add(family, [([], value)]);
    }

    /// What counts events as they happen, beside what is drawn from a snapshot.
    pub fn gathered(&mut self, families: Vec<MetricFamily>) {
        self.0.extend(families);
    }

    /// The page, with the build and the process on it.
    ///
    /// # Errors
    /// A family that the library refuses; a mistake where it is declared.
    pub fn encode(mut self) -> Result<Vec<u8>, prometheus::Error> {
        let revision = REVISION.unwrap_or("unknown");
        self.add(&BUILD, [([env!("CARGO_PKG_VERSION"), revision], 1.0)]);
        process::draw(&mut self);
        self.0.sort_by(|a, b| a.name().cmp(b.name()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0, &mut text)?;
        Ok(text)
    }
}

// === impl Page ===

impl Page {
    pub fn new(max_age: Duration) -> Page {
        Page::with_clock(max_age, Arc::new(SystemClock::starting_at(Instant::ZERO)))
    }

    fn with_clock(max_age: Duration, clock: Arc<dyn Clock>) -> Page {
        Page { clock, max_age, last: Mutex::new(None) }
    }

    /// The last page while it is young enough; else `draw` makes the next one. Readers that come
    /// together wait for one drawing.
    ///
    /// # Errors
    /// Those of `draw`; nothing is kept then.
    pub fn get(
        &self,
        draw: impl FnOnce() -> Result<Vec<u8>, prometheus::Error>,
    ) -> Result<Bytes, prometheus::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if let Some((at, page)) = last.as_ref()
            && now.since(*at) < self.max_age
        {
            return Ok(page.clone());
        }
        let page = Bytes::from(draw()?);
        *last = Some((now, page.clone()));
        Ok(page)
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("max_age", &self.max_age).finish_non_exhaustive()
    }
}

// === impl RowName ===

impl RowName {
    pub fn labels(&self) -> [&str; 3] {
        [self.pool.as_str(), self.model.as_str(), self.tier.as_str()]
    }
}

// === impl Folding ===

impl Folding {
    pub fn new(detail: Detail) -> Folding {
        Folding { detail, shown: 0 }
    }

    /// The name that a row's numbers are added under; none where rows are not shown. Asked once
    /// for every row, in an order that stays.
    pub fn name(&mut self, pool: &PoolId, model: &ModelId, tier: &TierId) -> Option<RowName> {
        match self.detail {
            Detail::Pool => None,
            Detail::Tier => Some(RowName { pool: pool.clone(), model: "all".into(), tier: tier.clone() }),
            Detail::Full if self.shown >= ROWS_SHOWN_MAX => {
                Some(RowName { pool: pool.clone(), model: "other".into(), tier: "other".into() })
            }
            Detail::Full => {
                self.shown += 1;
                Some(RowName { pool: pool.clone(), model: model.clone(), tier: tier.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Instant {
            Instant(self.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn a_page_is_written_once_a_second_however_often_it_is_read() {
        let hand = Arc::new(Hand(AtomicU64::new(0)));
        let page = Page::with_clock(PageOptions::default().max_age, Arc::clone(&hand) as Arc<dyn Clock>);
        let drawn = AtomicU64::new(0);
        let read = || {
            let draw = || Ok(format!("{}", drawn.fetch_add(1, Ordering::Relaxed)).into_bytes());
            page.get(draw).unwrap()
        };
        for millis in 0..2_500 {
            hand.0.store(millis * 1_000_000, Ordering::Relaxed);
            assert_eq!(read(), format!("{}", millis / 1_000));
        }
        assert_eq!(drawn.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn rows_beyond_the_bound_are_summed_and_detail_sums_more() {
        let mut full = Folding::new(Detail::Full);
        let pool = PoolId::new("p");
        let mut names = |at: usize| full.name(&pool, &format!("m{at}").as_str().into(), &"t".into()).unwrap();
        assert_eq!(names(0).labels(), ["p", "m0", "t"]);
        (1..ROWS_SHOWN_MAX).for_each(|at| drop(names(at)));
        assert_eq!(names(ROWS_SHOWN_MAX).labels(), ["p", "other", "other"]);
        let tier = Folding::new(Detail::Tier).name(&pool, &"m".into(), &"t".into()).unwrap();
        assert_eq!(tier.labels(), ["p", "all", "t"]);
        assert_eq!(Folding::new(Detail::Pool).name(&pool, &"m".into(), &"t".into()), None);
        assert!("fulll".parse::<Detail>().is_err());
    }

    #[test]
    fn a_family_without_a_number_is_left_out_and_labels_are_escaped() {
        const LEVEL: Family<1> = Family::gauge("level", "A level.", ["of"]);
        const EMPTY: Family<1> = Family::gauge("empty", "Nothing.", ["of"]);
        let mut sheet = Sheet::default();
        sheet.add(&EMPTY, [(["a"], f64::NAN)]);
        sheet.add(&LEVEL, [(["a\"\n"], f64::INFINITY)]);
        let page = String::from_utf8(sheet.encode().unwrap()).unwrap();
        assert!(page.contains("level{of=\"a\\\"\\n\"} inf\n") && !page.contains("empty"), "{page}");
        assert!(page.contains("tidegate_build_info{") && page.contains("\nprocess_open_fds "), "{page}");
    }
}
