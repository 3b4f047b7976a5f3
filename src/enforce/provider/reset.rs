//! One parser for every way in which a provider says when, and one for how much.
//!
//! Go durations (`6m0s`, `12ms`: OpenAI, Groq), seconds whole or broken (Azure, Mistral, Cerebras,
//! Together), protobuf durations (`37s`: Gemini), RFC 3339 (Anthropic), Unix seconds or
//! milliseconds (predictions APIs), HTTP dates (RFC 9110, section 10.2.3).

use std::time::Duration;

use crate::bounds::PROVIDER_WAIT_MAX;

/// From here on a number of seconds is a time and no wait: 2001-09-09.
const UNIX_SECONDS: f64 = 1e9;
/// The same in milliseconds.
const UNIX_MILLIS: f64 = 1e12;

/// How long from `unix_ms` on; at most [`PROVIDER_WAIT_MAX`]. None for what is no time, negative
/// ones included; what has passed is zero.
pub fn wait(text: &str, unix_ms: u64) -> Option<Duration> {
    let text = text.trim();
    let found = number(text)
        .and_then(|number| seconds(number, unix_ms))
        .or_else(|| go_duration(text))
        .or_else(|| rfc3339(text).map(|at| until(at, unix_ms)))
        .or_else(|| http_date(text).map(|at| until(at, unix_ms)))?;
    Some(found.min(PROVIDER_WAIT_MAX))
}

/// A count as providers write it: `30`, `30,000`, `30, 30;w=60`. None for negative ones.
pub fn amount(text: &str) -> Option<u64> {
    let text = text.split(';').next().unwrap_or_default().trim();
    let mut groups = text.split(',');
    let first = groups.next().unwrap_or_default().trim();
    let digits = |group: &str| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) {
        // `12.0` is a count all the same.
        return number(text).filter(|number| *number < 1e15).map(|number| number as u64);
    }
    let rest: Vec<&str> = groups.collect();
    let thousands = first.len() <= 3 && rest.iter().all(|group| group.len() == 3 && digits(group));
    if thousands { [&[first], rest.as_slice()].concat().concat().parse().ok() } else { first.parse().ok() }
}

/// Unix milliseconds of an HTTP date.
pub fn http_date(text: &str) -> Option<u64> {
    let at = jiff::Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

fn rfc3339(text: &str) -> Option<u64> {
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

fn until(at: u64, unix_ms: u64) -> Duration {
    Duration::from_millis(at.saturating_sub(unix_ms))
}

/// Digits with at most one point: no sign, no exponent, no `inf`.
fn number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| plain)
}

fn seconds(number: f64, unix_ms: u64) -> Option<Duration> {
    if number >= UNIX_MILLIS {
        return Some(until(number as u64, unix_ms));
    }
    if number >= UNIX_SECONDS {
        return Some(until((number * 1_000.0) as u64, unix_ms));
    }
    Duration::try_from_secs_f64(number).ok()
}

fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at_checked(end)?;
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit_end)?;
        let factor = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number(value)? * factor;
        rest = after;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2025-01-12T23:11:00Z.
    const NOW: u64 = 1_736_723_460_000;

    #[test]
    fn every_way_of_saying_when() {
        let cases: &[(&str, Option<u64>)] = &[
            // Go durations.
            ("1s", Some(1_000)),
            ("6m0s", Some(360_000)),
            ("12ms", Some(12)),
            ("250ms", Some(250)),
            ("2m59.56s", Some(179_560)),
            ("7.66s", Some(7_660)),
            ("1h2m3s", Some(3_723_000)),
            ("1.5s", Some(1_500)),
            ("5000us", Some(5)),
            // Seconds.
            ("0", Some(0)),
            ("26.5", Some(26_500)),
            (" 40 ", Some(40_000)),
            // Unix seconds, milliseconds, and what has passed.
            ("1736723520", Some(60_000)),
            ("1736723520.5", Some(60_500)),
            ("1736723520000", Some(60_000)),
            ("1705312800", Some(0)),
            // RFC 3339 and HTTP dates.
            ("2025-01-12T23:11:59Z", Some(59_000)),
            ("2025-01-13T00:11:59+01:00", Some(59_000)),
            ("2025-01-12T23:11:59.250Z", Some(59_250)),
            ("Sun, 12 Jan 2025 23:11:30 GMT", Some(30_000)),
            ("Sunday, 12-Jan-25 23:11:30 GMT", Some(30_000)),
            // Nothing of the kind.
            ("-1", None),
            ("-1s", None),
            ("", None),
            ("s", None),
            ("1x", None),
            ("1s garbage", None),
            ("inf", None),
            ("NaN", None),
            ("1e9", None),
            ("soon", None),
            ("99999999999999999999999999s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(wait(text, NOW).map(|wait| wait.as_millis() as u64), *expected, "{text}");
        }
        assert_eq!(wait("999999999", NOW), Some(PROVIDER_WAIT_MAX), "a year is not waited for");
        assert_eq!(wait("9998-12-31T23:59:59Z", NOW), Some(PROVIDER_WAIT_MAX));
    }

    #[test]
    fn every_way_of_saying_how_much() {
        let cases: &[(&str, Option<u64>)] = &[
            ("60", Some(60)),
            ("30,000", Some(30_000)),
            ("1,234,567", Some(1_234_567)),
            ("30, 30", Some(30)),
            ("100, 100;w=60", Some(100)),
            ("12.0", Some(12)),
            ("0", Some(0)),
            ("-1", None),
            ("", None),
            ("lots", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(amount(text), *expected, "{text}");
        }
    }
}
