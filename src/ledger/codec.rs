//! Bytes of records and of batches of entries: little-endian, each with a CRC-32 of its own at the
//! end, so that what a disk made of them is never taken for an amount.

use std::collections::BTreeMap;

use crate::bounds::NAME_BYTES_MAX;
use crate::ledger::period::PeriodId;
use crate::ledger::record::Amount;
use crate::ledger::record::Booked;
use crate::ledger::record::Entry;
use crate::ledger::record::Holder;
use crate::ledger::record::Id;
use crate::ledger::record::Meter;
use crate::ledger::record::Record;
use crate::ledger::record::Slot;
use crate::ledger::record::Step;
use crate::unit::ProductId;

/// Bytes that are no record and no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not what was written: its checksum or its length is wrong")]
pub struct Damaged;

struct Writer(Vec<u8>);

struct Reader<'a>(&'a [u8]);

/// An account's records stand together: its own, then its keys'.
pub fn name(holder: &Holder) -> Vec<u8> {
    let mut name = holder.account.to_vec();
    name.extend(holder.key.iter().flatten());
    name
}

/// # Errors
/// Not the name of a holder.
pub fn holder(name: &[u8]) -> Result<Holder, Damaged> {
    let mut reader = Reader(name);
    let account = reader.id()?;
    let key = if reader.0.is_empty() { None } else { Some(reader.id()?) };
    reader.end()?;
    Ok(Holder { account, key })
}

pub fn batch(entries: &[Entry]) -> Vec<u8> {
    let mut writer = Writer(Vec::with_capacity(entries.len() * 128));
    for entry in entries {
        writer.u64(entry.seq);
        writer.u8(u8::from(entry.step == Step::Settle) | u8::from(entry.holder.key.is_some()) << 1);
        writer.u64(entry.id);
        writer.0.extend(entry.holder.account);
        writer.0.extend(entry.holder.key.iter().flatten());
        writer.booked(&entry.booked);
    }
    writer.sealed()
}

/// # Errors
/// Not a batch.
pub fn entries(bytes: &[u8]) -> Result<Vec<Entry>, Damaged> {
    let mut reader = Reader(unsealed(bytes)?);
    let mut entries = Vec::new();
    while !reader.0.is_empty() {
        let seq = reader.u64()?;
        let flags = reader.u8()?;
        let id = reader.u64()?;
        let account = reader.id()?;
        let key = if flags & 2 == 0 { None } else { Some(reader.id()?) };
        let step = if flags & 1 == 0 { Step::Reserve } else { Step::Settle };
        let booked = reader.booked()?;
        entries.push(Entry { seq, step, id, holder: Holder { account, key }, booked });
    }
    Ok(entries)
}

pub fn record(record: &Record) -> Vec<u8> {
    let mut writer = Writer(Vec::with_capacity(256));
    writer.u64(record.seq());
    writer.u64(record.spent());
    writer.count(record.meters.len());
    for (product, meter) in &record.meters {
        writer.product(product);
        for slot in meter.days.iter().chain(&meter.months) {
            writer.i32(slot.id.0);
            writer.amount(slot.used);
        }
    }
    writer.count(record.open.len());
    for (id, booked) in record.open() {
        writer.u64(id);
        writer.booked(booked);
    }
    writer.sealed()
}

/// # Errors
/// Not a record.
pub fn read_record(bytes: &[u8]) -> Result<Record, Damaged> {
    let mut reader = Reader(unsealed(bytes)?);
    let (seq, spent) = (reader.u64()?, reader.u64()?);
    let mut meters = BTreeMap::new();
    for _ in 0..reader.count()? {
        let product = reader.product()?;
        let meter =
            Meter { days: [reader.slot()?, reader.slot()?], months: [reader.slot()?, reader.slot()?] };
        meters.insert(product, meter);
    }
    let mut record = Record::restored(seq, spent, meters);
    for _ in 0..reader.count()? {
        let id = reader.u64()?;
        let booked = reader.booked()?;
        record.reserve(id, booked);
    }
    reader.end()?;
    Ok(record)
}

fn unsealed(bytes: &[u8]) -> Result<&[u8], Damaged> {
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or(Damaged)?;
    if crc32fast::hash(body) == u32::from_le_bytes(*sum) { Ok(body) } else { Err(Damaged) }
}

// === impl Writer ===

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.0.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn amount(&mut self, amount: Amount) {
        self.u64(amount.tokens);
        self.u64(amount.micros);
    }

    fn product(&mut self, product: &ProductId) {
        let name = product.as_str().as_bytes();
        self.0.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.0.extend(name);
    }

    fn booked(&mut self, booked: &Booked) {
        self.product(&booked.product);
        self.i32(booked.day.0);
        self.i32(booked.month.0);
        self.amount(booked.amount);
    }

    fn sealed(mut self) -> Vec<u8> {
        let sum = crc32fast::hash(&self.0);
        self.0.extend(sum.to_le_bytes());
        self.0
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (chunk, rest) = self.0.split_first_chunk::<N>().ok_or(Damaged)?;
        self.0 = rest;
        Ok(*chunk)
    }

    fn u8(&mut self) -> Result<u8, Damaged> {
        let [byte] = self.chunk()?;
        Ok(byte)
    }

    fn u64(&mut self) -> Result<u64, Damaged> {
        self.chunk().map(u64::from_le_bytes)
    }

    fn period(&mut self) -> Result<PeriodId, Damaged> {
        self.chunk().map(i32::from_le_bytes).map(PeriodId)
    }

    fn id(&mut self) -> Result<Id, Damaged> {
        self.chunk()
    }

    fn count(&mut self) -> Result<u32, Damaged> {
        self.chunk().map(u32::from_le_bytes)
    }

    fn amount(&mut self) -> Result<Amount, Damaged> {
        Ok(Amount { tokens: self.u64()?, micros: self.u64()? })
    }

    fn slot(&mut self) -> Result<Slot, Damaged> {
        Ok(Slot { id: self.period()?, used: self.amount()?, held: Amount::default() })
    }

    fn product(&mut self) -> Result<ProductId, Damaged> {
        let length = usize::from(self.chunk().map(u16::from_le_bytes)?);
        let (name, rest) = self.0.split_at_checked(length).ok_or(Damaged)?;
        self.0 = rest;
        match std::str::from_utf8(name) {
            Ok(name) if length <= NAME_BYTES_MAX => Ok(ProductId::new(name)),
            _ => Err(Damaged),
        }
    }

    fn booked(&mut self) -> Result<Booked, Damaged> {
        let (product, day, month) = (self.product()?, self.period()?, self.period()?);
        Ok(Booked { product, day, month, amount: self.amount()? })
    }

    fn end(&self) -> Result<(), Damaged> {
        if self.0.is_empty() { Ok(()) } else { Err(Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, step: Step, key: Option<Id>) -> Entry {
        let booked = Booked {
            product: "chat".into(),
            day: PeriodId(20_000),
            month: PeriodId(24_322),
            amount: Amount { tokens: seq * 3, micros: u64::MAX - seq },
        };
        Entry { seq, step, id: seq + 7, holder: Holder { account: [1; 32], key }, booked }
    }

    #[test]
    fn what_is_written_is_read_and_any_other_byte_is_damage() {
        let all = [
            entry(1, Step::Reserve, None),
            entry(2, Step::Settle, Some([9; 32])),
            entry(3, Step::Reserve, None),
        ];
        let mut account = Record::default();
        all.iter().for_each(|entry| assert!(account.apply(entry)));
        let (written, kept) = (batch(&all), record(&account));
        assert_eq!(entries(&written).unwrap(), all);
        assert_eq!(read_record(&kept).unwrap(), account);
        for bytes in [&written, &kept] {
            for at in 0..bytes.len() {
                for flip in [0x01_u8, 0x80, 0xff] {
                    let mut bad = bytes.clone();
                    bad[at] ^= flip;
                    assert!(entries(&bad).is_err() && read_record(&bad).is_err(), "byte {at}");
                }
                assert!(entries(&bytes[..at]).is_err() || at == 0, "cut to {at}");
                assert!(read_record(&bytes[..at]).is_err(), "cut to {at}");
            }
        }
        assert_eq!(read_record(&written), Err(Damaged), "one is not taken for the other");
    }

    #[test]
    fn a_holder_has_a_name_of_one_or_two_digests() {
        for key in [None, Some([3; 32])] {
            let whose = Holder { account: [2; 32], key };
            assert_eq!(holder(&name(&whose)), Ok(whose));
        }
        assert_eq!(holder(&[0; 33]), Err(Damaged));
        assert_eq!(holder(&[]), Err(Damaged));
    }
}
