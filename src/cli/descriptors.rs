//! File descriptors: as many as the process may have, and no more connections than they allow.

/// Kept for everything that is no client: sources, files, logs, the other listener.
const KEPT: u64 = 256;
const CONNECTIONS_MIN: u64 = 16;

/// Raises the limit as far as it goes; says how many connections of `each` descriptors fit, at
/// most `wanted`. A listener with more would run out in the middle of something.
pub fn connections(wanted: usize, each: u64) -> usize {
    let limit = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of file descriptors is not known");
            return wanted;
        }
    };
    // Of a small limit half is kept.
    let room = limit.saturating_sub(KEPT.min(limit / 2)) / each;
    let fit = usize::try_from(room.max(CONNECTIONS_MIN)).unwrap_or(usize::MAX);
    if fit < wanted {
        tracing::warn!(
            descriptors = limit,
            connections = fit,
            wanted,
            "too few file descriptors for every connection allowed: fewer are accepted at a time; \
             raise the limit (LimitNOFILE=, ulimit -n)"
        );
    }
    fit.min(wanted)
}
