//! The size of a metrics page, and the setting that bounds it; pages of both programs.

use crate::support::{get, large};
use tidegate::metrics::Detail;

/// What a page may have at 100 models by 10 tiers by 4 dimensions.
const BYTES_MAX: usize = 4 << 20;

fn series(page: &str, family: &str) -> usize {
    page.lines().filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{'))).count()
}

#[tokio::test]
async fn a_large_policy_has_a_page_of_a_few_megabytes_and_detail_makes_it_small() {
    let rows = large::MODELS * large::TIERS;
    let shown = |detail: Detail| match detail {
        Detail::Full => rows,
        Detail::Tier => 10 * large::TIERS,
        Detail::Pool => 0,
    };
    for detail in [Detail::Full, Detail::Tier, Detail::Pool] {
        let dir = tempfile::tempdir().unwrap();
        let controller = large::controller(dir.path(), detail).await;
        let page = get(controller.addr, "/metrics").await.text();
        assert!(page.len() <= BYTES_MAX, "{} bytes", page.len());
        assert_eq!(series(&page, "tidegate_allocate_limit_work_per_second"), shown(detail));
        assert_eq!(
            series(&page, "tidegate_publish_limit_per_second")
                + series(&page, "tidegate_publish_limit_concurrent_requests"),
            shown(detail) * large::DIMENSIONS
        );
        assert_eq!(series(&page, "tidegate_decide_budget_work_per_second"), 10);
        let table = get(controller.addr, "/v1/table").await.body;
        controller.shutdown().await;

        let node = large::node(dir.path(), &table, detail).await;
        let page = get(node.admin, "/metrics").await.text();
        assert!(page.len() <= BYTES_MAX, "{} bytes", page.len());
        assert_eq!(series(&page, "tidegate_enforce_requests_total"), shown(detail) * 3);
        // Sums lose nothing.
        let requests = page.lines().filter(|line| line.starts_with("tidegate_enforce_requests_total{"));
        let asked: f64 = requests.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        assert_eq!(asked, if detail == Detail::Pool { 0.0 } else { rows as f64 });
        node.shutdown().await;
    }
}
