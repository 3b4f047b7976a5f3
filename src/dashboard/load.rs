//! Panels of what comes in and what is concluded from it: signals, estimate, decision.

use super::Colour::{Green, Orange, Red};
use super::panels::WORK;
use super::{Panel, Query};

pub(super) const SIGNALS: &[Panel] = &[
    Panel::lines(
        "Replicas",
        "short",
        "Replicas by what they answered. Down: they refuse; look at the replicas. Silent: timeout or a page \
         that cannot be read; look at the network and at the controller's log.",
        &[Query::of(
            "sum by (pool, state) (tidegate_observe_replicas{pool=~\"$pool\"})",
            "{{pool}} {{state}}",
        )],
    ),
    Panel::lines(
        "Requests at the replicas",
        "short",
        "Running and waiting. Much waiting with little running: the replicas are stuck, not full. Waiting \
         without refusals below: load comes past the nodes.",
        &[
            Query::of("tidegate_observe_running_requests{pool=~\"$pool\"}", "{{pool}} running"),
            Query::of("tidegate_observe_waiting_requests{pool=~\"$pool\"}", "{{pool}} waiting"),
        ],
    ),
    Panel::lines(
        "Work delivered",
        WORK,
        "What the replicas say they finish. It falls with them; if it falls alone, requests became heavier or \
         the engine is throttled.",
        &[Query::of("tidegate_observe_work_per_second{pool=~\"$pool\"}", "{{pool}}")],
    ),
    Panel::lines(
        "Age of the newest reading",
        "s",
        "Above 2 intervals nothing rises, above 5 the budget drifts to safe. Look at the source: Prometheus, \
         the replicas, or the network between.",
        &[Query::of("tidegate_observe_age_seconds{pool=~\"$pool\"}", "{{pool}}")],
    )
    .steps(&[(4.0, Orange), (10.0, Red)]),
    Panel::lines(
        "Readings that failed",
        "ops",
        "Readings that failed, a second: down, timeout, oversize, status, unreadable; source is all of it. \
         `/v1/status` names each replica with its reason.",
        &[Query::of(
            "sum by (pool, kind) (rate(tidegate_observe_failures_total{pool=~\"$pool\"}[$__rate_interval]))",
            "{{pool}} {{kind}}",
        )],
    ),
    Panel::number(
        "Source readable",
        "short",
        "0: the pool's source as a whole cannot be read, so limits hold and then drift to safe. Repair the \
         source; nothing is needed at the controller.",
        &[Query::constant("min by (pool) (tidegate_observe_source_up{pool=~\"$pool\"})", "{{pool}}")],
    )
    .steps(&[(0.0, Red), (1.0, Green)]),
];

pub(super) const ESTIMATE: &[Panel] = &[
    Panel::lines(
        "Ready replicas",
        "short",
        "Replicas believed ready. A fraction, or a slow fall: a large loss with one sign only is taken 30 % an \
         interval until upstream errors at the nodes confirm it.",
        &[Query::of("tidegate_estimate_ready_replicas{pool=~\"$pool\"}", "{{pool}}")],
    ),
    Panel::lines(
        "Capacity and demand",
        WORK,
        "Demand above capacity is refused below: that is the design, add replicas if it lasts. Capacity absent: \
         the pool was never busy enough to be measured.",
        &[
            Query::of("tidegate_estimate_capacity_work_per_second{pool=~\"$pool\"}", "{{pool}} capacity"),
            Query::of("tidegate_estimate_offered_work_per_second{pool=~\"$pool\"}", "{{pool}} offered"),
            Query::of("tidegate_estimate_admitted_work_per_second{pool=~\"$pool\"}", "{{pool}} admitted"),
        ],
    ),
    Panel::lines(
        "What one replica delivers",
        WORK,
        "Measured while a backlog keeps replicas busy. A step without a deployment: other hardware, another \
         model, or throttling.",
        &[Query::of("tidegate_estimate_replica_work_per_second{pool=~\"$pool\"}", "{{pool}}")],
    ),
    Panel::states(
        "Trust in the readings",
        "Fresh, held (nothing rises) or stale (steers to safe). Anything but fresh: see the age and the \
         failures above.",
        &[Query::constant(
            "max by (pool, state) (tidegate_estimate_freshness{pool=~\"$pool\"}) == 1",
            "{{pool}} {{state}}",
        )],
    ),
    Panel::lines(
        "Work of an output token",
        "short",
        "In input tokens; stated by the policy or learned. A jump of a learned one moves every limit in \
         tokens: state it in the policy if it does not settle.",
        &[Query::constant("tidegate_estimate_output_token_cost_ratio{pool=~\"$pool\"}", "{{pool}}")],
    ),
    Panel::states(
        "Backlog and upstream errors",
        "Backlogged: capacity is being measured. Upstream errors: nodes see more than a healthy pool has; a \
         loss of replicas is then believed at once.",
        &[
            Query::constant(
                "max by (pool) (tidegate_estimate_backlogged{pool=~\"$pool\"})",
                "{{pool}} backlogged",
            ),
            Query::constant(
                "max by (pool) (tidegate_estimate_upstream_errors_significant{pool=~\"$pool\"})",
                "{{pool}} upstream errors",
            ),
        ],
    ),
];

pub(super) const DECISION: &[Panel] = &[
    Panel::lines(
        "Budget",
        WORK,
        "What the pool may admit, beside what it can do. Above capacity it probes; far below it a queue drains \
         or signals are missing: the reason says which.",
        &[
            Query::of("tidegate_decide_budget_work_per_second{pool=~\"$pool\"}", "{{pool}} budget"),
            Query::of("tidegate_estimate_capacity_work_per_second{pool=~\"$pool\"}", "{{pool}} capacity"),
        ],
    ),
    Panel::states(
        "Reason",
        "Why the budget is what it is; the README lists what each reason does. overload again and again: load \
         comes past the nodes, or the SLO is tighter than the engine can keep.",
        &[Query::of(
            "max by (pool, reason) (tidegate_decide_reason{pool=~\"$pool\"}) == 1",
            "{{pool}} {{reason}}",
        )],
    ),
    Panel::states(
        "Motion",
        "follow: it went to what was measured. steer: bounded steps, nobody measured where it goes. hold: \
         unchanged.",
        &[Query::of(
            "max by (pool, motion) (tidegate_decide_motion{pool=~\"$pool\"}) == 1",
            "{{pool}} {{motion}}",
        )],
    ),
    Panel::lines(
        "Waiting and its threshold",
        "short",
        "Waiting requests beyond the threshold are overload, by a test at 1 %. Always near it: the pool runs at \
         its SLO, which is where it should run when demand is there.",
        &[
            Query::of("tidegate_observe_waiting_requests{pool=~\"$pool\"}", "{{pool}} waiting"),
            Query::of("tidegate_decide_overload_threshold_requests{pool=~\"$pool\"}", "{{pool}} threshold"),
        ],
    ),
    Panel::lines(
        "Room in the pool",
        "short",
        "Admitted work that may wait, and requests that may be in flight, all nodes together. Refusals for \
         room below: these were full.",
        &[
            Query::of("tidegate_decide_waiting_work_limit{pool=~\"$pool\"}", "{{pool}} waiting work"),
            Query::of(
                "tidegate_decide_in_flight_limit_requests{pool=~\"$pool\"}",
                "{{pool}} requests in flight",
            ),
        ],
    ),
    Panel::states(
        "Degraded, binding, contended",
        "Degraded: limits follow old signals. Binding: somebody is refused whom a higher budget would admit. \
         Contended: lower tiers leave more room to higher ones.",
        &[
            Query::constant("max by (pool) (tidegate_decide_degraded{pool=~\"$pool\"})", "{{pool}} degraded"),
            Query::constant("max by (pool) (tidegate_decide_binding{pool=~\"$pool\"})", "{{pool}} binding"),
            Query::constant(
                "max by (pool) (tidegate_decide_contended{pool=~\"$pool\"})",
                "{{pool}} contended",
            ),
        ],
    ),
];
