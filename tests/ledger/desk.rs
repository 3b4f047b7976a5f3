//! A ledger as a node uses it: one account with keys that have limits of their own.

use std::path::Path;
use std::sync::Arc;

use tidegate::ledger::{
    Amount, Asked, Holder, Ledger, Limits, Options, Pinned, Refused, Reserved, Sent, Wall, Zone,
};
use tidegate::unit::{Limit, ProductId};

pub fn open(dir: &Path) -> Arc<Ledger> {
    open_with(dir, 10_000)
}

pub fn open_with(dir: &Path, records_max: usize) -> Arc<Ledger> {
    let ledger = Ledger::open(Options {
        node: "n".into(),
        dir: Some(dir.to_owned()),
        records_max,
        seed: 7,
        wall: Wall::system(),
    });
    ledger.see(["n".into()].into(), 0);
    Arc::new(ledger)
}

/// A digest by number.
pub fn id(number: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    id[24..].copy_from_slice(&number.to_le_bytes());
    id
}

/// The records of a request: an account's, and one of a key that no other request has.
pub fn holders(account: u64, key: u64) -> Vec<Holder> {
    let account = id(account);
    vec![Holder { account, key: None }, Holder { account, key: Some(id(key)) }]
}

/// Reserves of an account and a key.
pub fn reserve(
    ledger: &Ledger,
    account: u64,
    key: u64,
    micros: u64,
    limit: u64,
) -> Result<Reserved, Refused> {
    let limits = Limits { spend_per_month: Limit::Finite(limit), ..Limits::default() };
    let (zone, product) = (Zone::utc(), ProductId::new("chat"));
    let calendar = zone.periods(ledger.wall());
    ledger.reserve(&Asked {
        account: id(account),
        account_limits: limits,
        key: Some((id(key), limits)),
        product: &product,
        zone: &zone,
        calendar: &calendar,
        amount: Amount { tokens: 1, micros },
        bounded: true,
    })
}

/// One whole request; what it used.
pub fn spend(ledger: &Ledger, account: u64, key: u64, micros: u64) -> Sent {
    let _pinned = ledger.pin_now(holders(account, key)).unwrap();
    let reserved = reserve(ledger, account, key, micros, u64::MAX >> 20).unwrap();
    ledger.settle(reserved, Amount { tokens: 1, micros })
}

/// Micro-dollars of an account, and of a key of it.
pub fn spent(ledger: &Ledger, account: u64, key: u64) -> (u64, u64) {
    let holders = holders(account, key);
    let _pinned: Pinned = ledger.pin_now(holders.clone()).unwrap();
    (ledger.spent(&holders[0]).unwrap(), ledger.spent(&holders[1]).unwrap())
}
