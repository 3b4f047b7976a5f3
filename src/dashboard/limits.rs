//! Panels of what goes out and what becomes of it: allocation, publication, enforcement, processes.

use super::Colour::{Green, Orange, Red};
use super::panels::WORK;
use super::{Panel, Query};

pub(super) const ALLOCATION: &[Panel] = &[
    Panel::lines(
        "Limit of a tier",
        WORK,
        "What each tier may use, before rounding and ramps. If it is not what you expect, the rule that set it \
         is two panels on.",
        &[Query::of(
            "sum by (pool, tier) (tidegate_allocate_limit_work_per_second{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"})",
            "{{pool}} {{tier}}",
        )],
    ),
    Panel::lines(
        "Demand over limit",
        "percentunit",
        "Above 100 % the tier asks for more than it may use and is refused the rest. Lasting, in a tier that \
         pays: add replicas or raise its weight.",
        &[Query::of(
            "sum by (pool, tier) (tidegate_allocate_demand_work_per_second{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"}) \
             / sum by (pool, tier) (tidegate_allocate_limit_work_per_second{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"})",
            "{{pool}} {{tier}}",
        )],
    )
    .steps(&[(1.0, Orange)]),
    Panel::states(
        "The rule that set the limit",
        "uncontended, fair_share (the level times the weight), guarantee, ceiling, or priority: guarantees do \
         not fit and higher priorities went first. priority for long: you sold more than there is.",
        &[Query::constant(
            "sum by (pool, tier, bound) (tidegate_allocate_bound{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"}) > 0",
            "{{pool}} {{tier}} {{bound}}",
        )],
    ),
    Panel::lines(
        "Demand of a tier",
        WORK,
        "Offered work, smoothed, admitted or not. One tier alone climbing: look for a client that retries \
         without waiting.",
        &[Query::of(
            "sum by (pool, tier) (tidegate_allocate_demand_work_per_second{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"})",
            "{{pool}} {{tier}}",
        )],
    ),
    Panel::lines(
        "Guarantee and safe",
        WORK,
        "From the policy: what a tier gets before anyone gets more, and where nodes steer when no controller \
         speaks. They change with an edit only.",
        &[
            Query::constant(
                "sum by (pool, tier) (tidegate_allocate_guarantee_work_per_second{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"})",
                "{{pool}} {{tier}} guarantee",
            ),
            Query::constant(
                "sum by (pool, tier) (tidegate_allocate_safe_work_per_second{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"})",
                "{{pool}} {{tier}} safe",
            ),
        ],
    ),
    Panel::lines(
        "Level",
        WORK,
        "What one unit of weight gets above guarantees; absent while all demand fits. Zero: not even the \
         guarantees fit into the budget.",
        &[Query::of("tidegate_allocate_level_work_per_second{pool=~\"$pool\"}", "{{pool}}")],
    ),
];

pub(super) const PUBLICATION: &[Panel] = &[
    Panel::lines(
        "Published limit, per minute",
        "short",
        "The number that answers and policies show: rounded, damped, on its ramp after an edit. It follows the \
         allocation above within one interval.",
        &[Query::of(
            "60 * sum by (pool, tier, dimension) (tidegate_publish_limit_per_second{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"})",
            "{{pool}} {{tier}} {{dimension}}",
        )],
    ),
    Panel::lines(
        "Age of the table",
        "s",
        "At the controller since the last announcement, at each node since the last renewal. Beyond 10 \
         intervals nodes steer to safe: look whether the controller turns and the node reaches it.",
        &[
            Query::of("max by (instance) (tidegate_publish_age_seconds)", "controller {{instance}}"),
            Query::of("max by (instance) (tidegate_enforce_table_age_seconds)", "node {{instance}}"),
        ],
    )
    .steps(&[(10.0, Orange), (20.0, Red)]),
    Panel::lines(
        "Nodes",
        "short",
        "Current: reports and has the version of a turn ago. Behind for more than some seconds: the node cannot \
         fetch, or refuses the table; its log says why. Silent: it does not report.",
        &[Query::constant("sum by (state) (tidegate_publish_nodes)", "{{state}}")],
    ),
    Panel::lines(
        "Share of a node",
        "percentunit",
        "Part of every limit that a node may use. Uneven is fine when load is; a node with little load and a \
         large share did not report for a while.",
        &[Query::constant("max by (pool, node) (tidegate_publish_node_share_ratio{pool=~\"$pool\"})", "{{pool}} {{node}}")],
    ),
    Panel::lines(
        "Versions and bytes",
        "short",
        "Versions a minute: many are a sign of demand that swings. Size of the encoded table, in kB.",
        &[
            Query::of("60 * rate(tidegate_publish_version[$__rate_interval])", "versions a minute"),
            Query::constant("tidegate_publish_table_bytes / 1e3", "kB"),
        ],
    ),
    Panel::lines(
        "Failures to publish, refused policies",
        "ops",
        "journal and file: make room on the state directory's disk or repair it. validate: a bug, keep the \
         journal. Policy: an edit was refused and the last good policy is in force; run `tidegate check`.",
        &[
            Query::constant("sum by (channel) (rate(tidegate_publish_failures_total[$__rate_interval]))", "{{channel}}"),
            Query::constant("rate(tidegate_policy_reload_failures_total[$__rate_interval])", "policy"),
        ],
    ),
    Panel::number(
        "State written, policy in force",
        "short",
        "0 for the state: the last tables are on no disk, a restart goes back. 0 for the policy: the files are \
         not what is in force; run `tidegate check` on them.",
        &[
            Query::constant("min(tidegate_publish_last_write_successful)", "state written"),
            Query::constant("min(tidegate_policy_last_reload_successful)", "policy in force"),
        ],
    )
    .steps(&[(0.0, Red), (1.0, Green)]),
    Panel::lines(
        "Length of a turn",
        "s",
        "Sources, decision, disk: the 99th percentile of turns, and the age of the last one. Beyond the \
         interval: a source or the disk is slow. An age that climbs: the loop hangs; restart it and keep the log.",
        &[
            Query::constant(
                "histogram_quantile(0.99, sum by (le) (rate(tidegate_control_turn_duration_seconds_bucket[$__rate_interval])))",
                "p99",
            ),
            Query::of("max(tidegate_control_turn_age_seconds)", "age of the last"),
        ],
    )
    .steps(&[(2.0, Orange), (10.0, Red)]),
];

pub(super) const ENFORCEMENT: &[Panel] = &[
    Panel::lines(
        "Requests by verdict",
        "reqps",
        "Admitted, refused by a limit (429), refused for want of room (503). 503 without 429: bursts, or \
         requests that are heavier than they look.",
        &[Query::of(
            "sum by (verdict) (rate(tidegate_enforce_requests_total{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"}[$__rate_interval]))",
            "{{verdict}}",
        )],
    ),
    Panel::lines(
        "Admitted work of a tier",
        WORK,
        "Work of requests that have ended. Compare with the tier's limit above: well below it while requests \
         are refused, a key's own limit is what refuses.",
        &[Query::of(
            "sum by (pool, tier) (rate(tidegate_enforce_work_total{verdict=\"admitted\",pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"}[$__rate_interval]))",
            "{{pool}} {{tier}}",
        )],
    ),
    Panel::lines(
        "Part of requests refused",
        "percentunit",
        "By tier. A high tier is refused while a low one is served: look at the rule that set its limit and at \
         the refusals by reason.",
        &[Query::of(
            "sum by (pool, tier) (rate(tidegate_enforce_requests_total{verdict!=\"admitted\",pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"}[$__rate_interval])) \
             / sum by (pool, tier) (rate(tidegate_enforce_requests_total{pool=~\"$pool\",model=~\"$model\",tier=~\"$tier\"}[$__rate_interval]))",
            "{{pool}} {{tier}}",
        )],
    ),
    Panel::lines(
        "Refusals by reason",
        "reqps",
        "Whose limit refused, in which dimension; waiting_work and in_flight are the pool's room. key_*: one \
         customer's own limit, capacity would not help. no_table: the node never reached a controller.",
        &[Query::of("sum by (reason) (rate(tidegate_enforce_refusals_total[$__rate_interval])) > 0", "{{reason}}")],
    ),
    Panel::lines(
        "In flight",
        "short",
        "Requests at the upstream, by node. Flat at its limit (Room in the pool, times the node's share): \
         refused for room.",
        &[Query::of("sum by (pool, instance) (tidegate_enforce_in_flight_requests{pool=~\"$pool\"})", "{{pool}} {{instance}}")],
    ),
    Panel::lines(
        "Work that waits for its first token",
        "short",
        "By node. At its limit new requests get 503; growing without end would be a stream whose first token \
         the node does not see.",
        &[Query::of("sum by (pool, instance) (tidegate_enforce_waiting_work{pool=~\"$pool\"})", "{{pool}} {{instance}}")],
    ),
    Panel::lines(
        "Upstream errors",
        "percentunit",
        "Part of the requests sent upstream that the upstream failed: refused or broken connections, 5xx. They \
         are the second sign that replicas are lost.",
        &[Query::of(
            "sum by (pool) (rate(tidegate_enforce_upstream_errors_total{pool=~\"$pool\"}[$__rate_interval])) \
             / sum by (pool) (rate(tidegate_enforce_upstream_requests_total{pool=~\"$pool\"}[$__rate_interval]))",
            "{{pool}}",
        )],
    )
    .steps(&[(0.01, Orange), (0.1, Red)]),
    Panel::lines(
        "Limits drifting at nodes",
        "short",
        "Intervals past a table's validity: above zero the node steers to safe. Look whether it reaches the \
         controller; its own page shows the table it holds.",
        &[Query::constant("max by (instance) (tidegate_enforce_table_expired_intervals)", "{{instance}}")],
    )
    .steps(&[(1.0, Red)]),
    Panel::lines(
        "Refused before a limit",
        "reqps",
        "Without a valid key, unreadable, or for a model nobody knows. Many 401 from one place: a revoked key \
         or somebody guessing.",
        &[
            Query::constant("sum(rate(tidegate_enforce_unauthorized_total[$__rate_interval]))", "401"),
            Query::constant("sum(rate(tidegate_enforce_bad_requests_total[$__rate_interval]))", "400, 408, 413"),
            Query::constant("sum(rate(tidegate_enforce_unknown_models_total[$__rate_interval]))", "404"),
            Query::constant("sum(rate(tidegate_enforce_bodies_refused_total[$__rate_interval]))", "no room for bodies"),
        ],
    ),
];

pub(super) const PROCESSES: &[Panel] = &[
    Panel::lines(
        "Memory",
        "bytes",
        "Resident. Bounded whatever clients do: steady growth is a bug, report it with this build.",
        &[Query::of(
            "process_resident_memory_bytes and on (instance, job) tidegate_build_info",
            "{{job}} {{instance}}",
        )],
    ),
    Panel::lines(
        "CPU",
        "percentunit",
        "Cores in use. A node near one core a thousand streams is far above what it should need: look at what \
         clients send.",
        &[Query::of(
            "rate(process_cpu_seconds_total[$__rate_interval]) and on (instance, job) tidegate_build_info",
            "{{job}} {{instance}}",
        )],
    ),
    Panel::lines(
        "File descriptors",
        "percentunit",
        "In use of those allowed. A node needs two a request in flight: raise the limit (LimitNOFILE) before \
         it is reached.",
        &[Query::of(
            "process_open_fds / process_max_fds and on (instance, job) tidegate_build_info",
            "{{job}} {{instance}}",
        )],
    )
    .steps(&[(0.8, Orange), (0.95, Red)]),
    Panel::number(
        "Builds",
        "short",
        "How many run each version and revision. More than one for longer than a rollout: finish it.",
        &[Query::constant("count by (version, revision) (tidegate_build_info)", "{{version}} {{revision}}")],
    ),
    Panel::number(
        "Up for",
        "s",
        "Since the process started. A small number nobody expects: it was killed; look at the memory above and \
         at the log of the last start.",
        &[Query::of(
            "time() - process_start_time_seconds and on (instance, job) tidegate_build_info",
            "{{job}} {{instance}}",
        )],
    ),
];
