//! tidegate: dynamic, load-aware rate limits.
//!
//! This page is the map: the rooms, what each may name, what none of them does, and one number's
//! way through all of them. `tests/architecture.rs` holds the code to it and `tests/readme.rs`
//! holds the page to that test.
//!
//! ```text
//!  /metrics, PromQL                 policies/*.yaml
//!      │                                 │
//!   observe ─► estimate ─► decide ─► allocate ─► (control seals) LimitTable ─► publish
//!      ▲                                                                          │ file, HTTP
//!      │ usage reports                                                            ▼
//!      └──────────────────────────── enforce ◄────────────────────────────── held table
//!                                 ▲    │
//!                         request ┘    └─► upstream, 429 or 503
//! ```
//!
//! # Rooms
//!
//! A room is a directory, or a file, under `src/`. It names only the rooms listed here; what it
//! needs from further away it is handed as an argument. `cli` and `main.rs` belong to the binary
//! and use the library as anyone else does.
//!
//! | Room | May name | Never |
//! |---|---|---|
//! | [`bounds`] | nothing | bounds nothing: what grows without an entry here is a mistake |
//! | [`unit`](mod@unit) | nothing | does arithmetic that can panic or yields NaN in a limit |
//! | [`planted`] | nothing | is there outside the build of that name |
//! | [`wire`] | `bounds`, `unit`, `planted` | opens a socket, reads a clock, applies a table that it did not validate |
//! | [`policy`] | `bounds`, `unit`, `wire` | guesses: a mistake is refused with its place, and nothing of the directory is taken |
//! | [`observe`] | `bounds`, `unit`, `wire`, `policy` | turns silence into a zero, or waits beyond its deadline |
//! | [`estimate`] | `bounds`, `unit`, `planted`, `wire`, `policy`, `observe` | decides |
//! | [`decide`] | `unit`, `planted`, `estimate` | sees a tier, a node or a clock |
//! | [`allocate`] | `unit`, `planted` | sees a metric or a name |
//! | [`dashboard`] | nothing | names a metric that no page has |
//! | [`metrics`] | `bounds`, `unit` | lets a client choose a label, or encodes a page for every reader |
//! | [`supervise`] | `bounds` | lets a task end in silence |
//! | [`publish`] | `bounds`, `unit`, `wire`, `supervise` | decides, or announces what a restart could contradict |
//! | [`ledger`] | `bounds`, `unit`, `wire` | counts money in floats, or admits what it cannot account for |
//! | [`enforce`] | `bounds`, `unit`, `planted`, `wire`, `ledger`, `metrics`, `supervise` | waits for the controller; admits without a table |
//! | [`control`] | `bounds`, `unit`, `planted`, `wire`, `policy`, `observe`, `estimate`, `decide`, `allocate`, `metrics`, `publish`, `supervise` | decides outside [`control::Controller::tick`] |
//! | [`sim`] | `bounds`, `unit`, `wire`, `policy`, `observe`, `estimate`, `decide`, `allocate`, `enforce`, `control` | implements anything of the above a second time |
//! | [`backtest`] | `bounds`, `unit`, `wire`, `policy`, `observe`, `decide`, `publish`, `enforce`, `control` | decides: it steps the controller that ships; invents what a record does not say |
//! | [`demo`] | `bounds`, `unit`, `wire`, `policy`, `publish`, `enforce`, `control`, `sim` | tells the controller what it knows of its plant |
//!
//! # Pure and shell
//!
//! What decides is pure: `decide`, `allocate`, `estimate`, `wire`, `unit`, the limiter
//! ([`enforce::limiter`], [`enforce::ticket`]), the controller's step ([`control::Controller`]),
//! the policy's checks and the simulator. It takes `now` as a [`unit::Instant`] and holds no lock
//! (but the limiter, which any number of threads share: its locks are `limiter/sync.rs`'s),
//! reads no file, opens no socket, writes no log and counts no metric; it returns what it
//! concluded and why ([`control::Tick`], [`enforce::Verdict`]), and a shell does the rest. Shells
//! are the files that name tokio, hyper, tracing, prometheus or `std::fs`; `tests/architecture.rs`
//! lists them.
//!
//! - **The clock** is read by [`unit::SystemClock`]; clippy refuses `Instant::now` and
//!   `SystemTime::now` elsewhere. Shells hold a [`unit::Clock`] and pass `now` on; their timers
//!   are tokio's, and three of the node's sockets ask tokio for a deadline's time. Wall time enters no decision; only
//!   the age of a table file, looked at once when a node starts, is told by it. Instants of two processes are never compared:
//!   what crosses the wire is a duration ([`wire::LimitTable::valid_for_ms`]) or a node's own
//!   uptime ([`wire::UsageReport::uptime_ms`]).
//! - **Chance** comes from [`sim::Chance`] in the simulator and from the operating system for
//!   jitter; no decision draws.
//! - **Order** is never chance: what a decision iterates over is a `BTreeMap` or sorted.
//! - **Nothing panics**: no unwrap, no indexing, no unchecked conversion outside tests, and no
//!   `unsafe` at all.
//! - **Everything is bounded**: queues, bodies, maps, waits, files; all bounds stand in
//!   [`bounds`], with what happens beyond each.
//! - **Floats inside, integers out**: a table is compared and replayed exactly.
//! - A failure is an input: a scrape that failed is an [`observe::Outcome`], not an error path.
//!
//! # From a scraped number to a 429
//!
//! 1. [`observe::sources::Sources`] reads every source side by side, each under its deadline and
//!    size cap. `vllm:num_requests_waiting 17` becomes [`observe::Signals::waiting`] of one
//!    [`observe::Reading`]; nodes' [`wire::UsageReport`]s join it in one [`observe::Round`].
//! 2. [`control::Controller::tick`] takes `now` and the round. It is the only decision of the
//!    daemon; its callers are the daemon's loop, [`sim::World`] and [`backtest`].
//! 3. [`estimate::Pool::update`] says what the pool can do ([`estimate::Estimate`]),
//!    [`estimate::Nodes`] what is asked of it ([`estimate::PoolDemand`]).
//! 4. [`decide::Law::step`] makes of both a budget with a [`decide::Motion`] and a
//!    [`decide::Reason`]: it follows what is measured and steers everything else.
//! 5. [`allocate::allocate`] shares the budget: guarantees first, then weighted max-min.
//! 6. The controller seals a [`wire::LimitTable`]: integers a minute, small changes left out, a
//!    policy edit steered, and a [`wire::Stamp`] above every earlier one.
//! 7. The loop ([`control::run`]) validates it, appends the tick to the
//!    [`publish::journal::Journal`], replaces the table file, and only then puts both on the
//!    [`publish::board::Board`] that the HTTP server shows.
//! 8. A node gets it by long poll or from the file ([`enforce::follow::Follower`]).
//!    [`wire::Held::offer`] runs the same validator again and takes only what is newer;
//!    [`wire::Held::tier_limit`] says what it is worth once nobody renews it.
//! 9. [`enforce::Limiter::admit`] tests a request against every limit of its row and key and
//!    against the pool's room, and charges all or nothing. A [`enforce::Verdict::Refused`] carries
//!    its reason and the time after which the request would pass.
//! 10. `enforce/render.rs` says it in the dialect of the product ([`wire::Dialect`]): status, body,
//!     Retry-After and the headers of the key's standing, in one pure function.
//!
//! An admitted request holds a [`enforce::Ticket`]; [`enforce::Limiter::settle`] consumes it, so
//! it is settled once. What it used comes back to step 1 with the node's next report.
//!
//! # Features
//!
//! `daemon` (default) is everything. `sim` is the pure rooms and the simulator, `control` the pure
//! rooms alone. With none the crate is [`unit`](mod@unit), [`wire`] and, of [`enforce`], the limiter and the
//! follower of a table file. `planted` holds bugs for the simulator to catch, and leaves out terms of
//! the law (`docs/law.md`).
#![forbid(unsafe_code)]
// Without it, rooms that are not built cannot be linked to.
#![cfg_attr(feature = "daemon", deny(rustdoc::broken_intra_doc_links))]

#[cfg(feature = "control")]
pub mod allocate;
#[cfg(feature = "daemon")]
pub mod backtest;
pub mod bounds;
#[cfg(feature = "control")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod dashboard;
#[cfg(feature = "control")]
pub mod decide;
#[cfg(feature = "daemon")]
pub mod demo;
pub mod enforce;
#[cfg(feature = "control")]
pub mod estimate;
#[cfg(feature = "daemon")]
pub mod ledger;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "control")]
pub mod observe;
pub mod planted;
#[cfg(feature = "control")]
pub mod policy;
#[cfg(feature = "daemon")]
pub mod publish;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "daemon")]
pub mod supervise;
pub mod unit;
pub mod wire;

/// The README's example of an embedding program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
