//! Every input that the fuzz targets found worth keeping, against the same properties.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

#[path = "../fuzz/properties/mod.rs"]
mod properties;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Corpora are committed: they stay small.
const BYTES_MAX: u64 = 1 << 20;

fn inputs(target: &str) -> Vec<std::path::PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn every_committed_input_keeps_its_property() {
    let mut bytes = 0;
    for (target, check) in properties::ALL {
        let inputs = inputs(target);
        assert!(inputs.len() >= 10, "{target}: only {} inputs", inputs.len());
        for path in &inputs {
            let data = fs::read(path).unwrap();
            bytes += data.len() as u64;
            let kept = catch_unwind(AssertUnwindSafe(|| check(&data)));
            assert!(kept.is_ok(), "{target} breaks on {}", path.display());
        }
        println!("{target}: {} inputs", inputs.len());
    }
    let reached = properties::http::reached();
    assert!(
        reached >= 10,
        "only {reached} of the requests were admitted: the node refuses what it should not"
    );
    assert!(bytes < BYTES_MAX, "the corpora have {bytes} bytes");
}
