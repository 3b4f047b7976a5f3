//! What a file says of all its models: how limits are counted, in which time zone days begin, and
//! from which recharge on an account has a tier.

use std::collections::BTreeMap;

use jiff::tz::TimeZoneDatabase;

use crate::policy::answers::answers;
use crate::policy::diagnostic::Placed;
use crate::policy::jobs;
use crate::policy::money;
use crate::policy::pool::{accept, unknown};
use crate::policy::report::{Report, nearest};
use crate::policy::shape::{PolicyFile, Text};
use crate::policy::value;
use crate::unit::TierId;
use crate::wire::{CachedInput, Pinned, Product, Span, Streams, Window};

const WINDOWS: [(&str, Window); 2] = [("rolling", Window::Rolling), ("minute", Window::Minute)];
const SPANS: [(&str, Span); 2] = [("model", Span::Model), ("product", Span::Product)];
const CACHED: [(&str, CachedInput); 2] = [("counted", CachedInput::Counted), ("free", CachedInput::Free)];
const PINNED: [(&str, Pinned); 3] =
    [("nothing", Pinned::Nothing), ("keys", Pinned::Keys), ("accounts", Pinned::Accounts)];
const STREAMS: [(&str, Streams); 2] =
    [("finish", Streams::Finish), ("end_past_budget", Streams::EndPastBudget)];

/// What is wrong is in the report; the default stands in for it.
pub fn product(file: &PolicyFile, report: &mut Report) -> Product {
    let defaults = Product::default();
    Product {
        window: word(&file.window, "window", &WINDOWS, report).unwrap_or(defaults.window),
        span: word(&file.span, "span", &SPANS, report).unwrap_or(defaults.span),
        cached_input: word(&file.cached_input, "way to count cached input", &CACHED, report)
            .unwrap_or(defaults.cached_input),
        pinned: word(&file.pinned, "word for `pinned`", &PINNED, report).unwrap_or(defaults.pinned),
        streams: word(&file.streams, "word for `streams`", &STREAMS, report).unwrap_or(defaults.streams),
        zone: file.time_zone.as_ref().and_then(|zone| self::zone(zone, report)).unwrap_or(defaults.zone),
        recharge: recharge(file, report),
        jobs: jobs::jobs(file, report),
        answers: answers(&file.answers, report),
    }
}

/// One of the words that a field knows.
pub fn word<T: Copy>(text: &Option<Text>, noun: &str, words: &[(&str, T)], report: &mut Report) -> Option<T> {
    let text = text.as_ref()?;
    let found = words.iter().find(|(word, _)| *word == text.value).map(|(_, value)| *value);
    if found.is_none() {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        unknown(text, noun, &names, report);
    }
    found
}

/// A name of the IANA database, as it is written there.
fn zone(text: &Text, report: &mut Report) -> Option<String> {
    let database = TimeZoneDatabase::bundled();
    if database.available().any(|name| name.as_str() == text.value) {
        return Some(text.value.clone());
    }
    let names: Vec<String> = database.available().map(|name| name.as_str().to_owned()).collect();
    let help = match nearest(&text.value, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            "write a name of the IANA database, as in `America/New_York`; without one days begin in `UTC`"
                .to_owned()
        }
    };
    report.error(&text.place, format!("there is no time zone `{}`", text.value), help);
    None
}

/// Cumulative recharge, micro-dollars, from which on an account has a tier.
fn recharge(file: &PolicyFile, report: &mut Report) -> BTreeMap<TierId, u64> {
    let mut from: Vec<(Placed<u64>, &str, Option<u64>)> = Vec::new();
    for (name, tier) in &file.tiers {
        let Some(text) = &tier.recharge else { continue };
        let Some(value) = accept(text, money::amount(&text.value), report) else { continue };
        let priority = tier.priority.as_ref().and_then(|text| value::integer(&text.value).ok());
        from.push((Placed { value, place: text.place.clone() }, &name.value, priority));
    }
    for (at, (amount, name, priority)) in from.iter().enumerate() {
        for (other, before, served) in from.iter().take(at) {
            let also = (&other.place, "the other tier's");
            if amount.value == other.value {
                let message = format!("tiers `{before}` and `{name}` have the same `recharge`");
                let help = "an account has one tier: give each an amount of its own";
                report.error_and(&amount.place, also, message, help);
                continue;
            }
            let ((more, above), (_, below)) = match amount.value > other.value {
                true => ((name, priority), (before, served)),
                false => ((before, served), (name, priority)),
            };
            // A smaller number is served first.
            if above.zip(*below).is_some_and(|(above, below)| above > below) {
                let message = format!("tier `{more}` needs the higher `recharge` and gives way to the other");
                let help = "who has paid more is served no later: exchange the amounts, or the priorities";
                report.error_and(&amount.place, also, message, help);
            }
        }
    }
    from.into_iter().map(|(amount, name, _)| (TierId::new(name), amount.value)).collect()
}
