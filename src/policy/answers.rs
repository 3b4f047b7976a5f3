//! What a product's clients hear wherever a limit is concerned: a dialect by name, or one with
//! parts of it in other words.

use crate::policy::diagnostic::Placed;
use crate::policy::fields::Fields;
use crate::policy::file::{Kind as Shape, Node};
use crate::policy::pool::{accept, unknown, within};
use crate::policy::product::word;
use crate::policy::report::{Report, listed, nearest};
use crate::policy::shape::{Named, Text};
use crate::policy::value;
use crate::unit::Dimension;
use crate::wire::dialect::{
    Answer, Dialect, Fact, Header, Kind, Of, PRESETS, RetryAfter, RetrySent, Round, Sent, Template,
    TemplateError,
};

const STATUS: [u64; 2] = [400, 599];
const STEP: [u64; 2] = [1, 1_000_000];
const ANSWER_FIELDS: [&str; 3] = ["status", "body", "content_type"];
const HEADER_FIELDS: [&str; 5] = ["value", "of", "sent", "round", "step"];
const RETRY_FIELDS: [&str; 3] = ["sent", "milliseconds", "spread"];
const SENT: [(&str, Sent); 3] =
    [("always", Sent::Always), ("success", Sent::Success), ("429", Sent::TooMany)];
const RETRY_SENT: [(&str, RetrySent); 3] =
    [("never", RetrySent::Never), ("429", RetrySent::TooMany), ("refusals", RetrySent::Refusals)];
const ROUND: [(&str, Round); 2] = [("up", Round::Up), ("down", Round::Down)];
const SWITCH: [(&str, bool); 2] = [("true", true), ("false", false)];

/// The dialect that a file's `answers` mean; without it, the default one.
pub fn answers(stated: &Option<Named<Node>>, report: &mut Report) -> Dialect {
    let Some((name, node)) = stated.clone() else { return Dialect::default() };
    let place = node.place.clone();
    match node.kind {
        Shape::Text(value) => preset(&Placed { value, place }, report),
        kind => overridden(&name, Node { kind, place }, report),
    }
}

fn preset(name: &Text, report: &mut Report) -> Dialect {
    Dialect::preset(&name.value).unwrap_or_else(|| {
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        unknown(name, "dialect", &names, report);
        Dialect::default()
    })
}

fn overridden(name: &Text, node: Node, report: &mut Report) -> Dialect {
    let mut known = vec!["preset", "headers", "retry_after"];
    known.extend(Kind::ALL.iter().map(|kind| kind.word()));
    let opened = Fields::open(node, "`answers`".to_owned(), name.place.clone(), &known, report);
    let Some(mut fields) = opened else { return Dialect::default() };
    let base = fields.text("preset");
    let mut dialect = base.map_or_else(Dialect::default, |name| preset(&name, fields.report));
    for kind in Kind::ALL {
        let Some((name, node)) = fields.take(kind.word()) else { continue };
        let before = dialect.answer(*kind).clone();
        if let Some(answer) = answer(*kind, before, &name, node, fields.report) {
            dialect.answers.insert(*kind, answer);
        }
    }
    if let Some((name, node)) = fields.take("headers") {
        dialect.headers = headers(&name, node, fields.report);
    }
    if let Some((name, node)) = fields.take("retry_after") {
        dialect.retry_after = retry_after(dialect.retry_after, &name, node, fields.report);
    }
    fields.close(&known);
    dialect
}

fn answer(kind: Kind, before: Answer, name: &Text, node: Node, report: &mut Report) -> Option<Answer> {
    let what = format!("answer `{}`", kind.word());
    let mut fields = Fields::open(node, what, name.place.clone(), &ANSWER_FIELDS, report)?;
    let (status, body) = (fields.text("status"), fields.text("body"));
    let content_type = fields.text("content_type");
    fields.close(&ANSWER_FIELDS);
    // Each is looked at, whatever is wrong with the others.
    let status = status.map(|text| {
        let help = "an answer that refuses has a status from 400 to 599";
        let number = accept(&text, value::integer(&text.value), report)?;
        u16::try_from(within(&text, number, STATUS, help, report)?).ok()
    });
    let said = body.as_ref().map(|text| template(text, &|fact| kind.knows(fact), report));
    let answer = Answer {
        status: status.unwrap_or(Some(before.status))?,
        body: said.unwrap_or(Some(before.body))?,
        content_type: content_type.as_ref().map_or(before.content_type, |text| text.value.clone()),
    };
    if let Err(reason) = answer.validate(kind) {
        let at = body.or(content_type).unwrap_or_else(|| name.clone());
        let help = "quotes around text, none around numbers: `{\"limit\":{limit},\"until\":\"{until}\"}`";
        report.error(&at.place, reason, help);
        return None;
    }
    Some(answer)
}

/// Instead of the preset's, all of them.
fn headers(name: &Text, node: Node, report: &mut Report) -> Vec<Header> {
    let place = node.place.clone();
    let entries = match node.kind {
        Shape::Map(entries) => entries,
        Shape::Text(text) if text == "none" => return Vec::new(),
        _ => {
            let help = "write `headers: {NAME: \"{remaining}\"}`, or `headers: none`";
            report.error(&place, "`headers` of `answers` is not a mapping", help);
            return Vec::new();
        }
    };
    let headers: Vec<Header> =
        entries.into_iter().filter_map(|(name, node)| header(&name, node, report)).collect();
    let most = crate::bounds::ANSWER_HEADERS_MAX;
    if headers.len() > most {
        let message = format!("`answers` has {} headers", headers.len());
        report.error(&name.place, message, format!("write at most {most}"));
    }
    headers
}

fn header(name: &Text, node: Node, report: &mut Report) -> Option<Header> {
    let mut header = Header {
        name: name.value.clone(),
        of: Of::Tightest,
        value: Template::default(),
        sent: Sent::Always,
        round: Round::Up,
        step: 1,
    };
    let place = node.place.clone();
    if let Shape::Text(value) = node.kind {
        header.value = template(&Placed { value, place }, &Header::knows, report)?;
    } else {
        let what = format!("header `{}`", name.value);
        let mut fields = Fields::open(node, what, name.place.clone(), &HEADER_FIELDS, report)?;
        let value = fields.required_text("value", "write what it shows: `value: \"{remaining}\"`");
        let [of, sent, round, step] = ["of", "sent", "round", "step"].map(|field| fields.text(field));
        fields.close(&HEADER_FIELDS);
        let mut whose = vec![("tightest", Of::Tightest), ("each", Of::Each)];
        whose.extend(Dimension::ALL.map(|dimension| (dimension.short(), Of::Only(dimension))));
        let value = value.and_then(|text| template(&text, &Header::knows, report));
        let of = choice(&of, "of", &whose, header.of, report);
        let sent = choice(&sent, "sent", &SENT, header.sent, report);
        let round = choice(&round, "round", &ROUND, header.round, report);
        let step = step.map_or(Some(header.step), |text| {
            let number = accept(&text, value::integer(&text.value), report)?;
            within(&text, number, STEP, "a step is from 1 to 1000000", report)
        });
        header = Header { value: value?, of: of?, sent: sent?, round: round?, step: step?, ..header };
    }
    if let Err(reason) = header.validate() {
        let help = "Retry-After has its field `retry_after`; values are plain ASCII";
        report.error(&name.place, format!("`{}`: {reason}", name.value), help);
        return None;
    }
    Some(header)
}

fn retry_after(before: RetryAfter, name: &Text, node: Node, report: &mut Report) -> RetryAfter {
    let place = node.place.clone();
    if let Shape::Text(value) = node.kind {
        let sent = choice(&Some(Placed { value, place }), "retry_after", &RETRY_SENT, before.sent, report);
        return RetryAfter { sent: sent.unwrap_or(before.sent), ..before };
    }
    let what = "`retry_after` of `answers`".to_owned();
    let Some(mut fields) = Fields::open(node, what, name.place.clone(), &RETRY_FIELDS, report) else {
        return before;
    };
    let [sent, milliseconds, spread] = RETRY_FIELDS.map(|field| fields.text(field));
    fields.close(&RETRY_FIELDS);
    RetryAfter {
        sent: choice(&sent, "sent", &RETRY_SENT, before.sent, report).unwrap_or(before.sent),
        milliseconds: choice(&milliseconds, "milliseconds", &SWITCH, before.milliseconds, report)
            .unwrap_or(false),
        spread: choice(&spread, "spread", &SWITCH, before.spread, report).unwrap_or(false),
    }
}

/// One of the words that a field knows; `otherwise` where nothing is written.
fn choice<T: Copy>(
    text: &Option<Text>,
    field: &str,
    words: &[(&str, T)],
    otherwise: T,
    report: &mut Report,
) -> Option<T> {
    if text.is_none() { Some(otherwise) } else { word(text, &format!("word for `{field}`"), words, report) }
}

fn template(text: &Text, knows: &dyn Fn(Fact) -> bool, report: &mut Report) -> Option<Template> {
    let words: Vec<&str> = Fact::ALL.iter().filter(|fact| knows(**fact)).map(|fact| fact.word()).collect();
    let parsed = Template::parse(&text.value);
    let stranger = match &parsed {
        Err(TemplateError::Unknown(word)) => Some(word.as_str()),
        Ok(template) => template.facts().find(|fact| !knows(*fact)).map(Fact::word),
        Err(TemplateError::TooLong(_)) => None,
    };
    if let Some(word) = stranger {
        let help = match nearest(word, words.iter().copied()) {
            Some(near) => format!("did you mean `{{{near}}}`?"),
            None if words.is_empty() => "nothing is known here; write the text out".to_owned(),
            None => format!("known here: {}", listed(&words)),
        };
        report.error(&text.place, format!("there is no `{{{word}}}` here"), help);
        return None;
    }
    parsed.map_err(|error| report.error(&text.place, error.to_string(), "write a shorter one")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load::load_bytes;

    fn dialect(answers: &str) -> Dialect {
        let text = format!(
            "product: p\n{answers}\npools: {{a: {{targets: [http://h/metrics], preset: vllm, slo: 1s}}}}\n\
             models: {{m: {{pool: a}}}}\ntiers:\n  t: {{priority: 1, weight: 1, guarantee: 0 tpm, ceiling: \
             unlimited, key_limits: unlimited}}\n"
        );
        let loaded = load_bytes(vec![("p.yaml".to_owned(), text.into_bytes())]).unwrap();
        loaded.policy.products["p"].answers.clone()
    }

    #[test]
    fn a_file_names_a_dialect_or_changes_parts_of_one() {
        assert_eq!(dialect(""), Dialect::default());
        for preset in PRESETS {
            let named = Dialect::preset(preset.name).unwrap();
            assert_eq!(dialect(&format!("answers: {}", preset.name)), named);
            assert_eq!(dialect(&format!("answers: {{preset: {}}}", preset.name)), named);
        }
        let media = Dialect::preset("media").unwrap();
        let own = dialect(
            "answers:\n  preset: media\n  rate: {status: 420, body: 'no more {dimension_text}', content_type: \
             text/plain}\n  capacity: {status: 503}\n  headers:\n    X-Left: '{remaining}'\n    X-Reset: \
             {value: '{reset_unix}', of: rpm, sent: success, round: down, step: 10}\n  retry_after: {sent: \
             refusals, milliseconds: true, spread: false}\n",
        );
        assert_eq!(own.answer(Kind::Rate).status, 420);
        assert_eq!(own.answer(Kind::Rate).body.to_string(), "no more {dimension_text}");
        assert_eq!(own.answer(Kind::Rate).content_type, "text/plain");
        assert_eq!(own.answer(Kind::Capacity).status, 503);
        assert_eq!(own.answer(Kind::Capacity).body, media.answer(Kind::Capacity).body);
        assert_eq!(own.answer(Kind::Jobs), media.answer(Kind::Jobs));
        let [left, reset] = &own.headers[..] else { panic!("{:?}", own.headers) };
        assert_eq!((left.name.as_str(), left.of, left.sent), ("X-Left", Of::Tightest, Sent::Always));
        let rpm = Of::Only(Dimension::RequestsPerMinute);
        assert_eq!((reset.of, reset.sent, reset.round, reset.step), (rpm, Sent::Success, Round::Down, 10));
        let sent = RetryAfter { sent: RetrySent::Refusals, milliseconds: true, spread: false };
        assert_eq!(own.retry_after, sent);
        assert_eq!(dialect("answers: {headers: none, retry_after: never}").headers, []);
    }
}
