//! Public traces of requests, read line by line.

use std::fmt;

use serde::Deserialize;

use crate::bounds::TRACE_ROWS_MAX;
use crate::sim::Chance;
use crate::sim::trial::sizes::tokens;

/// The header of an Azure LLM inference trace.
const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
/// A Mooncake trace has arrivals in steps of this many seconds; each is spread over its step.
const MOONCAKE_STEP: f64 = 3.0;
const DAY: f64 = 86_400.0;
/// Seconds that the trace goes on for after its last request.
const TAIL: f64 = 1.0;

/// Requests of a trace: seconds since its first, prompt and output tokens, in order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    rows: Vec<(f64, u32, u32)>,
    span: f64,
}

/// A line that is no request, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub reason: String,
    pub help: &'static str,
}

#[derive(Deserialize)]
struct Mooncake {
    timestamp: f64,
    input_length: f64,
    output_length: f64,
}

// === impl BadLine ===

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {} ({})", self.file, self.line, self.column, self.reason, self.help)
    }
}

impl std::error::Error for BadLine {}

// === impl Trace ===

impl Trace {
    /// Reads an Azure LLM trace (`TIMESTAMP,ContextTokens,GeneratedTokens`) or a Mooncake one (one
    /// JSON object a line: `timestamp` in milliseconds, `input_length`, `output_length`).
    ///
    /// # Errors
    /// The first line that is neither, with its place.
    pub fn parse(file: &str, text: &str) -> Result<Trace, BadLine> {
        let mut lines = text.lines().enumerate().peekable();
        let azure =
            lines.next_if(|(_, line)| line.trim_start_matches('\u{feff}').trim_end() == AZURE).is_some();
        let mut rows = Vec::new();
        for (at, line) in lines {
            if line.trim().is_empty() {
                continue;
            }
            let bad = |(column, reason): (usize, String)| BadLine {
                file: file.to_owned(),
                line: at + 1,
                column,
                reason,
                help: if azure {
                    "an Azure trace has lines like `2023-11-16 18:15:46.6805900,374,44`"
                } else {
                    "write the header `TIMESTAMP,ContextTokens,GeneratedTokens`, or JSON lines with \
                     `timestamp` (ms), `input_length` and `output_length`"
                },
            };
            if rows.len() >= TRACE_ROWS_MAX {
                return Err(bad((1, format!("more than {TRACE_ROWS_MAX} requests"))));
            }
            rows.push(if azure { azure_row(line) } else { mooncake_row(line) }.map_err(bad)?);
        }
        if rows.is_empty() {
            let (reason, help) = ("the trace has no request".to_owned(), "name a file with at least one");
            return Err(BadLine { file: file.to_owned(), line: 1, column: 1, reason, help });
        }
        if !azure {
            // Many requests of one instant came within the step that ended then.
            let mut chance = Chance::seeded(1);
            rows.iter_mut().for_each(|row| row.0 += chance.between(0.0, MOONCAKE_STEP));
        }
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let first = rows.first().map_or(0.0, |row| row.0);
        rows.iter_mut().for_each(|row| row.0 -= first);
        let span = rows.last().map_or(0.0, |row| row.0) + TAIL;
        Ok(Trace { rows, span })
    }

    /// Its requests up to `seconds`; a shorter trace is repeated.
    pub fn until(&self, seconds: f64) -> impl Iterator<Item = (f64, u32, u32)> + Clone {
        let turns = (seconds / self.span).ceil() as u32;
        let all = (0..turns).flat_map(|turn| {
            let begins = f64::from(turn) * self.span;
            self.rows.iter().map(move |(at, prompt, output)| (begins + at, *prompt, *output))
        });
        all.take_while(move |(at, _, _)| *at < seconds)
    }

    /// Sizes of any of its requests.
    pub fn any(&self, chance: &mut Chance) -> (u32, u32) {
        self.rows.get(chance.below(self.rows.len())).map_or((1, 1), |(_, prompt, output)| (*prompt, *output))
    }
}

/// Column and reason of what is wrong.
type Wrong = (usize, String);

fn azure_row(line: &str) -> Result<(f64, u32, u32), Wrong> {
    let mut column = 1;
    let mut fields = line.trim_end().split(',').map(|field| {
        let at = column;
        column += field.chars().count() + 1;
        (at, field)
    });
    let mut next = |name: &str| fields.next().ok_or_else(|| (1, format!("the line has no `{name}`")));
    let (at, stamp) = next("TIMESTAMP")?;
    let seconds = timestamp(stamp).ok_or_else(|| (at, format!("`{}` is not a time", shown(stamp))))?;
    let count = |(at, text): (usize, &str)| {
        text.parse::<u32>()
            .map(|count| tokens(f64::from(count)))
            .map_err(|_| (at, format!("`{}` is not a number of tokens", shown(text))))
    };
    let (prompt, output) = (count(next("ContextTokens")?)?, count(next("GeneratedTokens")?)?);
    match fields.next() {
        Some((at, more)) => Err((at, format!("a fourth field `{}`", shown(more)))),
        None => Ok((seconds, prompt, output)),
    }
}

/// `2023-11-16 18:15:46.6805900` as seconds since an arbitrary day; the trace names no zone.
fn timestamp(text: &str) -> Option<f64> {
    let (date, time) = text.split_once(' ')?;
    let mut date = date.splitn(3, '-');
    let year: i64 = number(date.next()?, 4)?.parse().ok()?;
    let month: i64 = number(date.next()?, 2)?.parse().ok().filter(|month| (1..=12).contains(month))?;
    let day: i64 = number(date.next()?, 2)?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let mut time = time.splitn(3, ':');
    let hour: u32 = number(time.next()?, 2)?.parse().ok().filter(|hour| *hour < 24)?;
    let minute: u32 = number(time.next()?, 2)?.parse().ok().filter(|minute| *minute < 60)?;
    let (whole, fraction) = time.next()?.split_once('.').unwrap_or_default();
    let second: u32 = number(whole, 2)?.parse().ok().filter(|second| *second <= 60)?;
    number(fraction, fraction.len()).filter(|digits| (1..=9).contains(&digits.len()))?;
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    // Days since the beginning of a March year (H. Hinnant, chrono-compatible date algorithms).
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(days as f64 * DAY + f64::from(hour * 3600 + minute * 60 + second) + fraction)
}

fn number(text: &str, len: usize) -> Option<&str> {
    Some(text).filter(|text| text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn mooncake_row(line: &str) -> Result<(f64, u32, u32), Wrong> {
    let row: Mooncake =
        serde_json::from_str(line).map_err(|error| (error.column().max(1), error.to_string()))?;
    let within = |value: f64, name: &str| {
        let fine = value.is_finite() && (0.0..1e12).contains(&value);
        if fine { Ok(value) } else { Err((1, format!("`{name}` is {value}"))) }
    };
    let at = within(row.timestamp, "timestamp")? / 1e3;
    let (prompt, output) =
        (within(row.input_length, "input_length")?, within(row.output_length, "output_length")?);
    Ok((at, tokens(prompt), tokens(output)))
}

/// A field as it may be repeated.
fn shown(text: &str) -> String {
    text.chars().take(40).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_lines_are_read_to_the_seventh_digit_and_over_midnight() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-12-31 23:59:59.5000001,374,44\n\
                    2024-01-01 00:00:01.0000000,396,109\n";
        let trace = Trace::parse("a.csv", text).unwrap();
        let rows: Vec<_> = trace.until(2.0).collect();
        assert_eq!((rows[0].1, rows[0].2, rows[1].1, rows.len()), (374, 44, 396, 2));
        assert!((rows[1].0 - 1.499_999_9).abs() < 1e-5, "{rows:?}");
        assert_eq!(trace.until(6.0).count(), 5, "it is repeated");
    }

    #[test]
    fn mooncake_steps_are_spread() {
        let line = |at: u32| {
            format!(
                "{{\"timestamp\": {at}, \"input_length\": 6758, \"output_length\": 500, \"hash_ids\": [1]}}\n"
            )
        };
        let text: String = (0..300).map(|at| line(at / 100 * 3000)).collect();
        let trace = Trace::parse("m.jsonl", &text).unwrap();
        let in_the_first_second = trace.until(1.0).count();
        assert!((20..50).contains(&in_the_first_second), "{in_the_first_second}");
    }

    #[test]
    fn a_bad_line_names_its_place() {
        let azure = |line: &str| {
            let text = format!("{AZURE}\n2023-11-16 18:15:46.6805900,374,44\n{line}\n");
            Trace::parse("a.csv", &text).unwrap_err().to_string()
        };
        assert!(
            azure("2023-11-16 18:15:46.1,37x,44").starts_with("a.csv:3:23: `37x` is not a number of tokens")
        );
        assert!(
            azure("2023-13-16 18:15:46.1,37,44")
                .starts_with("a.csv:3:1: `2023-13-16 18:15:46.1` is not a time")
        );
        assert!(
            azure("2023-11-16 18:15:46.1,37").starts_with("a.csv:3:1: the line has no `GeneratedTokens`")
        );
        assert!(azure("2023-11-16 18:15:46.1,37,4,5").starts_with("a.csv:3:28: a fourth field `5`"));
        let other = |text: &str| Trace::parse("m", text).unwrap_err().to_string();
        assert!(
            other("{\"timestamp\": 1, \"input_length\": 2}")
                .starts_with("m:1:35: missing field `output_length`")
        );
        assert!(
            other("{\"timestamp\": -1, \"input_length\": 2, \"output_length\": 3}")
                .contains("`timestamp` is -1")
        );
        assert!(other("TIMESTAMP,Context\n").contains("write the header"));
        assert!(other("").contains("no request"));
    }
}
