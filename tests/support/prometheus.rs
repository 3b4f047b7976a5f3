//! A real Prometheus that scrapes what a test serves.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub struct Prometheus {
    child: Child,
    pub addr: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Prometheus ===

impl Prometheus {
    /// Scrapes `/metrics` of every `host:port` each second, as job `fleet`. None, with a line that
    /// says so, where the program is absent and peers are not required.
    pub async fn scraping(dir: &Path, targets: &[String]) -> Option<Prometheus> {
        let program = std::env::var("TIDEGATE_PROMETHEUS").unwrap_or_else(|_| "prometheus".to_owned());
        let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: fleet\n  \
             static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        std::fs::write(dir.join("prometheus.yml"), config).unwrap();
        let addr = super::nobody().await;
        let spawned = Command::new(&program)
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={addr}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match spawned {
            Ok(child) => Some(Prometheus { child, addr }),
            Err(error) => {
                super::not_tested(&format!("`{program}` does not start ({error}); install prometheus"));
                None
            }
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

/// `promtool`, which comes with Prometheus: beside it, or on the path.
pub fn promtool() -> Command {
    let beside = std::env::var_os("TIDEGATE_PROMETHEUS")
        .map(|program| Path::new(&program).with_file_name("promtool"))
        .filter(|program| program.is_file());
    Command::new(beside.unwrap_or_else(|| "promtool".into()))
}
