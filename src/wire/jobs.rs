//! What a table says of a product's jobs: which requests create one, where its state is read, and
//! which states are the last.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bounds::JOB_LEASE_MAX;
use crate::bounds::JOB_STATES_MAX;
use crate::bounds::NAME_BYTES_MAX;
use crate::unit::Limit;

/// Paths are compared by their segments: `*` is any one, `{id}` the job's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    /// A `POST` there creates a job.
    pub create: BTreeSet<String>,
    /// A `GET` there shows one.
    pub poll: String,
    /// A `POST` there, or a `DELETE` of `poll`, ends one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<String>,
    /// JSON pointers (RFC 6901) into what creating and showing answer, and into webhooks.
    pub id: String,
    pub status: String,
    /// States after which a job holds nothing any more: failed and cancelled among them.
    pub ended: BTreeSet<String>,
    /// How long a job counts after the last sign that it runs, milliseconds.
    pub lease_ms: u64,
    /// Polls of one job, per minute.
    pub polls: Limit,
    /// The field of a creating body, at its top, that says where the end is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
}

/// What a request does to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touch {
    Create,
    Poll(String),
    Cancel(String),
}

// === impl Jobs ===

impl Jobs {
    /// `path` as it came: escapes and empty segments do not make it another one.
    pub fn touch(&self, method: &str, path: &str) -> Option<Touch> {
        let path: Vec<String> = segments(path).map(decoded).collect();
        let at = |template: &str| matches(template, &path);
        match method {
            "POST" if self.create.iter().any(|create| at(create).is_some()) => Some(Touch::Create),
            "POST" => self.cancel.as_deref().and_then(at).map(Touch::Cancel),
            "DELETE" => at(&self.poll).map(Touch::Cancel),
            "GET" | "HEAD" => at(&self.poll).map(Touch::Poll),
            _ => None,
        }
    }

    /// # Errors
    /// Names the field and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        let with_id = |path: &str| path.matches("{id}").count() == 1 && segments(path).any(|s| s == "{id}");
        let path = |path: &str| path.starts_with('/') && path.len() <= NAME_BYTES_MAX;
        if self.create.is_empty() || self.create.len() > JOB_STATES_MAX {
            return Err(format!("jobs.create needs 1 to {JOB_STATES_MAX} paths"));
        }
        if !self.create.iter().all(|create| path(create) && !create.contains("{id}")) {
            return Err("jobs.create must be paths that start with a slash, without {id}".to_owned());
        }
        if ![Some(&self.poll), self.cancel.as_ref()].into_iter().flatten().all(|at| path(at) && with_id(at)) {
            return Err("jobs.poll and jobs.cancel must be paths with one segment {id}".to_owned());
        }
        let pointer = |text: &str| text.starts_with('/') && text.len() <= NAME_BYTES_MAX;
        if !pointer(&self.id) || !pointer(&self.status) {
            return Err("jobs.id and jobs.status must be JSON pointers such as /status".to_owned());
        }
        let name = |text: &str| {
            !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.contains(|c: char| c.is_control())
        };
        if self.ended.is_empty() || self.ended.len() > JOB_STATES_MAX || !self.ended.iter().all(|s| name(s)) {
            return Err(format!("jobs.ended needs 1 to {JOB_STATES_MAX} states"));
        }
        let lease_max = u64::try_from(JOB_LEASE_MAX.as_millis()).unwrap_or(u64::MAX);
        if !(1_000..=lease_max).contains(&self.lease_ms) {
            return Err(format!("jobs.lease_ms must be from 1000 to {lease_max}"));
        }
        if self.webhook.as_deref().is_some_and(|field| !name(field) || field.contains(['"', '\\'])) {
            return Err("jobs.webhook must be the name of a field".to_owned());
        }
        Ok(())
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// The job's id, where the template has one; else nothing.
fn matches(template: &str, path: &[String]) -> Option<String> {
    let template: Vec<&str> = segments(template).collect();
    if template.len() != path.len() {
        return None;
    }
    let mut id = String::new();
    for (part, segment) in template.iter().zip(path) {
        match *part {
            "{id}" => id.clone_from(segment),
            "*" => {}
            part if part == segment => {}
            _ => return None,
        }
    }
    Some(id)
}

/// Percent escapes resolved, as an upstream would.
pub fn decoded(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|byte| (*byte as char).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Jobs {
        let set = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        Jobs {
            create: set(&["/v1/predictions", "/v1/models/*/predictions"]),
            poll: "/v1/predictions/{id}".to_owned(),
            cancel: Some("/v1/predictions/{id}/cancel".to_owned()),
            id: "/id".to_owned(),
            status: "/status".to_owned(),
            ended: set(&["succeeded", "failed", "canceled"]),
            lease_ms: 600_000,
            polls: Limit::Finite(60),
            webhook: Some("webhook".to_owned()),
        }
    }

    #[test]
    fn s2_10_which_requests_touch_a_job_however_they_are_written() {
        let jobs = jobs();
        let id = || "a b".to_owned();
        for (method, path, touch) in [
            ("POST", "/v1/predictions", Some(Touch::Create)),
            ("POST", "/v1/predictions/", Some(Touch::Create)),
            ("POST", "//v1/%70redictions", Some(Touch::Create)),
            ("POST", "/v1/models/x/predictions", Some(Touch::Create)),
            ("POST", "/v1/models/x/y/predictions", None),
            ("GET", "/v1/predictions/a%20b", Some(Touch::Poll(id()))),
            ("DELETE", "/v1/predictions/a%20b", Some(Touch::Cancel(id()))),
            ("POST", "/v1/predictions/a%20b/cancel", Some(Touch::Cancel(id()))),
            ("GET", "/v1/predictions", None),
            ("PUT", "/v1/predictions", None),
            ("POST", "/v1/predictionsX", None),
        ] {
            assert_eq!(jobs.touch(method, path), touch, "{method} {path}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_name() {
        jobs().validate().unwrap();
        let bad: [(&str, fn(&mut Jobs)); 8] = [
            ("create", |jobs| jobs.create.clear()),
            ("create", |jobs| jobs.create.extend(["/v1/{id}".to_owned()])),
            ("poll", |jobs| jobs.poll = "/v1/predictions".to_owned()),
            ("cancel", |jobs| jobs.cancel = Some("/v1/x{id}".to_owned())),
            ("id", |jobs| jobs.id = "id".to_owned()),
            ("ended", |jobs| jobs.ended.clear()),
            ("lease_ms", |jobs| jobs.lease_ms = 0),
            ("webhook", |jobs| jobs.webhook = Some("a\"b".to_owned())),
        ];
        for (name, spoil) in bad {
            let mut jobs = jobs();
            spoil(&mut jobs);
            assert!(jobs.validate().unwrap_err().contains(name), "{name}");
        }
    }
}
