//! What one replica of the plant really does at a mix of requests: measured, saturated.

use std::time::Duration;

use crate::sim::engine::{Engine, Event, Shape};
use crate::sim::law::Ask;
use crate::unit::Instant;

/// Saturated for this long before anything counts, and then for this long.
const WARM: Duration = Duration::from_secs(120);
const MEASURED: Duration = Duration::from_secs(600);
/// Requests kept waiting.
const BACKLOG: usize = 16;

/// What a replica does at one mix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Work per second.
    pub work: f64,
    pub requests: f64,
    pub mean_output: f64,
}

/// Keeps one replica busy with what `next` draws.
pub fn saturated(shape: Shape, mut next: impl FnMut() -> (u32, u32)) -> Rate {
    // Nobody is in a hurry here.
    let mut engine = Engine::new(Shape { patience: Duration::from_secs(1 << 20), ..shape }, 1);
    let (mut now, mut events) = (Instant::ZERO, Vec::new());
    let (mut id, mut outputs, mut finished) = (0, 0.0, 0.0);
    let begins = Instant::ZERO + WARM;
    let mut before = None;
    let delivered = |engine: &Engine| {
        let gauges = engine.gauges().next().unwrap_or_default();
        gauges.prompt_tokens as f64 + shape.output_cost * gauges.output_tokens as f64
    };
    loop {
        while engine.gauges().next().is_some_and(|gauges| gauges.waiting < BACKLOG) {
            id += 1;
            let (prompt, output) = next();
            engine.submit(now, 0, Ask { id, tier: 0, key: 0, prompt, images: 0, output });
        }
        let Some(wake) = engine.next_wake() else { break };
        now = wake;
        engine.step(now);
        if now >= begins && before.is_none() {
            before = Some((now, delivered(&engine)));
        }
        engine.events(&mut events);
        for event in events.drain(..) {
            if let Event::Done(place) = event {
                if before.is_some() {
                    finished += 1.0;
                    outputs += f64::from(engine.sequence(place).ask.output);
                }
                engine.forget(place);
            }
        }
        if now >= begins + MEASURED {
            break;
        }
    }
    let (since, work) = before.unwrap_or((now, 0.0));
    let seconds = now.seconds_since(since).max(1e-9);
    Rate {
        work: (delivered(&engine) - work) / seconds,
        requests: finished / seconds,
        mean_output: outputs / f64::max(finished, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Chance;
    use crate::sim::trial::sizes::Sizes;

    #[test]
    fn the_reference_plant_has_the_reference_capacity() {
        let mut chance = Chance::seeded(1);
        let rate = saturated(Shape::default(), || Sizes::Chat.draw(&mut chance));
        assert!((rate.work / 14_265.0 - 1.0).abs() < 0.02, "{rate:?}");
        assert!((rate.requests / 8.5 - 1.0).abs() < 0.03, "{rate:?}");
    }
}
