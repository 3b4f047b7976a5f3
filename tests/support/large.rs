//! The largest page that is promised: 100 models by 10 tiers by 4 dimensions, at a controller and
//! at a node, with nodes that report and requests of every row.

use std::path::Path;
use std::time::Duration;

use tidegate::control::reload::{Loaded, Loader};
use tidegate::control::run::{Options, Running, start};
use tidegate::enforce::config::{KeySource, NodeConfig, TableSource};
use tidegate::enforce::node::{Node, Running as NodeRunning};
use tidegate::enforce::{Request, Settlement, Verdict};
use tidegate::metrics::{Detail, PageOptions};
use tidegate::policy::{Policy, SourcePolicy};
use tidegate::unit::{Dimension, Limit, NodeId, TierId};
use tidegate::wire::table::SCHEMA;
use tidegate::wire::{LimitTable, UsageReport};

use super::{call, get, nobody, policy, until};

pub const MODELS: usize = 100;
pub const TIERS: usize = 10;
pub const DIMENSIONS: usize = 4;
const POOLS: usize = 10;
const NODES: usize = 20;

/// Names as long as people's.
fn large_policy(target: String) -> Policy {
    let source = SourcePolicy::Direct { targets: vec![target] };
    let mut large = policy(source, Duration::from_millis(500), 4_000_000, "large");
    let pool = large.pools.pop_first().unwrap().1;
    let model = large.models.pop_first().unwrap().1;
    let mut grant = model.tiers.values().next().unwrap().clone();
    let others = [Dimension::RequestsPerMinute, Dimension::ImagesPerMinute, Dimension::Concurrency];
    grant.tier_limits = others.into_iter().map(|other| (other, Limit::Finite(12_345))).collect();
    for number in 0..POOLS {
        large.pools.insert(format!("gpu-cluster-{number}").as_str().into(), pool.clone());
    }
    for number in 0..MODELS {
        let mut model = model.clone();
        model.pool = format!("gpu-cluster-{}", number % POOLS).as_str().into();
        model.tiers.clear();
        for tier in 0..TIERS {
            let mut grant = grant.clone();
            grant.priority = 1 + tier as u32;
            model.tiers.insert(TierId::new(format!("enterprise-plan-{tier}")), grant);
        }
        large.models.insert(format!("meta-llama/Llama-3.{number}-70B-Instruct").as_str().into(), model);
    }
    large
}

/// A controller with that policy, told by its nodes, after a table that lists them.
pub async fn controller(dir: &Path, detail: Detail) -> Running {
    let target = nobody().await.to_string();
    let from_dir = move |_: &Path| -> Result<Loaded, String> {
        let (files, warnings) = (Vec::new(), Vec::new());
        Ok(Loaded { policy: large_policy(target.clone()).into(), files, warnings })
    };
    let loader = Loader::new(from_dir, |_| Err("nothing is stored".to_owned()));
    std::fs::create_dir_all(dir.join("policies")).unwrap();
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
                rows: Vec::new(),
                pools: Default::default(),
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
    let mut config =
        NodeConfig::embedded("edge-node-0", TableSource::File(path), keys, super::node::routing(&[]));
    config.metrics = PageOptions { detail, ..PageOptions::fresh() };
    let running = Node::start(config, None).await.unwrap();
    let cell = running.cell();
    let held = until("the table", async || cell.held()).await;
    for row in &held.table.rows {
        let request = Request {
            model: row.model.as_str(),
            tier: row.tier.as_str(),
            key: [7; 32],
            input_tokens: 10,
            output_max: Some(10),
            images: 0,
            streamed: false,
        };
        let verdict = cell.with(|limiter, now| limiter.admit(now, &request));
        if let Verdict::Admitted(ticket) = verdict {
            let used = Settlement::Used { input_tokens: 10, output_tokens: 5, images: 0 };
            cell.with(|limiter, now| limiter.settle(now, ticket, used));
        }
    }
    running
}
