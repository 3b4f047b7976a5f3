//! The size of a metrics page, and the setting that bounds it; pages of both programs.

use std::time::Duration;

use crate::support::{Manner, get, large, loader, metric, nobody, replica, serve, until};
use tidegate::control::run::{Options, start};
use tidegate::metrics::Detail;
use tidegate::policy::SourcePolicy;

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

#[tokio::test]
async fn readings_that_fail_are_counted_by_kind() {
    let targets = [
        nobody().await,
        serve(Manner::Mute).await,
        serve(Manner::Answers(404, crate::support::TEXT, String::new())).await,
        replica("<html>\n").await,
    ];
    let source = SourcePolicy::targets(targets.map(|target| target.to_string()).to_vec());
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    std::fs::write(dir.path().join("policies/p.yaml"), "50000").unwrap();
    let loader = loader(source, Duration::from_millis(200));
    let running =
        start(Options::new(dir.path().join("policies"), dir.path().join("state"), loader)).await.unwrap();
    for kind in ["down", "timeout", "status", "unreadable"] {
        let name = format!("tidegate_observe_failures_total{{pool=\"gpu\",kind=\"{kind}\"}}");
        until(kind, async || {
            let shown =
                get(running.addr, "/metrics").await.text().contains("tidegate_observe_failures_total");
            (shown && metric(running.addr, &name).await > 0.0).then_some(())
        })
        .await;
    }
    let name = "tidegate_observe_replicas{pool=\"gpu\",state=\"silent\"}";
    assert_eq!(metric(running.addr, name).await, 3.0);
    running.shutdown().await;
}
