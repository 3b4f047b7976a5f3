//! Tenants: seeded, open loop, over real connections. They never slow down because they are
//! refused, and never retry, so what they ask for is the same with limits and without.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};
use tokio::task::JoinSet;

use super::ledger::{Ledger, Outcome, TIERS};
use super::page::MODEL;
use super::prompt::{OUTPUT_MAX, Size, TOKEN_BYTES, lognormal};
use super::replica::FIRST_TOKEN_HEADER;
use crate::unit::{Clock, Instant, SystemClock};

/// Mean true cost of one request, work units; a test holds it to the distributions.
pub const COST_MEAN: f64 = 404.0;
/// Most that one request can cost.
pub const COST_MAX: f64 = (PROMPT_MAX + OUTPUT_MAX * OUTPUT_COST) as f64;
pub const OUTPUT_COST: u32 = 4;
pub const KEYS_PER_TIER: usize = 4;
/// A client gives up after this.
const PATIENCE: Duration = Duration::from_secs(30);
const PROMPT_MIN: u32 = 40;
const PROMPT_MAX: u32 = 800;
const PROMPT_MEDIAN: f64 = 180.0;
const PROMPT_SIGMA: f64 = 0.5;
const STREAMED: f64 = 0.8;

type Http = Client<HttpConnector, Full<Bytes>>;

/// Where requests go and how much of them there is.
#[derive(Clone, Debug)]
pub struct Load {
    pub seed: u64,
    pub seconds: u64,
    /// Base URLs, taken in turn; past one that refuses the connection.
    pub targets: Vec<String>,
    /// Work a second of each tier.
    pub demand: [f64; TIERS.len()],
    pub in_flight_max: usize,
}

/// One tenant's request, before it is sent.
#[derive(Clone, Debug, PartialEq)]
struct Draft {
    key: String,
    body: String,
    work: f64,
    stream: bool,
}

struct Sender {
    http: Http,
    load: Load,
    ledger: Arc<Ledger>,
    clock: Arc<SystemClock>,
    next_target: AtomicUsize,
    in_flight: AtomicUsize,
}

/// The API key of one tenant. Nothing secret: it opens only the demo it is printed by.
pub fn key(tier: usize, number: usize) -> String {
    format!("demo-{}-{number}", TIERS.get(tier).copied().unwrap_or("none"))
}

/// Sends the whole load, second 0 beginning at the clock's zero, and waits a moment for the last
/// answers.
pub async fn run(load: Load, ledger: Arc<Ledger>, clock: Arc<SystemClock>) {
    let seconds = load.seconds;
    let sender = Arc::new(Sender {
        http: Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(5))
            .build({
                let mut connector = HttpConnector::new();
                connector.set_nodelay(true);
                connector
            }),
        load,
        ledger,
        clock,
        next_target: AtomicUsize::new(0),
        in_flight: AtomicUsize::new(0),
    });
    let mut tiers = JoinSet::new();
    for tier in 0..TIERS.len() {
        tiers.spawn(Arc::clone(&sender).arrivals(tier, seconds as f64));
    }
    while tiers.join_next().await.is_some() {}
    let drained = async {
        while sender.in_flight.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // What is still on its way then counts as admitted, as it does while the demo runs.
    let _ = tokio::time::timeout(Duration::from_secs(2), drained).await;
}

// === impl Sender ===

impl Sender {
    /// One tier's Poisson arrivals. Dropping the future gives up what is in flight.
    async fn arrivals(self: Arc<Self>, tier: usize, seconds: f64) {
        let mut random = ChaCha8Rng::seed_from_u64(self.load.seed);
        random.set_stream(tier as u64);
        let rate = self.load.demand.get(tier).copied().unwrap_or(0.0) / COST_MEAN;
        let Ok(gaps) = Exp::new(rate.max(1e-9)) else { return };
        let mut sending = JoinSet::new();
        let mut at = gaps.sample(&mut random);
        while at < seconds {
            let draft = Draft::draw(&mut random, tier);
            let due = Instant::ZERO + Duration::from_secs_f64(at);
            tokio::time::sleep(due.since(self.clock.now())).await;
            while sending.try_join_next().is_some() {}
            sending.spawn(Arc::clone(&self).request(tier, draft));
            at += gaps.sample(&mut random);
        }
        sending.detach_all();
    }

    async fn request(self: Arc<Self>, tier: usize, draft: Draft) {
        let (sent, work) = (self.now(), draft.work);
        self.ledger.sent(tier, sent, work);
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let outcome = if before >= self.load.in_flight_max {
            Outcome::Lost
        } else {
            let mut had_first_token = false;
            let exchange = self.exchange(&draft, sent, &mut had_first_token);
            match tokio::time::timeout(PATIENCE, exchange).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::Abandoned { waited: PATIENCE.as_secs_f64(), had_first_token },
            }
        };
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.ledger.ended(tier, sent, self.now(), work, outcome);
    }

    async fn exchange(&self, draft: &Draft, sent: f64, had_first_token: &mut bool) -> Outcome {
        let Some(reply) = self.send(draft).await else { return Outcome::Failed };
        let status = reply.status();
        if status != StatusCode::OK {
            // The body is read so that the connection can serve the next request.
            let _ = reply.into_body().collect().await;
            return match status {
                StatusCode::TOO_MANY_REQUESTS => Outcome::RefusedLimit,
                StatusCode::SERVICE_UNAVAILABLE => Outcome::RefusedCapacity,
                _ => Outcome::Failed,
            };
        }
        if draft.stream {
            self.read_stream(reply.into_body(), sent, had_first_token).await
        } else {
            read_whole(reply).await
        }
    }

    async fn send(&self, draft: &Draft) -> Option<Response<Incoming>> {
        let targets = &self.load.targets;
        for _ in targets {
            let turn = self.next_target.fetch_add(1, Ordering::Relaxed);
            let target = targets.get(turn % targets.len())?;
            let request = Request::post(format!("{target}/v1/chat/completions"))
                .header(AUTHORIZATION, format!("Bearer {}", draft.key))
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(draft.body.clone())))
                .ok()?;
            match self.http.request(request).await {
                Ok(reply) => return Some(reply),
                Err(error) if error.is_connect() => {}
                Err(_) => return None,
            }
        }
        None
    }

    async fn read_stream(&self, mut body: Incoming, sent: f64, had_first_token: &mut bool) -> Outcome {
        let mut first_token = 0.0;
        let mut end = Tail::default();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Outcome::Failed };
            let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) else { continue };
            if !*had_first_token {
                *had_first_token = true;
                let now = self.now();
                first_token = now - sent;
                self.ledger.first_token(now, first_token);
            }
            end.push(data);
        }
        if end.is_done() { Outcome::Answered { first_token } } else { Outcome::Failed }
    }

    fn now(&self) -> f64 {
        self.clock.now().seconds_since(Instant::ZERO)
    }
}

async fn read_whole(reply: Response<Incoming>) -> Outcome {
    // Not streamed, so the client cannot see it; the replica says.
    let first_token = reply
        .headers()
        .get(FIRST_TOKEN_HEADER)
        .and_then(|seconds| seconds.to_str().ok()?.parse().ok())
        .unwrap_or(f64::INFINITY);
    match reply.into_body().collect().await {
        Ok(_) => Outcome::Answered { first_token },
        Err(_) => Outcome::Failed,
    }
}

// === impl Draft ===

impl Draft {
    fn draw(random: &mut ChaCha8Rng, tier: usize) -> Draft {
        let tokens = lognormal(random, PROMPT_MEDIAN, PROMPT_SIGMA) as usize;
        let tokens = tokens.clamp(PROMPT_MIN as usize, PROMPT_MAX as usize);
        let mut prompt = format!("{:016x}", random.random::<u64>());
        prompt.extend(std::iter::repeat_n('~', (tokens * TOKEN_BYTES).saturating_sub(prompt.len())));
        let stream = random.random_bool(STREAMED);
        let size = Size::of(&prompt, Some(OUTPUT_MAX));
        let body = serde_json::json!({
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": OUTPUT_MAX,
            "stream": stream,
        });
        Draft {
            key: key(tier, random.random_range(0..KEYS_PER_TIER)),
            body: body.to_string(),
            work: size.work(OUTPUT_COST) as f64,
            stream,
        }
    }
}

/// The last bytes of a stream, however it was cut into frames.
#[derive(Default)]
struct Tail(Vec<u8>);

// === impl Tail ===

impl Tail {
    const DONE: &'static [u8] = b"data: [DONE]\n\n";

    fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        let over = self.0.len().saturating_sub(Self::DONE.len());
        self.0.drain(..over);
    }

    fn is_done(&self) -> bool {
        self.0 == Self::DONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_mean_cost_is_the_drawn_one() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let drawn = 10_000;
        let work: f64 = (0..drawn).map(|_| Draft::draw(&mut random, 0).work).sum();
        let mean = work / f64::from(drawn);
        assert!((mean / COST_MEAN - 1.0).abs() < 0.02, "{mean}");
    }

    #[test]
    fn the_same_seed_draws_the_same_requests() {
        let draw = |seed| Draft::draw(&mut ChaCha8Rng::seed_from_u64(seed), 2);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).work <= COST_MAX);
    }

    #[test]
    fn an_end_is_seen_across_frames_and_a_cut_is_not_an_end() {
        let mut tail = Tail::default();
        for part in ["data: {\"a\":1}\n\ndata: [D", "ONE]\n", "\n"] {
            assert!(!tail.is_done());
            tail.push(part.as_bytes());
        }
        assert!(tail.is_done());
        tail.push(b"x");
        assert!(!tail.is_done());
    }
}
