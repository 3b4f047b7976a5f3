//! What the demo shows: a line a second, for people or for programs.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Options;
use super::cluster::{Cluster, GUARANTEES};
use super::ledger::TIERS;
use super::tenants::{KEYS_PER_TIER, key};
use super::verdict::{Kept, Record};
use crate::wire::Stamp;

/// Lines between two headings.
const HEADING_EVERY: usize = 20;

/// Writes to one place, in one of two languages.
pub struct View<W> {
    out: W,
    json: bool,
    lines: usize,
}

// === impl View ===

impl<W: Write> View<W> {
    pub fn new(out: W, json: bool) -> View<W> {
        View { out, json, lines: 0 }
    }

    /// Where everything is, so that a script can act on it.
    ///
    /// # Errors
    /// Those of the writer, here and below; a broken pipe ends the demo.
    pub fn opening(&mut self, replicas: &[String], cluster: Option<&Cluster>) -> io::Result<()> {
        let list = |pick: fn(&super::cluster::NodeAddress) -> &String| -> Vec<String> {
            cluster.into_iter().flat_map(|cluster| cluster.nodes.iter().map(pick).cloned()).collect()
        };
        let nodes = list(|node| &node.admin);
        let proxies = if cluster.is_some() { list(|node| &node.proxy) } else { replicas.to_vec() };
        let controller = cluster.map(|cluster| cluster.controller.as_str());
        if self.json {
            let keys: Map<String, Value> =
                TIERS.iter().enumerate().map(|(tier, name)| ((*name).to_owned(), keys(tier))).collect();
            let place = |path: fn(&super::cluster::Directory) -> std::path::PathBuf| {
                cluster.map(|cluster| show(&path(&cluster.directory)))
            };
            return self.line(&json!({
                "addresses": {"controller": controller, "nodes": nodes, "proxies": proxies},
                "replicas": replicas,
                "policies": place(super::cluster::Directory::policies),
                "token_file": place(super::cluster::Directory::token),
                "keys_file": place(super::cluster::Directory::keys),
                "keys": keys,
            }));
        }
        writeln!(self.out, "replicas    {}", replicas.join(" "))?;
        if let Some(cluster) = cluster {
            writeln!(self.out, "controller  {}", cluster.controller)?;
            writeln!(self.out, "nodes       {} (admin {})", proxies.join(" "), nodes.join(" "))?;
            writeln!(self.out, "policies    {}", show(&cluster.directory.policies()))?;
        }
        writeln!(
            self.out,
            "Rates are thousands of work units a second: a prompt token is 1, an output token 4."
        )
    }

    /// One second of the record.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn second(&mut self, record: &Record, at: usize, stamp: Option<Stamp>) -> io::Result<()> {
        let Some(second) = record.seconds.get(at) else { return Ok(()) };
        let p99 = record.ttft_p99(at);
        if self.json {
            let mut tiers = Map::new();
            for ((name, terms), served) in TIERS.iter().zip(&second.tiers).zip(&second.seen.tiers) {
                let tier = json!({
                    "limit": rate(terms.limit),
                    "demand": round(served.demand),
                    "admitted": round(served.admitted()),
                    "refused": round(served.refused()),
                    "refused_limit": round(served.refused_limit),
                    "refused_capacity": round(served.refused_capacity),
                    "failed": round(served.failed),
                    "guarantee": terms.guarantee,
                });
                tiers.insert((*name).to_owned(), tier);
            }
            return self.line(&json!({
                "t": at,
                "capacity": second.capacity,
                "load": round(second.load),
                "budget": rate(second.budget),
                "version": stamp.map(|stamp| [stamp.epoch, stamp.version]),
                "tick": stamp.map(|stamp| stamp.tick),
                "ttft_p99": p99,
                "tiers": tiers,
            }));
        }
        if self.lines.is_multiple_of(HEADING_EVERY) {
            self.heading()?;
        }
        self.lines += 1;
        write!(
            self.out,
            "{at:>4}{:>9}{:>7}{:>8}{:>8}",
            thousands(Some(second.capacity)),
            thousands(Some(second.load)),
            thousands(second.budget),
            p99.map_or("-".to_owned(), |seconds| format!("{seconds:.2}")),
        )?;
        for (terms, served) in second.tiers.iter().zip(&second.seen.tiers) {
            write!(
                self.out,
                " |{:>6}{:>7}{:>7}{:>7}",
                thousands(terms.limit),
                thousands(Some(served.demand)),
                thousands(Some(served.admitted())),
                thousands(Some(served.refused())),
            )?;
        }
        writeln!(self.out)?;
        self.out.flush()
    }

    /// Something happened to the plant.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn event(&mut self, what: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(self.out, "---- {what}")
    }

    /// The promises and the totals.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn summary(&mut self, options: &Options, record: &Record, late: f64) -> io::Result<()> {
        let (verdicts, totals) = (record.verdicts(), record.totals());
        let kept = verdicts.iter().all(|verdict| verdict.outcome == Kept::Kept);
        if self.json {
            return self.line(&json!({"summary": {
                "seconds": options.seconds,
                "seed": options.seed,
                "limits": options.limits,
                "kept": kept,
                "promises": verdicts,
                "totals": totals,
                "slo": record.slo.as_secs_f64(),
                "lateness": late,
            }}));
        }
        let how = if options.limits { "with limits" } else { "without limits" };
        writeln!(self.out, "\n{} s of demo {how}, seed {}:", options.seconds, options.seed)?;
        // Without limits most promises have nothing to be judged by.
        let told = |outcome| options.limits || outcome != Kept::Untested;
        for verdict in verdicts.iter().filter(|verdict| told(verdict.outcome)) {
            let outcome = match verdict.outcome {
                Kept::Kept => "kept",
                Kept::Broken => "BROKEN",
                Kept::Untested => "untested",
            };
            writeln!(self.out, "  {outcome:<9}{}", verdict.promise)?;
            writeln!(self.out, "           {}", verdict.measured)?;
        }
        let seconds = |p99: Option<f64>| p99.map_or("-".to_owned(), |p99| format!("{p99:.2} s"));
        let [enterprise, starter, free] = totals.served_share_halved.map(|share| share * 100.0);
        writeln!(
            self.out,
            "  goodput  {:.1} % of capacity, {:.1} % while halved (work with its first token within {} s)",
            totals.goodput * 100.0,
            totals.goodput_halved * 100.0,
            record.slo.as_secs_f64(),
        )?;
        writeln!(
            self.out,
            "  p99 time to first token  {} at worst, {} at worst while halved and settled",
            seconds(totals.ttft_p99_worst),
            seconds(totals.ttft_p99_halved),
        )?;
        writeln!(
            self.out,
            "  served while halved  enterprise {enterprise:.1} %, starter {starter:.1} %, free {free:.1} %"
        )?;
        writeln!(
            self.out,
            "  {} requests failed with their replica, {} were not sent, the plant was {:.0} ms late at worst",
            totals.failed_requests,
            totals.lost_requests,
            late * 1000.0,
        )?;
        self.out.flush()
    }

    fn heading(&mut self) -> io::Result<()> {
        write!(self.out, "{:36}", "")?;
        for (name, guarantee) in TIERS.iter().zip(GUARANTEES) {
            let name = format!("{name} (guarantee {})", thousands(Some(guarantee)));
            write!(self.out, " |{name:^27}")?;
        }
        writeln!(self.out)?;
        write!(self.out, "{:>4}{:>9}{:>7}{:>8}{:>8}", "s", "capacity", "load", "budget", "p99 s")?;
        for _ in TIERS {
            write!(self.out, " |{:>6}{:>7}{:>7}{:>7}", "limit", "demand", "admit", "refuse")?;
        }
        writeln!(self.out)
    }

    fn line(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.out, "{value}")?;
        self.out.flush()
    }
}

fn keys(tier: usize) -> Value {
    (0..KEYS_PER_TIER).map(|number| key(tier, number)).collect()
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// A limit as tables write it: a number, or the word.
fn rate(value: Option<f64>) -> Value {
    match value {
        None => Value::Null,
        Some(value) if value.is_infinite() => Value::from("unlimited"),
        Some(value) => Value::from(round(value)),
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn thousands(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.is_infinite() => "free".to_owned(),
        Some(value) => format!("{:.1}", value / 1000.0),
    }
}
