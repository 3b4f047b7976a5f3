//! How long prompts and answers are: drawn from the statistics of public traces, or a trace's own.

use crate::sim::Chance;

/// Quantiles of a distribution; values in between lie on straight lines.
type Table = &'static [(f64, f64)];

/// Whose statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// A chat service: Azure LLM inference trace 2023, conversation. Means 1155 and 211 tokens.
    Chat,
    /// Code completion: the same, code. Means 2048 and 28 tokens.
    Code,
    /// Long contexts: Mooncake, conversation. Means 12 035 and 343 tokens.
    Long,
    /// Images: one unit of work each, and for the length of an answer the milliseconds of its job,
    /// 8 s and up to a quarter more or less.
    Images,
}

const CHAT_PROMPT: Table = &[
    (0.0, 2.0),
    (0.02, 91.0),
    (0.05, 181.0),
    (0.1, 207.0),
    (0.15, 372.0),
    (0.35, 414.0),
    (0.4, 703.0),
    (0.45, 984.0),
    (0.5, 1020.0),
    (0.7, 1130.0),
    (0.8, 1315.0),
    (0.85, 1877.0),
    (0.9, 2735.0),
    (0.95, 4083.0),
    (0.99, 4142.0),
    (0.995, 4831.0),
    (1.0, 6000.0),
];
const CHAT_OUTPUT: Table = &[
    (0.0, 7.0),
    (0.05, 41.0),
    (0.1, 54.0),
    (0.2, 77.0),
    (0.3, 91.0),
    (0.45, 113.0),
    (0.5, 129.0),
    (0.6, 177.0),
    (0.65, 217.0),
    (0.7, 384.0),
    (0.8, 400.0),
    (0.95, 451.0),
    (0.99, 601.0),
    (1.0, 1000.0),
];
const CODE_PROMPT: Table = &[
    (0.0, 20.0),
    (0.1, 420.0),
    (0.25, 820.0),
    (0.5, 1469.0),
    (0.75, 2650.0),
    (0.9, 4300.0),
    (0.99, 7436.0),
    (1.0, 7900.0),
];
const CODE_OUTPUT: Table = &[
    (0.0, 1.0),
    (0.1, 5.0),
    (0.25, 8.0),
    (0.5, 13.0),
    (0.75, 22.0),
    (0.9, 40.0),
    (0.95, 110.0),
    (0.99, 252.0),
    (1.0, 400.0),
];
const LONG_PROMPT: Table = &[
    (0.0, 200.0),
    (0.1, 1_800.0),
    (0.25, 3_400.0),
    (0.5, 6_909.0),
    (0.75, 13_000.0),
    (0.9, 21_000.0),
    (0.97, 55_000.0),
    (0.99, 85_401.0),
    (1.0, 120_000.0),
];
const LONG_OUTPUT: Table = &[
    (0.0, 10.0),
    (0.1, 40.0),
    (0.25, 150.0),
    (0.5, 350.0),
    (0.75, 460.0),
    (0.9, 580.0),
    (0.99, 1_120.0),
    (1.0, 2_000.0),
];

/// Most tokens of one prompt or answer.
const TOKENS_MAX: f64 = 1e6;

// === impl Sizes ===

impl Sizes {
    pub const ALL: [(&'static str, Sizes); 4] =
        [("chat", Sizes::Chat), ("code", Sizes::Code), ("long", Sizes::Long), ("images", Sizes::Images)];

    /// Prompt and output tokens of one request.
    pub fn draw(self, chance: &mut Chance) -> (u32, u32) {
        let (prompt, output) = match self {
            Sizes::Chat => (CHAT_PROMPT, CHAT_OUTPUT),
            Sizes::Code => (CODE_PROMPT, CODE_OUTPUT),
            Sizes::Long => (LONG_PROMPT, LONG_OUTPUT),
            Sizes::Images => return (1, tokens(chance.between(6_000.0, 10_000.0))),
        };
        (tokens(quantile(prompt, chance.unit())), tokens(quantile(output, chance.unit())))
    }
}

/// At least 1.
pub fn tokens(count: f64) -> u32 {
    count.clamp(1.0, TOKENS_MAX) as u32
}

fn quantile(table: Table, part: f64) -> f64 {
    let above = table.partition_point(|(at, _)| *at <= part);
    let last = table.last().map_or(0.0, |(_, value)| *value);
    let (Some((low, from)), Some((high, to))) = (table.get(above.wrapping_sub(1)), table.get(above)) else {
        return last;
    };
    from + (to - from) * (part - low) / (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_those_of_the_traces() {
        for (sizes, prompt, output) in
            [(Sizes::Chat, 1155.0, 211.0), (Sizes::Code, 2048.0, 28.0), (Sizes::Long, 12_035.0, 343.0)]
        {
            let mut chance = Chance::seeded(1);
            let (mut of_prompt, mut of_output) = (0.0, 0.0);
            for _ in 0..200_000 {
                let (prompt, output) = sizes.draw(&mut chance);
                of_prompt += f64::from(prompt) / 200_000.0;
                of_output += f64::from(output) / 200_000.0;
            }
            assert!((of_prompt / prompt - 1.0).abs() < 0.04, "{sizes:?}: {of_prompt}");
            assert!((of_output / output - 1.0).abs() < 0.06, "{sizes:?}: {of_output}");
        }
    }
}
