//! How fast a provider is asked that refuses for its quota and says nothing else.
//!
//! A quota is a bucket that fills at a rate nobody tells. A refusal says that it is empty, so what
//! it served from one refusal to the next is what flowed into it, whatever its depth and whether
//! refused calls take from it: that rate is the anchor. A little less is sent at first, so that a
//! few requests gather in the bucket, and then more along a cubic curve (RFC 9438, section 4.2,
//! of a rate instead of a window), until the next refusal measures anew. That needs no test of
//! significance: a single refusal after a clean span measures, and one after too few requests to
//! measure only holds.

use std::time::Duration;

use crate::bounds::PROVIDER_PACE_MAX;
use crate::bounds::PROVIDER_PACE_QUIET;
use crate::bounds::PROVIDER_PAUSE_MAX;
use crate::bounds::PROVIDER_PAUSE_MIN;
use crate::unit::Instant;

/// Part of the anchor that is sent right after it was set.
const BEGIN: f64 = 0.9;
/// Requests sent until the pace is back at its anchor: half as many as until a steady quota refuses
/// again, so that it refuses less than one in a hundred.
const PLATEAU: f64 = 60.0;
/// The same as time, seconds: at least, so that a fast provider's pace is no saw; at most, so that a
/// slow one's finds a doubled quota within a minute.
const PLATEAU_SECONDS: (f64, f64) = (4.0, 10.0);
/// Sent at once at most, in seconds of the pace: what a hold kept back, in part.
const DEPTH: f64 = 0.6;
/// The same in requests, at least: who asks a slow provider asks unevenly.
const DEPTH_MIN: f64 = 2.0;
/// Fewer served requests measure nothing.
const MEASURED_MIN: f64 = 5.0;
/// Halves of the span that tells the rate of late, seconds.
const LATE: f64 = 2.0;
/// Part of the rate of late that counts: some of it came from what had gathered in the bucket.
const LATE_COUNTS: f64 = 0.85;

/// Of one model at one provider, as one node sees it: its part of a quota that it may share.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// None: as fast as anybody asks.
    limit: Option<Limit>,
    /// Since the last refusal that measured.
    span: Option<Span>,
    /// Of late: the span before, and this one.
    late: (f64, Option<Span>),
    /// The last refusal.
    refused: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    /// Requests a second that the provider was measured to serve.
    anchor: f64,
    /// How long it was measured, seconds.
    over: f64,
    /// Half of the anchor as it was measured: refusals of what was on its way take no more.
    least: f64,
    /// Time since then in which all was sent that might be, seconds.
    grown: f64,
    /// Requests that may be sent now.
    tokens: f64,
    at: Instant,
}

/// Requests sent, and not refused so far.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Instant,
    sent: f64,
}

// === impl Pace ===

impl Pace {
    /// When the next request may be sent, where that is not now; within [`PROVIDER_PAUSE_MAX`].
    pub fn held_until(&self, now: Instant) -> Option<Instant> {
        let limit = self.limit(now)?;
        // A request less a billionth is one: the wait for it would be no time at all.
        if limit.at(now).tokens > 1.0 - 1e-9 {
            return None;
        }
        let wait = Duration::try_from_secs_f64((1.0 - limit.tokens) / limit.rate());
        let until = limit.at + wait.unwrap_or(PROVIDER_PAUSE_MAX);
        Some(until.clamp(now + Duration::from_nanos(1), now + PROVIDER_PAUSE_MAX))
    }

    /// Requests a second; None where nothing limits them.
    #[cfg(test)]
    fn rate(&self, now: Instant) -> Option<f64> {
        Some(self.limit(now)?.at(now).rate())
    }

    pub fn sent(&mut self, now: Instant) {
        self.limit = self.limit(now).map(|limit| limit.at(now));
        if let Some(limit) = &mut self.limit {
            limit.tokens = (limit.tokens - 1.0).max(0.0);
        }
        if let Some(span) = &mut self.span {
            span.sent += 1.0;
        }
        let late = self.late.1.get_or_insert(Span { from: now, sent: 0.0 });
        let seconds = now.seconds_since(late.from);
        if seconds >= LATE {
            // Beyond two spans nobody asked for a while.
            let before = if seconds < 2.0 * LATE { late.sent / seconds } else { 0.0 };
            self.late = (before, Some(Span { from: now, sent: 1.0 }));
        } else {
            late.sent += 1.0;
        }
    }

    /// Refused for its quota, with no word of when or of how it stands. `news`: it was sent when
    /// the refusal before was known.
    pub fn refused(&mut self, now: Instant, news: bool) {
        if !news {
            // It counted as served when the refusal before measured.
            if let Some(limit) = &mut self.limit {
                limit.measure((limit.anchor - 1.0 / limit.over).max(limit.least));
            }
            return;
        }
        let limit = self.limit(now);
        self.refused = now;
        for span in [&mut self.span, &mut self.late.1].into_iter().flatten() {
            span.sent = (span.sent - 1.0).max(0.0);
        }
        let (late, over) = self.of_late(now);
        let since = self.span.filter(|_| limit.is_some());
        let measured = match since {
            Some(span) if span.sent < MEASURED_MIN => None,
            Some(span) => {
                let seconds = now.seconds_since(span.from).max(PROVIDER_PAUSE_MIN.as_secs_f64());
                Some(((span.sent / seconds).max(late * LATE_COUNTS), seconds))
            }
            None if late * over < MEASURED_MIN => None,
            None => Some((late * LATE_COUNTS, over)),
        };
        let nothing_sent = Some(Span { from: now, sent: 0.0 });
        (self.limit, self.late) = (limit, (0.0, nothing_sent));
        if let Some((rate, over)) = measured {
            let tokens = limit.map_or(0.0, |limit| limit.at(now).tokens);
            let mut limit = Limit { anchor: 0.0, over, least: rate / 2.0, grown: 0.0, tokens, at: now };
            limit.measure(rate);
            (self.limit, self.span) = (Some(limit), nothing_sent);
        }
    }

    /// None once it has not been refused for [`PROVIDER_PACE_QUIET`].
    fn limit(&self, now: Instant) -> Option<Limit> {
        self.limit.filter(|_| now.since(self.refused) < PROVIDER_PACE_QUIET)
    }

    /// Requests a second of the last two to four seconds, and how many seconds that is.
    fn of_late(&self, now: Instant) -> (f64, f64) {
        let (before, Some(late)) = self.late else { return (0.0, 0.0) };
        let seconds = now.seconds_since(late.from);
        let earlier = if before > 0.0 { LATE } else { 0.0 };
        let over = (seconds + earlier).max(1.0);
        ((late.sent + before * earlier) / over, over)
    }
}

// === impl Limit ===

impl Limit {
    fn measure(&mut self, rate: f64) {
        let least = 1.0 / PROVIDER_PAUSE_MAX.as_secs_f64() / BEGIN;
        self.anchor = rate.clamp(least, f64::from(PROVIDER_PACE_MAX));
    }

    /// Requests a second.
    fn rate(&self) -> f64 {
        let (least, most) = PLATEAU_SECONDS;
        let plateau = (PLATEAU / self.anchor).clamp(least, most);
        let grown = ((self.grown - plateau) / plateau).powi(3);
        (self.anchor * (1.0 + (1.0 - BEGIN) * grown)).min(f64::from(PROVIDER_PACE_MAX))
    }

    /// As it is later. It grows only while more than half of what might be is sent at once: an
    /// unused pace proves nothing.
    fn at(mut self, now: Instant) -> Limit {
        let (rate, seconds) = (self.rate(), now.seconds_since(self.at));
        let depth = (rate * DEPTH).max(DEPTH_MIN);
        let used = (depth / 2.0 - self.tokens).max(0.0) / rate;
        self.tokens = (self.tokens + rate * seconds).min(depth);
        self.grown += seconds.min(used);
        self.at = self.at.max(now);
        self
    }
}

#[cfg(test)]
mod tests;
