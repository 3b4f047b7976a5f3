//! Money as policies write it, in integer micro-dollars: what is finer is refused, never rounded.
//!
//! ```text
//! money   = "$" integer [ "." digit { digit } ]       at most six decimals
//! amount  = money with no or two decimals              `$5`, `$99.50`
//! price   = money "/M"                                 `$0.60/M`: dollars for a million tokens
//! ```

use crate::policy::value::{Refusal, integer};
use crate::unit::MAX_FINITE;

/// Micro-dollars of one dollar.
const DOLLAR: u64 = 1_000_000;
/// Decimals of a dollar that a micro-dollar has.
const DECIMALS: usize = 6;

/// Whole dollars or dollars and cents: `$10`, `$99.50`.
pub fn amount(text: &str) -> Result<u64, Refusal> {
    let help = "write dollars, or dollars and cents: `$10`, `$99.50`";
    match money(text, help)? {
        (micros, 0 | 2) => Ok(micros),
        _ => Err(refuse(format!("`{text}` is not an amount of money"), help)),
    }
}

/// For a million tokens: `$0.60/M`.
pub fn per_million(text: &str) -> Result<u64, Refusal> {
    let help = "write dollars for a million tokens: `$0.60/M`";
    let Some(dollars) = text.strip_suffix("/M") else {
        let reason = match text.split_once('/') {
            Some((_, unit)) => format!("`{text}` is a price for `{unit}`"),
            None => format!("`{text}` does not say for how many tokens"),
        };
        return Err(refuse(reason, help));
    };
    Ok(money(dollars, help)?.0)
}

/// For one of what is priced: `$0.02`.
pub fn each(text: &str) -> Result<u64, Refusal> {
    let help = "write dollars for one: `$0.02`";
    if text.contains('/') {
        return Err(refuse(format!("`{text}` is a price for many"), help));
    }
    Ok(money(text, help)?.0)
}

/// Micro-dollars, and how many decimals they were written with.
fn money(text: &str, help: &str) -> Result<(u64, usize), Refusal> {
    let bad = || refuse(format!("`{text}` is not an amount of money"), help);
    let number = text.strip_prefix('$').ok_or_else(bad)?;
    let (dollars, decimals) = number.split_once('.').unwrap_or((number, ""));
    if number.contains('.') && decimals.is_empty() || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    if decimals.len() > DECIMALS {
        let reason = format!("`{text}` is finer than a millionth of a dollar");
        return Err(refuse(reason, "round it: amounts are counted in whole micro-dollars"));
    }
    let dollars = integer(dollars).map_err(|_| bad())?;
    let part: u64 = format!("{decimals:0<DECIMALS$}").parse().map_err(|_| bad())?;
    let micros = dollars.checked_mul(DOLLAR).and_then(|all| all.checked_add(part));
    let too_large = || refuse(format!("`{text}` is too large"), "the largest amount is $9007199254.740991");
    micros.filter(|micros| *micros <= MAX_FINITE).map(|micros| (micros, decimals.len())).ok_or_else(too_large)
}

fn refuse(reason: String, help: &str) -> Refusal {
    Refusal { reason, help: help.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact() {
        assert_eq!(amount("$0"), Ok(0));
        assert_eq!(amount("$0.99"), Ok(990_000));
        assert_eq!(amount("$3000"), Ok(3_000_000_000));
        assert_eq!(per_million("$0.60/M"), Ok(600_000));
        assert_eq!(per_million("$15/M"), Ok(15_000_000));
        assert_eq!(per_million("$0.000001/M"), Ok(1));
        assert_eq!(each("$0.001"), Ok(1_000));
        assert_eq!(each("$9007199254.740991"), Ok(MAX_FINITE));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "$",
            "5",
            "5$",
            "$5.5",
            "$5.",
            "$.5",
            "$05",
            "$1,000",
            "$1k",
            "$1e3",
            "$-1",
            "$ 5",
            "$5/M",
            "$0.001",
            "$9007199254.75",
            "$99999999999999999999",
            "€5",
            "$५",
        ] {
            assert!(amount(text).is_err(), "{text:?} was taken as {:?}", amount(text));
        }
        for text in ["$0.60", "$0.60/k", "$0.60/m", "0.60/M", "$0.0000001/M", "$0.60 /M", "/M", "$/M"] {
            assert!(per_million(text).is_err(), "{text:?} was taken as {:?}", per_million(text));
        }
        for text in ["$0.02/M", "$0.0000001", "0.02", "$0.02/image"] {
            assert!(each(text).is_err(), "{text:?} was taken as {:?}", each(text));
        }
    }
}
