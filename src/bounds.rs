//! Every bound in one file: bodies, series, tables, keys, queues, watchers, connections, times.
//!
//! What has no bound here has none, and that is a mistake. Each says what happens beyond it. The
//! constants are what the code uses; [`BOUNDS`] lists them for `docs/bounds.md`, which a test
//! keeps equal. The law's gains and the policy language's ranges are no bounds and stand where
//! they are used.

use std::time::Duration;

#[macro_use]
mod bound;
#[cfg(test)]
mod tests;

pub use bound::{Amount, Bound, Whose};

bounds! {
    Policy {
        /// Largest policy file.
        POLICY_FILE_BYTES_MAX: usize, bytes = 1 << 20, "refused before it is parsed; the last good policy stays";
        /// Most policy files of one directory.
        POLICY_FILES_MAX: usize, count = 256, "the directory is refused; the last good policy stays";
        /// Most bytes of all policy files of one directory.
        POLICY_DIRECTORY_BYTES_MAX: usize, bytes = 16 << 20, "refused before it is parsed; the last good policy stays";
        /// Most directory entries looked at for a change.
        DIRECTORY_ENTRIES_MAX: usize, count = 10_000, "the directory is refused; the last good policy stays";
        /// Deepest nesting of mappings and lists in a policy.
        POLICY_DEPTH_MAX: usize, count = 32, "refused with its place";
        /// Most mappings, lists and scalars of one policy file.
        POLICY_NODES_MAX: usize, count = 100_000, "refused with its place";
        /// Most entries of one list in a policy.
        POLICY_LIST_MAX: usize, count = 1_024, "refused with its place";
        /// Most digits of one number in a policy.
        DIGITS_MAX: usize, count = 20, "refused with its place";
        /// Most decimals of one number in a policy: exact in a double.
        DECIMALS_MAX: usize, count = 9, "refused with its place";
        /// Most Prometheus servers of one pool.
        PROMETHEUS_SERVERS_MAX: usize, count = 4, "refused with its place";
        /// Longest metric expression or URL in a policy.
        EXPRESSION_BYTES_MAX: usize, bytes = 4_096, "refused with its place";
        /// Most diagnostics of one check.
        DIAGNOSTICS_MAX: usize, count = 1_000, "counted, not shown";
        /// Most names that a misspelt one is compared with.
        CANDIDATES_MAX: usize, count = 2_000, "no suggestion is made";
        /// Longest source line quoted in a diagnostic.
        QUOTED_LINE_BYTES_MAX: usize, bytes = 4_096, "named by line and column only";
        /// Least time between two reads of the policy directory that must be equal.
        SETTLED_AFTER: Duration, time = Duration::from_millis(500), "an edit still under way is waited for";
        /// Longest that the policy directory is not read, whatever it looks like.
        UNREAD_MAX: Duration, time = Duration::from_secs(5), "read";
        /// Longest that a request to reload waits for a directory that keeps changing.
        UNSETTLED_MAX: Duration, time = Duration::from_secs(5), "400; the edit is read once it has settled";
        /// Most requests to reload that wait for one reading.
        RELOADS_WAITING_MAX: usize, count = 16, "they wait for the next reading";
        /// Most lines that say which limits an edit widens.
        WIDENED_SHOWN_MAX: usize, count = 50, "counted, not shown";
        /// Most bytes of diagnostics in the status.
        DIAGNOSTICS_BYTES_SHOWN_MAX: usize, bytes = 64 << 10, "in the log only";
        /// Most policies in quarantine.
        QUARANTINE_MAX: usize, count = 16, "the oldest may be tried again";
        /// Most former policies kept to go back to.
        KEPT_POLICIES_MAX: usize, count = 16, "the oldest is given up";
        /// Most bytes of former policies kept to go back to.
        KEPT_BYTES_MAX: usize, bytes = 64 << 20, "the oldest is given up";
        /// Largest note of a policy that is held.
        HELD_NOTE_BYTES_MAX: usize, bytes = 4 << 10, "the note does not count";
        /// Largest kept copy of the last good policy.
        LAST_GOOD_BYTES_MAX: usize, bytes = 64 << 20, "not kept, and said so; a start needs a valid policy";
    }
    Sources {
        /// Largest exposition page, after decoding.
        PAGE_BYTES_MAX: usize, bytes = 16 << 20, "the scrape fails; the source counts as silent";
        /// Most samples on one page.
        PAGE_SAMPLES_MAX: usize, count = 50_000, "the scrape fails; the source counts as silent";
        /// Most labels on one sample.
        LABELS_MAX: usize, count = 64, "the scrape fails; the source counts as silent";
        /// Largest answer of a Prometheus.
        ANSWER_BYTES_MAX: usize, bytes = 16 << 20, "the query fails; its source counts as silent";
        /// Most series in one answer of a Prometheus.
        ANSWER_SERIES_MAX: usize, count = 50_000, "the query fails; its source counts as silent";
        /// Longest that one source is waited for, headers and body together.
        SOURCE_WAIT_MAX: Duration, time = Duration::from_secs(1), "the scrape fails; the source counts as silent";
        /// Most scrapes in flight at a time, over all pools.
        SCRAPES_MAX: usize, count = 1_024, "the next one waits its turn within its deadline";
        /// Largest page parsed on the event loop.
        PARSE_INLINE_BYTES_MAX: usize, bytes = 256 << 10, "parsed on a thread of its own";
        /// Longest that an unused connection to a source is kept.
        SOURCE_IDLE_MAX: Duration, time = Duration::from_secs(60), "closed";
        /// Most times in a row that a vanished instance of a Prometheus is reported silent.
        ABSENCES_MAX: u32, count = 30, "forgotten";
        /// Most instances remembered for one Prometheus.
        INSTANCES_MAX: usize, count = 10_000, "not counted";
        /// Largest body that is read without waiting for room.
        BODY_SMALL_MAX: usize, bytes = 1 << 20, "waits for one of the places for large bodies, within its deadline";
        /// Most large pages of one pool in memory at a time; of a Prometheus, one answer.
        LARGE_PAGES_MAX: usize, count = 4, "the next one waits, within its deadline";
        /// Most warnings kept of one round of a source.
        SOURCE_WARNINGS_MAX: usize, count = 8, "not told";
        /// Longest text of a source that is repeated, characters.
        SOURCE_TEXT_MAX: usize, count = 300, "cut off";
        /// Largest file that holds a source's secret, certificate or key.
        SECRET_FILE_BYTES_MAX: usize, bytes = 1 << 20, "refused; the last good one stays";
        /// Longest that a source is left alone after it asked for that or refused.
        SOURCE_BACKOFF_MAX: Duration, time = Duration::from_secs(60), "asked again";
        /// Most targets of one pool, over its list, files and names.
        TARGETS_MAX: usize, count = 4_096, "left out, and said so";
        /// Largest `file_sd` file.
        FILE_SD_BYTES_MAX: usize, bytes = 1 << 20, "refused; what it last said stays";
        /// Most `file_sd` files of one pool, over its patterns.
        FILE_SD_FILES_MAX: usize, count = 64, "left out, and said so";
        /// Longest that one DNS lookup is waited for.
        LOOKUP_WAIT_MAX: Duration, time = Duration::from_secs(5), "failed; what it last said stays";
        /// Longest that the addresses of a name are used after its last good lookup.
        LOOKUP_KEPT_MAX: Duration, time = Duration::from_secs(600), "its targets are forgotten, not said to be gone";
        /// Most replicas remembered for one pool.
        REPLICAS_MAX: usize, count = 16_384, "not counted";
    }
    Wire {
        /// Largest encoded limit table.
        TABLE_BYTES_MAX: usize, bytes = 8 << 20, "refused by publisher and node alike; the last good table stays";
        /// Most rows, and most node shares, of one limit table.
        TABLE_ENTRIES_MAX: usize, count = 262_144, "refused by publisher and node alike; the last good table stays";
        /// Longest body or header value of a dialect, before its placeholders are filled.
        ANSWER_TEMPLATE_BYTES_MAX: usize, bytes = 4 << 10, "the policy is refused with its place";
        /// Most headers of one dialect.
        ANSWER_HEADERS_MAX: usize, count = 32, "the policy is refused with its place";
        /// Longest name of a pool, model, tier or node.
        NAME_BYTES_MAX: usize, bytes = 256, "refused";
        /// Largest encoded usage report.
        REPORT_BYTES_MAX: usize, bytes = 1 << 20, "413; the node leaves out the rows that would pass it";
        /// Longest reason in a usage report why a table was refused.
        NACK_BYTES_MAX: usize, bytes = 512, "cut off";
        /// Most paths, and most last states, of a product's jobs.
        JOB_STATES_MAX: usize, count = 32, "the table is refused";
        /// Longest lease of a job.
        JOB_LEASE_MAX: Duration, time = Duration::from_secs(7 * 86_400), "the table is refused";
        /// Most providers in a usage report.
        REPORT_PROVIDERS_MAX: usize, count = 256, "left out by the node; refused by the controller";
        /// Most learned limits of one provider in a usage report.
        REPORT_LIMITS_MAX: usize, count = 64, "left out by the node; refused by the controller";
        /// Most rows in one usage report.
        REPORT_ROWS_MAX: usize, count = 16_384, "refused";
        /// Largest version that a report may name.
        STAMP_MAX: u64, count = 1 << 40, "taken for damage: the report's stamp does not count";
    }
    Controller {
        /// Most nodes whose demand is remembered.
        DEMAND_NODES_MAX: usize, count = 10_000, "their demand does not count";
        /// Most nodes listed with a share of their own in one pool.
        SHARED_NODES_MAX: usize, count = 4_096, "they use the share kept for unlisted nodes";
        /// Most nodes heard in one tick.
        INBOX_NODES_MAX: usize, count = 10_000, "429; the report is lost, its counters come with the next";
        /// Most bytes of reports held at a time.
        INBOX_BYTES_MAX: usize, bytes = 64 << 20, "429; the report is lost, its counters come with the next";
        /// Most nodes in the controller's metrics.
        METRIC_NODES_MAX: usize, count = 10_000, "not counted";
        /// Default size of one of the two journal files.
        JOURNAL_BYTES_MAX: u64, bytes = 32 << 20, "the other file is begun anew";
        /// Most rows of nodes' reports in one entry of the journal, all nodes together.
        JOURNAL_NODE_ROWS_MAX: usize, count = 8_192, "left out; after a restart nodes are heard before the first tick";
        /// Largest line of the journal.
        JOURNAL_LINE_BYTES_MAX: u64, bytes = 64 << 20, "not read back";
        /// Most steps of a replay from a Prometheus.
        BACKTEST_STEPS_MAX: u64, count = 200_000, "refused: ask for a part of it";
        /// Most steps of one range query: a Prometheus refuses more than 11,000.
        RANGE_STEPS_MAX: u32, count = 1_000, "asked for with the next query";
        /// Longest that one range query is waited for.
        RANGE_WAIT_MAX: Duration, time = Duration::from_secs(30), "the replay fails, and names the query";
        /// Most series of which a replay knows where they have gaps.
        GAPS_WATCHED_MAX: usize, count = 20_000, "their gaps are not told";
        /// Most places of a replay at which something is to be said.
        BACKTEST_NOTES_MAX: usize, count = 50, "counted, not shown";
    }
    Server {
        /// Most connections to the controller at a time.
        SERVER_CONNECTIONS_MAX: usize, count = 12_000, "they wait to be accepted";
        /// Longest that a request's head, or a TLS handshake, may take.
        SERVER_HEADER_WAIT: Duration, time = Duration::from_secs(10), "the connection is closed";
        /// Longest that a request's body may take.
        SERVER_BODY_WAIT: Duration, time = Duration::from_secs(10), "408";
        /// Longest that a reader of an answer may make no progress.
        SERVER_READER_WAIT: Duration, time = Duration::from_secs(10), "the connection is closed";
        /// Most bytes of answers that the system holds for one reader.
        SERVER_UNSENT_BYTES_MAX: u32, bytes = 256 << 10, "nothing more is written until it reads";
        /// Most TLS handshakes at a time.
        SERVER_HANDSHAKES_MAX: usize, count = 256, "they wait their turn, at most as long as a handshake may take";
        /// Longest that a peer's machine may be silent before it is asked whether it is still there.
        PEER_IDLE_MAX: Duration, time = Duration::from_secs(5), "probed";
        /// Pause between two such probes.
        PEER_PROBE_WAIT: Duration, time = Duration::from_secs(3), "probed again";
        /// Most probes without an answer.
        PEER_PROBES_MAX: u32, count = 3, "the connection is closed: 14 s after the last sign of life";
        /// Longest that a request for a newer table waits.
        WATCH_WAIT_MAX: Duration, time = Duration::from_secs(60), "304";
        /// Longest that a reload is waited for.
        RELOAD_WAIT: Duration, time = Duration::from_secs(30), "503; the reload goes on";
        /// Longest that a stopping controller waits for its connections.
        SERVER_DRAIN: Duration, time = Duration::from_secs(10), "they are cut off";
        /// Most tokens admitted at a time.
        TOKENS_MAX: usize, count = 4, "the token file is refused; the last good one stays";
        /// Largest file of tokens, certificates or keys.
        CREDENTIAL_BYTES_MAX: usize, bytes = 1 << 20, "refused; the last good one stays";
        /// Shortest token.
        TOKEN_BYTES_MIN: usize, bytes = 16, "refused";
        /// Longest token.
        TOKEN_BYTES_MAX: usize, bytes = 1_024, "refused";
    }
    Node {
        /// Largest body of a request, unless `caps.body_bytes` says otherwise.
        CAPS_BODY_BYTES: usize, bytes = 8 << 20, "413";
        /// All bodies of requests in memory together, unless `caps.bodies_bytes` says otherwise.
        CAPS_BODIES_BYTES: usize, bytes = 512 << 20, "503 with Retry-After";
        /// All of answers in memory together, kept to read their usage, unless `caps.answers_bytes` says otherwise.
        CAPS_ANSWERS_BYTES: usize, bytes = 256 << 20, "passed on unread; the reservation stays as it is";
        /// Most connections of clients at a time, unless `caps.connections` says otherwise.
        CAPS_CONNECTIONS: usize, count = 10_000, "they wait to be accepted";
        /// Most keys with counters of their own, unless `caps.keys` says otherwise.
        CAPS_KEYS: usize, count = 100_000, "an idle and full one is forgotten; without one, keys share counters";
        /// Longest that connecting to an upstream may take, unless `caps.connect_seconds` says otherwise.
        CAPS_CONNECT_WAIT: Duration, time = Duration::from_secs(2), "the next replica, then 502";
        /// Longest that the head of a request may take, unless `caps.header_seconds` says otherwise.
        CAPS_HEADER_WAIT: Duration, time = Duration::from_secs(10), "the connection is closed";
        /// Longest that a connection may be idle between requests, unless `caps.keep_alive_seconds` says otherwise.
        CAPS_KEEP_ALIVE_WAIT: Duration, time = Duration::from_secs(60), "the connection is closed";
        /// Longest that the body of a request may take, unless `caps.body_seconds` says otherwise.
        CAPS_BODY_WAIT: Duration, time = Duration::from_secs(30), "408";
        /// Longest until an upstream begins a stream, unless `caps.first_byte_seconds` says otherwise.
        CAPS_FIRST_BYTE_WAIT: Duration, time = Duration::from_secs(120), "504; settled";
        /// Longest until an upstream answers in one piece, unless `caps.answer_seconds` says otherwise.
        CAPS_ANSWER_WAIT: Duration, time = Duration::from_secs(600), "504; settled";
        /// Longest pause of an upstream within an answer, unless `caps.idle_seconds` says otherwise.
        CAPS_IDLE_WAIT: Duration, time = Duration::from_secs(60), "the answer is cut off; settled";
        /// Largest configuration or secret file of a node.
        CONFIG_BYTES_MAX: u64, bytes = 1 << 20, "refused; at a reload the last good one stays";
        /// Largest accounts file.
        ACCOUNTS_BYTES_MAX: usize, bytes = 512 << 20, "refused; at a reload the last good one stays";
        /// Most lines of the accounts file: a million keys and as many accounts.
        ACCOUNT_LINES_MAX: usize, count = 2_000_000, "refused; at a reload the last good one stays";
        /// Longest line of the accounts file.
        ACCOUNT_LINE_BYTES_MAX: usize, bytes = 16 << 10, "refused; at a reload the last good one stays";
        /// Longest credential looked at.
        KEY_BYTES_MAX: usize, bytes = 512, "401";
        /// Furthest that the time of a table's file may lie ahead.
        FILE_SKEW_MAX: Duration, time = Duration::from_secs(2), "its age cannot be told: limits begin at `safe`";
        /// Sources of requests without a valid key that are told apart.
        STRANGER_CELLS: usize, count = 4_096, "they share counts";
        /// Most requests without a valid key of one source at a time.
        STRANGER_ATTEMPTS_MAX: u32, count = 200, "401 as before, and the connection is closed unread";
        /// Until one more of those requests is forgotten.
        STRANGER_PAUSE: Duration, time = Duration::from_millis(50), "no attempt is sooner forgotten";
        /// Names a node has ever seen in tables.
        ROW_NAMES_MAX: usize, count = 2 * TABLE_ENTRIES_MAX, "a table that brings more is refused";
        /// Longest that a step of the wall clock goes unnoticed.
        WALL_CLOCK_EVERY: Duration, time = Duration::from_secs(1), "looked at; in between, minutes go by the monotonic clock";
        /// Most slots looked at for one that may be forgotten, per new key.
        SWEEP_MAX: usize, count = 32, "looked at with the next new key";
        /// Most headers of one request.
        HEADERS_MAX: usize, count = 64, "431";
        /// Largest head of a request.
        HEAD_BYTES_MAX: usize, bytes = 16 << 10, "431";
        /// Longest value of `Content-Length` and `Transfer-Encoding`.
        FRAMING_VALUE_BYTES_MAX: usize, bytes = 32, "400, and the connection is closed";
        /// Most read of a body that nobody wants, so that its sender hears the answer.
        UNWANTED_BYTES_MAX: usize, bytes = 256 << 10, "the connection is closed";
        /// Longest that a body that nobody wants is read.
        UNWANTED_TIME_MAX: Duration, time = Duration::from_secs(2), "the connection is closed";
        /// Deepest nesting of a JSON body.
        JSON_DEPTH_MAX: usize, count = 64, "400";
        /// Most names of fields in a JSON body, of all its objects together.
        JSON_NAMES_MAX: usize, count = 100_000, "400";
        /// Largest number of output tokens or images that a request may ask for.
        OUTPUT_MAX: u64, count = 10_000_000, "400";
        /// Most choices that a request may ask for.
        CHOICES_MAX: u64, count = 1_024, "400";
        /// Longest line of a stream that is looked into for usage.
        STREAM_LINE_BYTES_MAX: usize, bytes = 256 << 10, "passed on unread; the reservation stays as it is";
        /// Largest JSON answer that is looked into for usage.
        ANSWER_JSON_BYTES_MAX: usize, bytes = 8 << 20, "passed on unread; the reservation stays as it is";
        /// Most tokens that an upstream's usage is believed.
        USAGE_TOKENS_MAX: u64, count = 100_000_000, "cut to it";
        /// Most models listed by `/v1/models`.
        MODELS_LISTED_MAX: usize, count = 1_000, "left out";
        /// Most connections of the admin listener at a time.
        ADMIN_CONNECTIONS_MAX: usize, count = 64, "they wait to be accepted";
        /// Longest that a client may take for `WRITE_PROGRESS_MIN`, unless `caps.write_seconds` says otherwise.
        CAPS_WRITE_WAIT: Duration, time = Duration::from_secs(60), "the connection is closed and its request settled";
        /// Least that a client takes of a waiting answer in `CAPS_WRITE_WAIT`.
        WRITE_PROGRESS_MIN: usize, bytes = 16 << 10, "the connection is closed and its request settled";
        /// Shortest pause after a connection that could not be accepted.
        ACCEPT_PAUSE_MIN: Duration, time = Duration::from_millis(50), "no attempt is sooner";
        /// Longest pause after connections that could not be accepted.
        ACCEPT_PAUSE_MAX: Duration, time = Duration::from_secs(1), "no pause is longer";
        /// Largest head of an upstream's answer, and what is read ahead of its body.
        UPSTREAM_BUFFER_BYTES_MAX: usize, bytes = 64 << 10, "502";
        /// Longest that requests may take to end once a node stops.
        NODE_DRAIN: Duration, time = Duration::from_secs(10), "they are cut off and settled";
        /// Longest wait for what is cut off to be settled.
        NODE_CUT_WAIT: Duration, time = Duration::from_secs(2), "the ledger settles it as reserved at the next start";
        /// Longest until a controller begins to answer; it is asked to wait 10 s at most.
        FOLLOW_HEAD_WAIT: Duration, time = Duration::from_secs(12), "asked again on a new connection";
        /// Longest pause of a controller within a table.
        FOLLOW_PROGRESS_WAIT: Duration, time = Duration::from_secs(5), "asked again on a new connection";
        /// Longest that a table may take to arrive.
        FOLLOW_BODY_WAIT: Duration, time = Duration::from_secs(60), "asked again on a new connection";
        /// Longest pause after a controller was lost; each node draws its own, from zero on.
        FOLLOW_RECONNECT_MAX: Duration, time = Duration::from_secs(4), "no pause is longer, so that all are back within 5 s";
        /// Shortest pause between two answers of a controller that does not wait.
        FOLLOW_PAUSE_MIN: Duration, time = Duration::from_millis(100), "no request is sooner";
        /// Longest that sending a usage report may take.
        REPORT_WAIT_MAX: Duration, time = Duration::from_secs(5), "dropped; its counters come with the next";
        /// Longest that a stopping node waits for its last report.
        LAST_REPORT_WAIT_MAX: Duration, time = Duration::from_secs(2), "dropped";
        /// Longest that an upstream replica which refused a connection is passed over.
        UPSTREAM_SKIP: Duration, time = Duration::from_secs(2), "tried again";
        /// Most read of a provider's refusal, to learn from it and to try the next one.
        PROVIDER_ERROR_BYTES_MAX: usize, bytes = 64 << 10, "learned from its status and headers alone; it is not passed on";
        /// Longest that a provider's refusal is read.
        PROVIDER_ERROR_WAIT: Duration, time = Duration::from_secs(2), "learned from its status and headers alone; it is not passed on";
        /// Longest text of a refusal that is looked into, characters.
        PROVIDER_TEXT_MAX: usize, count = 2_048, "not read";
        /// Longest that a provider is not asked because it said so.
        PROVIDER_WAIT_MAX: Duration, time = Duration::from_secs(32 * 86_400), "asked again";
        /// First pause of a provider that refuses and does not say for how long; each in a row doubles it.
        PROVIDER_PAUSE_MIN: Duration, time = Duration::from_secs(1), "no pause is shorter";
        /// Longest pause of a provider that refuses and does not say for how long.
        PROVIDER_PAUSE_MAX: Duration, time = Duration::from_secs(60), "asked again";
        /// Pause of a provider that refuses for money and does not say until when.
        PROVIDER_PARK: Duration, time = Duration::from_secs(300), "asked again";
        /// Longest that a pace is kept of a provider that states no limits and does not refuse any more.
        PROVIDER_PACE_QUIET: Duration, time = Duration::from_secs(600), "asked as fast as anybody asks";
        /// Fastest pace of such a provider, requests a second.
        PROVIDER_PACE_MAX: u32, count = 1_000_000, "no pace is faster";
        /// Most failures of a provider in a row.
        PROVIDER_FAILURES_MAX: u32, count = 3, "it pauses as one that refuses";
        /// Most limits remembered of what a provider says about one model.
        PROVIDER_LIMITS_MAX: usize, count = 16, "not remembered";
        /// Longest address of a client's own webhook that is relayed.
        WEBHOOK_URL_BYTES_MAX: usize, bytes = 1 << 10, "left as it is: the upstream calls the client itself";
        /// Longest that a client's own webhook may take to answer.
        WEBHOOK_RELAY_WAIT: Duration, time = Duration::from_secs(10), "504 to the upstream, which may try again";
        /// Largest file of running jobs.
        JOBS_FILE_BYTES_MAX: u64, bytes = 256 << 20, "not read: no job of a former life counts";
        /// Longest that the answer which tells of a new job waits until the job is on disk.
        JOBS_WRITTEN_WAIT: Duration, time = Duration::from_secs(1), "answered all the same: a killed process forgets the job";
        /// Pause between two looks at leases.
        JOBS_SWEEP_PAUSE: Duration, time = Duration::from_millis(200), "a slot is free that much later";
        /// Most jobs known at a time.
        JOBS_MAX: usize, count = 100_000, "503: no job is created";
        /// Most models told apart for one provider.
        PROVIDER_MODELS_MAX: usize, count = 1_024, "it is asked, and nothing is remembered";
    }
    Ledger {
        /// Most accounts and keys whose budgets are in memory, unless `caps.accounts` says otherwise.
        CAPS_ACCOUNTS: usize, count = 100_000, "an idle one is forgotten, and read from disk when asked for; without one, hard budgets are closed to the next";
        /// Most changes that wait for the disk.
        LEDGER_QUEUE_MAX: usize, count = 1 << 18, "hard budgets are closed until it has caught up; what is in flight is still settled";
        /// Most changes in the journal before accounts are written out.
        LEDGER_JOURNAL_ENTRIES_MAX: usize, count = 1 << 16, "accounts are written out, and it is emptied";
        /// Most accounts written out with one commit.
        LEDGER_SLICE_MAX: usize, count = 256, "the rest goes with the next commits";
        /// Memory for pages of the ledger's file.
        LEDGER_CACHE_BYTES_MAX: usize, bytes = 16 << 20, "read from disk again";
        /// Pause after the disk failed the ledger.
        LEDGER_RETRY_WAIT: Duration, time = Duration::from_secs(1), "tried again";
        /// Longest that a request waits for room in memory while other accounts are written out.
        LEDGER_ROOM_WAIT: Duration, time = Duration::from_secs(1), "refused: hard budgets are closed to it";
        /// Most lists of nodes remembered for the owners of budgets.
        LEDGER_LISTS_MAX: usize, count = 64, "the oldest but one is forgotten: budgets of a period that began then are not owned";
        /// Most time zones with their periods in memory.
        LEDGER_ZONES_MAX: usize, count = 64, "computed anew";
    }
    Pages {
        /// Longest that a metrics page is answered from memory: it is encoded once in this time.
        PAGE_MAX_AGE: Duration, time = Duration::from_secs(1), "encoded anew";
        /// Most rows of model and tier on a metrics page.
        ROWS_SHOWN_MAX: usize, count = 2_048, "summed as `other`";
        /// Most pools on a metrics page.
        POOLS_SHOWN_MAX: usize, count = 256, "left out";
        /// Most shares of nodes on a metrics page, over all pools.
        SHARES_SHOWN_MAX: usize, count = 1_024, "summed as `other`";
    }
    Simulator {
        /// Most requests of one trace.
        TRACE_ROWS_MAX: usize, count = 4_000_000, "refused with its place";
        /// Largest trace file.
        TRACE_BYTES_MAX: u64, bytes = 1 << 30, "refused before it is read";
        /// Longest trial, seconds.
        TRIAL_SECONDS_MAX: u64, count = 172_800, "refused with its place";
    }
    Process {
        /// Most times in a row that a task which failed begins anew.
        TASK_RESTARTS_MAX: u32, count = 5, "the process ends, for its service manager to start it";
        /// Most runs in a row that end badly under one policy.
        UNCLEAN_RUNS_MAX: usize, count = 3, "the policy is quarantined: the last good one is started";
        /// Longest time in which that many bad ends count.
        UNCLEAN_RUNS_WITHIN: Duration, time = Duration::from_secs(60), "they are forgotten";
        /// Largest record of runs.
        RUNS_BYTES_MAX: usize, bytes = 64 << 10, "set aside; the last run counts as one that ended badly";
    }
}
