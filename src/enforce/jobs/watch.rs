//! Waits for the body that tells of a job, on its way to the client.

use std::sync::Arc;

use http::StatusCode;

use crate::enforce::jobs::desk::Desk;
use crate::enforce::jobs::sight::{Sight, Told};
use crate::enforce::jobs::table::{Nonce, Seen};
use crate::wire::Jobs;

/// One answer that will be looked into.
#[derive(Clone)]
pub struct Watch {
    pub desk: Arc<Desk>,
    pub jobs: Jobs,
    pub nonce: Nonce,
    pub sight: Sight,
}

// === impl Watch ===

impl Watch {
    pub fn is_of_a_creation(&self) -> bool {
        self.sight == Sight::Created
    }

    /// Whether an answer of this status tells of the job. One that is gone for good has ended.
    pub fn on(self, status: StatusCode) -> Option<Watch> {
        if status == StatusCode::GONE && !self.is_of_a_creation() {
            self.desk.hear(self.nonce, self.sight, &Told { id: None, seen: Some(Seen::Ended) });
            return None;
        }
        status.is_success().then_some(self)
    }

    /// The body is through; none where it is no JSON or too large to be kept.
    /// What the end of an answer that tells of a new job has to wait for.
    pub fn look(self, body: Option<&[u8]>) -> Option<impl Future<Output = ()> + Send + use<>> {
        let told = body.map(|body| Told::read(&self.jobs, body)).unwrap_or_default();
        self.desk.hear(self.nonce, self.sight, &told);
        self.is_of_a_creation().then(|| self.desk.written())
    }
}
