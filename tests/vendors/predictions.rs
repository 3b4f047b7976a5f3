//! Predictions: limits of one key.

use http::StatusCode;

use crate::rig::*;

/// 60 a minute of each key, across models; another key of the account has its own.
#[tokio::test]
async fn s2_1_s2_2_a_key_has_sixty_requests_a_minute_and_not_one_more() {
    let of = |name: &str| key(name, "acme", "\"tier\":\"default\"");
    let rig = Rig::start("predictions", of("a") + &of("b")).await;
    for _ in 0..3 {
        aligned().await;
        let begun = minute();
        let sums = [rig.admitted("a", "sdxl", 40, 4).await, rig.admitted("a", "video-01", 21, 4).await];
        let other = rig.chat("b", "sdxl", 2).await;
        if minute() == begun {
            assert_eq!(sums, [40, 20]);
            assert_eq!(other, StatusCode::OK);
            return;
        }
    }
    panic!("no minute was long enough");
}

/// No limit on spend is stated, and one can be for each key: every model has a price.
#[test]
fn s2_3_s2_4_s2_5_five_jobs_no_spend_limit_and_a_price_to_set_one_by() {
    use tidegate::unit::{Dimension, Limit};
    let policy = policy("predictions");
    for model in policy.models.values() {
        let default = &model.tiers["default"];
        assert_eq!(default.key_limits[&Dimension::Jobs], Limit::Finite(5));
        assert!(default.budgets.is_empty() && model.entry.price.is_some());
        let enterprise = &model.tiers["enterprise"];
        assert!(enterprise.key_limits.iter().all(|(unit, limit)| *limit > default.key_limits[unit]));
    }
}
