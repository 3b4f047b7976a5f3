//! Instant queries without their I/O: which query to ask for a signal, and what the answer says.
//!
//! Alternatives are joined per replica (`or on (instance)`): during a rolling upgrade half of a
//! fleet has the new name and half the old, and asking for one name at a time would lose half of
//! it. A counter's value and the time of its sample come from one query, because two queries may
//! see two scrapes, and a 1 s scrape seen every 2 s would give rates that are wrong by half.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::bounds::ANSWER_SERIES_MAX;
use crate::observe::select::{Signal, add};

/// Tells a value from its time inside one answer.
const PART: &str = "tidegate_part";

/// One answer: per instance (empty where the series has none) the sum and the sample's age.
pub type Answer = BTreeMap<String, Sampled>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    pub sum: Option<Result<f64, String>>,
    /// Seconds between the sample and the evaluation, both on the server's clock.
    pub age: Option<f64>,
    /// The sample's own time there: two answers with the same one saw the same scrape.
    pub stamp: Option<f64>,
}

#[derive(Deserialize)]
struct Body {
    status: String,
    error: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

/// The one query that reads a signal; none for a signal without alternatives.
pub fn query(signal: Signal, alternatives: &[String]) -> Option<String> {
    if alternatives.is_empty() {
        return None;
    }
    // The line feed ends a comment that an expression may end with.
    let joined = |wrap: &str| {
        let parts: Vec<String> = alternatives.iter().map(|text| format!("{wrap}({text}\n)")).collect();
        parts.join(" or on (instance) ")
    };
    if !signal.is_counter() {
        return Some(joined(""));
    }
    let (value, at) = (joined(""), joined("timestamp"));
    Some(format!(
        "label_replace({value}, \"{PART}\", \"value\", \"instance\", \".*\") or \
         label_replace({at}, \"{PART}\", \"at\", \"instance\", \".*\")"
    ))
}

/// Which of `instances` the server itself could not scrape.
pub fn down_query<'a>(instances: impl Iterator<Item = &'a str>) -> Option<String> {
    let escaped: Vec<String> = instances.filter(|name| !name.is_empty()).map(quoted).collect();
    (!escaped.is_empty()).then(|| format!("up{{instance=~\"{}\"}} == 0", escaped.join("|")))
}

/// A label value, literally, inside a regular expression inside a PromQL string.
fn quoted(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\\\\\"),
            '\n' => text.push_str("\\n"),
            '.' | '+' | '*' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' | '|' => {
                text.push_str("\\\\");
                text.push(c);
            }
            _ => text.push(c),
        }
    }
    text
}

/// Reads a server's answer to [`query`].
///
/// # Errors
/// What the server complained about, or why its answer is not one.
pub fn answer(status: u16, body: &[u8]) -> Result<Answer, String> {
    let parsed: Result<Body, _> = serde_json::from_slice(body);
    let body = match parsed {
        Ok(body) => body,
        Err(_) if status != 200 => return Err(format!("HTTP {status}")),
        Err(error) => return Err(format!("the answer is not JSON of a query: {error}")),
    };
    let Some(data) = body.data.filter(|_| body.status == "success" && status == 200) else {
        let told: String = body.error.unwrap_or_default().chars().take(300).collect();
        return Err(format!("HTTP {status}: {told}"));
    };
    if data.kind != "vector" {
        return Err(format!("the query yields a {}, not one series a replica", data.kind));
    }
    let series: Vec<Series> = serde_json::from_value(data.result)
        .map_err(|error| format!("the answer has no series of the expected shape: {error}"))?;
    if series.len() > ANSWER_SERIES_MAX {
        return Err(format!("the query yields {} series, allowed are {ANSWER_SERIES_MAX}", series.len()));
    }
    let mut answer = Answer::new();
    for series in series {
        read(&mut answer, series)?;
    }
    Ok(answer)
}

fn read(answer: &mut Answer, series: Series) -> Result<(), String> {
    let (evaluated, text) = series.value;
    let number: f64 =
        fast_float2::parse(&text).map_err(|_| "a value in the answer is not a number".to_owned())?;
    let instance = series.metric.get("instance").cloned().unwrap_or_default();
    let sampled = answer.entry(instance).or_default();
    if series.metric.get(PART).is_some_and(|part| part == "at") {
        let age = evaluated - number;
        if age.is_finite() {
            // Of several series the oldest: a sum is as old as its oldest part.
            let oldest = sampled.age.map_or(age, |known| known.max(age));
            sampled.age = Some(oldest.max(0.0));
            sampled.stamp = Some(sampled.stamp.map_or(number, |known| known.min(number)));
        }
    } else {
        let name = series.metric.get("__name__").map_or("the series", String::as_str);
        add(sampled.sum.get_or_insert(Ok(0.0)), name, number);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(alternatives: &[&str]) -> Vec<String> {
        alternatives.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_gauge_is_asked_for_per_replica() {
        let asked = query(Signal::Running, &texts(&["new:running", "old:running # renamed"])).unwrap();
        assert_eq!(asked, "(new:running\n) or on (instance) (old:running # renamed\n)");
        assert_eq!(query(Signal::Ready, &[]), None);
    }

    #[test]
    fn a_counter_comes_with_the_time_of_its_sample() {
        let asked = query(Signal::WorkDone, &texts(&["a", "b"])).unwrap();
        assert_eq!(
            asked,
            "label_replace((a\n) or on (instance) (b\n), \"tidegate_part\", \"value\", \"instance\", \".*\") or \
             label_replace(timestamp(a\n) or on (instance) timestamp(b\n), \"tidegate_part\", \"at\", \"instance\", \".*\")"
        );
    }

    #[test]
    fn instances_are_quoted_literally() {
        let asked = down_query(["10.0.0.1:80", "a\"|b", ""].into_iter()).unwrap();
        assert_eq!(asked, r#"up{instance=~"10\\.0\\.0\\.1:80|a\"\\|b"} == 0"#);
        assert_eq!(down_query([""].into_iter()), None);
    }

    #[test]
    fn series_are_grouped_by_instance_and_summed() {
        let body = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"t","engine":"0","instance":"a:1","tidegate_part":"value"},"value":[100.5,"10"]},
            {"metric":{"__name__":"t","engine":"1","instance":"a:1","tidegate_part":"value"},"value":[100.5,"32"]},
            {"metric":{"engine":"0","instance":"a:1","tidegate_part":"at"},"value":[100.5,"100.25"]},
            {"metric":{"engine":"1","instance":"a:1","tidegate_part":"at"},"value":[100.5,"99.5"]},
            {"metric":{},"value":[100.5,"7"]}]}}"#;
        let answer = answer(200, body).unwrap();
        assert_eq!(answer["a:1"], Sampled { sum: Some(Ok(42.0)), age: Some(1.0), stamp: Some(99.5) });
        assert_eq!(answer[""], Sampled { sum: Some(Ok(7.0)), ..Sampled::default() });
    }

    #[test]
    fn impossible_values_spoil_only_their_instance() {
        let body = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"q","instance":"a"},"value":[1,"NaN"]},
            {"metric":{"__name__":"q","instance":"b"},"value":[1,"3"]}]}}"#;
        let answer = answer(200, body).unwrap();
        assert_eq!(answer["b"].sum, Some(Ok(3.0)));
        assert_eq!(answer["a"].sum, Some(Err("`q` is NaN, not a finite number from 0".to_owned())));
    }

    #[test]
    fn refusals_are_told() {
        let bad = br#"{"status":"error","errorType":"bad_data","error":"1:5: parse error"}"#;
        assert_eq!(answer(400, bad).unwrap_err(), "HTTP 400: 1:5: parse error");
        assert_eq!(answer(502, b"<html>").unwrap_err(), "HTTP 502");
        assert!(answer(200, b"<html>").unwrap_err().starts_with("the answer is not JSON"));
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}"#;
        assert_eq!(answer(200, scalar).unwrap_err(), "the query yields a scalar, not one series a replica");
    }
}
