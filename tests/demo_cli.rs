//! `tidegate demo` as a script sees it.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn json_is_addresses_then_seconds_then_a_summary_and_nothing_else() {
    let output = demo(&["--seconds", "9", "--seed", "5", "--json", "--no-limits"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> =
        output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(lines.len(), 11);
    assert_eq!(lines[0]["addresses"]["proxies"].as_array().unwrap().len(), 4);
    for (t, line) in lines[1..10].iter().enumerate() {
        assert_eq!(line["t"], t);
        let capacity = if (3..6).contains(&t) { 16_000.0 } else { 32_000.0 };
        assert_eq!(line["capacity"], capacity, "{line}");
        // A second may end just after a step and begin just before one.
        assert!(line["load"].as_f64().unwrap() < 1.1 * capacity, "{line}");
        for tier in ["enterprise", "starter", "free"] {
            assert!(line["tiers"][tier]["demand"].as_f64().unwrap() > 0.0, "{line}");
        }
    }
    let totals = &lines[10]["summary"]["totals"];
    assert!(
        totals["failed_requests"].as_u64().unwrap() > 0,
        "nothing was in flight at the halving: {totals}"
    );
    assert!(totals["goodput_halved"].as_f64().unwrap() < 0.5, "no collapse: {totals}");
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let mut child = demo(&["--seconds", "60", "--json", "--no-limits"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("{\"addresses\""), "{first}");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_demo_too_short_for_its_steps_is_a_usage_error() {
    assert_eq!(demo(&["--seconds", "1"]).output().unwrap().status.code(), Some(2));
}
