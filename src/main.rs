//! The door: verbs, wiring, exit codes (0 fine, 1 failed, 2 usage). Nothing decides here.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
