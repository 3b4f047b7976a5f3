//! What a Prometheus answers to an instant query, read in one pass and bounded while it is read.
//!
//! Series are folded into sums as they come: an answer with a million of them ends at the bound
//! and not in memory. Labels that are of no use here are not kept at all.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::bounds::{ANSWER_SERIES_MAX, SOURCE_TEXT_MAX, SOURCE_WARNINGS_MAX};
use crate::observe::promql::PART;
use crate::observe::select::add;

/// One answer: what every instance says, and what the server has to say about the query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// By instance, empty where the series has none.
    pub instances: BTreeMap<String, ByJob>,
    pub warnings: Vec<String>,
}

/// By job, in order; empty where the series has none. Two jobs that scrape one instance see the
/// same replica twice. A list, because there is one as a rule and a map takes ten times its room.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByJob(Vec<(String, Sampled)>);

/// The sum over the series of one instance and job, and the sample's age.
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
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: Folded,
}

/// The series of an answer, added up.
#[derive(Default)]
struct Folded {
    instances: BTreeMap<String, ByJob>,
    /// The first thing that is no series of the expected shape.
    odd: Option<String>,
}

#[derive(Deserialize)]
struct Series {
    metric: Labels,
    value: Option<(f64, String)>,
}

/// Labels that mean something here; the rest is read past.
#[derive(Default, Deserialize)]
struct Labels {
    #[serde(default)]
    instance: String,
    #[serde(default)]
    job: String,
    #[serde(rename = "__name__")]
    name: Option<String>,
    /// [`crate::observe::promql::PART`]
    tidegate_part: Option<String>,
}

/// A member of the result: a series, or anything else.
struct Member(Option<Series>);

/// Reads a server's answer to [`crate::observe::promql::query`].
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
        return Err(format!("HTTP {status}: {}", told(&body.error.unwrap_or_default())));
    };
    if data.kind != "vector" {
        return Err(format!("the query yields a {}, not one series a replica", told(&data.kind)));
    }
    if let Some(odd) = data.result.odd {
        return Err(odd);
    }
    let warnings = body.warnings.unwrap_or_default();
    let warnings = warnings.iter().take(SOURCE_WARNINGS_MAX).map(|text| told(text)).collect();
    Ok(Answer { instances: data.result.instances, warnings })
}

/// A text of somebody else's, on one line and not too long.
pub fn told(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SOURCE_TEXT_MAX).collect()
}

// === impl ByJob ===

impl ByJob {
    pub fn of(&self, job: &str) -> Option<&Sampled> {
        self.iter().find(|(known, _)| *known == job).map(|(_, sampled)| sampled)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Sampled)> {
        self.0.iter().map(|(job, sampled)| (job.as_str(), sampled))
    }

    /// Changes one job's part, from nothing if it is new.
    fn change(&mut self, job: String, change: impl FnOnce(&mut Sampled)) {
        let place = self.0.partition_point(|(known, _)| *known < job);
        match self.0.get_mut(place) {
            Some((known, sampled)) if *known == job => change(sampled),
            _ => {
                let mut sampled = Sampled::default();
                change(&mut sampled);
                self.0.reserve_exact(1);
                self.0.insert(place, (job, sampled));
            }
        }
    }
}

// === impl Folded ===

impl Folded {
    fn fold(&mut self, member: Member) {
        let Some(Series { metric, value: Some((evaluated, text)) }) = member.0 else {
            self.odd.get_or_insert_with(|| "the answer has no series of the expected shape".to_owned());
            return;
        };
        let Ok(number) = fast_float2::parse::<f64, _>(&text) else {
            self.odd.get_or_insert_with(|| "a value in the answer is not a number".to_owned());
            return;
        };
        take(&mut self.instances, metric, evaluated, number);
    }
}

/// Adds one sample of one series.
fn take(instances: &mut BTreeMap<String, ByJob>, metric: Labels, evaluated: f64, number: f64) {
    let Labels { instance, job, name, tidegate_part } = metric;
    let is_time = tidegate_part.is_some_and(|part| part == "at");
    instances.entry(instance).or_default().change(job, |sampled| {
        if is_time {
            sampled.taken(evaluated, number);
        } else {
            let name = name.as_deref().unwrap_or("the series");
            add(sampled.sum.get_or_insert(Ok(0.0)), name, number);
        }
    });
}

// === impl Answer ===

impl Answer {
    /// Adds one sample of a series with these labels, as an answer at `evaluated` would have it.
    pub fn add(&mut self, labels: &BTreeMap<String, String>, evaluated: f64, number: f64) {
        let label = |name: &str| labels.get(name).cloned();
        let metric = Labels {
            instance: label("instance").unwrap_or_default(),
            job: label("job").unwrap_or_default(),
            name: label("__name__"),
            tidegate_part: label(PART),
        };
        take(&mut self.instances, metric, evaluated, number);
    }
}

// === impl Sampled ===

impl Sampled {
    /// Of several series the oldest: a sum is as old as its oldest part.
    fn taken(&mut self, evaluated: f64, stamp: f64) {
        let age = evaluated - stamp;
        if age.is_finite() {
            let oldest = self.age.map_or(age, |known| known.max(age));
            self.age = Some(oldest.max(0.0));
            self.stamp = Some(self.stamp.map_or(stamp, |known| known.min(stamp)));
        }
    }
}

impl<'de> Deserialize<'de> for Folded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Folded;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of series")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Folded, A::Error> {
                let mut folded = Folded::default();
                let mut count = 0_usize;
                while let Some(member) = members.next_element::<Member>()? {
                    count += 1;
                    if count > ANSWER_SERIES_MAX {
                        let reason = format!("the query yields more than {ANSWER_SERIES_MAX} series");
                        return Err(A::Error::custom(reason));
                    }
                    folded.fold(member);
                }
                Ok(folded)
            }
        }
        deserializer.deserialize_seq(Members)
    }
}

// === impl Member ===

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Member;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a series")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Member, A::Error> {
                let series = Series::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Member(Some(series)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Member, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Member(None))
            }

            // A scalar is a number and a text.
            fn visit_f64<E>(self, _: f64) -> Result<Member, E> {
                Ok(Member(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Member, E> {
                Ok(Member(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Member, E> {
                Ok(Member(None))
            }

            fn visit_str<E>(self, _: &str) -> Result<Member, E> {
                Ok(Member(None))
            }

            fn visit_unit<E>(self) -> Result<Member, E> {
                Ok(Member(None))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Member, E> {
                Ok(Member(None))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_that_tells_a_value_from_its_time_is_the_one_asked_for() {
        let text = format!("{{\"{PART}\":\"at\"}}");
        assert_eq!(serde_json::from_str::<Labels>(&text).unwrap().tidegate_part.as_deref(), Some("at"));
    }

    #[test]
    fn series_are_grouped_by_instance_and_job_and_summed() {
        let body = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"t","engine":"0","instance":"a:1","job":"j","tidegate_part":"value"},"value":[100.5,"10"]},
            {"metric":{"__name__":"t","engine":"1","instance":"a:1","job":"j","tidegate_part":"value"},"value":[100.5,"32"]},
            {"metric":{"engine":"0","instance":"a:1","job":"j","tidegate_part":"at"},"value":[100.5,"100.25"]},
            {"metric":{"engine":"1","instance":"a:1","job":"j","tidegate_part":"at"},"value":[100.5,"99.5"]},
            {"metric":{"__name__":"t","engine":"0","instance":"a:1","job":"k"},"value":[100.5,"41"]},
            {"metric":{},"value":[100.5,"7"]}]},"warnings":["one\ntwo"],"infos":["x"]}"#;
        let answer = answer(200, body).unwrap();
        let a = &answer.instances["a:1"];
        assert_eq!(*a.of("j").unwrap(), Sampled { sum: Some(Ok(42.0)), age: Some(1.0), stamp: Some(99.5) });
        assert_eq!(a.of("k").unwrap().sum, Some(Ok(41.0)));
        assert_eq!(
            *answer.instances[""].of("").unwrap(),
            Sampled { sum: Some(Ok(7.0)), ..Sampled::default() }
        );
        assert_eq!(answer.warnings, ["one two"]);
    }

    #[test]
    fn impossible_values_spoil_only_their_instance() {
        let body = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"q","instance":"a"},"value":[1,"NaN"]},
            {"metric":{"__name__":"q","instance":"b"},"value":[1,"3"]}]}}"#;
        let answer = answer(200, body).unwrap();
        assert_eq!(answer.instances["b"].of("").unwrap().sum, Some(Ok(3.0)));
        let wrong = Some(Err("`q` is NaN, not a finite number from 0".to_owned()));
        assert_eq!(answer.instances["a"].of("").unwrap().sum, wrong);
    }

    #[test]
    fn refusals_are_told() {
        let bad = br#"{"status":"error","errorType":"bad_data","error":"1:5: parse error"}"#;
        assert_eq!(answer(400, bad).unwrap_err(), "HTTP 400: 1:5: parse error");
        assert_eq!(answer(502, b"<html>").unwrap_err(), "HTTP 502");
        assert!(answer(200, b"<html>").unwrap_err().starts_with("the answer is not JSON"));
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}"#;
        assert_eq!(answer(200, scalar).unwrap_err(), "the query yields a scalar, not one series a replica");
        let matrix = br#"{"status":"success","data":{"result":[{"metric":{},"values":[[1,"1"]]}],"resultType":"matrix"}}"#;
        assert_eq!(answer(200, matrix).unwrap_err(), "the query yields a matrix, not one series a replica");
        for odd in ["[[1,2]]", "[{\"metric\":{}}]", "[{\"metric\":{},\"value\":[1,\"x\"]}]", "[null]"] {
            let body =
                format!("{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":{odd}}}}}");
            assert!(answer(200, body.as_bytes()).is_err(), "{odd}");
        }
    }

    #[test]
    fn a09_series_beyond_the_bound_end_the_answer() {
        let series = "{\"metric\":{\"instance\":\"a\"},\"value\":[1,\"1\"]},".repeat(ANSWER_SERIES_MAX + 1);
        let body = format!(
            "{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":[{}]}}}}",
            series.trim_end_matches(',')
        );
        let told = answer(200, body.as_bytes()).unwrap_err();
        assert!(told.contains("more than 50000 series"), "{told}");
    }
}
