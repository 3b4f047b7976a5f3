//! What an upstream's answer or webhook says of a job.

use serde_json::Value;

use crate::enforce::jobs::table::Seen;
use crate::wire::Jobs;

/// Read from a JSON body by the product's pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub id: Option<String>,
    /// None: the body names no state.
    pub seen: Option<Seen>,
}

/// Which body is waited for, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    Created,
    Polled,
    /// Ended, unless the body says that it still runs.
    Cancelled,
}

// === impl Told ===

impl Told {
    pub fn read(jobs: &Jobs, body: &[u8]) -> Told {
        let Ok(body) = serde_json::from_slice::<Value>(body) else { return Told::default() };
        let id = match body.pointer(&jobs.id) {
            Some(Value::String(id)) => Some(id.clone()),
            Some(Value::Number(id)) => Some(id.to_string()),
            _ => None,
        };
        let status = body.pointer(&jobs.status).and_then(Value::as_str);
        let seen = status.map(|status| match jobs.ended.contains(status) {
            true => Seen::Ended,
            false => Seen::Runs,
        });
        Told { id, seen }
    }
}
