//! The README's examples for what stands in front of nodes, checked by the programs they are for.
//!
//! HAProxy and nginx are looked for in `TIDEGATE_PROXIES` (where `tests/run` unpacks them) and on the
//! path; Envoy, which no distribution packages, only where `TIDEGATE_ENVOY` names it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::not_tested;
use crate::{blocks, readme};

/// The example that has this comment above it.
fn example(of: &str) -> String {
    let found = blocks(&readme(), "text").into_iter().find(|(before, _)| before == &format!("<!-- {of} -->"));
    found.unwrap_or_else(|| panic!("no example for {of}")).1
}

fn indented(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{}{line}\n", " ".repeat(by))).collect()
}

/// None where it is not here.
fn installed(name: &str) -> Option<Command> {
    let unpacked = std::env::var_os("TIDEGATE_PROXIES").map(PathBuf::from);
    let unpacked = unpacked.filter(|root| root.join("usr/sbin").join(name).exists());
    let program = || match &unpacked {
        None => Command::new(name),
        Some(root) => {
            let mut command = Command::new(root.join("usr/sbin").join(name));
            // Debian's directory of libraries is named after the machine.
            let named = |path: &PathBuf| path.to_string_lossy().ends_with("-linux-gnu");
            let all = std::fs::read_dir(root.join("usr/lib")).unwrap().map(|entry| entry.unwrap().path());
            command.env("LD_LIBRARY_PATH", std::env::join_paths(all.filter(named)).unwrap());
            command
        }
    };
    program().arg("-v").output().is_ok_and(|version| version.status.success()).then(program)
}

/// Whether the program takes the file, and what it says.
fn takes(mut command: Command) -> (bool, String) {
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// The example passes, and does not with a word of it misspelt: the program did look at it.
fn check(example: &str, word: &str, run: impl Fn(&Path, &str) -> Command) {
    assert!(example.contains(word));
    for (text, good) in [(example.to_owned(), true), (example.replace(word, "nonsense"), false)] {
        let dir = tempfile::TempDir::new().unwrap();
        let (passed, said) = takes(run(dir.path(), &text));
        assert_eq!(passed, good, "{said}\n{text}");
    }
}

#[test]
fn haproxy_takes_the_example() {
    if installed("haproxy").is_none() {
        return not_tested("`haproxy` does not start; tests/run unpacks it");
    }
    check(&example("haproxy"), "consistent", |dir, text| {
        let file = dir.join("haproxy.cfg");
        let whole = format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\n\
             frontend api\n  bind 127.0.0.1:17000\n  default_backend nodes\n\n{text}"
        );
        std::fs::write(&file, whole).unwrap();
        let mut command = installed("haproxy").unwrap();
        command.arg("-c").arg("-f").arg(file);
        command
    });
}

#[test]
fn nginx_takes_the_example() {
    if installed("nginx").is_none() {
        return not_tested("`nginx` does not start; tests/run unpacks it");
    }
    check(&example("nginx"), "consistent", |dir, text| {
        let file = dir.join("nginx.conf");
        let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("  {name}_temp_path {name};\n"))
            .concat();
        let whole = format!(
            "pid nginx.pid;\nevents {{}}\nhttp {{\n  access_log off;\n{places}{}  server {{\n    \
             listen 127.0.0.1:17001;\n    location / {{ proxy_pass http://nodes; }}\n  }}\n}}\n",
            indented(text, 2)
        );
        std::fs::write(&file, whole).unwrap();
        let mut command = installed("nginx").unwrap();
        command.args(["-t", "-e", "stderr", "-p"]).arg(dir).arg("-c").arg(file);
        command
    });
}

#[test]
fn envoy_takes_the_example() {
    let Some(envoy) = std::env::var_os("TIDEGATE_ENVOY") else {
        return eprintln!("NOT TESTED: TIDEGATE_ENVOY names no `envoy`");
    };
    check(&example("envoy"), "RING_HASH", |dir, text| {
        let (route, cluster) = text.split_once('\n').unwrap();
        let file = dir.join("envoy.yaml");
        let whole = format!(
            "static_resources:
  listeners:
  - name: api
    address: {{socket_address: {{address: 127.0.0.1, port_value: 17002}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: api
          http_filters:
          - name: router
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: api
              domains: ['*']
              routes:
              - match: {{prefix: /}}
                {route}
  clusters:
  - name: nodes
    {cluster}
    load_assignment:
      cluster_name: nodes
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 10.0.2.1, port_value: 7700}}}}}}
"
        );
        std::fs::write(&file, whole).unwrap();
        let mut command = Command::new(&envoy);
        command.args(["--mode", "validate", "--use-dynamic-base-id", "-l", "error", "-c"]).arg(file);
        command
    });
}
