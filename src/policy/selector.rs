//! Metric selectors: `name{label="value", ..}`, the form that pages and PromQL share.

/// `name{label="value", ..}`, the form that both sources read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub name: String,
    /// What stands in the braces, trimmed; empty without braces.
    pub matchers: String,
}

/// Adds `matchers` to a plain selector; any other expression says for itself what it means.
pub fn narrow(expression: &str, matchers: &str) -> String {
    match Selector::parse(expression) {
        Some(selector) if !matchers.is_empty() => {
            let comma = if selector.matchers.is_empty() { "" } else { "," };
            format!("{}{{{}{comma}{matchers}}}", selector.name, selector.matchers)
        }
        _ => expression.to_owned(),
    }
}

/// Splits `a="x",b=~"y"` into label, operator and quoted value. `None`: it is not that.
pub fn matchers(text: &str) -> Option<Vec<(&str, &str, &str)>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (label, after) = rest.split_at(rest.find(|c: char| !is_label(c)).unwrap_or(rest.len()));
        if label.is_empty() || label.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let after = after.trim_start();
        let operator = ["=~", "!~", "!=", "="].into_iter().find(|operator| after.starts_with(operator))?;
        let quoted = after.strip_prefix(operator)?.trim_start().strip_prefix('"')?;
        let end = closing_quote(quoted)?;
        found.push((label, operator, quoted.get(..end)?));
        let after = quoted.get(end + 1..)?.trim_start();
        match after.strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None if after.is_empty() => rest = after,
            None => return None,
        }
    }
    Some(found)
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn is_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

// === impl Selector ===

impl Selector {
    pub fn parse(text: &str) -> Option<Self> {
        let (name, matchers) = match text.split_once('{') {
            Some((name, rest)) => (name.trim_end(), rest.strip_suffix('}')?.trim()),
            None => (text, ""),
        };
        let valid = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| is_label(c) || c == ':');
        let matchers = matchers.strip_suffix(',').unwrap_or(matchers);
        (valid && self::matchers(matchers).is_some())
            .then(|| Self { name: name.to_owned(), matchers: matchers.to_owned() })
    }

    /// Only `=`: what can be looked up on a page without a query language.
    pub fn is_exact(&self) -> bool {
        matchers(&self.matchers).is_some_and(|all| all.iter().all(|(_, operator, _)| *operator == "="))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_merged_into_labels_and_left_out_of_expressions() {
        let job = "job=\"vllm\"";
        assert_eq!(narrow("up", job), "up{job=\"vllm\"}");
        assert_eq!(narrow("a{b=\"c\"}", job), "a{b=\"c\",job=\"vllm\"}");
        assert_eq!(narrow("a{b=\"c\",}", job), "a{b=\"c\",job=\"vllm\"}");
        assert_eq!(narrow("a{}", job), "a{job=\"vllm\"}");
        assert_eq!(narrow("a", ""), "a");
        assert_eq!(narrow("sum by (instance) (a)", job), "sum by (instance) (a)");
        assert_eq!(narrow("a / b", job), "a / b");
    }

    #[test]
    fn matchers_are_what_promql_takes() {
        assert_eq!(matchers("a=\"x\", b=~\"y|z\"").map(|all| all.len()), Some(2));
        assert_eq!(matchers("a=\"x,}\\\"\""), Some(vec![("a", "=", "x,}\\\"")]));
        assert_eq!(matchers(""), Some(Vec::new()));
        for text in
            ["a", "a=x", "a='x'", "a=\"x", "=\"x\"", "1a=\"x\"", "a=\"x\" b=\"y\"", "{a=\"x\"}", "a==\"x\""]
        {
            assert_eq!(matchers(text), None, "{text}");
        }
    }
}
