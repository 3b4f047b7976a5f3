//! What came out of a replay, for people and for programs.

use serde::Serialize;

use crate::backtest::arm::short;
use crate::backtest::compare::{Note, Report, When};
use crate::backtest::score::{Limits, RowName, RowScore, Side};
use crate::backtest::span::rfc3339;
use crate::decide::Reason;
use crate::unit::{Limit, ModelId, TierId};
use crate::wire::Work;

/// What no record says.
pub const CANNOT_KNOW: [&str; 4] = [
    "what would have been asked for after other answers: clients that are refused come back, or do not",
    "the queue, the load and the failures that other admissions would have made: signals are the recorded ones",
    "single requests: a tier's bucket is filled again as if they came evenly between two reports",
    "keys: what was refused for a key's own limit or share, or for want of room, stays refused",
];

const COLUMNS: [&str; 11] = [
    "model",
    "tier",
    "limit_was",
    "limit_is",
    "offered",
    "admitted_was",
    "admitted_is",
    "newly_refused",
    "newly_admitted",
    "missed_was_s",
    "missed_is_s",
];

/// One row, as a line of JSON.
#[derive(Serialize)]
struct RowLine<'a> {
    model: &'a ModelId,
    tier: &'a TierId,
    was: SideLine,
    is: SideLine,
    offered: Work,
    newly_refused: Work,
    newly_admitted: Work,
    #[serde(skip_serializing_if = "Option::is_none")]
    worst: Option<WorstLine>,
}

#[derive(Serialize)]
struct SideLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<LimitLine>,
    admitted: Work,
    guarantee_missed_s: f64,
}

/// Work per minute.
#[derive(Serialize)]
struct LimitLine {
    min: Limit,
    median: Limit,
    max: Limit,
}

#[derive(Serialize)]
struct WorstLine {
    at: String,
    refused: Work,
    admitted: Work,
    reason: Option<Reason>,
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    summary: Summary<'a>,
}

#[derive(Serialize)]
struct Summary<'a> {
    from: String,
    to: String,
    seconds: f64,
    ticks: u64,
    policy: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<&'a str>,
    recorded: &'a [String],
    compared: u64,
    same: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<NoteLine<'a>>,
    notes: Vec<NoteLine<'a>>,
    notes_left_out: usize,
    newly_refused: Work,
    newly_admitted: Work,
    cannot_know: [&'static str; 4],
}

#[derive(Serialize)]
struct NoteLine<'a> {
    at: String,
    text: &'a str,
}

/// One object a line: each row, then the summary.
pub fn json(report: &Report) -> String {
    let mut text = String::new();
    let mut push = |line: Result<String, serde_json::Error>| {
        text.extend(line);
        text.push('\n');
    };
    for (name, score) in &report.rows {
        push(serde_json::to_string(&row_line(report, name, score)));
    }
    let note = |note| note_line(report, note);
    let sum = |pick: fn(&RowScore) -> Work| {
        report.rows.values().fold(Work::default(), |sum, score| sum.plus(pick(score)))
    };
    let summary = Summary {
        from: when(report, report.from),
        to: when(report, report.to),
        seconds: report.to.now.seconds_since(report.from.now),
        ticks: report.ticks,
        policy: &report.policy,
        against: report.against.as_deref(),
        recorded: &report.recorded,
        compared: report.compared,
        same: report.same,
        first_difference: report.first_difference.as_ref().map(note),
        notes: report.notes.iter().map(note).collect(),
        notes_left_out: report.notes_left_out,
        newly_refused: sum(|score| score.newly_refused),
        newly_admitted: sum(|score| score.newly_admitted),
        cannot_know: CANNOT_KNOW,
    };
    push(serde_json::to_string(&SummaryLine { summary }));
    text
}

fn row_line<'a>(report: &Report, (model, tier): &'a RowName, score: &RowScore) -> RowLine<'a> {
    let side = |side: &Side| SideLine {
        limit: side.limits().map(|limits| LimitLine {
            min: limits.least,
            median: limits.median,
            max: limits.most,
        }),
        admitted: side.admitted,
        guarantee_missed_s: side.guarantee_missed_s,
    };
    let worst = score.worst.as_ref().map(|worst| WorstLine {
        at: when(report, worst.at),
        refused: worst.refused,
        admitted: worst.admitted,
        reason: worst.reason,
    });
    RowLine {
        model,
        tier,
        was: side(&score.was),
        is: side(&score.is),
        offered: score.offered,
        newly_refused: score.newly_refused,
        newly_admitted: score.newly_admitted,
        worst,
    }
}

fn note_line<'a>(report: &Report, note: &'a Note) -> NoteLine<'a> {
    NoteLine { at: when(report, note.at), text: &note.text }
}

/// For a terminal.
pub fn table(report: &Report) -> String {
    let (from, to) = (when(report, report.from), when(report, report.to));
    let seconds = report.to.now.seconds_since(report.from.now);
    let mut text = format!("{} ticks replayed, {from} to {to} ({seconds:.0} s)\n", report.ticks);
    text += &format!("policy {}{}\n", short(&report.policy), against(report));
    if report.compared > 0 {
        text += &format!("{} of {} tables are the same to the byte\n", report.same, report.compared);
    }
    for (word, note) in report
        .first_difference
        .iter()
        .map(|note| ("the first other one: ", note))
        .chain(report.notes.iter().map(|note| ("", note)))
    {
        text += &format!("  {}  {word}{}\n", when(report, note.at), note.text);
    }
    if report.notes_left_out > 0 {
        text += &format!("  and {} places more\n", report.notes_left_out);
    }
    text.push('\n');
    text += &aligned(report);
    for ((model, tier), score) in &report.rows {
        let Some(worst) = &score.worst else { continue };
        let (verb, changed) = if worst.refused.work >= worst.admitted.work {
            ("refused that was not", worst.refused)
        } else {
            ("not refused that was", worst.admitted)
        };
        let reason = worst.reason.map(|reason| format!("; the budget then: {}", word(reason)));
        let (at, reason) = (when(report, worst.at), reason.unwrap_or_default());
        let Work { requests, work } = changed;
        text += &format!(
            "{model} / {tier}: most in the interval up to {at}: {work} work, {requests} requests {verb}{reason}\n"
        );
    }
    text += "\nA replay cannot know\n";
    for line in CANNOT_KNOW {
        text += &format!("- {line}.\n");
    }
    text
}

/// What the policy is compared with.
fn against(report: &Report) -> String {
    if let Some(against) = &report.against {
        return format!(" (`is`), compared with policy {} (`was`) on the same record", short(against));
    }
    match report.recorded.as_slice() {
        [one] if *one == report.policy => ", which is the record's".to_owned(),
        all => {
            let all: Vec<&str> = all.iter().map(|digest| short(digest)).collect();
            format!(" (`is`) in place of the record's {} (`was`)", all.join(", "))
        }
    }
}

fn aligned(report: &Report) -> String {
    let mut lines = vec![COLUMNS.map(str::to_owned).to_vec()];
    for ((model, tier), score) in &report.rows {
        lines.push(vec![
            model.to_string(),
            tier.to_string(),
            limits(score.was.limits()),
            limits(score.is.limits()),
            compact(score.offered.work),
            compact(score.was.admitted.work),
            compact(score.is.admitted.work),
            changed(score.newly_refused),
            changed(score.newly_admitted),
            format!("{:.0}", score.was.guarantee_missed_s),
            format!("{:.0}", score.is.guarantee_missed_s),
        ]);
    }
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            // Names to the left, numbers to the right.
            text += &if at < 2 { format!("{cell}{pad}  ") } else { format!("{pad}{cell}  ") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Least, median and most, or the one there is.
fn limits(limits: Option<Limits>) -> String {
    let shown = |limit: Limit| limit.finite().map_or("unlimited".to_owned(), compact);
    match limits {
        None => "no row".to_owned(),
        Some(Limits { least, most, .. }) if least == most => shown(least),
        Some(Limits { least, median, most }) => {
            format!("{}..{}..{}", shown(least), shown(median), shown(most))
        }
    }
}

fn changed(work: Work) -> String {
    if work.work == 0 { "-".to_owned() } else { format!("{} ({})", compact(work.work), work.requests) }
}

/// As policies write numbers; four digits of them.
fn compact(value: u64) -> String {
    let (unit, letter) = match value {
        0..10_000 => return value.to_string(),
        10_000..1_000_000 => (1e3, "k"),
        1_000_000..1_000_000_000 => (1e6, "M"),
        _ => (1e9, "G"),
    };
    let shown = value as f64 / unit;
    let digits = if shown >= 100.0 { 1 } else { 2 };
    let text = format!("{shown:.digits$}");
    format!("{}{letter}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Wall time, or else seconds since the record began.
fn when(report: &Report, at: When) -> String {
    at.unix.map_or_else(|| format!("{:+.1} s", at.now.seconds_since(report.from.now)), rfc3339)
}

fn word(reason: Reason) -> String {
    let value = serde_json::to_value(reason).unwrap_or_default();
    value.as_str().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_exact_to_four_digits() {
        let shown = [0, 9_999, 10_000, 614_400, 1_500_000, 92_160_000, 12_345_678_901].map(compact);
        assert_eq!(shown, ["0", "9999", "10k", "614.4k", "1.5M", "92.16M", "12.35G"]);
        assert_eq!((compact(100_000), compact(20_000_000)), ("100k".to_owned(), "20M".to_owned()));
    }
}
