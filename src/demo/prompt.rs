//! What a request asks of a replica, and what the replica will make of it.
//!
//! How long an answer gets is nowhere in the request: it is drawn from the prompt's bytes, here,
//! for the replica that serves it and for the tenants' ledger that knows the true cost. Everybody
//! between them has to estimate.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};
use serde::Deserialize;

/// Bytes of one prompt token.
pub const TOKEN_BYTES: usize = 4;
/// Shortest and longest answer that any prompt draws, before `max_tokens` cuts it.
pub const OUTPUT_MIN: u32 = 10;
pub const OUTPUT_MAX: u32 = 200;
/// The median answer.
const OUTPUT_MEDIAN: f64 = 42.0;
const OUTPUT_SIGMA: f64 = 0.6;

/// `POST /v1/chat/completions` or `/v1/completions`, as far as a replica cares.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Body {
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    prompt: Option<Text>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    pub stream: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<Text>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    One(String),
    Many(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Part {
    Plain(String),
    Typed {
        #[serde(default)]
        text: String,
    },
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub prompt: u32,
    pub output: u32,
}

// === impl Body ===

impl Body {
    pub fn size(&self) -> Size {
        let mut text = Digest::default();
        self.messages.iter().filter_map(|message| message.content.as_ref()).for_each(|part| text.add(part));
        self.prompt.iter().for_each(|part| text.add(part));
        text.size(self.max_completion_tokens.or(self.max_tokens))
    }
}

// === impl Size ===

impl Size {
    /// The size of a request with this one message.
    pub fn of(message: &str, max_tokens: Option<u32>) -> Size {
        let mut text = Digest::default();
        text.add_str(message);
        text.size(max_tokens)
    }

    pub fn work(self, output_cost: u32) -> u64 {
        u64::from(self.prompt) + u64::from(self.output) * u64::from(output_cost)
    }
}

/// FNV-1a over the prompt, and its length.
struct Digest {
    hash: u64,
    bytes: usize,
}

// === impl Digest ===

impl Default for Digest {
    fn default() -> Digest {
        Digest { hash: 0xcbf2_9ce4_8422_2325, bytes: 0 }
    }
}

impl Digest {
    fn add(&mut self, text: &Text) {
        match text {
            Text::One(text) => self.add_str(text),
            Text::Many(parts) => parts.iter().for_each(|part| match part {
                Part::Plain(text) | Part::Typed { text } => self.add_str(text),
            }),
        }
    }

    fn add_str(&mut self, text: &str) {
        self.bytes = self.bytes.saturating_add(text.len());
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn size(&self, max_tokens: Option<u32>) -> Size {
        let prompt = u32::try_from(self.bytes / TOKEN_BYTES).unwrap_or(u32::MAX).max(1);
        let mut random = ChaCha8Rng::seed_from_u64(self.hash);
        let drawn = lognormal(&mut random, OUTPUT_MEDIAN, OUTPUT_SIGMA);
        let output = (drawn as u32).clamp(OUTPUT_MIN, OUTPUT_MAX);
        Size { prompt, output: output.min(max_tokens.unwrap_or(u32::MAX)).max(1) }
    }
}

/// A draw with this median; `sigma` is of the logarithm.
pub fn lognormal(random: &mut ChaCha8Rng, median: f64, sigma: f64) -> f64 {
    LogNormal::new(median.ln(), sigma).map_or(median, |spread| spread.sample(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Body {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_same_prompt_is_the_same_size_however_it_is_wrapped() {
        let text = "tides rise and fall";
        let wanted = Size::of(text, Some(200));
        assert_eq!(wanted.prompt, 4);
        for json in [
            format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"max_tokens":200}}"#),
            format!(r#"{{"messages":[{{"content":[{{"type":"text","text":"{text}"}}]}}]}}"#),
            format!(r#"{{"prompt":"{text}","max_completion_tokens":200}}"#),
            format!(r#"{{"prompt":["{text}"]}}"#),
        ] {
            assert_eq!(parse(&json).size(), wanted, "{json}");
        }
    }

    #[test]
    fn max_tokens_bounds_the_answer() {
        assert_eq!(Size::of("hello", Some(3)).output, 3);
        assert_eq!(Size::of("", Some(0)), Size { prompt: 1, output: 1 });
    }

    #[test]
    fn a_message_without_content_is_a_prompt_of_one_token() {
        assert_eq!(parse(r#"{"messages":[{"role":"assistant","content":null}]}"#).size().prompt, 1);
    }
}
