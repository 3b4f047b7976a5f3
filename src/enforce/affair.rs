//! Requests that touch a job: created, asked for, cancelled, or told by its upstream to have ended.

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;

use crate::bounds::JOBS_SWEEP_PAUSE;
use crate::enforce::answer::{self, closing};
use crate::enforce::client::entropy;
use crate::enforce::gateway::Gate;
use crate::enforce::intake;
use crate::enforce::jobs::{Draft, HOOKS, Nonce, Owner, Sight, Told, Watch};
use crate::enforce::relay;
use crate::enforce::stream::Body;
use crate::enforce::ticket::{self, Cap, Refusal, RefusalReason, Scope, Ticket};
use crate::unit::{Dimension, ProductId, ProviderId};
use crate::wire::{Jobs, LimitTable, Touch};

/// What a request has to do with a job.
pub(super) struct Affair<'a> {
    product: &'a ProductId,
    jobs: &'a Jobs,
    touch: Touch,
    /// The job, where this node knows it.
    known: Option<(Nonce, Owner)>,
}

// === impl Affair ===

impl Affair<'_> {
    pub fn creates(&self) -> bool {
        self.touch == Touch::Create
    }

    /// The model of a job that is known; a request about it names none.
    pub fn model(&self) -> Option<&str> {
        self.known.as_ref().map(|(_, owner)| owner.model.as_str())
    }

    /// Who created a job that is known, and alone knows of it.
    pub fn provider(&self) -> Option<&ProviderId> {
        self.known.as_ref().and_then(|(_, owner)| owner.provider.as_ref())
    }
}

// === impl Gate ===

impl Gate {
    /// `model` is the one that the request names; one about a job that is known names none.
    pub(super) fn affair<'a>(
        &self,
        table: Option<&'a LimitTable>,
        request: &Request<Bytes>,
        model: Option<&str>,
    ) -> Option<Affair<'a>> {
        let table = table?;
        let of_model = || table.row_of(model?)?.product.as_ref();
        let (method, path) = (request.method().as_str(), request.uri().path());
        let mut unknown = None;
        for (product, entry) in &table.products {
            let Some(jobs) = &entry.jobs else { continue };
            let Some(touch) = jobs.touch(method, path) else { continue };
            let known = match &touch {
                Touch::Create if of_model() != Some(product) => continue,
                Touch::Create => None,
                Touch::Poll(id) | Touch::Cancel(id) => self.shared.desk.find(product, id),
            };
            let found = known.is_some();
            let affair = Affair { product, jobs, touch, known };
            if found {
                return Some(affair);
            }
            unknown = Some(affair);
        }
        unknown
    }

    /// The answer to look into.
    ///
    /// # Errors
    /// The node knows too many jobs, or this one is asked for too often.
    pub(super) fn take_part(
        &self,
        affair: &Affair<'_>,
        wanted: &ticket::Request<'_>,
    ) -> Result<Option<Watch>, Refusal> {
        let desk = &self.shared.desk;
        let watch = |nonce, sight| {
            let (desk, jobs) = (desk.clone(), affair.jobs.clone());
            Ok(Some(Watch { desk, jobs, nonce, sight }))
        };
        match (&affair.touch, &affair.known) {
            (Touch::Create, _) if desk.is_full() => {
                let reason = RefusalReason::Capacity { cap: Cap::InFlight };
                Err(Refusal { reason, retry_after: JOBS_SWEEP_PAUSE, active: 0, never: false })
            }
            (Touch::Create, _) => watch(u128::from(entropy()) << 64 | u128::from(entropy()), Sight::Created),
            (Touch::Poll(_), Some((nonce, _))) => {
                desk.poll(*nonce, wanted.key, affair.jobs).map_err(|wait| Refusal {
                    reason: RefusalReason::Limit {
                        scope: Scope::Key,
                        dimension: Dimension::RequestsPerMinute,
                        limit: affair.jobs.polls,
                    },
                    retry_after: wait,
                    active: 0,
                    never: false,
                })?;
                watch(*nonce, Sight::Polled)
            }
            (Touch::Cancel(_), Some((nonce, _))) => watch(*nonce, Sight::Cancelled),
            (_, None) => Ok(None),
        }
    }

    /// The job that an admitted request creates: from here on it has its slot without the ticket.
    pub(super) fn draft(
        &self,
        affair: &Affair<'_>,
        wanted: &ticket::Request<'_>,
        watch: &Watch,
        ticket: &mut Ticket,
    ) -> Option<Draft> {
        let slot = ticket.take_job()?;
        Some(self.shared.desk.draft(affair.product, affair.jobs, wanted, watch.nonce, slot))
    }

    /// The creating body with the address at which this node hears of the job's end.
    pub(super) fn with_address(&self, affair: &Affair<'_>, draft: &Draft, body: &Bytes) -> Option<Bytes> {
        let hook = self.shared.desk.hook.as_ref()?;
        hook.ask(body, affair.jobs.webhook.as_deref()?, draft.nonce())
    }

    /// A webhook of an upstream; none where the node has no address for any.
    pub(super) async fn webhook(&self, request: Request<Incoming>) -> Response<Body> {
        let token = request.uri().path().strip_prefix(HOOKS);
        let hook = self.shared.desk.hook.as_ref();
        let named = hook.zip(token).and_then(|(hook, token)| hook.verify(token));
        let Some((nonce, client)) = named.filter(|_| request.method() == Method::POST) else {
            self.shared.count.unauthorized();
            // Not worth reading: whoever guesses pays for a connection each time.
            return closing(answer::unknown_path());
        };
        let (head, body) = request.into_parts();
        let (body, _room) = match intake::read(body, &self.bodies, &self.caps).await {
            Ok(read) => read,
            Err(refused) => return closing(refused.answer(&self.caps)),
        };
        // A job that is gone needs no telling: what comes twice is answered like what comes once.
        if let Some(product) = self.shared.desk.product(nonce) {
            let held = self.shared.cell.held();
            let product = held.as_ref().and_then(|held| held.table.products.get(&product));
            if let Some(jobs) = product.and_then(|product| product.jobs.as_ref()) {
                self.shared.desk.hear(nonce, Sight::Polled, &Told::read(jobs, &body));
            }
        }
        match relay::address(&client) {
            Some(to) => self.relay(to, head.headers, body).await,
            None => relay::thanks(),
        }
    }
}
