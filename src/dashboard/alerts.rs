//! What somebody must be called for, as Prometheus rules.

use std::fmt::Write as _;

/// One alerting rule.
#[derive(Clone, Copy, Debug)]
pub struct Alert {
    pub name: &'static str,
    pub expr: &'static str,
    /// How long it must hold.
    pub lasting: &'static str,
    /// `page`: somebody gets up. `ticket`: it can wait for the morning.
    pub severity: &'static str,
    pub summary: &'static str,
    pub action: &'static str,
}

pub const ALERTS: &[Alert] = &[
    Alert {
        name: "TidegateLoopHangs",
        expr: "tidegate_control_turn_age_seconds > 30",
        lasting: "30s",
        severity: "page",
        summary: "The control loop of {{ $labels.instance }} has not turned for {{ $value | humanizeDuration }}.",
        action: "Restart the controller and keep its log; nodes go on with their last table and then steer to safe.",
    },
    Alert {
        name: "TidegateTableExpired",
        expr: "tidegate_enforce_table_expired_intervals > 0",
        lasting: "30s",
        severity: "page",
        summary: "Node {{ $labels.instance }} steers to safe: nobody renews its table.",
        action: "See that the controller turns and that the node reaches it.",
    },
    Alert {
        name: "TidegateStateNotWritten",
        expr: "tidegate_publish_last_write_successful == 0",
        lasting: "1m",
        severity: "page",
        summary: "The controller {{ $labels.instance }} cannot write its state directory.",
        action: "Make room or repair the disk; a restart now would go back to an older table.",
    },
    Alert {
        name: "TidegateSignalsStale",
        expr: "tidegate_estimate_freshness{state=\"stale\"} == 1",
        lasting: "1m",
        severity: "page",
        summary: "Pool {{ $labels.pool }} is limited without signals and drifts to safe.",
        action: "Repair its source: Prometheus, the replicas' pages, or the network between.",
    },
    Alert {
        name: "TidegateGuaranteesDoNotFit",
        expr: "sum by (pool) (tidegate_allocate_bound{bound=\"priority\"}) > 0",
        lasting: "5m",
        severity: "page",
        summary: "Pool {{ $labels.pool }} cannot give {{ $value }} rows what they are guaranteed.",
        action: "Bring replicas back or add some; lower priorities are cut meanwhile.",
    },
    Alert {
        name: "TidegateNodesBehind",
        expr: "sum by (state) (tidegate_publish_nodes{state!=\"current\"}) > 0",
        lasting: "2m",
        severity: "ticket",
        summary: "{{ $value }} nodes are {{ $labels.state }}.",
        action: "Behind: see the node's log for why it does not take the table. Silent: see that it runs.",
    },
    Alert {
        name: "TidegatePolicyRefused",
        expr: "tidegate_policy_last_reload_successful == 0",
        lasting: "5m",
        severity: "ticket",
        summary: "The policy files at {{ $labels.instance }} are not the policy in force.",
        action: "Run `tidegate check` on the directory and correct what it says.",
    },
    Alert {
        name: "TidegateDescriptorsShort",
        expr: "(process_open_fds / process_max_fds and on (instance, job) tidegate_build_info) > 0.8",
        lasting: "2m",
        severity: "ticket",
        summary: "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of its file descriptors.",
        action: "Raise the limit (LimitNOFILE) or lower `caps.connections`.",
    },
];

/// The rules as a file for Prometheus.
pub fn rules() -> String {
    let mut text = String::from(
        "# Written by `tidegate dashboard --alerts`; edit src/dashboard/alerts.rs.\ngroups:\n- name: tidegate\n  rules:\n",
    );
    for alert in ALERTS {
        // A JSON string is a YAML string.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let _ = write!(
            text,
            "  - alert: {}\n    expr: {}\n    for: {}\n    labels: {{severity: {}}}\n    annotations:\n      \
             summary: {}\n      action: {}\n",
            alert.name,
            quoted(alert.expr),
            alert.lasting,
            alert.severity,
            quoted(alert.summary),
            quoted(alert.action),
        );
    }
    text
}
