//! What a reader looks at before it reads the rest of a table or a report: whether a version later
//! than its own wrote something that it has to understand.
//!
//! Fields that a reader does not know are ignored, so a later version adds what may be ignored as a
//! field, and what may not by naming it under `requires` too. Another `schema` changes the meaning
//! of what is there.

use serde::Deserialize;

use crate::wire::table::{SCHEMA, TableError};

/// Features that may be required of a reader: this version knows none beyond its schema.
const FEATURES: &[&str] = &[];
/// Most characters shown of a feature that is not known.
const NAME_SHOWN: usize = 64;

#[derive(Debug, Deserialize)]
pub struct Head {
    schema: u32,
    #[serde(default)]
    requires: Vec<String>,
}

// === impl Head ===

impl Head {
    /// # Errors
    /// It is not JSON, or has no head.
    pub fn read(bytes: &[u8]) -> Result<Head, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// # Errors
    /// Names the schema, or the first feature, that this version does not know.
    pub fn check(&self) -> Result<(), TableError> {
        if self.schema != SCHEMA {
            return Err(TableError::Schema(self.schema));
        }
        match self.requires.iter().find(|feature| !FEATURES.contains(&feature.as_str())) {
            Some(feature) => {
                let shown = feature.chars().filter(|c| !c.is_control()).take(NAME_SHOWN).collect();
                Err(TableError::Requires(shown))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::wire::{LimitTable, TableError, UsageReport};

    const TABLE: &str = r#"{"schema":1,"epoch":1,"version":2,"tick":3,"policy":"00","interval_ms":2000,
        "valid_for_ms":20000,"pools":{"p":{"unit":"tokens","output_cost_milli":1000,"budget":5,
        "waiting_work":5,"in_flight":5,"degraded":false,"shares":{"n":1000},"unlisted_share":0}},
        "rows":[{"model":"m","tier":"t","pool":"p","yields":{"waiting":0,"in_flight":0},
        "limits":{"tokens_per_minute":{"tier_limit":5,"key_limit":5,"safe":5,"ceiling":5}}}]}"#;
    const REPORT: &str = r#"{"schema":1,"node":"n","instance":7,"uptime_ms":5,"applied":null,
        "rows":[{"model":"m","tier":"t","offered":{"requests":1,"work":2},"admitted":{"requests":1,"work":2},
        "refused_limit":{"requests":0,"work":0},"refused_capacity":{"requests":0,"work":0}}],
        "pools":{"p":{"in_flight":0,"waiting_work":0,"upstream_requests":1,"upstream_errors":0}}}"#;

    /// A field that nobody knows, at the front of every mapping that has fields.
    fn later(text: &str) -> String {
        let fields = [
            "\"schema\"",
            "\"unit\"",
            "\"model\"",
            "\"tier_limit\"",
            "\"waiting\"",
            "\"node\"",
            "\"requests\"",
            "\"in_flight\":0,\"waiting_work\"",
        ];
        fields.iter().fold(text.to_owned(), |text, field| {
            text.replace(&format!("{{{field}"), &format!("{{\"later\":{{\"a\":[1,null]}},{field}"))
        })
    }

    #[test]
    fn d14_a_later_versions_optional_fields_are_ignored_at_every_level() {
        assert!(later(TABLE).matches("later").count() >= 5 && later(REPORT).matches("later").count() >= 4);
        let table = LimitTable::decode(TABLE.as_bytes()).unwrap();
        assert_eq!(LimitTable::decode(later(TABLE).as_bytes()).unwrap(), table);
        let report = UsageReport::decode(REPORT.as_bytes()).unwrap();
        assert_eq!(UsageReport::decode(later(REPORT).as_bytes()).unwrap(), report);
    }

    #[test]
    fn d14_what_a_later_version_requires_is_refused_by_its_name() {
        let requiring = |text: &str| text.replacen("{", r#"{"requires":["spend"],"#, 1);
        let error = LimitTable::decode(requiring(TABLE).as_bytes()).unwrap_err();
        assert_eq!(error, TableError::Requires("spend".to_owned()));
        let error = UsageReport::decode(requiring(REPORT).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("requires `spend`"), "{error}");
        // A schema of another shape is named as such, whatever the rest looks like.
        for bytes in [&br#"{"schema":2,"rows":"none"}"#[..], br#"{"rows":{},"schema":2}"#] {
            assert_eq!(LimitTable::decode(bytes), Err(TableError::Schema(2)));
            assert!(UsageReport::decode(bytes).unwrap_err().to_string().contains("schema 2"));
        }
        let empty = TABLE.replacen("{", r#"{"requires":[],"#, 1);
        assert!(LimitTable::decode(empty.as_bytes()).is_ok());
    }

    #[test]
    fn d14_a_field_that_an_earlier_version_did_not_write_is_named() {
        let error = LimitTable::decode(TABLE.replace("\"degraded\":false,", "").as_bytes()).unwrap_err();
        assert!(error.to_string().contains("missing field `degraded`"), "{error}");
    }
}
