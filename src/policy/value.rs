//! The exact grammar of values with units. What is not in it is refused with the way to write it.
//!
//! ```text
//! quantity  = "unlimited" | amount " " unit | spend
//! unit      = "rpm" | "tpm" | "itpm" | "otpm" | "ipm" | "concurrent" | "jobs" | "tpd"
//! amount    = integer | ( integer | decimal ) ( "k" | "M" | "G" )       a whole number, < 2^53
//! spend     = "$" ( integer | integer "." digit digit ) "/" ( "day" | "month" )
//! size      = ( integer | decimal ) ( "M" | "B" | "T" )       parameters; B is thousand million
//! duration  = integer ( "ms" | "s" | "m" )
//! decimal   = integer "." digit { digit }
//! integer   = "0" | ( "1" .. "9" ) { digit }
//! ```

use std::time::Duration;

use crate::bounds::DECIMALS_MAX;
use crate::bounds::DIGITS_MAX;
use crate::policy::money;
use crate::unit::{Dimension, Limit, MAX_FINITE};
use crate::wire::Budget;

/// What stands in a field that limits something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    Unlimited,
    /// Per minute, or a count for [`Dimension::Concurrency`] and [`Dimension::Jobs`].
    Amount(u64, Dimension),
    /// Tokens, or micro-dollars, in a day or month.
    Budget(u64, Budget),
}

/// Every unit there is, for those who wrote another.
const UNITS: &str = "units are `rpm`, `tpm`, `itpm`, `otpm`, `ipm` (requests, tokens, input, output, images per \
                     minute), `tpd` (tokens per day), `concurrent`, `jobs`, and money as `$5/day`";

const TOKENS_PER_DAY: &str = "tpd";

/// Why a text is not a value, and what to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub help: String,
}

pub fn quantity(text: &str) -> Result<Quantity, Refusal> {
    if text == "unlimited" {
        return Ok(Quantity::Unlimited);
    }
    if let Some(spend) = text.strip_prefix('$') {
        return self::spend(text, spend);
    }
    let Some((amount, unit)) = text.split_once(' ') else {
        return Err(without_unit(text));
    };
    let dimension = Dimension::ALL.into_iter().find(|dimension| dimension.short() == unit);
    let amount = self::amount(amount)?;
    match dimension {
        Some(dimension) => Ok(Quantity::Amount(amount, dimension)),
        None if unit == TOKENS_PER_DAY => Ok(Quantity::Budget(amount, Budget::TokensPerDay)),
        None => Err(refuse(format!("`{unit}` is not a unit"), UNITS)),
    }
}

pub fn duration(text: &str) -> Result<Duration, Refusal> {
    let help = "write a whole number with `ms`, `s` or `m`: `500ms`, `30s`, `2m`";
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "" if !number.is_empty() => return Err(refuse(format!("`{text}` has no unit"), help)),
        _ => return Err(refuse(format!("`{text}` is not a duration"), help)),
    };
    let too_long = || refuse(format!("`{text}` is too long"), help);
    integer(number)?.checked_mul(millis).map(Duration::from_millis).ok_or_else(too_long)
}

/// A number without unit: `4`, `0.5`.
pub fn decimal(text: &str) -> Result<f64, Refusal> {
    let help = "write a plain number: `4` or `0.5`";
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (text, None),
    };
    integer(whole).map_err(|refusal| Refusal { help: help.to_owned(), ..refusal })?;
    if fraction.is_some_and(|digits| !all_digits(digits) || digits.len() > DECIMALS_MAX) {
        return Err(refuse(format!("`{text}` is not a number"), help));
    }
    text.parse()
        .ok()
        .filter(|value: &f64| value.is_finite())
        .ok_or_else(|| refuse(format!("`{text}` is not a number"), help))
}

/// A whole number without unit: `3`.
pub fn integer(text: &str) -> Result<u64, Refusal> {
    let help = "write plain decimal digits";
    if !all_digits(text) {
        return Err(refuse(format!("`{text}` is not a whole number"), help));
    }
    if text.len() > 1 && text.starts_with('0') {
        return Err(refuse(
            format!("`{text}` begins with a zero"),
            "drop it; there are no octal numbers here",
        ));
    }
    let value = Some(text).filter(|text| text.len() <= DIGITS_MAX).and_then(|text| text.parse().ok());
    value.filter(|value| *value <= MAX_FINITE).ok_or_else(|| too_large(text))
}

fn amount(text: &str) -> Result<u64, Refusal> {
    let scale = |suffix| match suffix {
        'k' => Some(1_000_u64),
        'M' => Some(1_000_000),
        'G' => Some(1_000_000_000),
        _ => None,
    };
    let Some((last, scale)) = text.chars().next_back().and_then(|c| Some((c, scale(c)?))) else {
        return integer(text).map_err(|refusal| {
            let help = match text.chars().next_back() {
                Some('K') => "thousand is a small `k`".to_owned(),
                Some('m' | 'g') => "million is `M`, thousand million `G`".to_owned(),
                _ if text.contains('.') => "a decimal needs `k`, `M` or `G` behind it: `1.5k`".to_owned(),
                _ if text == "-1" => "no limit is written `unlimited`; 0 means zero".to_owned(),
                _ if all_digits(text) => refusal.help,
                _ => "write plain decimal digits, as in `60 rpm`, `600k tpm`, `1.5M tpm`".to_owned(),
            };
            Refusal { help, ..refusal }
        });
    };
    let number = text.trim_end_matches(last);
    if number.len() + 1 != text.len() {
        return Err(refuse(format!("`{text}` is not an amount"), "write one of `k`, `M`, `G` once"));
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = integer(whole)?;
    if !all_digits(fraction) || fraction.len() > DECIMALS_MAX {
        return Err(refuse(format!("`{text}` is not an amount"), "write decimals as in `1.5M`"));
    }
    // Scaled by 10^9 first, so that what is left over shows: `1.5k` is whole, `1.5555k` is not.
    let nanos: u128 = format!("{fraction:0<DECIMALS_MAX$}").parse().unwrap_or(u128::MAX);
    let scaled = u128::from(scale) * (u128::from(whole) * 1_000_000_000 + nanos);
    if !scaled.is_multiple_of(1_000_000_000) {
        return Err(refuse(format!("`{text}` is not a whole number"), "use fewer decimals or write it out"));
    }
    let value = u64::try_from(scaled / 1_000_000_000).ok().filter(|value| *value <= MAX_FINITE);
    value.ok_or_else(|| too_large(text))
}

fn spend(text: &str, spend: &str) -> Result<Quantity, Refusal> {
    let bad = || refuse(format!("`{text}` is not a spend limit"), "write `$5/day` or `$99.50/month`");
    let (dollars, per) = spend.split_once('/').ok_or_else(bad)?;
    let budget = match per {
        "day" => Budget::SpendPerDay,
        "month" => Budget::SpendPerMonth,
        _ => return Err(bad()),
    };
    let micros = money::amount(&format!("${dollars}")).map_err(|_| bad())?;
    Ok(Quantity::Budget(micros, budget))
}

/// Parameters of a model: `8B`, `1.5B`, `350M`, `1T`.
pub fn size(text: &str) -> Result<u64, Refusal> {
    let help = "write how many parameters it has: `8B`, `1.5B`, `350M`, `1T`";
    // The letters that quantities use, but for the thousand million.
    let scaled = match text.char_indices().next_back() {
        Some((at, 'M')) => text.get(..at).map(|number| (format!("{number}M"), 1)),
        Some((at, 'B')) => text.get(..at).map(|number| (format!("{number}G"), 1)),
        Some((at, 'T')) => text.get(..at).map(|number| (format!("{number}G"), 1_000)),
        _ => None,
    };
    let parameters = scaled.and_then(|(number, times)| amount(&number).ok()?.checked_mul(times));
    parameters
        .filter(|count| *count > 0)
        .ok_or_else(|| refuse(format!("`{text}` is not the size of a model"), help))
}

/// Most output tokens of one answer: `8192 tokens`, or the plain number.
pub fn tokens(text: &str) -> Result<u64, Refusal> {
    let help = "write tokens from 1 upwards: `8192 tokens`";
    let number = text.strip_suffix(" tokens").unwrap_or(text);
    match amount(number) {
        Ok(count @ 1..) => Ok(count),
        Ok(_) => Err(refuse("an answer of no token", help)),
        Err(_) => Err(refuse(format!("`{text}` is not a number of tokens"), help)),
    }
}

/// The remedy for a value that has no space in it.
fn without_unit(text: &str) -> Refusal {
    let near = |word: &str| text.eq_ignore_ascii_case(word);
    if ["unlimited", "infinite", "none", "no", "off", ".inf", "inf", "-1"].into_iter().any(near) {
        return refuse(
            format!("`{text}` is not a limit"),
            "no limit is written `unlimited`, and nothing else means that; 0 means zero",
        );
    }
    for unit in Dimension::ALL.map(Dimension::short).into_iter().chain([TOKENS_PER_DAY]) {
        // Longest first would be needed for `itpm`; what an amount can end in tells as well.
        let ends =
            |number: &&str| number.ends_with(|last: char| last.is_ascii_digit() || "kMG".contains(last));
        if let Some(number) = text.strip_suffix(unit).filter(ends) {
            return refuse(
                format!("`{text}` has no space"),
                format!("put a space before the unit: `{number} {unit}`"),
            );
        }
    }
    if amount(text).is_ok() {
        return refuse(format!("`{text}` has no unit"), format!("write one behind it: {UNITS}"));
    }
    refuse(
        format!("`{text}` is not a limit"),
        "write a plain number and a unit, as in `60 rpm`, `2M tpm`, `5 concurrent`, or `unlimited`",
    )
}

fn too_large(text: &str) -> Refusal {
    refuse(
        format!("`{text}` is too large"),
        "the largest number is 9007199254740991 (2^53 - 1); no limit is written `unlimited`",
    )
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn refuse(reason: impl Into<String>, help: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), help: help.into() }
}

// === impl Quantity ===

impl Quantity {
    /// What it comes to, in its own unit.
    pub fn limit(self) -> Limit {
        match self {
            Quantity::Unlimited => Limit::Unlimited,
            Quantity::Amount(amount, _) | Quantity::Budget(amount, _) => Limit::Finite(amount),
        }
    }

    /// The unit as policies write it.
    pub fn unit(self) -> &'static str {
        match self {
            Quantity::Unlimited => "unlimited",
            Quantity::Amount(_, dimension) => dimension.short(),
            Quantity::Budget(_, Budget::TokensPerDay) => TOKENS_PER_DAY,
            Quantity::Budget(_, Budget::SpendPerDay) => "$/day",
            Quantity::Budget(_, Budget::SpendPerMonth) => "$/month",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tpm(text: &str) -> Option<u64> {
        match quantity(text) {
            Ok(Quantity::Amount(amount, Dimension::TokensPerMinute)) => Some(amount),
            _ => None,
        }
    }

    #[test]
    fn quantities_in_the_grammar() {
        for (text, amount) in [
            ("0 tpm", 0),
            ("60 tpm", 60),
            ("600k tpm", 600_000),
            ("2M tpm", 2_000_000),
            ("1.5M tpm", 1_500_000),
            ("0.5k tpm", 500),
            ("1.250k tpm", 1_250),
            ("3G tpm", 3_000_000_000),
            ("9007199254740991 tpm", MAX_FINITE),
        ] {
            assert_eq!(tpm(text), Some(amount), "{text}");
        }
        assert_eq!(quantity("60 rpm"), Ok(Quantity::Amount(60, Dimension::RequestsPerMinute)));
        assert_eq!(quantity("10 ipm"), Ok(Quantity::Amount(10, Dimension::ImagesPerMinute)));
        assert_eq!(quantity("5 concurrent"), Ok(Quantity::Amount(5, Dimension::Concurrency)));
        assert_eq!(quantity("unlimited"), Ok(Quantity::Unlimited));
        assert_eq!(quantity("2k itpm"), Ok(Quantity::Amount(2_000, Dimension::InputTokensPerMinute)));
        assert_eq!(quantity("1M otpm"), Ok(Quantity::Amount(1_000_000, Dimension::OutputTokensPerMinute)));
        assert_eq!(quantity("5 jobs"), Ok(Quantity::Amount(5, Dimension::Jobs)));
        assert_eq!(quantity("1.5M tpd"), Ok(Quantity::Budget(1_500_000, Budget::TokensPerDay)));
        assert_eq!(quantity("$5/day"), Ok(Quantity::Budget(5_000_000, Budget::SpendPerDay)));
        assert_eq!(quantity("$0.50/month"), Ok(Quantity::Budget(500_000, Budget::SpendPerMonth)));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            " ",
            "60",
            "0",
            "-1",
            "60rpm",
            "60  rpm",
            " 60 rpm",
            "60 rpm ",
            "60 rps",
            "60 RPM",
            "1e3 rpm",
            "0x10 rpm",
            "010 rpm",
            "00 rpm",
            "1_000 rpm",
            "1,000 rpm",
            ".inf",
            "inf rpm",
            "nan rpm",
            "no",
            "off",
            "null",
            "~",
            "true",
            "Unlimited",
            "UNLIMITED",
            "unlimited rpm",
            "-1 rpm",
            "+1 rpm",
            "1.5 rpm",
            "1.5555k rpm",
            "1.k rpm",
            ".5k rpm",
            "1kk rpm",
            "1kM rpm",
            "1K rpm",
            "2m tpm",
            "k rpm",
            " rpm",
            "1.0 rpm",
            "9007199254740992 tpm",
            "18446744073709551616 tpm",
            "9999999G tpm",
            "1.0000000000k tpm",
            "99999999999999999999999999999999 tpm",
            "60itpm",
            "1 job",
            "5 tokens",
            "1M tpy",
            "5 usd",
            "$5",
            "$5/week",
            "$-5/day",
            "$5.5/day",
            "5$/day",
            "$1e3/day",
            "60\u{a0}rpm",
            "६० rpm",
            "60 rpm\n",
        ] {
            assert!(quantity(text).is_err(), "{text:?} was taken as {:?}", quantity(text));
        }
    }

    const G: u64 = 1_000_000_000;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "30", "s", "1.5s", "30 s", "2h", "1m30s", "-1s", "01s", "1e3ms", "9007199254740991m"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn plain_numbers() {
        assert_eq!(decimal("4"), Ok(4.0));
        assert_eq!(decimal("0.25"), Ok(0.25));
        for text in ["", ".5", "4.", "1e3", "0x1", "04", "nan", ".inf", "1_0", "-1", "1.0000000000"] {
            assert!(decimal(text).is_err(), "{text}");
        }
        assert_eq!((size("8B"), size("1.5B"), size("1T")), (Ok(8 * G), Ok(3 * G / 2), Ok(1_000 * G)));
        assert_eq!((size("350M"), size("1.04T")), (Ok(350_000_000), Ok(1_040 * G)));
        for text in ["", "8", "B", "8b", "8 B", "8G", "0B", "0x8B", "8BB", "-1B", "1T1", "large"] {
            assert!(size(text).is_err(), "{text} was taken as {:?}", size(text));
        }
        assert_eq!((tokens("8192 tokens"), tokens("8k"), tokens("1")), (Ok(8_192), Ok(8_000), Ok(1)));
        for text in ["0", "0 tokens", "8192 tpm", "8192tokens", "unlimited", "-1", ""] {
            assert!(tokens(text).is_err(), "{text} was taken as {:?}", tokens(text));
        }
        assert_eq!(integer("0"), Ok(0));
        assert!(integer("1.0").is_err() && integer("007").is_err() && integer("९").is_err());
    }
}
