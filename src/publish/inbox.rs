//! Usage reports on their way to the next tick: the latest of each node, bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::bounds::INBOX_BYTES_MAX;
use crate::bounds::INBOX_NODES_MAX;
use crate::unit::NodeId;
use crate::wire::{Nack, UsageReport};

#[derive(Debug, Default)]
pub struct Inbox(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    by_node: BTreeMap<NodeId, Arrived>,
    bytes: usize,
    arrivals: u64,
    /// Kept from tick to tick.
    processes: BTreeMap<NodeId, Processes>,
}

/// Which processes have reported under one name.
#[derive(Debug)]
struct Processes {
    now: u64,
    before: Option<u64>,
    told: bool,
    /// Why it refused a table, as heard last.
    nack: Option<String>,
}

#[derive(Debug)]
struct Arrived {
    order: u64,
    bytes: usize,
    report: UsageReport,
}

/// Why a report was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no room for another node until the next tick.
    #[error("the controller holds reports of {INBOX_NODES_MAX} nodes or {INBOX_BYTES_MAX} bytes already")]
    Full,
    /// A process that another one had replaced speaks again: both live, and each would take the
    /// whole share of their name.
    #[error("another process reports under this node's name")]
    NameTaken {
        /// Not said before.
        first: bool,
    },
}

// === impl Inbox ===

impl Inbox {
    /// Keeps a report in place of its node's earlier one: everything in it is cumulative. Gives
    /// back the node's refusal of a table when it was not said in the report before.
    ///
    /// # Errors
    /// See [`Refused`]; a node's next report says the same and more.
    pub fn offer(&self, report: UsageReport, bytes: usize) -> Result<Option<Nack>, Refused> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nack = held.hear(&report)?;
        let before = held.by_node.get(&report.node).map(|arrived| arrived.bytes);
        let total = held.bytes - before.unwrap_or_default() + bytes;
        if total > INBOX_BYTES_MAX || (before.is_none() && held.by_node.len() >= INBOX_NODES_MAX) {
            return Err(Refused::Full);
        }
        held.bytes = total;
        held.arrivals += 1;
        let order = held.arrivals;
        held.by_node.insert(report.node.clone(), Arrived { order, bytes, report });
        Ok(nack)
    }

    /// Takes everything, in order of arrival.
    pub fn drain(&self) -> Vec<UsageReport> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes = 0;
        let by_node = std::mem::take(&mut held.by_node);
        drop(held);
        let mut arrived: Vec<Arrived> = by_node.into_values().collect();
        arrived.sort_by_key(|arrived| arrived.order);
        arrived.into_iter().map(|arrived| arrived.report).collect()
    }
}

// === impl Held ===

impl Held {
    /// A process follows another for good: one that comes back never ended.
    fn hear(&mut self, report: &UsageReport) -> Result<Option<Nack>, Refused> {
        let instance = report.instance;
        if let Some(known) = self.processes.get_mut(&report.node) {
            if known.before == Some(instance) {
                let first = !std::mem::replace(&mut known.told, true);
                return Err(Refused::NameTaken { first });
            }
            if known.now != instance {
                let nack = known.nack.take();
                *known = Processes { now: instance, before: Some(known.now), told: known.told, nack };
            }
            let reason = report.nack.as_ref().map(|nack| &nack.reason);
            if known.nack.as_ref() == reason {
                return Ok(None);
            }
            known.nack = reason.cloned();
        } else {
            if self.processes.len() >= INBOX_NODES_MAX {
                // Names that come and go: what is forgotten costs no more than a warning.
                self.processes.clear();
            }
            let nack = report.nack.as_ref().map(|nack| nack.reason.clone());
            let first = Processes { now: instance, before: None, told: false, nack };
            self.processes.insert(report.node.clone(), first);
        }
        Ok(report.nack.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Stamp;

    fn report(node: &str, uptime_ms: u64) -> UsageReport {
        let (rows, pools) = (Vec::new(), BTreeMap::new());
        let (node, applied, nack) = (node.into(), None, None);
        let providers = BTreeMap::new();
        UsageReport { schema: 1, node, instance: 1, uptime_ms, applied, nack, rows, pools, providers }
    }

    #[test]
    fn the_latest_of_each_node_in_order_of_arrival() {
        let inbox = Inbox::default();
        for (node, uptime) in [("a", 1), ("b", 1), ("a", 2)] {
            inbox.offer(report(node, uptime), 100).unwrap();
        }
        let drained: Vec<(String, u64)> =
            inbox.drain().into_iter().map(|r| (r.node.to_string(), r.uptime_ms)).collect();
        assert_eq!(drained, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
        assert!(inbox.drain().is_empty());
    }

    #[test]
    fn two_processes_of_one_name_are_told_apart() {
        let inbox = Inbox::default();
        let of = |instance: u64| UsageReport { instance, ..report("n1", 5) };
        inbox.offer(of(1), 1).unwrap();
        inbox.drain();
        // A restart: the new process goes on, the old one's last report comes too late.
        inbox.offer(of(2), 1).unwrap();
        assert_eq!(inbox.offer(of(1), 1), Err(Refused::NameTaken { first: true }));
        assert_eq!(inbox.offer(of(1), 1), Err(Refused::NameTaken { first: false }));
        inbox.offer(of(2), 1).unwrap();
        inbox.offer(of(3), 1).unwrap();
        assert_eq!(inbox.drain().len(), 1);
    }

    #[test]
    fn f10_a_refusal_is_said_once_until_it_changes() {
        let inbox = Inbox::default();
        let say = |reason: Option<&str>, tick: u64| {
            let stamp = Some(Stamp { epoch: 1, version: 2, tick });
            let nack = reason.map(|reason| Nack::new(stamp, reason));
            inbox.offer(UsageReport { nack, ..report("n1", 5) }, 1).unwrap().map(|nack| nack.reason)
        };
        let schema = || Some("schema 2".to_owned());
        assert_eq!((say(None, 1), say(Some("schema 2"), 2)), (None, schema()));
        // The same on the next tick is not news.
        assert_eq!((say(Some("schema 2"), 3), say(None, 4)), (None, None));
        assert_eq!(say(Some("schema 2"), 5), schema());
        assert_eq!(inbox.drain()[0].nack.as_ref().unwrap().reason, "schema 2");
    }

    #[test]
    fn nodes_and_bytes_are_bounded() {
        let inbox = Inbox::default();
        for node in 0..INBOX_NODES_MAX {
            inbox.offer(report(&format!("n{node}"), 1), 1).unwrap();
        }
        assert_eq!(inbox.offer(report("one more", 1), 1), Err(Refused::Full));
        inbox.offer(report("n7", 2), 1).unwrap();
        assert_eq!(inbox.drain().len(), INBOX_NODES_MAX);
        assert_eq!(inbox.offer(report("a", 1), INBOX_BYTES_MAX + 1), Err(Refused::Full));
        inbox.offer(report("a", 1), INBOX_BYTES_MAX).unwrap();
        assert_eq!(inbox.offer(report("b", 1), 1), Err(Refused::Full));
    }
}
