//! Reads a policy directory, all of it or nothing.
//!
//! The bytes are kept beside the policy, so that a daemon can store the last good directory and
//! begin with it after a restart, through the same check.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::bounds::POLICY_FILE_BYTES_MAX;
use crate::bounds::POLICY_FILES_MAX;
use crate::policy::Policy;
use crate::policy::check::{self, Product};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::file;
use crate::policy::report::Report;
use crate::policy::shape;

/// A directory without an error.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub policy: Policy,
    pub products: Vec<Product>,
    /// Only warnings.
    pub warnings: Vec<Diagnostic>,
    /// Name and bytes of every file, sorted by name: what [`load_bytes`] takes.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Reads and checks every policy file of `dir`.
///
/// # Errors
/// Everything that is wrong, also what could not be read; never only the first.
pub fn load(dir: &Path) -> Result<Loaded, Vec<Diagnostic>> {
    let shown = dir.display().to_string();
    let mut report = Report::default();
    let files = match read_dir(dir, &mut report) {
        Ok(files) => files,
        Err(error) => {
            let help = "name a directory of policy files that this user may read";
            report.push(Diagnostic::of_file(&shown, format!("cannot be read: {error}"), help));
            return Err(report.finish());
        }
    };
    if files.is_empty() && !report.has_errors() {
        let help = "a directory needs at least one `NAME.yaml`; `*.test.yaml` and dot files are not policy";
        report.push(Diagnostic::of_file(&shown, "there is no policy file", help));
    }
    check_files(files, report)
}

/// Checks files that were read before.
///
/// # Errors
/// Everything that is wrong.
pub fn load_bytes(mut files: Vec<(String, Vec<u8>)>) -> Result<Loaded, Vec<Diagnostic>> {
    files.sort();
    let mut report = Report::default();
    if files.is_empty() {
        report.push(Diagnostic::of_file("policy", "there is no policy file", "store at least one"));
    }
    if let Some(twice) = files.windows(2).find_map(|pair| match pair {
        [(a, _), (b, _)] if a == b => Some(a.clone()),
        _ => None,
    }) {
        report.push(Diagnostic::of_file(&twice, "the file is there twice", "keep one"));
    }
    if files.len() > POLICY_FILES_MAX {
        report.push(too_many("policy"));
    }
    check_files(files, report)
}

/// Is this the name of a policy file?
pub fn is_policy(name: &str) -> bool {
    let stem = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"));
    stem.is_some_and(|stem| !name.starts_with('.') && !stem.ends_with(".test"))
}

/// SHA-256 over names and bytes, each behind its length, hex.
pub fn digest(files: &[(String, Vec<u8>)]) -> String {
    let mut hash = Sha256::new();
    for part in files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes.as_slice()]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn check_files(files: Vec<(String, Vec<u8>)>, mut report: Report) -> Result<Loaded, Vec<Diagnostic>> {
    let mut shapes = Vec::with_capacity(files.len());
    for (name, bytes) in &files {
        let root = file::read(name, bytes, &mut report);
        shapes.extend(root.and_then(|root| shape::shape(root, &mut report)));
    }
    let checked = check::check(&shapes, digest(&files), &mut report);
    let failed = report.has_errors();
    let found = report.finish();
    match checked {
        Some((policy, products)) if !failed => Ok(Loaded { policy, products, warnings: found, files }),
        _ => Err(found),
    }
}

fn read_dir(dir: &Path, report: &mut Report) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        match name.to_str() {
            Some(name) if is_policy(name) => names.push(name.to_owned()),
            Some(_) => {}
            None if is_policy(&name.to_string_lossy()) => {
                let help = "rename it; its name is not UTF-8";
                report.push(Diagnostic::of_file(&name.to_string_lossy(), "an unreadable file name", help));
            }
            None => {}
        }
        if names.len() > POLICY_FILES_MAX {
            report.push(too_many(&dir.display().to_string()));
            return Ok(Vec::new());
        }
    }
    names.sort();
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        match read_file(&dir.join(&name)) {
            Ok(bytes) if bytes.len() > POLICY_FILE_BYTES_MAX => report.push(file::too_large(&name)),
            Ok(bytes) => files.push((name, bytes)),
            Err(error) => {
                let help = "make it a readable file, or remove it: a directory is taken whole or not at all";
                report.push(Diagnostic::of_file(&name, format!("cannot be read: {error}"), help));
            }
        }
    }
    Ok(files)
}

/// At most one byte more than is allowed, so that the caller sees the excess.
fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    // Opening a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(POLICY_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn too_many(place: &str) -> Diagnostic {
    let message = format!("there are more than {POLICY_FILES_MAX} policy files");
    Diagnostic::of_file(place, message, "merge some of them; one file may hold many pools and models")
}
