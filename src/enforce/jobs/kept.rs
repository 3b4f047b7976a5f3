//! The file that keeps running jobs across a restart: rewritten whole, and renamed into place.
//!
//! A client hears of a job once it is in the file, so a process that is killed forgets none that
//! anybody knows of; ends of the last fraction of a second are seen again, or their leases expire.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bounds::JOBS_FILE_BYTES_MAX;
use crate::enforce::jobs::table::Saved;

const FILE: &str = "jobs.json";
const TEMPORARY: &str = ".jobs.json.tmp";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    jobs: Vec<Saved>,
}

/// Nothing where there is no file.
///
/// # Errors
/// It cannot be read, or is not such a file.
pub fn load(dir: &Path) -> io::Result<Vec<Saved>> {
    let file = match File::open(dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(JOBS_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let kept: Kept = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    if kept.version != VERSION {
        return Err(io::Error::other(format!("version {} is not {VERSION}", kept.version)));
    }
    Ok(kept.jobs)
}

/// # Errors
/// The disk's.
pub fn save(dir: &Path, jobs: Vec<Saved>) -> io::Result<()> {
    let bytes = serde_json::to_vec(&Kept { version: VERSION, jobs })?;
    let temporary = dir.join(TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, dir.join(FILE))
}
