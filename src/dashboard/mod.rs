//! The dashboard and the alerts as data, so that a test can ask every query of a real Prometheus
//! and no JSON is written by hand.
//!
//! One dashboard: the loop, a row for each room, in the order in which a number passes through
//! them. Whoever asks why a limit is what it is reads it from top to bottom.

pub mod alerts;
mod limits;
mod load;
mod panels;

use serde_json::{Value, json};

pub use panels::ROWS;

/// Columns of Grafana's grid, and what one panel takes of it.
const COLUMNS: usize = 24;
const WIDTH: usize = 8;
const HEIGHT: usize = 8;

/// Panels of one room.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub title: &'static str,
    pub panels: &'static [Panel],
}

#[derive(Clone, Copy, Debug)]
pub struct Panel {
    pub title: &'static str,
    /// What it shows and what to do about it.
    pub description: &'static str,
    pub draw: Draw,
    /// As Grafana names units.
    pub unit: &'static str,
    /// Values from which it turns a colour.
    pub steps: &'static [(f64, Colour)],
    pub queries: &'static [Query],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    Lines,
    /// Which states held, and when.
    States,
    /// The last value, large.
    Number,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Green,
    Orange,
    Red,
}

#[derive(Clone, Copy, Debug)]
pub struct Query {
    pub expr: &'static str,
    pub legend: &'static str,
    /// It may stay as it is when half of a pool dies.
    pub constant: bool,
}

// === impl Query ===

impl Query {
    const fn of(expr: &'static str, legend: &'static str) -> Query {
        Query { expr, legend, constant: false }
    }

    const fn constant(expr: &'static str, legend: &'static str) -> Query {
        Query { expr, legend, constant: true }
    }
}

// === impl Panel ===

impl Panel {
    const fn lines(
        title: &'static str,
        unit: &'static str,
        description: &'static str,
        queries: &'static [Query],
    ) -> Panel {
        Panel { title, description, draw: Draw::Lines, unit, steps: &[], queries }
    }

    const fn states(title: &'static str, description: &'static str, queries: &'static [Query]) -> Panel {
        Panel { title, description, draw: Draw::States, unit: "short", steps: &[], queries }
    }

    const fn number(
        title: &'static str,
        unit: &'static str,
        description: &'static str,
        queries: &'static [Query],
    ) -> Panel {
        Panel { title, description, draw: Draw::Number, unit, steps: &[], queries }
    }

    const fn steps(self, steps: &'static [(f64, Colour)]) -> Panel {
        Panel { steps, ..self }
    }

    fn json(&self, id: usize, x: usize, y: usize) -> Value {
        let (kind, options, custom) = self.draw.settings(!self.steps.is_empty());
        let targets: Vec<Value> =
            self.queries.iter().zip('A'..='Z').map(|(query, id)| query.json(id)).collect();
        json!({
            "id": id,
            "type": kind,
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {
                "defaults": {
                    "unit": self.unit,
                    "min": 0,
                    "color": {"mode": if self.draw == Draw::Number { "thresholds" } else { "palette-classic" }},
                    "custom": custom,
                    "thresholds": {"mode": "absolute", "steps": self.thresholds()},
                },
                "overrides": [],
            },
            "options": options,
            "targets": targets,
        })
    }

    /// Green up to the first step.
    fn thresholds(&self) -> Vec<Value> {
        let first = (Value::Null, Colour::Green);
        let steps = self.steps.iter().map(|(from, colour)| (json!(from), *colour));
        // A step at zero stands for a red or orange below the next one.
        [first]
            .into_iter()
            .chain(steps)
            .map(|(from, colour)| json!({"value": from, "color": colour.name()}))
            .collect()
    }
}

// === impl Draw ===

impl Draw {
    /// Type, options and custom fields of a panel.
    fn settings(self, stepped: bool) -> (&'static str, Value, Value) {
        let legend = json!({"displayMode": "list", "placement": "bottom", "showLegend": true});
        match self {
            Draw::Lines => (
                "timeseries",
                json!({"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}),
                json!({
                    "lineWidth": 1,
                    "fillOpacity": 5,
                    "showPoints": "never",
                    "thresholdsStyle": {"mode": if stepped { "dashed" } else { "off" }},
                }),
            ),
            Draw::States => (
                "state-timeline",
                json!({
                    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": false},
                    "mergeValues": true,
                    "rowHeight": 0.8,
                    "showValue": "never",
                    "tooltip": {"mode": "single", "sort": "none"},
                }),
                json!({"fillOpacity": 70, "lineWidth": 0}),
            ),
            Draw::Number => (
                "stat",
                json!({
                    "colorMode": "value",
                    "graphMode": "area",
                    "justifyMode": "auto",
                    "orientation": "auto",
                    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                    "textMode": "auto",
                }),
                json!({}),
            ),
        }
    }
}

// === impl Colour ===

impl Colour {
    fn name(self) -> &'static str {
        match self {
            Colour::Green => "green",
            Colour::Orange => "orange",
            Colour::Red => "red",
        }
    }
}

impl Query {
    fn json(&self, id: char) -> Value {
        json!({
            "refId": id.to_string(),
            "datasource": source(),
            "expr": self.expr,
            "legendFormat": self.legend,
            "range": true,
            "instant": false,
        })
    }
}

/// The dashboard for Grafana to import.
pub fn grafana() -> String {
    let mut panels = Vec::new();
    let mut y = 0;
    for row in ROWS {
        panels.push(json!({
            "id": panels.len() + 1,
            "type": "row",
            "title": row.title,
            "collapsed": false,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }));
        y += 1;
        let across = COLUMNS / WIDTH;
        for (at, panel) in row.panels.iter().enumerate() {
            panels.push(panel.json(panels.len() + 1, at % across * WIDTH, y + at / across * HEIGHT));
        }
        y += row.panels.len().div_ceil(across) * HEIGHT;
    }
    let dashboard = json!({
        "uid": "tidegate-loop",
        "title": "tidegate: why is this limit this number now?",
        "description": "The control loop from top to bottom: each row explains the one below it.",
        "tags": ["tidegate"],
        "schemaVersion": 39,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [
            {
                "name": "datasource",
                "label": "Prometheus",
                "type": "datasource",
                "query": "prometheus",
                "multi": false,
                "includeAll": false,
            },
            variable("pool", "label_values(tidegate_decide_pool_info, pool)"),
            variable("model", "label_values(tidegate_allocate_limit_work_per_second{pool=~\"$pool\"}, model)"),
            variable("tier", "label_values(tidegate_allocate_limit_work_per_second{pool=~\"$pool\",model=~\"$model\"}, tier)"),
        ]},
        "annotations": {"list": [{
            "name": "Policy",
            "datasource": source(),
            "enable": true,
            "expr": "tidegate_policy_info unless tidegate_policy_info offset 1m",
            "iconColor": "blue",
            "titleFormat": "another policy in force",
        }]},
        "panels": panels,
    });
    let text = serde_json::to_string_pretty(&dashboard).unwrap_or_default();
    text + "\n"
}

fn variable(name: &str, query: &str) -> Value {
    json!({
        "name": name,
        "type": "query",
        "datasource": source(),
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": true,
        "includeAll": true,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    })
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_says_what_to_do_and_has_its_own_place() {
        let all: Vec<&Panel> = ROWS.iter().flat_map(|row| row.panels).collect();
        let mut titles: Vec<&str> = all.iter().map(|panel| panel.title).collect();
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), all.len(), "two panels of one title");
        for panel in &all {
            assert!(panel.description.len() > 40 && panel.description.ends_with('.'), "{}", panel.title);
            assert!(!panel.queries.is_empty(), "{}", panel.title);
        }
        let parsed: Value = serde_json::from_str(&grafana()).unwrap();
        let panels = parsed["panels"].as_array().unwrap();
        assert_eq!(panels.len(), all.len() + ROWS.len());
        let mut places: Vec<String> = panels.iter().map(|panel| panel["gridPos"].to_string()).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), panels.len());
    }
}
