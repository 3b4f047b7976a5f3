//! A run as a page that opens without a network: capacity, budget, admitted by tier, queue and
//! time to first token, each law below the other.

use std::fmt::Write as _;

use crate::sim::trial::Trial;
use crate::sim::trial::score::Ledger;

/// Points of one line.
const POINTS: usize = 600;
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 180.0;
/// Room for the numbers at the left and below.
const LEFT: f64 = 64.0;
const BELOW: f64 = 22.0;
/// Told apart by people who see no red or green (Okabe and Ito).
const COLOURS: [&str; 6] = ["#000000", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00"];
const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em;max-width:1000px;color:#222}\
                     h2{margin:1.6em 0 .2em}h3{font-weight:600;margin:.8em 0 .1em;font-size:14px}\
                     svg{display:block}text{font-size:11px;fill:#444}.key{margin-right:1.2em}\
                     .key i{display:inline-block;width:1.4em;height:.2em;vertical-align:middle;margin-right:.4em}";

/// One line of a plot: name, and a value a second; none where nothing is known.
struct Line {
    name: String,
    values: Vec<Option<f64>>,
}

/// The page of one scenario and seed.
pub fn page(trial: &Trial, seed: u64, runs: &[(String, Ledger)]) -> String {
    let name = escaped(&trial.name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>tidegate simulate: {name}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n<p>{}. Seed {seed}; {} replicas, {} nodes, \
         {} s at {} times what the pool can do.</p>\n",
        escaped(&trial.why),
        trial.replicas,
        trial.nodes,
        trial.seconds,
        trial.load,
    );
    for (law, ledger) in runs {
        let _ = writeln!(page, "<h2>{}</h2>", escaped(law));
        plot(&mut page, "Work a second", &work(trial, ledger));
        let second = |value: &dyn Fn(&super::score::Second) -> f64| {
            ledger.seconds.iter().map(|second| Some(value(second))).collect()
        };
        let queue = second(&|second| second.queued / second.capacity.max(1.0));
        plot(
            &mut page,
            "Queue, seconds of capacity",
            &[Line { name: "queued work".to_owned(), values: queue }],
        );
        let first = second(&|second| second.ttft);
        let slo = vec![Some(trial.slo.as_secs_f64()); ledger.seconds.len()];
        plot(
            &mut page,
            "Time to first token, seconds",
            &[
                Line { name: "SLO".to_owned(), values: slo },
                Line { name: "latest of each second".to_owned(), values: first },
            ],
        );
    }
    page.push_str("</body></html>\n");
    page
}

/// Capacity, budget, and what each tier got in.
fn work(trial: &Trial, ledger: &Ledger) -> Vec<Line> {
    let length = ledger.seconds.len();
    let capacity = ledger.seconds.iter().map(|second| Some(second.capacity)).collect();
    let mut budget = vec![None; length];
    for (at, value) in &ledger.budgets {
        // It holds until the next one.
        let from = budget.get_mut(*at as usize..).unwrap_or_default();
        from.iter_mut().for_each(|place| *place = Some(*value));
    }
    let mut lines = vec![
        Line { name: "capacity".to_owned(), values: capacity },
        Line { name: "budget".to_owned(), values: budget },
    ];
    for (at, tier) in trial.tiers.iter().enumerate() {
        let seconds = ledger.tiers.chunks(ledger.tier_count.max(1));
        let values = seconds.map(|tiers| tiers.get(at).map(|tier| tier.admitted)).collect();
        lines.push(Line { name: format!("admitted: {}", tier.name), values });
    }
    lines.retain(|line| line.values.iter().any(Option::is_some));
    lines
}

fn plot(page: &mut String, title: &str, lines: &[Line]) {
    let shortened: Vec<Vec<Option<f64>>> = lines.iter().map(|line| shortened(&line.values)).collect();
    let most = shortened.iter().flatten().flatten().copied().fold(0.0, f64::max).max(1e-9);
    let most = nice(most);
    let seconds = lines.iter().map(|line| line.values.len()).max().unwrap_or(0);
    let _ = writeln!(page, "<h3>{title}</h3><div>");
    for (line, colour) in lines.iter().zip(COLOURS) {
        let _ = write!(
            page,
            "<span class=\"key\"><i style=\"background:{colour}\"></i>{}</span>",
            escaped(&line.name)
        );
    }
    let (wide, high) = (LEFT + WIDTH + 8.0, HEIGHT + BELOW + 6.0);
    let _ = writeln!(
        page,
        "</div><svg width=\"{wide}\" height=\"{high}\" viewBox=\"0 0 {wide} {high}\" role=\"img\">"
    );
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (y, x) = (6.0 + HEIGHT * (1.0 - part), LEFT + WIDTH * part);
        let _ = writeln!(
            page,
            "<path d=\"M{LEFT} {y}h{WIDTH}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{:.0} s</text>",
            LEFT - 6.0,
            y + 4.0,
            shown(most * part),
            HEIGHT + BELOW,
            seconds as f64 * part,
        );
    }
    for (values, colour) in shortened.iter().zip(COLOURS) {
        let mut path = String::new();
        let mut down = false;
        for (at, value) in values.iter().enumerate() {
            let Some(value) = value else {
                down = false;
                continue;
            };
            let x = LEFT + WIDTH * at as f64 / values.len().max(1) as f64;
            let y = 6.0 + HEIGHT * (1.0 - (value / most).clamp(0.0, 1.0));
            let _ = write!(path, "{}{x:.1} {y:.1}", if down { 'L' } else { 'M' });
            down = true;
        }
        let _ = writeln!(page, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\"/>");
    }
    page.push_str("</svg>\n");
}

/// Means of as many stretches as a line has points.
fn shortened(values: &[Option<f64>]) -> Vec<Option<f64>> {
    let stretch = values.len().div_ceil(POINTS).max(1);
    let mean = |part: &[Option<f64>]| {
        let known: Vec<f64> = part.iter().flatten().copied().filter(|value| value.is_finite()).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    };
    values.chunks(stretch).map(mean).collect()
}

/// A round number at least as large.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];
    steps.iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(10.0 * power)
}

fn shown(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0} k", value / 1e3)
    } else {
        format!("{}", (value * 100.0).round() / 100.0)
    }
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut safe, c| {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::trial::demand::Demand;
    use crate::sim::trial::laws::law;
    use crate::sim::trial::run::record;

    #[test]
    fn a_page_holds_every_plot_and_asks_nobody_for_anything() {
        let trial = Trial { name: "a<b".to_owned(), seconds: 120.0, ..Trial::default() };
        let demand = Demand::draw(&trial, None, 1);
        let mut tide = law("tide", &demand.terms, 1).unwrap();
        let ledger = record(&trial, &demand, 1, tide.as_mut());
        let page = page(&trial, 1, &[("tide".to_owned(), ledger)]);
        assert_eq!(page.matches("<svg").count(), 3);
        for said in ["a&lt;b", "capacity", "budget", "admitted: ent", "SLO", "queued work"] {
            assert!(page.contains(said), "{said}");
        }
        assert!(!page.contains("http") && !page.contains("<script") && !page.contains("NaN"));
    }
}
