//! Laws by name.

use crate::sim::law::{Law, Terms};
use crate::sim::trial::tide::Tide;

/// Ours first.
pub const NAMES: &[&str] = &["tide"];

/// None where nobody has that name.
pub fn law(name: &str, terms: &Terms, _seed: u64) -> Option<Box<dyn Law>> {
    match name {
        "tide" => Some(Box::new(Tide::new(terms))),
        _ => None,
    }
}
