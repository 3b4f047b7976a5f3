//! What a Prometheus answers to a range query: series over time, cut into what it would have
//! answered at each step.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::bounds::ANSWER_SERIES_MAX;
use crate::observe::answer::{Answer, told};

/// Steps of a range query, the last one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Since 1970.
    pub start: Duration,
    pub step: Duration,
    pub steps: u32,
}

pub type Labels = BTreeMap<String, String>;

/// Every series that has a value at one step.
pub type AtStep<'a> = Vec<(&'a Labels, f64)>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix(pub Vec<Series>);

/// One series, with its value at the steps that have one.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub labels: Labels,
    /// Seconds since 1970, and the value.
    pub values: Vec<(f64, f64)>,
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
    result: Vec<Raw>,
}

#[derive(Deserialize)]
struct Raw {
    metric: Labels,
    values: Vec<(f64, String)>,
}

// === impl Window ===

impl Window {
    pub fn at(&self, step: u32) -> Duration {
        self.start + self.step * step
    }

    /// The step of a value's time.
    pub fn step_of(&self, at: f64) -> Option<u32> {
        let steps = ((at - self.start.as_secs_f64()) / self.step.as_secs_f64()).round();
        (steps >= 0.0 && steps < f64::from(self.steps)).then_some(steps as u32)
    }
}

// === impl Matrix ===

impl Matrix {
    /// Reads an answer whose size is bounded already.
    ///
    /// # Errors
    /// What the server complained about, or why its answer is not one.
    pub fn read(status: u16, body: &[u8]) -> Result<Matrix, String> {
        let parsed: Result<Body, _> = serde_json::from_slice(body);
        let body = match parsed {
            Ok(body) => body,
            Err(_) if status != 200 => return Err(format!("HTTP {status}")),
            Err(error) => return Err(format!("the answer is not JSON of a range query: {error}")),
        };
        let Some(data) = body.data.filter(|_| body.status == "success" && status == 200) else {
            return Err(format!("HTTP {status}: {}", told(&body.error.unwrap_or_default())));
        };
        if data.kind != "matrix" {
            return Err(format!("the query yields a {}, not series over time", told(&data.kind)));
        }
        if data.result.len() > ANSWER_SERIES_MAX {
            return Err(format!("the query yields more than {ANSWER_SERIES_MAX} series"));
        }
        let series = |raw: Raw| {
            let number = |(at, text): (f64, String)| Some((at, text.parse().ok()?));
            let values: Option<Vec<(f64, f64)>> = raw.values.into_iter().map(number).collect();
            let values = values.ok_or_else(|| "a value in the answer is not a number".to_owned())?;
            Ok(Series { labels: raw.metric, values })
        };
        data.result.into_iter().map(series).collect::<Result<_, String>>().map(Matrix)
    }

    /// Every series' value at each step.
    pub fn by_step(&self, window: Window) -> Vec<AtStep<'_>> {
        let mut steps = vec![Vec::new(); window.steps as usize];
        for series in &self.0 {
            for (at, value) in &series.values {
                let step = window.step_of(*at).and_then(|step| steps.get_mut(step as usize));
                if let Some(step) = step {
                    step.push((&series.labels, *value));
                }
            }
        }
        steps
    }

    /// What the server would have answered at each step.
    pub fn answers(&self, window: Window) -> Vec<Answer> {
        let at_step = |(step, values): (u32, AtStep<'_>)| {
            let mut answer = Answer::default();
            let at = window.at(step).as_secs_f64();
            values.into_iter().for_each(|(labels, value)| answer.add(labels, at, value));
            answer
        };
        (0..window.steps).zip(self.by_step(window)).map(at_step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::answer::Sampled;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_range_is_what_each_step_would_have_been_answered() {
        let body = br#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"__name__":"t","instance":"a","job":"j","tidegate_part":"value"},"values":[[100,"10"],[102,"30"]]},
            {"metric":{"instance":"a","job":"j","tidegate_part":"at"},"values":[[100,"99.5"],[102,"101.5"]]}]}}"#;
        let window = Window { start: 100 * SECOND, step: SECOND, steps: 3 };
        let answers = Matrix::read(200, body).unwrap().answers(window);
        let sampled =
            |step: usize| answers[step].instances.get("a").and_then(|by_job| by_job.of("j")).cloned();
        let of = |sum, stamp| Some(Sampled { sum: Some(Ok(sum)), age: Some(0.5), stamp: Some(stamp) });
        assert_eq!([sampled(0), sampled(1), sampled(2)], [of(10.0, 99.5), None, of(30.0, 101.5)]);
    }

    #[test]
    fn refusals_are_told() {
        let bad = br#"{"status":"error","errorType":"bad_data","error":"exceeded maximum resolution"}"#;
        assert_eq!(Matrix::read(400, bad).unwrap_err(), "HTTP 400: exceeded maximum resolution");
        assert_eq!(Matrix::read(502, b"<html>").unwrap_err(), "HTTP 502");
        let vector = br#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
        assert_eq!(Matrix::read(200, vector).unwrap_err(), "the query yields a vector, not series over time");
    }
}
