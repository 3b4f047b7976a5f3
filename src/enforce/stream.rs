//! A response on its way to the client: metered, timed, and settled exactly once however it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use crate::enforce::gateway::moment;
use crate::enforce::jobs::{Draft, Watch};
use crate::enforce::meter::Meter;
use crate::enforce::meters::Amounts;
use crate::enforce::parting::{Parting, Tail};
use crate::enforce::provider::Attempt;
use crate::enforce::purse::{Hold, Past};
use crate::enforce::shared::Shared;
use crate::enforce::ticket::{Settlement, Ticket};
use crate::enforce::upstream::Outstanding;

pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
type Piece = Option<Result<Frame<Bytes>, BodyError>>;
type Written = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A reservation that settles when dropped, with whatever is true by then.
pub struct Guard {
    shared: Arc<Shared>,
    ticket: Option<Ticket>,
    /// The job that the request creates.
    job: Option<Draft>,
    /// Of budgets and credit, where the request takes of any.
    hold: Option<Hold>,
    /// Of the provider that was asked last, while it is not known what came of it.
    attempt: Option<Attempt>,
    end: Settlement,
    waiting: bool,
    /// Most output tokens that the model can answer with.
    output_most: u64,
}

/// An upstream's body, passed on piece by piece.
pub struct Metered {
    inner: Incoming,
    meter: Meter,
    guard: Guard,
    /// A job that the body tells of.
    watch: Option<Watch>,
    /// What the body's end has to wait for.
    written: Option<Written>,
    /// That end, while it waits.
    last: Option<Piece>,
    idle: Pin<Box<Sleep>>,
    idle_for: Duration,
    _outstanding: Outstanding,
    estimate: Estimate,
    /// The response is an error; its settlement stands already.
    settled: bool,
    ended: bool,
    /// What the upstream reported was not believed as it was.
    clamped: bool,
    /// What was passed on last.
    tail: Tail,
    /// It has run past a budget and ends with the event under way.
    parting: Option<Parting>,
}

/// What usage is made up from where the upstream reports none.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    pub input_tokens: u64,
    pub images: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the upstream sent nothing for {} s", .0.as_secs())]
struct Idle(Duration);

// === impl Guard ===

impl Guard {
    /// Nothing is sent yet.
    pub fn new(
        shared: Arc<Shared>,
        ticket: Ticket,
        hold: Option<Hold>,
        job: Option<Draft>,
        output_most: u64,
    ) -> Guard {
        let end = Settlement::NotSent;
        Guard { shared, ticket: Some(ticket), hold, attempt: None, job, end, waiting: true, output_most }
    }

    /// The upstream has created the job: from here on it outlives the request.
    pub fn created(&mut self) {
        if let Some(job) = self.job.take() {
            job.keep();
        }
    }

    /// What a drop from here on means.
    pub fn on_drop(&mut self, end: Settlement) {
        self.end = end;
    }

    /// What the request is expected to cost, for whoever else counts it.
    pub fn amounts(&self) -> Amounts {
        self.ticket.as_ref().map(|ticket| ticket.reserved().rates()).unwrap_or_default()
    }

    /// A provider is asked.
    pub fn attempt(&mut self, attempt: Attempt) {
        if let Some(job) = self.job.as_mut() {
            job.ask(attempt.provider());
        }
        self.attempt = Some(attempt);
    }

    /// What came of that, where the request may yet be another's.
    pub fn attempt_over(&mut self, end: Settlement) {
        if let Some(attempt) = self.attempt.take() {
            self.shared.with_providers(|providers, now| providers.settle(now, attempt, end));
        }
    }

    pub fn attempt_failed(&self) {
        if let Some(ticket) = &self.ticket {
            self.shared.cell.with(|limiter, _| limiter.attempt_failed(ticket));
        }
    }

    pub fn first_token(&mut self) {
        if let Some(ticket) = self.ticket.as_mut().filter(|_| self.waiting) {
            self.shared.cell.with(|limiter, now| limiter.first_token(now, ticket));
            self.waiting = false;
        }
    }

    /// What has come so far counts while it flows. Says so where that is more than may be.
    pub fn progress(&mut self, output_seen: u64) -> Option<Past> {
        if let Some(ticket) = self.ticket.as_mut() {
            self.shared.cell.with(|limiter, now| limiter.progress(now, ticket, output_seen));
        }
        self.hold.as_mut()?.progress(output_seen)
    }

    /// Whether the stream may be ended before its end.
    pub fn may_end(&self) -> bool {
        self.hold.as_ref().is_some_and(Hold::may_end)
    }

    /// Settles now; later calls and the drop do nothing.
    pub fn settle(&mut self, end: Settlement) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.cell.with(|limiter, now| limiter.settle(now, ticket, end));
        }
        self.attempt_over(end);
        if let Some(hold) = self.hold.take() {
            hold.settle(end);
        }
        if let Some(job) = self.job.take() {
            job.settle(end);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.settle(self.end);
    }
}

// === impl Metered ===

impl Metered {
    pub fn new(
        inner: Incoming,
        meter: Meter,
        guard: Guard,
        watch: Option<Watch>,
        outstanding: Outstanding,
        estimate: Estimate,
        idle_for: Duration,
    ) -> Metered {
        let idle = Box::pin(tokio::time::sleep(idle_for));
        let settled = guard.ticket.is_none();
        let mut body = Metered {
            inner,
            meter,
            guard,
            watch,
            written: None,
            last: None,
            idle,
            idle_for,
            _outstanding: outstanding,
            estimate,
            settled,
            ended: false,
            clamped: false,
            tail: Tail::default(),
            parting: None,
        };
        if body.inner.is_end_stream() {
            body.end();
        }
        body
    }

    /// The body is complete: settles, and returns what was held back.
    fn end(&mut self) -> Bytes {
        self.ended = true;
        if let Some(watch) = self.watch.take() {
            self.written = watch.look(self.meter.json()).map(|written| Box::pin(written) as Written);
        }
        let rest = self.meter.finish();
        if !self.settled {
            let outcome = self.outcome();
            self.guard.settle(outcome);
        }
        rest
    }

    /// The last of a stream that has run past a budget, where this is the place to end it. What of
    /// it was seen is settled; the upstream is left by whoever drops the body.
    fn end_past(&mut self, past: Option<Past>, out: &Bytes) -> Option<Bytes> {
        if let Some(past) = past
            && self.parting.is_none()
            && self.meter.is_events()
        {
            let held = self.guard.shared.cell.held()?;
            let named = self.meter.is_named();
            self.parting = Some(Parting::new(&held.table, &past, moment(), named, self.tail));
        }
        // What is complete is not spoilt.
        let last = self.parting.as_mut().filter(|_| !self.meter.is_over())?.end(out)?;
        self.ended = true;
        self.guard.shared.count.streams_ended();
        let outcome = self.outcome();
        self.guard.settle(outcome);
        Some(last)
    }

    /// The next piece for the client, whatever it may have to wait for.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Piece> {
        let this = self;
        while !this.ended {
            let Poll::Ready(next) = Pin::new(&mut this.inner).poll_frame(context) else {
                ready!(this.idle.as_mut().poll(context));
                this.died();
                return Poll::Ready(Some(Err(Idle(this.idle_for).into())));
            };
            let frame = match next {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    this.died();
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    let rest = this.end();
                    let frame = (!rest.is_empty()).then(|| Ok(Frame::data(rest)));
                    return Poll::Ready(frame);
                }
            };
            // Trailers are hop by hop here: nothing announced them to the client.
            let Ok(piece) = frame.into_data() else { continue };
            this.idle.as_mut().reset(tokio::time::Instant::now() + this.idle_for);
            this.guard.first_token();
            let mut out = this.meter.feed(piece);
            let past = this.guard.progress(this.meter.output_seen());
            if let Some(ended) = this.end_past(past, &out) {
                return Poll::Ready(Some(Ok(Frame::data(ended))));
            }
            this.tail.pass(&out);
            // Many clients leave at the last event, without waiting for the connection's end.
            let left = match this.meter.is_over() && !this.settled {
                true => this.outcome(),
                false => Settlement::Broken { output_seen: this.meter.output_seen() },
            };
            this.guard.on_drop(left);
            // The server may never ask again once a body's announced length is through.
            if this.inner.is_end_stream() {
                let rest = this.end();
                if !rest.is_empty() {
                    out = [out, rest].concat().into();
                }
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
        Poll::Ready(None)
    }

    fn outcome(&mut self) -> Settlement {
        let Estimate { input_tokens, images } = self.estimate;
        let usage = self.meter.usage();
        if usage == crate::enforce::meter::Usage::default() && !self.meter.is_events() {
            // Nothing was said and nothing can be counted: what was reserved stays.
            return Settlement::Broken { output_seen: 0 };
        }
        let seen = self.meter.events();
        let output_tokens = believed(usage.output, seen, self.guard.output_most);
        if usage.output.is_some_and(|output| output != output_tokens) && !self.clamped {
            self.clamped = true;
            self.guard.shared.count.usages_clamped();
        }
        Settlement::Used {
            input_tokens: usage.input.unwrap_or(input_tokens),
            cached_tokens: usage.cached.unwrap_or(0),
            output_tokens,
            images,
        }
    }

    fn died(&mut self) {
        self.ended = true;
        self.guard.settle(Settlement::Died { output_seen: self.meter.output_seen() });
    }
}

/// Output tokens to charge for: what was reported, unless that is more than the model can answer
/// with, or less than a quarter of the events that were seen, each of which carries a token or more.
fn believed(reported: Option<u64>, seen: u64, most: u64) -> u64 {
    match reported {
        Some(output) if output >= seen.div_ceil(4) => output.min(most.max(seen)),
        _ => seen,
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Piece> {
        let this = &mut *self;
        if this.last.is_none() {
            let piece = ready!(this.poll_piece(context));
            if this.written.is_none() {
                return Poll::Ready(piece);
            }
            this.last = Some(piece);
        }
        if let Some(written) = this.written.as_mut() {
            ready!(written.as_mut().poll(context));
            this.written = None;
        }
        Poll::Ready(this.last.take().flatten())
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.last.is_none() && self.written.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
