//! How a product says no: every answer that concerns a limit, as data.
//!
//! A [`Dialect`] is written in the policy, checked there and here by the same functions, and
//! rendered by a node. Nothing in it is code, so a vendor's own wording is an edit of a file.

mod presets;
mod template;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::bounds::ANSWER_HEADERS_MAX;
use crate::bounds::NAME_BYTES_MAX;
use crate::unit::Dimension;

pub use presets::PRESETS;
pub use template::{Escape, Fact, Template, TemplateError};

/// What a client of one product hears wherever a limit is concerned; `openai` unless stated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dialect {
    /// A kind that is missing is answered as the default dialect does.
    pub answers: BTreeMap<Kind, Answer>,
    /// In the order in which they are written.
    pub headers: Vec<Header>,
    pub retry_after: RetryAfter,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        /// The answers that concern limits.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind {$($(#[$doc])* $name,)*}

        impl Kind {
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// As a policy names it.
            pub fn word(self) -> &'static str {
                match self {$(Kind::$name => $word,)*}
            }
        }
    };
}

kinds! {
    /// Over a limit per minute.
    Rate = "rate";
    /// Over a limit on requests in flight.
    Concurrency = "concurrency";
    /// Over a limit on running jobs.
    Jobs = "jobs";
    /// Inside every limit, but there is no room.
    Capacity = "capacity";
    /// A budget of a day or month is used up.
    Period = "period";
    /// Nothing is left to pay with.
    Credit = "credit";
    /// The account never recharged enough to begin.
    Recharge = "recharge";
    /// Asks for more than the limit itself: no wait helps.
    TooLarge = "too_large";
    UnknownModel = "unknown_model";
    /// No key, or none that is known. The same bytes whatever was wrong with it.
    Unauthorized = "unauthorized";
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// From 400 to 599.
    pub status: u16,
    pub content_type: String,
    pub body: Template,
}

/// One header of the answers to a key that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub name: String,
    pub of: Of,
    pub value: Template,
    pub sent: Sent,
    /// Of times to whole seconds.
    pub round: Round,
    /// `remaining` is shown to the nearest multiple of this.
    pub step: u64,
}

/// Whose standing a header shows. A dimension without a limit has none, and the header is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// Of the rates, the one that refused; else the one of which the least part is left.
    Tightest,
    /// All rates, one list element each.
    Each,
    Only(Dimension),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sent {
    /// With every response, the upstream's own included.
    Always,
    /// With responses of status 2xx.
    Success,
    /// With responses of status 429.
    TooMany,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Round {
    Up,
    Down,
}

/// The header Retry-After: whole seconds, always rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryAfter {
    pub sent: RetrySent,
    /// Also `retry-after-ms`.
    pub milliseconds: bool,
    /// Up to a second or a tenth more, by chance, so that those who were refused together do not
    /// come back together.
    pub spread: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetrySent {
    Never,
    /// With status 429, and with nothing else, an upstream's own included.
    TooMany,
    /// With every refusal of which a time is known.
    Refusals,
}

/// What is said where no table says anything.
static DEFAULT: LazyLock<Dialect> = LazyLock::new(|| presets::build(&presets::OPENAI));

/// Headers that a dialect may not set: they belong to the message, or have a field of their own.
const RESERVED: [&str; 14] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "keep-alive",
    "retry-after",
    "retry-after-ms",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
];

// === impl Dialect ===

impl Default for Dialect {
    fn default() -> Dialect {
        DEFAULT.clone()
    }
}

impl Dialect {
    pub fn preset(name: &str) -> Option<Dialect> {
        PRESETS.iter().find(|preset| preset.name == name).map(presets::build)
    }

    /// The dialect of answers that no product can be found for.
    pub fn of_nobody() -> &'static Dialect {
        &DEFAULT
    }

    pub fn answer(&self, kind: Kind) -> &Answer {
        static BARE: LazyLock<Answer> = LazyLock::new(|| Answer {
            status: 503,
            content_type: "text/plain".to_owned(),
            body: Template::default(),
        });
        self.answers.get(&kind).or_else(|| DEFAULT.answers.get(&kind)).unwrap_or(&BARE)
    }

    /// # Errors
    /// The first violation, with its place.
    pub fn validate(&self) -> Result<(), String> {
        for (kind, answer) in &self.answers {
            answer.validate(*kind).map_err(|reason| format!("answers: {}: {reason}", kind.word()))?;
        }
        if self.headers.len() > ANSWER_HEADERS_MAX {
            let count = self.headers.len();
            return Err(format!("answers: {count} headers, allowed are {ANSWER_HEADERS_MAX}"));
        }
        for header in &self.headers {
            header.validate().map_err(|reason| format!("answers: headers: {}: {reason}", header.name))?;
        }
        Ok(())
    }
}

// === impl Kind ===

impl Kind {
    /// Whether its body may show it.
    pub fn knows(self, fact: Fact) -> bool {
        use Kind::{
            Capacity, Concurrency, Jobs, Period, Rate, Recharge, TooLarge, Unauthorized, UnknownModel,
        };
        match fact {
            Fact::Model => self != Unauthorized,
            Fact::Tier => !matches!(self, Unauthorized | UnknownModel),
            Fact::Until | Fact::UntilUnix | Fact::RetryAfter | Fact::RetryAfterMs => {
                matches!(self, Rate | Concurrency | Jobs | Capacity | Period)
            }
            Fact::Limit | Fact::Dimension | Fact::DimensionText => {
                matches!(self, Rate | Concurrency | Jobs | Period | TooLarge)
            }
            Fact::Scope | Fact::ScopeText | Fact::Bound => {
                matches!(self, Rate | Concurrency | Jobs | Period | TooLarge)
            }
            Fact::Remaining => matches!(self, Rate | Period),
            Fact::Active => matches!(self, Concurrency | Jobs),
            Fact::Asked => self == TooLarge,
            Fact::Minimum => self == Recharge,
            Fact::Ceiling | Fact::QuotaUnit => false,
            Fact::ResetSeconds | Fact::ResetUnix | Fact::ResetGo | Fact::ResetRfc3339 => false,
        }
    }
}

// === impl Answer ===

impl Answer {
    pub fn escape(&self) -> Escape {
        if self.content_type.contains("json") { Escape::Json } else { Escape::Nothing }
    }

    /// # Errors
    /// Why no client should get it.
    pub fn validate(&self, kind: Kind) -> Result<(), String> {
        if !(400..=599).contains(&self.status) {
            return Err(format!("status {} is not one from 400 to 599", self.status));
        }
        let shown = |byte: u8| (0x20..0x7f).contains(&byte);
        if self.content_type.is_empty() || self.content_type.len() > NAME_BYTES_MAX {
            return Err(format!("content_type is empty or longer than {NAME_BYTES_MAX} bytes"));
        }
        if !self.content_type.bytes().all(shown) {
            return Err("content_type holds what no header may".to_owned());
        }
        if let Some(fact) = self.body.facts().find(|fact| !kind.knows(*fact)) {
            return Err(format!("nothing is known of `{{{}}}` there", fact.word()));
        }
        let mut sample = String::new();
        self.body.render(self.escape(), &mut sample, |fact, into| into.push_str(fact.sample()));
        if self.escape() == Escape::Json
            && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&sample)
        {
            return Err(format!("the body is not JSON: {error}"));
        }
        Ok(())
    }
}

// === impl Header ===

impl Header {
    /// Whether a header's value may show it.
    pub fn knows(fact: Fact) -> bool {
        match fact {
            Fact::Limit | Fact::Ceiling | Fact::Remaining | Fact::Bound => true,
            Fact::Dimension | Fact::QuotaUnit | Fact::Scope => true,
            Fact::ResetSeconds | Fact::ResetUnix | Fact::ResetGo | Fact::ResetRfc3339 => true,
            Fact::Model | Fact::Tier | Fact::Asked | Fact::Active | Fact::Minimum => false,
            Fact::Until | Fact::UntilUnix | Fact::RetryAfter | Fact::RetryAfterMs => false,
            Fact::DimensionText | Fact::ScopeText => false,
        }
    }

    /// # Errors
    /// Why it cannot be sent.
    pub fn validate(&self) -> Result<(), String> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(token) {
            return Err("not a name of a header of at most 64 bytes".to_owned());
        }
        if RESERVED.contains(&self.name.to_ascii_lowercase().as_str()) {
            return Err("this header is not a dialect's to set here".to_owned());
        }
        if let Some(fact) = self.value.facts().find(|fact| !Self::knows(*fact)) {
            return Err(format!("nothing is known of `{{{}}}` there", fact.word()));
        }
        let shown = |byte: u8| (0x20..0x7f).contains(&byte);
        if !self.value.texts().all(|text| text.bytes().all(shown)) {
            return Err("the value holds what no header may".to_owned());
        }
        if self.step == 0 {
            return Err("a step of 0".to_owned());
        }
        Ok(())
    }
}
