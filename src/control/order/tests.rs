//! A smaller model is never limited below a larger one.

use super::*;
use crate::estimate::Demand;
use crate::policy::ModelPolicy;
use crate::unit::ModelId;

#[test]
fn a_small_model_that_is_asked_for_little_is_limited_no_lower_than_a_large_one() {
    let tier = TierId::new("t");
    let sized = |name: &str, size: u64| {
        let mut model = ModelPolicy::new(PoolId::new("p"), [(tier.clone(), Grant::default())].into());
        model.size = Some(size);
        (ModelId::new(name), model)
    };
    let policy = Policy { models: [sized("small", 7), sized("large", 70)].into(), ..Policy::default() };
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
    raise_smaller(&policy, &mut rows);
    assert_eq!(rows.map(|row| row.limit), [20.0, 20.0]);
}
