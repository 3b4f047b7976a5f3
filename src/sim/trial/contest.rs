//! Several laws on the same requests, seed by seed, and what that comes to.

use crate::sim::law::Law;
use crate::sim::law::Terms;
use crate::sim::trial::Trial;
use crate::sim::trial::demand::Demand;
use crate::sim::trial::run::run;
use crate::sim::trial::score::{Metric, Report};
use crate::sim::trial::trace::Trace;

/// Whom everyone is measured against.
pub const ORACLE: &str = "oracle";

/// Makes a law by its name, with a seed for those that draw; none where nobody has the name.
pub type Registry<'a> = &'a dyn Fn(&str, &Terms, u64) -> Option<Box<dyn Law>>;

/// One run.
#[derive(Clone, Debug)]
pub struct Row {
    pub law: String,
    pub seed: u64,
    pub report: Report,
    /// The oracle's, on the same seed.
    pub oracle: Option<Report>,
}

/// The middle of several runs, and its extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// Runs every law on one seed, in their order. Laws that nobody has are left out.
pub fn contest(
    trial: &Trial,
    trace: Option<&Trace>,
    seed: u64,
    laws: &[String],
    registry: Registry<'_>,
) -> Vec<Row> {
    let demand = Demand::draw(trial, trace, seed);
    let one = |name: &str| {
        let mut law = registry(name, &demand.terms, seed)?;
        Some(run(trial, &demand, seed, law.as_mut()))
    };
    // Of a provider the quota itself says what could have been served.
    let oracle = if trial.shape.quota.is_some() { None } else { one(ORACLE) };
    let row = |name: &String| {
        let report = if name == ORACLE { oracle.clone()? } else { one(name)? };
        Some(Row { law: name.clone(), seed, report, oracle: oracle.clone() })
    };
    laws.iter().filter_map(row).collect()
}

// === impl Row ===

impl Row {
    pub fn metric(&self, metric: Metric) -> Option<f64> {
        self.report.metric(metric, self.oracle.as_ref())
    }
}

// === impl Spread ===

impl Spread {
    /// Of the runs that have a value.
    pub fn of(values: impl IntoIterator<Item = Option<f64>>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().flatten().collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied();
        let (below, above) = (at(values.len().saturating_sub(1) / 2)?, at(values.len() / 2)?);
        Some(Spread { median: (below + above) / 2.0, least: at(0)?, most: *values.last()? })
    }
}
