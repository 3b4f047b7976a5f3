//! Reading a scrape of which 1 % is wanted, beside a strict reading of all of it and another reader.
//!
//! `cargo bench --bench parse`. The page is a real one of vLLM, its families repeated under names
//! that nobody asks for until it has as many samples as a page may have; one sample in a hundred is
//! of a wanted name. Underscores stand for the colons of other names: the other reader
//! (`prometheus-parse`) drops every line with one. The time to find all line feeds, and to know that
//! all is UTF-8, is the bound of whoever looks at every line. Exits with 1 below 1 GB/s, or where a
//! damaged page is not refused with the strict reader's own words.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use tidegate::bounds::{PAGE_BYTES_MAX, PAGE_SAMPLES_MAX};
use tidegate::observe::Outcome;
use tidegate::observe::exposition::{Format, Samples};
use tidegate::observe::select::Selectors;
use tidegate::policy::SignalMap;

const CAPTURE: &str = include_str!("../tests/captures/vllm-0.32.0-under-load.prom");
/// One wanted sample in so many.
const PART: usize = 100;
const ROUNDS: usize = 40;
const RATE_MIN: f64 = 1e9;

fn map() -> SignalMap {
    let one = |text: &str| vec![text.to_owned()];
    SignalMap {
        running: one("vllm:num_requests_running"),
        waiting: one("vllm:num_requests_waiting"),
        work_done: one("vllm:prompt_tokens_total"),
        work_done_output: one("vllm:generation_tokens_total"),
        ..SignalMap::default()
    }
}

fn page() -> String {
    let mut page = String::new();
    let (mut samples, mut wanted, mut copy) = (0, 0, 0);
    'page: loop {
        for line in CAPTURE.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                page.push_str(&format!("# {}\n", comment.replacen("vllm:", &format!("other{copy}_"), 1)));
                continue;
            }
            if samples >= PAGE_SAMPLES_MAX || page.len() + 200 > PAGE_BYTES_MAX {
                break 'page;
            }
            page.push_str(&format!(
                "{}\n",
                line.replacen(':', &format!("_other{copy}_"), 1).replacen(
                    "python_",
                    &format!("python{copy}_"),
                    1
                )
            ));
            samples += 1;
            if samples % PART == 0 && samples < PAGE_SAMPLES_MAX {
                let name = ["running", "waiting"][wanted % 2];
                page.push_str(&format!(
                    "vllm:num_requests_{name}{{engine=\"{wanted}\",model_name=\"m\"}} {copy}\n"
                ));
                samples += 1;
                wanted += 1;
            }
        }
        copy += 1;
    }
    page
}

/// GB/s: median, lowest and highest of several rounds of as many readings as take a while.
fn rate(page: &str, what: &str, mut read: impl FnMut(&[u8])) -> f64 {
    let times = (8 << 20) / page.len() + 1;
    let mut rates: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            (0..times).for_each(|_| read(black_box(page.as_bytes())));
            (page.len() * times) as f64 / begun.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let at = |part: usize| rates.get((rates.len() - 1) * part / 100).copied().unwrap_or_default();
    println!("  {what:<34} {:>7.3} GB/s, p10 {:.3}, p90 {:.3}", at(50) / 1e9, at(10) / 1e9, at(90) / 1e9);
    at(50)
}

fn measure(what: &str, page: &str) -> f64 {
    let selectors = Selectors::new(&map()).unwrap();
    let strict = |bytes: &[u8]| Samples::new(bytes, Format::Text).unwrap().map(Result::unwrap).count();
    let samples = strict(page.as_bytes());
    println!("{what}: {} KB, {} lines, {samples} samples", page.len() / 1_000, page.lines().count());
    assert!(matches!(selectors.apply(page.as_bytes(), Format::Text), Outcome::Up(_)));
    rate(page, "its line feeds found", |bytes| {
        black_box(memchr::memchr_iter(b'\n', bytes).count());
    });
    rate(page, "known to be UTF-8", |bytes| {
        black_box(std::str::from_utf8(bytes).unwrap());
    });
    let ours = rate(page, "what is wanted, all checked", |bytes| {
        black_box(selectors.apply(bytes, Format::Text));
    });
    let all = rate(page, "all of it, strictly", |bytes| {
        black_box(strict(bytes));
    });
    let mut theirs_found = 0;
    let theirs = rate(page, "prometheus-parse", |bytes| {
        let lines = std::str::from_utf8(bytes).unwrap().lines().map(|line| Ok(line.to_owned()));
        theirs_found = prometheus_parse::Scrape::parse(lines).unwrap().samples.len();
    });
    println!(
        "  ratios: {:.1} to all of it, {:.0} to prometheus-parse, which gives {theirs_found} samples",
        ours / all,
        ours / theirs
    );
    ours
}

/// Bytes of a page spoilt one at a time: both say the same.
fn refuses_alike(page: &str) -> usize {
    let selectors = Selectors::new(&map()).unwrap();
    let mut refused = 0;
    let page: String = page.split_inclusive('\n').take(400).collect();
    for at in 0..page.len() {
        let mut bytes = page.clone().into_bytes();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = b"\"{\\ ,\n"[at % 6];
        }
        let strict = Samples::new(&bytes, Format::Text).unwrap().find_map(Result::err);
        let ours = selectors.apply(&bytes, Format::Text);
        if let Some(error) = strict {
            assert_eq!(ours, Outcome::Silent(error.to_string()));
            refused += 1;
        }
    }
    refused
}

fn main() -> ExitCode {
    let page = page();
    let ours = measure("one sample in a hundred is wanted", &page);
    measure("a server's own page", CAPTURE);
    println!("of a page spoilt a byte at a time, {} are refused in the same words", refuses_alike(&page));
    if ours < RATE_MIN {
        println!("below 1 GB/s");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
