//! A smaller model is never limited below a larger one.

use super::*;
use crate::estimate::Demand;
use crate::unit::ModelId;

#[test]
fn a_small_model_that_is_asked_for_little_is_limited_no_lower_than_a_large_one() {
    let tier = TierId::new("t");
    let grant = Grant::default();
    let stated = [70, 7].map(|size| Stated { grant: &grant, size: Some(size) });
    let row = |name: &str, limit: f64| RowTick {
        model: ModelId::new(name),
        tier: tier.clone(),
        priority: 1,
        demand: Demand::default(),
        guarantee: 0.0,
        limit,
        bound: Bound::Priority,
        key_share: None,
    };
    let mut rows = [row("large", 20.0), row("small", 10.0)];
    raise_smaller(&stated, &mut rows);
    assert_eq!(rows.map(|row| row.limit), [20.0, 20.0]);
}
