//! What the HTTP server shows and takes in: the meeting place of the loop and its listeners.
//!
//! One encoded table is shared by all watchers, so ten thousand of them cost ten thousand
//! reference counts and one encoding.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::publish::inbox::Inbox;
use crate::publish::token::Token;
use crate::wire::Stamp;

/// A table that is on disk, ready to be sent.
#[derive(Clone, Debug)]
pub struct Announced {
    pub stamp: Stamp,
    /// The encoded table.
    pub table: Bytes,
    /// The journal's entry of the tick that made it.
    pub status: Bytes,
}

/// What came of a reload: a line for people, or every diagnostic.
pub type Reloaded = Result<String, String>;
/// Asks for a reload; answered once.
pub type ReloadRequest = oneshot::Sender<Reloaded>;
/// Asks to go back to the policy of a version, or to the last other one; answered once.
#[derive(Debug)]
pub struct RollbackRequest {
    pub to: Option<u64>,
    pub respond: oneshot::Sender<Reloaded>,
}
/// Writes the metrics page.
pub type MetricsPage = Box<dyn Fn() -> Bytes + Send + Sync>;

pub struct Board {
    announced: watch::Sender<Option<Arc<Announced>>>,
    closing: watch::Sender<bool>,
    pub inbox: Inbox,
    pub reloads: mpsc::Sender<ReloadRequest>,
    /// None: nobody here can roll back.
    pub rollbacks: Option<mpsc::Sender<RollbackRequest>>,
    pub metrics: MetricsPage,
    /// Replaced when its file is.
    pub token: ArcSwap<Token>,
    /// How the last reload went, as JSON.
    reload: ArcSwap<Bytes>,
    /// Off loopback, reading takes the token too.
    pub reads_need_token: bool,
}

// === impl Board ===

impl Board {
    pub fn new(
        token: Token,
        reads_need_token: bool,
        reloads: mpsc::Sender<ReloadRequest>,
        metrics: MetricsPage,
    ) -> Board {
        Board {
            announced: watch::Sender::new(None),
            closing: watch::Sender::new(false),
            inbox: Inbox::default(),
            reloads,
            rollbacks: None,
            metrics,
            token: ArcSwap::from_pointee(token),
            reload: ArcSwap::from_pointee(Bytes::from_static(b"null")),
            reads_need_token,
        }
    }

    /// Shows a table to everyone who waits for one. It must be durable already.
    pub fn announce(&self, announced: Announced) {
        self.announced.send_replace(Some(Arc::new(announced)));
    }

    /// Shows how the last reload went: one JSON value.
    pub fn show_reload(&self, json: Bytes) {
        self.reload.store(Arc::new(json));
    }

    /// The last journal entry, with how the last reload went.
    pub fn status(&self) -> Option<Bytes> {
        let latest = self.latest()?;
        let reload = self.reload.load();
        let fields = latest.status.strip_prefix(b"{").unwrap_or_default();
        Some(Bytes::from([b"{\"reload\":", &reload[..], b",", fields].concat()))
    }

    pub fn latest(&self) -> Option<Arc<Announced>> {
        self.announced.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Option<Arc<Announced>>> {
        self.announced.subscribe()
    }

    /// Sends everyone home who waits.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("announced", &self.latest().map(|latest| latest.stamp)).finish()
    }
}
