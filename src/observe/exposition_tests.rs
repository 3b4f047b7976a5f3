//! The parser against pages of real servers and against pages no server should send.

use super::*;

const VLLM: &[u8] = include_bytes!("../../tests/captures/vllm-0.32.0-under-load.prom");
const PREEMPTING: &[u8] = include_bytes!("../../tests/captures/vllm-0.32.0-preempting.prom");
const LLAMA: &[u8] = include_bytes!("../../tests/captures/llamacpp-under-load.prom");
const PROMETHEUS: &[u8] = include_bytes!("../../tests/captures/prometheus-2.42-self.prom");

fn read(page: &[u8], format: Format) -> Result<Vec<Sample<'_>>, SyntaxError> {
    Samples::new(page, format)?.collect()
}

fn value(page: &[u8], name: &str, label: (&str, &str)) -> f64 {
    let samples = read(page, Format::Text).unwrap();
    let found: Vec<f64> = samples
        .iter()
        .filter(|sample| sample.name == name && sample.labels.get(label.0).as_deref() == Some(label.1))
        .map(|sample| sample.value)
        .collect();
    assert_eq!(found.len(), 1, "{name} {label:?}");
    found[0]
}

fn error(page: &str) -> String {
    read(page.as_bytes(), Format::Text).unwrap_err().to_string()
}

#[test]
fn real_pages_are_read_to_the_last_sample() {
    for (page, count) in [(VLLM, 430), (PREEMPTING, 415), (LLAMA, 15), (PROMETHEUS, 450)] {
        assert_eq!(read(page, Format::Text).unwrap().len(), count);
    }
}

#[test]
fn values_of_real_pages() {
    let engine = ("engine", "0");
    assert_eq!(value(VLLM, "vllm:num_requests_running", engine), 8.0);
    assert_eq!(value(PREEMPTING, "vllm:num_requests_waiting", engine), 18.0);
    assert_eq!(value(PREEMPTING, "vllm:generation_tokens_total", engine), 5259.0);
    assert_eq!(value(VLLM, "vllm:prompt_tokens_by_source_total", ("source", "local_compute")), 135.0);
    let ready = ("handler", "/-/ready");
    assert_eq!(value(PROMETHEUS, "prometheus_http_request_duration_seconds_count", ready), 2.0);
    let samples = read(PROMETHEUS, Format::Text).unwrap();
    assert!(samples.iter().filter(|sample| sample.value.is_nan()).count() >= 3);
    let inf = samples.iter().find(|sample| sample.labels.get("le").as_deref() == Some("+Inf"));
    assert!(inf.is_some());
}

#[test]
fn every_form_of_a_sample() {
    let page = "\
# HELP up Is it up?\n# TYPE up gauge\n\nup 1\nup{} +Inf\n  a:b { x = \"1\" , y=\"q\\\"\\\\\\n}\" , } -Inf 1500\n\
nan NaN\nexp 1.5e+06\t-2000\n# EOF\nafter 3\n";
    let samples = read(page.as_bytes(), Format::Text).unwrap();
    let names: Vec<&str> = samples.iter().map(|sample| sample.name).collect();
    assert_eq!(names, ["up", "up", "a:b", "nan", "exp", "after"]);
    let labels: Vec<(&str, String)> =
        samples[2].labels.iter().map(|(name, value)| (name, value.into_owned())).collect();
    assert_eq!(labels, [("x", "1".to_owned()), ("y", "q\"\\\n}".to_owned())]);
    assert_eq!((samples[2].value, samples[2].timestamp), (f64::NEG_INFINITY, Some(1.5)));
    assert_eq!((samples[4].value, samples[4].timestamp), (1.5e6, Some(-2.0)));
    assert!(samples[3].value.is_nan());
}

#[test]
fn openmetrics_has_seconds_exemplars_and_an_end() {
    let page = "a_total 1 1520879607.789 # {trace_id=\"KOO\"} 0.67\n# EOF\n";
    let samples = read(page.as_bytes(), Format::OpenMetrics).unwrap();
    assert_eq!(samples[0].timestamp, Some(1_520_879_607.789));
    let cut = read(b"a_total 1\n", Format::OpenMetrics).unwrap_err();
    assert_eq!(cut.to_string(), "line 1, column 1: the page ends without `# EOF`: it was cut off");
    let after = read(b"a 1\n# EOF\nb 2\n", Format::OpenMetrics).unwrap_err();
    assert_eq!(after.to_string(), "line 3, column 1: nothing may follow `# EOF`");
    let kind = Some("application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert_eq!(Format::of_content_type(kind), Format::OpenMetrics);
    assert_eq!(Format::of_content_type(Some("text/plain; version=0.0.4")), Format::Text);
}

#[test]
fn mistakes_are_named_with_their_place() {
    assert_eq!(error("up 1\nup 1"), "line 2, column 5: the page ends inside a line: it was cut off");
    assert_eq!(error("up one\n"), "line 1, column 4: expected a value, found `one`");
    assert_eq!(error("up\n"), "line 1, column 3: expected a value");
    assert_eq!(error("up 1 2 3\n"), "line 1, column 8: expected the end of the line");
    assert_eq!(error("9up 1\n"), "line 1, column 1: expected a metric name");
    assert_eq!(error("up{a:b=\"c\"} 1\n"), "line 1, column 5: expected `=` after a label name");
    assert_eq!(error("up{a=c} 1\n"), "line 1, column 6: expected `\"` before a label value");
    assert_eq!(error("up{a=\"c} 1\n"), "line 1, column 6: the label value has no closing `\"`");
    assert_eq!(error("up{a=\"\\q\"} 1\n"), "line 1, column 8: unknown escape; known are \\\\, \\\" and \\n");
    assert_eq!(error("up{a=\"1\" b=\"2\"} 1\n"), "line 1, column 10: expected `,` or `}` after a label");
    assert_eq!(error("up 1\r\n"), "line 1, column 4: expected a value, found `1\r`");
    assert_eq!(error("ok 1\n<html>\n"), "line 2, column 1: expected a metric name");
    let bytes = read(b"up 1\na{b=\"\xff\"} 1\n", Format::Text).unwrap_err();
    assert_eq!(bytes.to_string(), "line 2, column 6: not UTF-8");
}

#[test]
fn pages_samples_and_labels_are_bounded() {
    let many = "a 1\n".repeat(PAGE_SAMPLES_MAX + 1);
    assert!(error(&many).contains("more than 50000 samples"), "{}", error(&many));
    assert!(read("a 1\n".repeat(PAGE_SAMPLES_MAX).as_bytes(), Format::Text).is_ok());
    let wide = format!("a{{{}}} 1\n", "l=\"1\",".repeat(LABELS_MAX + 1));
    assert!(error(&wide).contains("more than 64 labels"));
    let large = vec![b'#'; PAGE_BYTES_MAX + 1];
    assert!(Samples::new(&large, Format::Text).is_err());
}

#[test]
fn every_prefix_of_a_page_ends_without_panic() {
    for end in 0..LLAMA.len() {
        let _ = read(&LLAMA[..end], Format::Text);
    }
    // After an error nothing more comes.
    let mut samples = Samples::new(b"x\ny 1\n", Format::Text).unwrap();
    assert!(samples.next().unwrap().is_err());
    assert!(samples.next().is_none());
}
