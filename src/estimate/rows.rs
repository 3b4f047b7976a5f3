//! Rows of reports and tables by model and tier, a whole list at a time.
//!
//! A thousand models of ten tiers are ten thousand rows, and every node reports many of them: what
//! is looked up one by one is most of what a turn of the loop costs. Lists are sorted alike, so the
//! row that is asked for next is nearly always the next one.

use crate::unit::{ModelId, TierId};

pub type Key<'a> = (&'a ModelId, &'a TierId);

/// Places in a list that is sorted by model and tier, none twice. Keys in the list's own order cost
/// one comparison each, any other a binary search.
pub struct Lookup<'a, T> {
    rows: &'a [T],
    key: fn(&T) -> Key<'_>,
    next: usize,
}

// === impl Lookup ===

impl<'a, T> Lookup<'a, T> {
    pub fn new(rows: &'a [T], key: fn(&T) -> Key<'_>) -> Lookup<'a, T> {
        Lookup { rows, key, next: 0 }
    }

    pub fn find(&mut self, key: Key<'_>) -> Option<usize> {
        let key_of = self.key;
        if self.rows.get(self.next).is_some_and(|row| key_of(row) == key) {
            self.next += 1;
            return Some(self.next - 1);
        }
        let found = self.rows.binary_search_by(|row| key_of(row).cmp(&key));
        self.next = found.map_or_else(|place| place, |place| place + 1);
        found.ok()
    }
}

/// Whether a list may be looked up in: in order, and none twice.
pub fn is_sorted<T>(rows: &[T], key: fn(&T) -> Key<'_>) -> bool {
    rows.is_sorted_by(|a, b| key(a) < key(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_in_any_order_and_nothing_else() {
        let names: Vec<(ModelId, TierId)> = (0..40)
            .map(|at| (ModelId::new(format!("m{:02}", at / 4)), TierId::new(format!("t{}", at % 4))))
            .collect();
        let rows: Vec<(ModelId, TierId)> = names.iter().step_by(2).cloned().collect();
        fn key(row: &(ModelId, TierId)) -> Key<'_> {
            (&row.0, &row.1)
        }
        assert!(is_sorted(&rows, key));
        let mut lookup = Lookup::new(&rows, key);
        for step in [1, 3, 7, 11, 39] {
            for at in (0..400).map(|turn| turn * step % 40) {
                let wanted = usize::is_multiple_of(at, 2).then_some(at / 2);
                assert_eq!(lookup.find(key(&names[at])), wanted, "{at}, step {step}");
            }
        }
        assert!(!is_sorted(&[names[0].clone(), names[0].clone()], key));
        assert_eq!(Lookup::new(&rows[..0], key).find(key(&names[0])), None);
    }
}
