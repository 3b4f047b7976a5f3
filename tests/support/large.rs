//! The largest page that is promised: 100 models by 10 tiers by 4 dimensions, at a controller and
//! at a node, with nodes that report and requests of every row.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate::control::reload::Loader;
use tidegate::control::run::{Options, Running, start};
use tidegate::enforce::config::{KeySource, NodeConfig, TableSource};
use tidegate::enforce::node::{Node, Running as NodeRunning};
use tidegate::enforce::{Request, Settlement, Verdict};
use tidegate::metrics::{Detail, PageOptions};
use tidegate::unit::{Dimension, Limit, NodeId};
use tidegate::wire::table::SCHEMA;
use tidegate::wire::{LimitTable, UsageReport};

use super::{call, get, nobody, until};

pub const MODELS: usize = 100;
pub const TIERS: usize = 10;
pub const DIMENSIONS: usize = 4;
const POOLS: usize = 10;
const NODES: usize = 20;

/// Names as long as people's.
fn large_policy(target: &str) -> String {
    let mut text = String::from("product: large\npools:\n");
    for pool in 0..POOLS {
        text +=
            &format!("  gpu-cluster-{pool}: {{preset: vllm, targets: [http://{target}/metrics], slo: 1s}}\n");
    }
    text += "models:\n";
    for model in 0..MODELS {
        text +=
            &format!("  meta-llama/Llama-3.{model}-70B-Instruct: {{pool: gpu-cluster-{}}}\n", model % POOLS);
    }
    text += "tiers:\n";
    for tier in 0..TIERS {
        text += &format!(
            "  enterprise-plan-{tier}: {{priority: {}, weight: 1, guarantee: 6k tpm, ceiling: 4M tpm, \
             tier_limits: [9k rpm, 900 concurrent], key_limits: [100 rpm]}}\n",
            tier + 1
        );
    }
    text
}

/// A controller with that policy, told by its nodes, after a table that lists them.
pub async fn controller(dir: &Path, detail: Detail) -> Running {
    let target = nobody().await.to_string();
    std::fs::create_dir_all(dir.join("policies")).unwrap();
    std::fs::write(dir.join("policies/large.yaml"), large_policy(&target)).unwrap();
    // No policy that passes the check has four dimensions in one row: the last one is added here.
    let loader = Loader::new(|contents| {
        let mut loaded = Loader::checked().judge(contents)?;
        for model in Arc::make_mut(&mut loaded.policy).models.values_mut() {
            for grant in model.tiers.values_mut() {
                grant.tier_limits.insert(Dimension::ImagesPerMinute, Limit::Finite(12_345));
            }
        }
        Ok(loaded)
    });
    let mut options = Options::new(dir.join("policies"), dir.join("state"), loader);
    options.metrics = PageOptions { detail, ..PageOptions::fresh() };
    options.collect = Some(Duration::ZERO);
    let running = start(options).await.unwrap();
    let token = format!("Bearer {}", running.token.reveal());
    until("shares of all nodes", async || {
        for number in 0..NODES {
            let report = UsageReport {
                schema: SCHEMA,
                node: NodeId::new(format!("edge-node-{number}")),
                instance: 1,
                uptime_ms: 1_000,
                applied: None,
                nack: None,
                rows: Vec::new(),
                pools: Default::default(),
                providers: Default::default(),
            };
            let body = serde_json::to_vec(&report).unwrap();
            call(running.addr, "POST /v1/usage", &[("authorization", &token)], &body).await;
        }
        let table = get(running.addr, "/v1/table").await;
        let table = (table.status == 200).then(|| LimitTable::decode(&table.body).unwrap())?;
        table.pools.values().all(|pool| pool.shares.len() == NODES).then_some(())
    })
    .await;
    running
}

/// A node with the table of such a controller, after a request of every row.
pub async fn node(dir: &Path, table: &[u8], detail: Detail) -> NodeRunning {
    let path = dir.join("large.json");
    std::fs::write(&path, table).unwrap();
    let keys = KeySource::Inline(String::new());
    // Nothing is sent: requests are counted where limits are.
    let urls = ["http://127.0.0.1:9".to_owned()];
    let mut config =
        NodeConfig::embedded("edge-node-0", TableSource::File(path), keys, super::node::routing(&urls));
    config.metrics = PageOptions { detail, ..PageOptions::fresh() };
    let running = Node::start(config, None).await.unwrap();
    let cell = running.cell();
    let held = until("the table", async || cell.held()).await;
    for row in &held.table.rows {
        let request = Request {
            input_tokens: 10,
            output_max: Some(10),
            ..Request::new(row.model.as_str(), row.tier.as_str(), [7; 32])
        };
        let verdict = cell.with(|limiter, now| limiter.admit(now, &request));
        if let Verdict::Admitted(ticket) = verdict {
            let used = Settlement::Used { input_tokens: 10, cached_tokens: 0, output_tokens: 5, images: 0 };
            cell.with(|limiter, now| limiter.settle(now, ticket, used));
        }
    }
    running
}
