//! What a request body asks for, as far as limits care: model, estimated input, bound on output.
//!
//! The body itself is passed on byte for byte; fields that decide are read strictly (a field
//! twice, or in other capitals, is an error, since an upstream might read the other one).

use crate::bounds::CHOICES_MAX;
use crate::bounds::JSON_DEPTH_MAX;
use crate::bounds::JSON_NAMES_MAX;
use crate::bounds::OUTPUT_MAX;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

const BYTES_PER_TOKEN: u64 = 4;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// As the body names it.
    pub model: Option<String>,
    pub input_tokens: u64,
    pub output_max: Option<u64>,
    pub images: u64,
    pub streamed: bool,
    /// The body has no `stream_options`, so that one may be added.
    pub options_free: bool,
}

#[derive(serde::Deserialize)]
struct Body {
    model: Option<Value>,
    messages: Option<Text>,
    prompt: Option<Text>,
    input: Option<Text>,
    system: Option<Text>,
    instructions: Option<Text>,
    max_tokens: Option<Value>,
    max_completion_tokens: Option<Value>,
    max_output_tokens: Option<Value>,
    n: Option<Value>,
    best_of: Option<Value>,
    stream: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    stream_options: bool,
}

/// Bytes of text a model would read, counted without building anything: a body of numbers or of
/// names would be many times its size in memory.
struct Text(u64);

/// The name of a field whose value is not text, such as pictures and sound inside messages.
struct Media(bool);

struct Count;

/// Fields that decide. Some upstreams take them in any capitals, the last one winning.
const DECIDING: [&str; 8] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
];

/// An object none of whose fields is one of [`DECIDING`] in disguise.
struct Plain;

struct PlainName;

// === impl Ask ===

impl Ask {
    /// Of a body that need not be JSON; then only its length is known.
    pub fn opaque(bytes: usize) -> Ask {
        let input_tokens = tokens(bytes as u64);
        Ask { input_tokens, images: 1, ..Ask::default() }
    }

    /// Of a request that has no body and changes nothing: it counts as a request, and as no work.
    pub fn reading() -> Ask {
        Ask { output_max: Some(0), ..Ask::default() }
    }

    /// Of a JSON object.
    ///
    /// # Errors
    /// What is wrong with which field, for the client.
    pub fn parse(bytes: &[u8]) -> Result<Ask, String> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| format!("the body is not UTF-8 at byte {}", error.valid_up_to()))?;
        check_shape(text)?;
        let unacceptable = |error| format!("the body is not acceptable JSON: {error}");
        let body: Body = serde_json::from_str(text).map_err(unacceptable)?;
        let Plain = serde_json::from_str(text).map_err(unacceptable)?;
        let model = match body.model {
            None | Some(Value::Null) => None,
            Some(Value::String(model)) => Some(model),
            Some(_) => return Err("`model` must be a string".to_owned()),
        };
        let choices =
            largest(&[("n", &body.n), ("best_of", &body.best_of)], CHOICES_MAX)?.unwrap_or(1).max(1);
        let bounds = [
            ("max_tokens", &body.max_tokens),
            ("max_completion_tokens", &body.max_completion_tokens),
            ("max_output_tokens", &body.max_output_tokens),
        ];
        let output_max = largest(&bounds, OUTPUT_MAX)?.map(|bound| bound.saturating_mul(choices));
        let parts = [&body.messages, &body.prompt, &body.input, &body.system, &body.instructions];
        let text = parts.into_iter().flatten().map(|text| text.0).fold(0, u64::saturating_add);
        let streamed = matches!(body.stream, Some(Value::Bool(true)));
        let options_free = !body.stream_options;
        Ok(Ask { model, input_tokens: tokens(text), output_max, images: choices, streamed, options_free })
    }
}

/// Bounds what nobody here looks into: fields that are passed over are parsed by the upstream.
fn check_shape(text: &str) -> Result<(), String> {
    let (mut depth, mut names) = (0_usize, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b':' => names += 1,
            _ => {}
        }
        if depth > JSON_DEPTH_MAX {
            return Err(format!("the body is nested deeper than {JSON_DEPTH_MAX} levels"));
        }
        if names > JSON_NAMES_MAX {
            return Err(format!("the body has more than {JSON_NAMES_MAX} fields"));
        }
    }
    Ok(())
}

/// The body with `stream_options.include_usage` in front, everything else byte for byte.
pub fn with_usage(body: &Bytes) -> Option<Bytes> {
    const OPTION: &[u8] = br#""stream_options":{"include_usage":true},"#;
    let brace = body.iter().position(|byte| *byte == b'{')?;
    let (before, after) = body.split_at_checked(brace + 1)?;
    Some([before, OPTION, after].concat().into())
}

fn tokens(bytes: u64) -> u64 {
    bytes.div_ceil(BYTES_PER_TOKEN).max(1)
}

/// The largest of the fields that are there.
fn largest(fields: &[(&str, &Option<Value>)], most: u64) -> Result<Option<u64>, String> {
    let mut found: Option<u64> = None;
    for (name, value) in fields {
        let value = match value {
            None | Some(Value::Null) => continue,
            Some(value) => value.as_u64().filter(|value| *value <= most),
        };
        let value = value.ok_or_else(|| format!("`{name}` must be an integer from 0 to {most}"))?;
        found = Some(found.map_or(value, |known| known.max(value)));
    }
    Ok(found)
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

// === impl Text ===

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        deserializer.deserialize_any(Count).map(Text)
    }
}

impl<'de> Visitor<'de> for Count {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E>(self, text: &str) -> Result<u64, E> {
        Ok(text.len() as u64)
    }

    /// Token ids.
    fn visit_u64<E>(self, _: u64) -> Result<u64, E> {
        Ok(BYTES_PER_TOKEN)
    }

    fn visit_i64<E>(self, _: i64) -> Result<u64, E> {
        Ok(BYTES_PER_TOKEN)
    }

    fn visit_f64<E>(self, _: f64) -> Result<u64, E> {
        Ok(BYTES_PER_TOKEN)
    }

    fn visit_bool<E>(self, _: bool) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_unit<E>(self) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<u64, A::Error> {
        let mut bytes = 0_u64;
        while let Some(Text(item)) = items.next_element()? {
            bytes = bytes.saturating_add(item);
        }
        Ok(bytes)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<u64, A::Error> {
        let mut bytes = 0_u64;
        while let Some(Media(media)) = fields.next_key()? {
            match media {
                true => drop(fields.next_value::<IgnoredAny>()?),
                false => bytes = bytes.saturating_add(fields.next_value::<Text>()?.0),
            }
        }
        Ok(bytes)
    }
}

// === impl Media ===

impl<'de> Deserialize<'de> for Media {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Media, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Media;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }
            fn visit_str<E>(self, name: &str) -> Result<Media, E> {
                let media = ["image_url", "input_audio", "source", "file", "role", "type", "image"];
                Ok(Media(media.contains(&name)))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

// === impl Plain ===

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plain, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Plain;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Plain, A::Error> {
                while fields.next_entry::<PlainName, IgnoredAny>()?.is_some() {}
                Ok(Plain)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for PlainName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PlainName, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = PlainName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<PlainName, E> {
                let disguised = |known: &&&str| **known != name && folded(name).eq(known.chars());
                match DECIDING.iter().find(disguised) {
                    Some(known) => Err(E::custom(format!("`{known}` must be written in small letters"))),
                    None => Ok(PlainName),
                }
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// As case-insensitive readers fold names: the long s and the kelvin sign are letters to them.
fn folded(name: &str) -> impl Iterator<Item = char> {
    name.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_request() {
        let ask = Ask::parse(
            br#"{"model":"m","messages":[{"role":"user","content":"12345678"}],"max_tokens":5,"max_completion_tokens":7,"n":2,"stream":true}"#,
        );
        let expected = Ask {
            model: Some("m".to_owned()),
            input_tokens: 2,
            output_max: Some(14),
            images: 2,
            streamed: true,
            options_free: true,
        };
        assert_eq!(ask.unwrap(), expected);
    }

    #[test]
    fn h05_absurd_bounds_are_refused_and_the_largest_counts() {
        for bad in ["-1", "2147483648", "9223372036854775808", "1e18", "\"5\"", "1.5", "[]"] {
            for field in ["max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of"] {
                let error = Ask::parse(format!("{{\"{field}\":{bad}}}").as_bytes()).unwrap_err();
                assert!(error.contains(field), "{error}");
            }
        }
        assert_eq!(Ask::parse(br#"{"max_tokens":null}"#).unwrap().output_max, None);
        assert_eq!(Ask::parse(br#"{"max_tokens":0}"#).unwrap().output_max, Some(0));
        // The largest of all spellings, times the larger count of choices.
        let most = format!(
            r#"{{"max_tokens":1,"max_completion_tokens":{OUTPUT_MAX},"max_output_tokens":0,"n":2,"best_of":{CHOICES_MAX}}}"#
        );
        assert_eq!(Ask::parse(most.as_bytes()).unwrap().output_max, Some(OUTPUT_MAX * CHOICES_MAX));
    }

    #[test]
    fn h12_depth_doubles_and_other_shapes_are_refused() {
        let deep = |field: &str, levels: usize| {
            format!("{{\"{field}\":{}1{}}}", "[{\"a\":".repeat(levels), "}]".repeat(levels))
        };
        let objects = format!("{}1{}", "{\"a\":".repeat(65), "}".repeat(65));
        let many: Vec<String> = (0..100_001).map(|at| format!("\"{at}\":0")).collect();
        let many = format!("{{{}}}", many.join(","));
        Ask::parse(deep("x", 31).as_bytes()).unwrap();
        Ask::parse(format!("{{\"prompt\":\"{}\\\"{{\"}}", "[{:".repeat(50_000)).as_bytes()).unwrap();
        for bad in [&deep("messages", 50_000), &deep("x", 50_000), &deep("x", 32), &objects, &many] {
            assert!(Ask::parse(bad.as_bytes()).is_err(), "{bad:.80}");
        }
        for bad in [r#"{"model":"a","model":"b"}"#, r#"{"model":1}"#, "[]", "", "\u{0}"] {
            assert!(Ask::parse(bad.as_bytes()).is_err());
        }
        for bad in [&b"{\"model\":\"\xff\"}"[..], b"{\"x\":\"\xff\"}", b"{\"x\":\"\xc0\xaf\"}"] {
            assert!(Ask::parse(bad).unwrap_err().contains("UTF-8"));
        }
    }

    #[test]
    fn i05_a_field_in_other_capitals_is_refused() {
        for name in ["Model", "MODEL", "mod\\u0045l", "Max_tokens", "max_to\u{212a}ens", "\u{17f}tream", "N"]
        {
            let error = Ask::parse(format!("{{\"model\":\"m\",\"{name}\":1}}").as_bytes()).unwrap_err();
            assert!(error.contains("small letters"), "{name}: {error}");
        }
        Ask::parse(br#"{"model":"m","models":1,"metadata":{"Model":"x"},"Top_p":1}"#).unwrap();
    }

    #[test]
    fn text_is_counted_wherever_it_is_and_media_are_not() {
        let body = br#"{"messages":[{"role":"user","content":[
            {"type":"text","text":"12\u00345678"},
            {"type":"image_url","image_url":{"url":"data:xxxxxxxxxxxxxxxxxxxxxxxx"}},
            {"te\u0078t":"abcd","flag":true,"none":null}]}],"input":[1,-2,3.5,["xxxx"]]}"#;
        assert_eq!(Ask::parse(body).unwrap().input_tokens, 2 + 1 + 4);
    }

    #[test]
    fn usage_is_asked_for_without_touching_the_rest() {
        let body = Bytes::from_static(b" {\"seed\":12345678901234567890123}");
        let changed = with_usage(&body).unwrap();
        assert_eq!(
            &changed[..],
            b" {\"stream_options\":{\"include_usage\":true},\"seed\":12345678901234567890123}"
        );
    }
}
