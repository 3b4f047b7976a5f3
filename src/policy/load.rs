//! Reads a policy directory, all of it or nothing.
//!
//! Reading and judging are two steps: a daemon reads twice and compares before it judges, and it
//! keeps the bytes beside the policy, to begin with them after a restart through the same check.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::bounds::DIRECTORY_ENTRIES_MAX;
use crate::bounds::POLICY_DIRECTORY_BYTES_MAX;
use crate::bounds::POLICY_FILE_BYTES_MAX;
use crate::bounds::POLICY_FILES_MAX;
use crate::policy::Policy;
use crate::policy::check::{self, Product};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::file;
use crate::policy::report::Report;
use crate::policy::shape;

/// What a directory holds, before anyone has judged it.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Name and bytes of every file, sorted by name.
    pub files: Vec<(String, Vec<u8>)>,
    /// What could not be read.
    pub problems: Vec<Diagnostic>,
}

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

/// Reads and checks every policy file of `dir`, or the one file that `dir` is.
///
/// # Errors
/// Everything that is wrong, also what could not be read; never only the first.
pub fn load(dir: &Path) -> Result<Loaded, Vec<Diagnostic>> {
    check(read(dir))
}

/// Reads every policy file of `dir` and judges nothing.
pub fn read(dir: &Path) -> Contents {
    let shown = dir.display().to_string();
    let mut report = Report::default();
    if dir.is_file() {
        return alone(dir, report);
    }
    let files = match read_dir(dir, &mut report) {
        Ok(files) => files,
        Err(error) => {
            let help = "name a directory of policy files that this user may read";
            report.push(Diagnostic::of_file(&shown, format!("cannot be read: {error}"), help));
            return Contents { files: Vec::new(), problems: report.finish() };
        }
    };
    if files.is_empty() && !report.has_errors() {
        let help = "a directory needs at least one `NAME.yaml`; `*.test.yaml` and dot files are not policy";
        report.push(Diagnostic::of_file(&shown, "there is no policy file", help));
    }
    Contents { files, problems: report.finish() }
}

/// One file, which is a whole policy by itself.
fn alone(path: &Path, mut report: Report) -> Contents {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut files = Vec::new();
    match read_file(path) {
        Ok(bytes) if bytes.len() > POLICY_FILE_BYTES_MAX => report.push(file::too_large(&name)),
        Ok(bytes) => files.push((name, bytes)),
        Err(error) => {
            let help = "make it a readable file";
            report.push(Diagnostic::of_file(&name, format!("cannot be read: {error}"), help));
        }
    }
    Contents { files, problems: report.finish() }
}

/// Checks what was read.
///
/// # Errors
/// Everything that is wrong.
pub fn check(contents: Contents) -> Result<Loaded, Vec<Diagnostic>> {
    let mut report = Report::default();
    contents.problems.into_iter().for_each(|problem| report.push(problem));
    check_files(contents.files, report)
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
    hash(files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes.as_slice()]))
}

fn hash<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

// === impl Contents ===

impl Contents {
    /// The same for two readings only when they read the same and failed to read the same.
    pub fn digest(&self) -> String {
        let problems: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        let files = self.files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes.as_slice()]);
        hash(files.chain(problems.iter().map(String::as_bytes)))
    }
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
    for (at, entry) in fs::read_dir(dir)?.enumerate() {
        let name = entry?.file_name();
        if at >= DIRECTORY_ENTRIES_MAX {
            let message = format!("there are more than {DIRECTORY_ENTRIES_MAX} entries");
            let help = "give the policy a directory of its own";
            report.push(Diagnostic::of_file(&dir.display().to_string(), message, help));
            return Ok(Vec::new());
        }
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
    let mut left = POLICY_DIRECTORY_BYTES_MAX;
    for name in names {
        match read_file(&dir.join(&name)) {
            Ok(bytes) if bytes.len() > POLICY_FILE_BYTES_MAX => report.push(file::too_large(&name)),
            Ok(bytes) if bytes.len() > left => {
                let message =
                    format!("the files up to this one are larger than {POLICY_DIRECTORY_BYTES_MAX} bytes");
                let help = "none was parsed; a policy of the largest limit table needs a tenth of that";
                report.push(Diagnostic::of_file(&name, message, help));
                return Ok(Vec::new());
            }
            Ok(bytes) => {
                left -= bytes.len();
                files.push((name, bytes));
            }
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
    let metadata = fs::metadata(path)?;
    // Opening a pipe would wait for a writer.
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let expected = usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(POLICY_FILE_BYTES_MAX);
    let mut bytes = Vec::with_capacity(expected + 1);
    fs::File::open(path)?.take(POLICY_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn too_many(place: &str) -> Diagnostic {
    let message = format!("there are more than {POLICY_FILES_MAX} policy files");
    Diagnostic::of_file(place, message, "merge some of them; one file may hold many pools and models")
}
