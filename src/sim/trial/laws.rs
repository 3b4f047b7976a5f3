//! All laws by name: ours, the rivals, the oracle.

use crate::sim::law::{Law, Terms};
use crate::sim::laws::{RIVALS, build};
use crate::sim::trial::tide::Tide;

/// Our own.
pub const TIDE: &str = "tide";

/// Every law at its defaults: ours first, the oracle last.
pub fn names() -> Vec<&'static str> {
    std::iter::once(TIDE).chain(RIVALS.iter().map(|rival| rival.name)).collect()
}

/// The same, and every variant of the rivals' grids.
pub fn all() -> Vec<String> {
    let rival = |rival: &'static crate::sim::laws::Rival| {
        std::iter::once(rival.name.to_owned()).chain(rival.variants())
    };
    std::iter::once(TIDE.to_owned()).chain(RIVALS.iter().flat_map(rival)).collect()
}

/// None where nobody has that name.
pub fn law(name: &str, terms: &Terms, seed: u64) -> Option<Box<dyn Law>> {
    if name != TIDE {
        return build(name, terms, seed);
    }
    #[cfg(feature = "daemon")]
    if terms.provider {
        return Some(Box::new(crate::sim::trial::partner::Partner::new(terms)));
    }
    Some(Box::new(Tide::new(terms)))
}
