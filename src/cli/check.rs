//! `tidegate check`: every mistake of a policy directory on stderr, or one line a product.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use tidegate::policy::diagnostic::render;
use tidegate::policy::load::load;

use super::Failure;

#[derive(clap::Args)]
pub struct Args {
    /// Directory of policy files (`*.yaml`, `*.yml`; not `*.test.yaml`), or one file.
    dir: PathBuf,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let loaded = match load(&args.dir) {
        Ok(loaded) => loaded,
        Err(found) => {
            eprint!("{}", render(&found, colour));
            return Ok(ExitCode::FAILURE);
        }
    };
    eprint!("{}", render(&loaded.warnings, colour));
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    for product in &loaded.products {
        let warnings = loaded.warnings.iter().filter(|warning| warning.file == product.file).count();
        println!(
            "{} ({}): {}, {}, {}, {}",
            product.name,
            product.file,
            plural(product.pools, "pool"),
            plural(product.models, "model"),
            plural(product.tiers, "tier"),
            plural(warnings, "warning"),
        );
    }
    Ok(ExitCode::SUCCESS)
}
