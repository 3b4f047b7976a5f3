//! The rivals and the oracle, by name: each at its library's defaults, and a small grid of variants.
//!
//! A name alone is the defaults; `NAME/VARIANT` is one of the grid. All of them run at one central
//! node, which is an advantage: none splits its numbers among nodes.

mod aimd;
mod aperture;
mod door;
mod envoy;
mod fixed;
mod gradient2;
mod in_flight;
mod none;
mod oracle;
mod saturation;
#[cfg(test)]
mod tests;
mod vegas;

use crate::sim::law::Law;
use crate::sim::law::Terms;

/// Makes a law at its defaults or as a variant of the grid; the number is a seed.
type Build = fn(Option<&str>, &Terms, u64) -> Option<Box<dyn Law>>;

/// One law that is not ours.
#[derive(Clone, Copy, Debug)]
pub struct Rival {
    pub name: &'static str,
    /// Where it is from.
    pub source: &'static str,
    build: Build,
    variants: fn() -> Vec<&'static str>,
}

/// Every rival, the oracle last.
pub const RIVALS: &[Rival] = &[
    Rival {
        name: "none",
        source: "no limit",
        build: |variant, _, _| variant.is_none().then(|| boxed(none::Nothing)),
        variants: Vec::new,
    },
    Rival {
        name: "static",
        source: "published RPM and TPM tables",
        build: |variant, terms, _| {
            Some(boxed(fixed::Fixed::new(terms, pick(fixed::DEFAULT, fixed::GRID, variant)?)))
        },
        variants: || names(fixed::GRID),
    },
    Rival {
        name: "aimd",
        source: "Chiu and Jain 1989; RFC 5681",
        build: |variant, terms, _| {
            Some(boxed(aimd::Aimd::new(terms, pick(aimd::DEFAULT, aimd::GRID, variant)?)))
        },
        variants: || names(aimd::GRID),
    },
    Rival {
        name: "gradient2",
        source: "Netflix/concurrency-limits Gradient2Limit",
        build: |variant, terms, _| {
            let settings = pick(gradient2::DEFAULT, gradient2::GRID, variant)?;
            Some(boxed(gradient2::Gradient2::new(terms, settings)))
        },
        variants: || names(gradient2::GRID),
    },
    Rival {
        name: "vegas",
        source: "Netflix/concurrency-limits VegasLimit",
        build: |variant, terms, seed| {
            Some(boxed(vegas::Vegas::new(terms, pick(vegas::DEFAULT, vegas::GRID, variant)?, seed)))
        },
        variants: || names(vegas::GRID),
    },
    Rival {
        name: "envoy",
        source: "envoyproxy/envoy adaptive_concurrency gradient_controller",
        build: |variant, terms, seed| {
            Some(boxed(envoy::Envoy::new(terms, pick(envoy::DEFAULT, envoy::GRID, variant)?, seed)))
        },
        variants: || names(envoy::GRID),
    },
    Rival {
        name: "aperture",
        source: "fluxninja/aperture AIMDLoadScheduler",
        build: |variant, terms, _| {
            let settings = pick(aperture::DEFAULT, aperture::GRID, variant)?;
            Some(boxed(aperture::Aperture::new(terms, settings)))
        },
        variants: || names(aperture::GRID),
    },
    Rival {
        name: "saturation",
        source: "gateway-api-inference-extension utilization-detector; BerriAI/litellm dynamic_rate_limiter_v3",
        build: |variant, terms, _| Some(pick(saturation::DEFAULT, saturation::GRID, variant)?.law(terms)),
        variants: || names(saturation::GRID),
    },
    Rival {
        name: "oracle",
        source: "clairvoyant",
        build: |variant, terms, _| {
            let settings = if terms.output_cost > 0.0 { oracle::DEFAULT } else { oracle::JOBS };
            variant.is_none().then(|| boxed(oracle::Oracle::new(terms, settings)))
        },
        variants: Vec::new,
    },
];

/// The law of this name (`aimd`, or `aimd/x0.9`), if there is one. `seed` is for laws that draw.
pub fn build(name: &str, terms: &Terms, seed: u64) -> Option<Box<dyn Law>> {
    let (name, variant) = match name.split_once('/') {
        Some((name, variant)) => (name, Some(variant)),
        None => (name, None),
    };
    let rival = RIVALS.iter().find(|rival| rival.name == name)?;
    (rival.build)(variant, terms, seed)
}

fn boxed(law: impl Law + 'static) -> Box<dyn Law> {
    Box::new(law)
}

fn pick<S: Copy>(default: S, grid: &[(&'static str, S)], variant: Option<&str>) -> Option<S> {
    match variant {
        None => Some(default),
        Some(variant) => grid.iter().find(|(name, _)| *name == variant).map(|(_, settings)| *settings),
    }
}

fn names<S>(grid: &[(&'static str, S)]) -> Vec<&'static str> {
    grid.iter().map(|(name, _)| *name).collect()
}

// === impl Rival ===

impl Rival {
    /// The committed grid, as [`build`] takes it.
    pub fn variants(&self) -> impl Iterator<Item = String> {
        let name = self.name;
        (self.variants)().into_iter().map(move |variant| format!("{name}/{variant}"))
    }
}
