//! The process as Linux shows it, under the names that every Prometheus client library uses.
//!
//! Read here in a few lines rather than by the `prometheus` crate's own collector: that one brings
//! five crates, two of them second versions of what is here already.

use std::fs;

use super::{Family, Sheet};

/// `USER_HZ`: what the kernel counts CPU time in for its readers, whatever it counts in itself.
const TICKS_PER_SECOND: f64 = 100.0;

const CPU: Family<0> =
    Family::counter("process_cpu_seconds_total", "CPU time spent, of user and system together.", []);
const OPEN_FDS: Family<0> = Family::gauge("process_open_fds", "File descriptors in use.", []);
const MAX_FDS: Family<0> = Family::gauge("process_max_fds", "File descriptors that may be in use.", []);
const RESIDENT: Family<0> = Family::gauge("process_resident_memory_bytes", "Memory in use.", []);
const VIRTUAL: Family<0> = Family::gauge("process_virtual_memory_bytes", "Memory addressed.", []);
const THREADS: Family<0> = Family::gauge("process_threads", "Threads of the operating system.", []);
const STARTED: Family<0> =
    Family::gauge("process_start_time_seconds", "When the process started, since 1970.", []);

/// What cannot be read is left out.
pub(super) fn draw(sheet: &mut Sheet) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let Some(stat) = Stat::parse(&read("/proc/self/stat")) else { return };
    let booted = field(&read("/proc/stat"), "btime");
    let limits = read("/proc/self/limits");
    // The listing's own descriptor is one of them.
    let open = fs::read_dir("/proc/self/fd").map(|fds| fds.count().saturating_sub(1)).ok();
    sheet.one(&CPU, stat.cpu_ticks / TICKS_PER_SECOND);
    sheet.one(&THREADS, stat.threads);
    sheet.one(&VIRTUAL, stat.virtual_bytes);
    sheet.one(&RESIDENT, field(&read("/proc/self/status"), "VmRSS:").map_or(f64::NAN, |kib| kib * 1024.0));
    sheet.one(&OPEN_FDS, open.map_or(f64::NAN, |open| open as f64));
    sheet.one(&MAX_FDS, field(&limits, "Max open files").unwrap_or(f64::NAN));
    sheet.one(&STARTED, booted.map_or(f64::NAN, |booted| booted + stat.started_ticks / TICKS_PER_SECOND));
}

/// The fields of `/proc/PID/stat` that are shown.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    threads: f64,
    started_ticks: f64,
    virtual_bytes: f64,
}

// === impl Stat ===

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The name of the program may hold anything, but it ends with the last parenthesis.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first one here is the third of proc_pid_stat(5).
        let at = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<f64>().ok();
        Some(Stat {
            cpu_ticks: at(14)? + at(15)?,
            threads: at(20)?,
            started_ticks: at(22)?,
            virtual_bytes: at(23)?,
        })
    }
}

/// The first number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let text = "7 (a) b (c)) S 1 7 7 0 -1 4194560 3126 0 5 0 250 50 0 0 20 0 9 0 8181 99000 812";
        let wanted = Stat { cpu_ticks: 300.0, threads: 9.0, started_ticks: 8181.0, virtual_bytes: 99000.0 };
        assert_eq!(Stat::parse(text), Some(wanted));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(field("x 1\nVmRSS:\t  812 kB\n", "VmRSS:"), Some(812.0));
        assert_eq!(field("Max open files   unlimited  unlimited", "Max open files"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let mut sheet = Sheet::default();
        draw(&mut sheet);
        let value = |name: &str| {
            let family = sheet.0.iter().find(|family| family.name() == name).unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        assert_eq!(sheet.0.len(), 7);
        assert!(value("process_open_fds") >= 3.0 && value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_start_time_seconds") > 1.5e9 && value("process_threads") >= 1.0);
    }
}
