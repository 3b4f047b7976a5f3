//! Presets against the pages of their servers, and against what docs/sources.md says of them.

use std::fs;
use std::path::{Path, PathBuf};

use tidegate::observe::exposition::Format;
use tidegate::observe::select::Selectors;
use tidegate::observe::{Outcome, Signals};
use tidegate::policy::preset::{self, NAMES, SERVERS};
use tidegate::unit::WorkUnit;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn page(name: &str) -> String {
    fs::read_to_string(root(&format!("tests/captures/{name}.prom"))).unwrap()
}

fn read(preset: &str, page: &str) -> Signals {
    let selectors = Selectors::new(&preset::direct(preset).unwrap().signals).unwrap();
    match selectors.apply(page.as_bytes(), Format::Text) {
        Outcome::Up(signals) => signals,
        other => panic!("{preset}: {other:?}"),
    }
}

/// Preset, page, and what is read there: running, waiting, work, output, errors.
type Case = (&'static str, &'static str, [Option<f64>; 5]);

const CASES: [Case; 8] = [
    ("vllm", "vllm-0.32.0-preempting", [Some(6.0), Some(18.0), Some(232.0), Some(5259.0), Some(0.0)]),
    ("sglang", "sglang-documented", [Some(82.0), Some(18.0), Some(15_010_502.0), Some(14_557_572.0), None]),
    ("trtllm", "trtllm-documented", [Some(64.0), Some(9.0), Some(398_080.0), Some(79_616.0), Some(2.0)]),
    ("tgi", "tgi-documented", [Some(32.0), Some(14.0), Some(1212.0), None, Some(21.0)]),
    ("llamacpp", "llamacpp-under-load", [Some(4.0), Some(5.0), Some(37.0), Some(400.0), None]),
    ("triton", "triton-trtllm-documented", [Some(28.0), Some(6.0), Some(803.0), None, Some(1.0)]),
    (
        "dynamo",
        "dynamo-frontend-documented",
        [Some(57.0), Some(21.0), Some(1_084_800.0), Some(178_211.0), Some(3.0)],
    ),
    ("ray-serve", "ray-serve-documented", [Some(9.0), Some(3.0), Some(1251.0), None, Some(2.0)]),
];

#[test]
fn every_preset_reads_its_servers_page() {
    assert_eq!(CASES.map(|(preset, ..)| preset), NAMES, "a preset without a page");
    for (preset, name, [running, waiting, work_done, work_done_output, errors]) in CASES {
        let page = page(name);
        assert!(page.starts_with("# Origin: "), "{name} does not name its origin");
        let written = page.starts_with("# Origin: written, not captured: ");
        assert_eq!(written, name.ends_with("-documented"), "{name}");
        let wanted = Signals { running, waiting, work_done, work_done_output, latency: None, errors };
        assert_eq!(read(preset, &page), wanted, "{preset}");
    }
}

#[test]
fn old_and_relabelled_names_are_read_as_well() {
    let page = page("vllm-0.32.0-preempting");
    let wanted = read("vllm", &page);
    for (prefix, other) in [("vllm:", "ray_vllm_"), ("vllm:", "kserve_vllm:")] {
        assert_eq!(read("vllm", &page.replace(prefix, other)), wanted, "{other}");
    }
    let old = "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\nvllm:prompt_tokens 7\nvllm:generation_tokens 5\n";
    let read_old = read("vllm", old);
    assert_eq!(
        (read_old.waiting, read_old.work_done, read_old.work_done_output),
        (Some(2.0), Some(7.0), Some(5.0))
    );
    let trtllm = self::page("trtllm-documented");
    assert_eq!(read("trtllm", &trtllm.replace("trtllm_", "trtllm:")), read("trtllm", &trtllm));
    let ray = self::page("ray-serve-documented");
    assert_eq!(read("ray-serve", &ray.replace("counter_total", "counter")), read("ray-serve", &ray));
    let triton =
        self::page("triton-trtllm-documented").replace("request_type=\"waiting\"", "request_type=\"new\"");
    assert_eq!(read("triton", &triton).waiting, Some(0.0), "the model's own pending requests");
}

fn unit(unit: WorkUnit) -> &'static str {
    match unit {
        WorkUnit::Tokens => "tokens",
        WorkUnit::Requests => "requests",
        WorkUnit::Images => "images",
    }
}

/// The table of docs/sources.md; `TIDEGATE_REGENERATE=1` writes it.
#[test]
fn the_documentation_says_how_strong_each_preset_is() {
    let mut table =
        "<!-- presets -->\n| `preset` | Server | Unit | Page | Strength |\n|---|---|---|---|---|\n"
            .to_owned();
    for server in &SERVERS {
        let (name, path) = (server.name, server.path);
        let row = format!(
            "| `{}` | {name} | {} | `{path}` | {} |\n",
            server.preset,
            unit(server.unit),
            server.strength
        );
        table.push_str(&row);
    }
    let path = root("docs/sources.md");
    let text = fs::read_to_string(&path).unwrap();
    let begin = text.find("<!-- presets -->").unwrap();
    let length = text[begin..].find("\n\n").unwrap() + 1;
    if std::env::var_os("TIDEGATE_REGENERATE").is_some() {
        let new = format!("{}{table}{}", &text[..begin], &text[begin + length..]);
        fs::write(&path, new).unwrap();
    } else {
        assert_eq!(text[begin..begin + length], table, "TIDEGATE_REGENERATE=1 writes it anew");
    }
}
