//! One request sent to one provider, as far as the policy's limits of the provider care: charged
//! as it is expected to be when it is sent, and once more, by the difference, when it is over.
//!
//! What a provider reads counts, whether it had it cached or not.

use crate::enforce::allowance::Allowance;
use crate::enforce::meters::{Amounts, Charged};
use crate::enforce::ticket::Settlement;
use crate::unit::ProviderId;

/// Consumed by [`Providers::settle`](super::Providers::settle), so settled at most once.
#[derive(Debug)]
#[must_use = "what is not settled stays charged as it was expected"]
pub struct Attempt {
    pub(super) provider: ProviderId,
    pub(super) limits: Box<[Allowance]>,
    pub(super) charged: Charged,
    pub(super) reserved: Amounts,
}

// === impl Attempt ===

impl Attempt {
    pub fn provider(&self) -> &ProviderId {
        &self.provider
    }
}

/// What came of a request, in the place of what was expected of it.
pub(super) fn actual(reserved: &Amounts, end: Settlement) -> Amounts {
    let [_, tokens, input, output, images] = *reserved;
    match end {
        Settlement::Used { input_tokens, cached_tokens, output_tokens, images } => {
            let input = input_tokens.saturating_add(cached_tokens);
            [1, input.saturating_add(output_tokens), input, output_tokens, images]
        }
        // What was seen is not all there was.
        Settlement::Broken { output_seen } | Settlement::Died { output_seen } => {
            [1, tokens.max(input.saturating_add(output_seen)), input, output.max(output_seen), images]
        }
        // It was asked, and did nothing.
        Settlement::Rejected | Settlement::UpstreamError => [1, 0, 0, 0, 0],
        Settlement::NotSent => [0; 5],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::Providers;
    use super::*;
    use crate::enforce::allowance::Portion;
    use crate::enforce::ticket::Scope;
    use crate::unit::{Dimension, Instant, Limit};

    #[test]
    fn an_attempt_is_charged_as_expected_and_settled_by_what_it_used() {
        let limits = BTreeMap::from([(Dimension::TokensPerMinute, Limit::Finite(1_000))]);
        let limits = Allowance::all(&limits, Scope::Provider, Portion::WHOLE);
        let (one, now) = ("one".into(), Instant::ZERO + Duration::from_secs(9));
        let expected = [1, 900, 100, 800, 0];
        let used = Settlement::Used { input_tokens: 40, cached_tokens: 60, output_tokens: 100, images: 0 };
        // By how the first ended, how many tokens are left.
        for (end, left) in [
            (used, 800),
            (Settlement::Broken { output_seen: 100 }, 100),
            (Settlement::Died { output_seen: 850 }, 50),
            (Settlement::Rejected, 1_000),
            (Settlement::UpstreamError, 1_000),
            (Settlement::NotSent, 1_000),
        ] {
            let mut providers = Providers::default();
            let attempt = providers.begin(now, &one, "m", &limits, &expected);
            assert!(providers.over(now, &one, &limits, &expected).is_some(), "it is charged");
            providers.settle(now, attempt, end);
            let mut free = |tokens| providers.over(now, &one, &limits, &[1, tokens, 0, tokens, 0]).is_none();
            // One that is larger than the whole fits a limit of which all is left.
            assert!(free(left) && (left == 1_000 || !free(left + 1)), "{end:?}");
        }
    }
}
