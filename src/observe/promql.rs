//! Instant queries without their I/O: which query to ask for a signal.
//!
//! Alternatives are joined per replica (`or on (instance)`): during a rolling upgrade half of a
//! fleet has the new name and half the old, and asking for one name at a time would lose half of
//! it. A counter's value and the time of its sample come from one query, because two queries may
//! see two scrapes, and a 1 s scrape seen every 2 s would give rates that are wrong by half.

use crate::observe::select::Signal;

/// Tells a value from its time inside one answer.
pub const PART: &str = "tidegate_part";

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
}
