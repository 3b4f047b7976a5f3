//! `happens`: what changes during a trial, and when.

use crate::policy::diagnostic::Placed;
use crate::policy::fields::{Fields, Text};
use crate::policy::file::Kind;
use crate::policy::value;
use crate::sim::page::Untrue;
use crate::sim::trial::file::{accept, duration, inside, number, one_of};
use crate::sim::trial::{Happening, Trial};

const FIELDS: &[&str] = &[
    "at",
    "from",
    "to",
    "every",
    "replicas",
    "become",
    "part",
    "pages",
    "show",
    "tier",
    "key",
    "times",
    "output_times",
    "controller",
];
const HELP: &str = "write `replicas` and `become`, `pages` and `show`, `tier` and `times`, \
                    `output_times`, or `controller`";
/// Most changes that one entry stands for.
const CHANGES_MAX: usize = 10_000;

#[derive(Clone, Copy)]
enum State {
    Dead,
    Well,
    Slow,
    Flapping,
}

const STATES: [(&str, State); 4] =
    [("dead", State::Dead), ("well", State::Well), ("slow", State::Slow), ("flapping", State::Flapping)];
const SHOWN: [(&str, Option<Untrue>); 3] =
    [("silence", Some(Untrue::Silent)), ("frozen", Some(Untrue::Frozen)), ("truth", None)];

/// Takes `happens` into the trial.
pub(super) fn take(fields: &mut Fields<'_>, trial: &mut Trial) {
    let Some((name, node)) = fields.take("happens") else { return };
    let Kind::List(entries) = node.kind else {
        let help = "write a list: `- {at: 300s, replicas: [2, 3], become: dead}`";
        fields.report.error(&name.place, "`happens` is not a list", help);
        return;
    };
    let mut all = Vec::new();
    for entry in entries {
        let place = entry.place.clone();
        let what = "what happens".to_owned();
        if let Some(found) = inside(entry, what, place, FIELDS, fields.report, |fields| event(fields, trial))
        {
            all.extend(found);
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    trial.happenings = all;
}

fn event(fields: &mut Fields<'_>, trial: &Trial) -> Option<Vec<(f64, Happening)>> {
    let seconds = |fields: &mut Fields<'_>, field| duration(fields, field).map(|time| time.as_secs_f64());
    let (at, from, to) = (seconds(fields, "at"), seconds(fields, "from"), seconds(fields, "to"));
    let every = seconds(fields, "every");
    if let Some(replicas) = indices(fields, "replicas", trial) {
        return state(fields, replicas, at, from.zip(to).zip(every));
    }
    let what = if let Some(replicas) = indices(fields, "pages", trial) {
        let show = fields.required_text("show", "write `silence`, `frozen` or `truth`")?;
        Happening::Show { replicas, untrue: one_of(&show, "page", &SHOWN, fields.report)? }
    } else if let Some(tier) = fields.text("tier") {
        flood(fields, &tier, trial)?
    } else if fields.has("output_times") {
        Happening::Output { times: number(fields, "output_times", [0.01, 100.0])? }
    } else if let Some(state) = fields.text("controller") {
        Happening::Controller {
            up: one_of(&state, "state", &[("down", false), ("up", true)], fields.report)?,
        }
    } else {
        fields.complain("nothing happens at this time", HELP);
        return None;
    };
    when(fields, at).map(|at| vec![(at, what)])
}

fn when(fields: &mut Fields<'_>, at: Option<f64>) -> Option<f64> {
    if at.is_none() {
        fields.missing("at", "write when: `at: 300s`");
    }
    at
}

fn state(
    fields: &mut Fields<'_>,
    replicas: Vec<usize>,
    at: Option<f64>,
    span: Option<((f64, f64), f64)>,
) -> Option<Vec<(f64, Happening)>> {
    let word = fields.required_text("become", "write `dead`, `well`, `slow` or `flapping`")?;
    let part = number(fields, "part", [0.01, 1.0]);
    let what = match one_of(&word, "state", &STATES, fields.report)? {
        State::Dead => vec![Happening::Die { replicas }],
        State::Well => {
            vec![Happening::Revive { replicas: replicas.clone() }, Happening::Slow { replicas, part: 1.0 }]
        }
        State::Slow => {
            if part.is_none() {
                fields.missing("part", "write how much is left: `part: 0.7`");
            }
            vec![Happening::Slow { replicas, part: part? }]
        }
        State::Flapping => {
            let Some(((from, to), every)) = span else {
                fields.complain(
                    "a flapping replica needs `from`, `to` and `every`",
                    "write when, and how often",
                );
                return None;
            };
            let turns = (((to - from) / every) as usize).min(CHANGES_MAX);
            let turn = |turn: usize| {
                let replicas = replicas.clone();
                let dies = turn.is_multiple_of(2) && turn < turns;
                let what = if dies { Happening::Die { replicas } } else { Happening::Revive { replicas } };
                (from + turn as f64 * every, what)
            };
            return Some((0..=turns).map(turn).collect());
        }
    };
    when(fields, at).map(|at| what.into_iter().map(|what| (at, what)).collect())
}

fn flood(fields: &mut Fields<'_>, tier: &Text, trial: &Trial) -> Option<Happening> {
    let tiers: Vec<(&str, usize)> =
        trial.tiers.iter().enumerate().map(|(at, tier)| (tier.name.as_str(), at)).collect();
    let found = one_of(tier, "tier", &tiers, fields.report)?;
    let key = number(fields, "key", [0.0, 1e6]).map(|key| key as u32);
    if !fields.has("times") {
        fields.missing("times", "write how many times as often it asks: `times: 6`");
    }
    Some(Happening::Flood { tier: found, key, times: number(fields, "times", [0.0, 1e4])? })
}

/// Replicas by number, from 0.
fn indices(fields: &mut Fields<'_>, field: &str, trial: &Trial) -> Option<Vec<usize>> {
    let Placed { value: texts, .. } = fields.texts(field)?;
    let index = |text: &Text| {
        let number = accept(text, value::integer(&text.value), fields.report)?;
        let index = usize::try_from(number).ok().filter(|index| *index < trial.replicas);
        if index.is_none() {
            let help = format!("there are {}, from 0", trial.replicas);
            fields.report.error(&text.place, format!("there is no replica `{}`", text.value), help);
        }
        index
    };
    Some(texts.iter().filter_map(index).collect())
}
