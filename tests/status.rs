//! What `/v1/status` says is enough to compute what is published: a script that shares no code with
//! the controller does it, on a real demo.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/status/recompute.py");

/// A demo that ends with the test.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_hundred_published_numbers_are_what_their_stated_reasons_come_to() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    demo.args(["demo", "--json", "--seconds", "45"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = Demo(demo.spawn().unwrap());
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let addresses: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let controller = addresses["addresses"]["controller"].as_str().unwrap().to_owned();
    // Somebody has to read what it prints.
    let reader = std::thread::spawn(move || lines.for_each(drop));
    // Enough of them that the loss of half the replicas is among what is recomputed.
    let output = Command::new("python3").args([SCRIPT, &controller, "170"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    drop(demo);
    reader.join().unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    let counted: usize = said.split_whitespace().next().unwrap().parse().unwrap();
    assert!(counted >= 170, "{said}");
    assert!(said.contains("follow") && said.contains("steer"), "{said}");
}

/// Without it a script that compares nothing would pass: one number that is off is said.
#[test]
fn a_number_that_is_not_what_its_reason_says_is_found() {
    let check = "import sys; sys.path.insert(0, sys.argv[1]); import recompute as r\n\
                 n = r.Numbers(); n.same('a', 1000, r.damped(r.rounded_down(1049.0), 1000))\n\
                 n.same('b', 1000, r.damped(r.rounded_down(989.0), 1000)); print(n.computed, n.wrong)";
    let directory = std::path::Path::new(SCRIPT).parent().unwrap();
    let output = Command::new("python3").args(["-B", "-c", check]).arg(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        said.trim(),
        "2 ['a: published 1000, computed 1040', 'b: published 1000, computed 989']",
        "{output:?}"
    );
}
