//! Which part of an account's budget this node may fill.
//!
//! Nodes do not tell each other what was used. So each account has one owner, by rendezvous hash
//! over the nodes that the table lists, which holds 99 % of every budget; the other nodes hold the
//! last hundredth together. Owners are made when a period begins and keep it until it ends: a node
//! that comes later cannot know what was used before, and one that leaves takes its knowledge with
//! it. Where lists change just as a period begins, an account belongs to the node that owns it under
//! every one of them, or to none. What is never used twice may so be refused for a period.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::Deserialize;
use serde::Serialize;

use crate::bounds::LEDGER_LISTS_MAX;
use crate::ledger::period::UnixMs;
use crate::ledger::record::Id;
use crate::unit::Limit;
use crate::unit::NodeId;
use crate::unit::PPM;

/// For how long after its beginning a period's owners are not settled: a table's way to all nodes.
const UNSETTLED_MS: u64 = 60_000;
/// Of a budget, what nodes that do not own it hold together.
const OTHERS: u64 = 100;

/// The lists of nodes that this node has seen, oldest first, across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lists {
    seen: Vec<Seen>,
    /// Lists between the first and the second one were forgotten.
    forgot: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    from: UnixMs,
    /// Still in force then.
    until: UnixMs,
    nodes: BTreeSet<NodeId>,
}

/// Of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    /// All but what the others hold.
    Owner,
    /// One of so many others.
    Other(u64),
    /// No node is listed: parts per million kept for the unlisted.
    Unlisted(u32),
    /// Others are listed and this node is not.
    Nothing,
}

// === impl Lists ===

impl Lists {
    /// A table with these nodes is in force; says whether there is something new to keep.
    pub fn see(&mut self, nodes: &BTreeSet<NodeId>, now: UnixMs) -> bool {
        // An empty list says nothing: a controller that has not heard anyone yet.
        if nodes.is_empty() {
            return false;
        }
        let known = self.seen.len();
        if let Some(last) = self.seen.last_mut() {
            let now = now.max(last.until);
            if last.nodes == *nodes && now - last.until <= UNSETTLED_MS {
                last.until = now;
                return false;
            }
            if last.nodes != *nodes && now - last.until <= UNSETTLED_MS {
                last.until = now;
            }
        }
        let from = self.seen.last().map_or(now, |last| now.max(last.until));
        // The first one decides for what never ends.
        if known >= LEDGER_LISTS_MAX {
            self.seen.remove(1);
            self.forgot = true;
        }
        self.seen.push(Seen { from, until: from, nodes: nodes.clone() });
        true
    }

    /// Nothing else came in force since: the last list still holds.
    pub fn hold(&mut self, now: UnixMs) {
        if let Some(last) = self.seen.last_mut() {
            last.until = last.until.max(now);
        }
    }

    /// What `me` may fill of an account's budget for a period, while the table lists `nodes`.
    pub fn part(
        &self,
        me: &NodeId,
        account: &Id,
        period: &Range<UnixMs>,
        nodes: &BTreeSet<NodeId>,
        unlisted_ppm: u32,
    ) -> Part {
        let mut others = nodes.len().saturating_sub(usize::from(nodes.contains(me)));
        let mut mine = true;
        let mut any = false;
        for seen in self.deciding(period.start) {
            any = true;
            mine &= owner(&seen.nodes, account) == Some(me);
            others = others.max(seen.nodes.len().saturating_sub(1));
        }
        match (any && mine && !self.unknown(period.start), others) {
            (true, 0) => Part::All,
            (true, _) => Part::Owner,
            _ if nodes.is_empty() => Part::Unlisted(unlisted_ppm.min(PPM)),
            _ if !nodes.contains(me) => Part::Nothing,
            (false, others) => Part::Other(u64::try_from(others.max(1)).unwrap_or(u64::MAX)),
        }
    }

    /// The lists that make a period's owners: the one in force as it begins, or the first that this
    /// node saw of it, and those that follow within a minute.
    fn deciding(&self, start: UnixMs) -> impl Iterator<Item = &Seen> {
        let began = self.seen.iter().find(|seen| seen.until.saturating_add(UNSETTLED_MS) >= start);
        let first = began.map_or(UnixMs::MAX, |seen| seen.from.max(start));
        let settled = first.saturating_add(UNSETTLED_MS);
        self.seen
            .iter()
            .filter(move |seen| seen.until.saturating_add(UNSETTLED_MS) >= start && seen.from <= settled)
    }

    fn unknown(&self, start: UnixMs) -> bool {
        let second = self.seen.get(1).map_or(0, |seen| seen.from);
        let first = self.seen.first().map_or(0, |seen| seen.from);
        self.forgot && start > first && start < second
    }
}

/// Rendezvous: the node whose hash with the account is the highest.
pub fn owner<'a>(nodes: &'a BTreeSet<NodeId>, account: &Id) -> Option<&'a NodeId> {
    nodes.iter().max_by_key(|node| weight(node, account))
}

/// FNV-1a over the node's name and the account's digest, mixed at the end; part of the wire
/// contract, since all nodes must agree.
fn weight(node: &NodeId, account: &Id) -> u64 {
    let bytes = node.as_str().bytes().chain([0]).chain(account.iter().copied());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The finisher of splitmix64: neighbouring names must not own neighbouring accounts.
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

// === impl Part ===

impl Part {
    /// The part of a limit that this node may fill; those of all nodes together are at most the
    /// limit.
    pub fn of(self, limit: Limit) -> Limit {
        let Limit::Finite(limit) = limit else { return Limit::Unlimited };
        Limit::Finite(self.of_amount(limit))
    }

    pub fn of_amount(self, amount: u64) -> u64 {
        match self {
            Part::All => amount,
            Part::Owner => amount - amount / OTHERS,
            Part::Other(others) => amount / OTHERS / others.max(1),
            Part::Unlisted(ppm) => {
                let part = u128::from(amount) * u128::from(ppm) / u128::from(PPM);
                u64::try_from(part).unwrap_or(amount)
            }
            Part::Nothing => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const DAY: Range<UnixMs> = 24 * HOUR..48 * HOUR;

    fn nodes(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|name| NodeId::new(name)).collect()
    }

    fn account(number: u64) -> Id {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&number.to_le_bytes());
        id
    }

    /// What each node holds of 1,000,000, by the lists it saw at which hour (in tenths).
    fn held(lists: &[(u64, &[&str])], me: &str, at: u64) -> Vec<u64> {
        let mut seen = Lists::default();
        let mut current = nodes(&[]);
        for tenth in 0..=at * 10 {
            if let Some((_, names)) = lists.iter().rev().find(|(from, _)| *from <= tenth) {
                current = nodes(names);
                for minute in 0..6 {
                    seen.see(&current, tenth * HOUR / 10 + minute * 60_000);
                }
            }
        }
        let part = |id| seen.part(&me.into(), &account(id), &DAY, &current, 10_000);
        (0..200).map(|id| part(id).of_amount(1_000_000)).collect()
    }

    fn sum(all: &[Vec<u64>]) -> Vec<u64> {
        (0..200).map(|at| all.iter().map(|held| held[at]).sum()).collect()
    }

    #[test]
    fn budgets_are_never_held_twice_and_one_node_alone_holds_all() {
        let alone: &[(u64, &[&str])] = &[(0, &["a"])];
        assert!(held(alone, "a", 30).iter().all(|held| *held == 1_000_000));
        // Three from the beginning.
        let three: &[(u64, &[&str])] = &[(0, &["a", "b", "c"])];
        let all = ["a", "b", "c"].map(|me| held(three, me, 30));
        assert!(sum(&all).iter().all(|sum| *sum == 1_000_000));
        for node in &all {
            let owned = node.iter().filter(|held| **held == 990_000).count();
            assert!((40..100).contains(&owned), "{owned} of 200");
            assert!(node.iter().all(|held| *held == 990_000 || *held == 5_000));
        }
    }

    #[test]
    fn a_node_that_joins_owns_nothing_until_the_next_period() {
        let old: &[(u64, &[&str])] = &[(0, &["a"]), (300, &["a", "b"])];
        let new: &[(u64, &[&str])] = &[(300, &["a"]), (301, &["a", "b"])];
        let all = [held(old, "a", 31), held(new, "b", 31)];
        assert!(sum(&all).iter().all(|sum| *sum == 1_000_000));
        assert!(all[0].iter().all(|held| *held == 990_000));
        // Of the next day both own a part.
        let mut seen = Lists::default();
        for minute in 0..60 * 24 * 2 {
            let list = nodes(if minute < 60 * 30 { &["a"] } else { &["a", "b"] });
            seen.see(&list, minute * 60_000);
        }
        let next = 48 * HOUR..72 * HOUR;
        let part = |id| seen.part(&"b".into(), &account(id), &next, &nodes(&["a", "b"]), 0);
        let owned = (0..200).filter(|id| part(*id) == Part::Owner).count();
        assert!((60..140).contains(&owned), "{owned} of 200");
    }

    #[test]
    fn what_a_node_that_left_knew_is_held_by_nobody() {
        let lists: &[(u64, &[&str])] = &[(0, &["a", "b"]), (300, &["b"])];
        let all = held(lists, "b", 31);
        assert!(all.iter().all(|held| *held == 990_000 || *held == 10_000), "{all:?}");
        assert!(all.iter().filter(|held| **held == 10_000).count() > 60);
    }

    #[test]
    fn lists_that_change_as_a_period_begins_leave_some_accounts_to_nobody_but_none_to_two() {
        // `a` has the new list ten seconds before midnight, `b` ten seconds after it.
        let (old, new) = (nodes(&["a", "b"]), nodes(&["a", "b", "c"]));
        let midnight = DAY.start;
        let mut all = Vec::new();
        for (me, at) in [("a", midnight - 10_000), ("b", midnight + 10_000)] {
            let mut seen = Lists::default();
            for second in 0..7_200 {
                let now = midnight - HOUR + second * 1_000;
                seen.see(if now < at { &old } else { &new }, now);
            }
            let part = |id| seen.part(&me.into(), &account(id), &DAY, &new, 0).of_amount(1_000_000);
            all.push((0..200).map(part).collect::<Vec<u64>>());
        }
        // `c` has seen the new one only, as `a` had it.
        let mut seen = Lists::default();
        (0..3_600).for_each(|second| _ = seen.see(&new, midnight - 10_000 + second * 1_000));
        let part = |id| seen.part(&"c".into(), &account(id), &DAY, &new, 0).of_amount(1_000_000);
        all.push((0..200).map(part).collect());
        assert!(sum(&all).iter().all(|sum| *sum <= 1_000_000), "{:?}", sum(&all).iter().max());
    }

    #[test]
    fn nobody_listed_is_what_the_table_keeps_for_such_and_the_unlisted_among_others_holds_nothing() {
        let lists = Lists::default();
        let part = |list: &[&str], ppm| lists.part(&"a".into(), &account(1), &DAY, &nodes(list), ppm);
        assert_eq!(part(&[], 1_000_000).of_amount(77), 77);
        assert_eq!(part(&[], 10_000).of(Limit::Finite(700)), Limit::Finite(7));
        assert_eq!(part(&["b"], 10_000).of_amount(u64::MAX), 0);
        assert_eq!(part(&["b"], 10_000).of(Limit::Unlimited), Limit::Unlimited);
    }

    #[test]
    fn a_restart_is_remembered_and_so_is_an_absence_over_midnight() {
        let both = nodes(&["a", "b"]);
        let mut seen = Lists::default();
        (0..600).for_each(|minute| _ = seen.see(&both, minute * 60_000));
        let text = serde_json::to_string(&seen).unwrap();
        let mut back: Lists = serde_json::from_str(&text).unwrap();
        assert_eq!(back, seen);
        // It comes back after midnight and is not listed at first: the day is not its own.
        back.see(&nodes(&["b"]), DAY.start + HOUR);
        back.see(&both, DAY.start + HOUR + 2_000);
        assert!(
            (0..200).all(|id| { back.part(&"a".into(), &account(id), &DAY, &both, 0) == Part::Other(1) })
        );
        for turn in 0..1_000 {
            let name = format!("n{turn}");
            back.see(&nodes(&[&name, "a"]), 3 * DAY.end + turn * HOUR);
        }
        assert_eq!(back.seen.len(), LEDGER_LISTS_MAX);
        assert!(back.unknown(4 * DAY.end));
    }
}
