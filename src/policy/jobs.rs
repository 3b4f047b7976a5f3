//! What a file says of jobs: where they are created and looked at, and when they are over.

use crate::policy::pool::accept;
use crate::policy::report::Report;
use crate::policy::shape::{JobsShape, PolicyFile, Text};
use crate::policy::value::{self, Quantity};
use crate::unit::{Dimension, Limit};
use crate::wire::Jobs;

/// Where ids and states are unless the file says otherwise.
const ID: &str = "/id";
const STATUS: &str = "/status";

/// None where the file has none, or what is wrong is in the report.
pub fn jobs(file: &PolicyFile, report: &mut Report) -> Option<Jobs> {
    let shape = file.jobs.as_ref()?;
    let lease = shape.lease.as_ref().and_then(|text| accept(text, value::duration(&text.value), report));
    let polls = shape.polls.as_ref().map(|text| polls(text, report));
    let jobs = meant(
        shape,
        u64::try_from(lease?.as_millis()).unwrap_or(u64::MAX),
        polls.unwrap_or(Some(Limit::Unlimited))?,
    )?;
    if let Err(message) = jobs.validate() {
        // The validator of tables speaks of the same fields.
        let help =
            "paths begin with a slash and hold `{id}` where a job's id stands; a lease is from 1s to 7d";
        report.error(&shape.place, message, help);
        return None;
    }
    Some(jobs)
}

fn meant(shape: &JobsShape, lease_ms: u64, polls: Limit) -> Option<Jobs> {
    let text = |text: &Option<Text>, default: &str| {
        text.as_ref().map_or_else(|| default.to_owned(), |text| text.value.clone())
    };
    Some(Jobs {
        create: shape.create.as_ref()?.value.iter().map(|text| text.value.clone()).collect(),
        poll: shape.poll.as_ref()?.value.clone(),
        cancel: shape.cancel.as_ref().map(|text| text.value.clone()),
        id: text(&shape.id, ID),
        status: text(&shape.status, STATUS),
        ended: shape.ended.as_ref()?.value.iter().map(|text| text.value.clone()).collect(),
        lease_ms,
        polls,
        webhook: shape.webhook.as_ref().map(|text| text.value.clone()),
    })
}

/// `60 rpm`: polls of one job in a minute.
fn polls(text: &Text, report: &mut Report) -> Option<Limit> {
    match accept(text, value::quantity(&text.value), report)? {
        limit @ (Quantity::Unlimited | Quantity::Amount(_, Dimension::RequestsPerMinute)) => {
            Some(limit.limit())
        }
        other => {
            let message = format!("`polls` is in {}", other.unit());
            report.error(&text.place, message, "write how often one job is looked at: `polls: 60 rpm`");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load::load_bytes;

    const POLICY: &str = "\
product: predictions
jobs:
  create: [/v1/predictions]
  poll: /v1/predictions/{id}
  cancel: /v1/predictions/{id}/cancel
  ended: [succeeded, failed, canceled]
  lease: 30m
  polls: 60 rpm
  webhook: webhook
pools: {all: {capacity: fixed, unit: requests}}
models: {m: {pool: all}}
tiers: {key: {ceiling: unlimited, key_limits: [60 rpm, 5 jobs]}}
";

    fn load(text: &str) -> Result<Option<Jobs>, String> {
        let loaded = load_bytes(vec![("p.yaml".to_owned(), text.as_bytes().to_vec())])
            .map_err(|errors| format!("{errors:?}"))?;
        Ok(loaded.policy.products.values().next().and_then(|product| product.jobs.clone()))
    }

    #[test]
    fn s2_10_a_file_says_where_jobs_begin_and_end() {
        let jobs = load(POLICY).unwrap().unwrap();
        assert_eq!((jobs.id.as_str(), jobs.status.as_str()), ("/id", "/status"));
        assert_eq!((jobs.lease_ms, jobs.polls), (1_800_000, Limit::Finite(60)));
        assert_eq!(jobs.ended.len(), 3);
        assert_eq!(jobs.touch("POST", "/v1/predictions"), Some(crate::wire::Touch::Create));
    }

    #[test]
    fn what_is_missing_or_cannot_work_is_refused_at_its_place() {
        for (old, new, told) in [
            ("  ended: [succeeded, failed, canceled]\n", "", "ended"),
            ("  lease: 30m\n", "", "lease"),
            ("  create: [/v1/predictions]\n", "", "create"),
            ("/v1/predictions/{id}\n", "/v1/predictions\n", "{id}"),
            ("60 rpm\n  webhook", "60 tpm\n  webhook", "polls"),
            ("lease: 30m", "lease: 1ms", "lease_ms"),
            ("polls:", "pols:", "pols"),
        ] {
            let error = load(&POLICY.replace(old, new)).unwrap_err();
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}
