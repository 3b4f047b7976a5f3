//! A run as a page that opens without a network: capacity, budget, admitted by tier, queue and
//! time to first token, each law below the other and on one scale.

use std::fmt::Write as _;

use crate::sim::law::Terms;
use crate::sim::trial::score::Second;
use crate::sim::trial::score::{Ledger, Metric, report};
use crate::sim::trial::{Happening, Trial};

/// Points of one line.
const POINTS: usize = 600;
const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 170.0;
/// Room for the axes' numbers and names, and above the plot for what happens.
const LEFT: f64 = 84.0;
const BELOW: f64 = 38.0;
const ABOVE: f64 = 18.0;
/// Lines have this many colours: told apart by people who see no red or green (Okabe and Ito), in
/// light and in dark.
const COLOURS: usize = 6;
/// A time to first token above this many SLOs is cut at the frame; what waits as well.
const SLOS_SHOWN: f64 = 3.0;
/// So is work above this many times the capacity.
const CAPACITIES_SHOWN: f64 = 1.6;
const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#222;--dim:#555;--grid:#ddd;--c0:#222;--c1:#d98c00;\
--c2:#0072b2;--c3:#009e73;--c4:#c2579a;--c5:#d55e00}\
@media(prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#e6e6e6;--dim:#aaa;--grid:#363a42;\
--c0:#e6e6e6;--c1:#e69f00;--c2:#56b4e9;--c3:#2fc49a;--c4:#dd8fc0;--c5:#ff8a3c}}\
body{font:14px system-ui,sans-serif;margin:2em;max-width:1000px;background:var(--paper);color:var(--ink)}\
h2{margin:1.6em 0 .2em}h3{font-weight:600;margin:.8em 0 .1em;font-size:14px}svg{display:block}\
text{font-size:11px;fill:var(--dim)}.grid{stroke:var(--grid)}.event{stroke:var(--dim);stroke-dasharray:3 3}\
.key{margin-right:1.2em}.key i{display:inline-block;width:1.4em;height:.3em;vertical-align:middle;margin-right:.4em}\
.wide{overflow-x:auto}table{border-collapse:collapse;margin:1em 0;font-size:12px}td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid var(--grid)}\
td:first-child,th:first-child{text-align:left}";

/// One line of a plot: name, and a value a second; none where nothing is known.
struct Line {
    name: String,
    values: Vec<Option<f64>>,
}

/// What a plot is drawn on.
struct Frame<'a> {
    title: &'a str,
    /// Of the values.
    unit: &'a str,
    /// At the top; larger values are cut.
    top: f64,
    /// Several values that share a point are shown by the largest, else by their mean.
    peaks: bool,
    /// Times and names, seconds.
    events: &'a [(f64, &'static str)],
}

/// The page of one scenario and seed.
pub fn page(trial: &Trial, terms: &Terms, seed: u64, runs: &[(String, Ledger)]) -> String {
    let name = escaped(&trial.name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>tidegate simulate: {name}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n<p>{}. Seed {seed}; {} replicas, {} nodes, \
         {} s at {} times what the pool can do. Values above a frame are cut at it.</p>\n",
        escaped(&trial.why),
        trial.replicas,
        trial.nodes,
        trial.seconds,
        trial.load,
    );
    scores(&mut page, trial, terms, runs);
    let events = events(trial);
    let slo = trial.slo.as_secs_f64();
    let seconds = || runs.iter().flat_map(|(_, ledger)| &ledger.seconds);
    let capacity = seconds().map(|second| second.capacity).fold(1.0, f64::max);
    for (law, ledger) in runs {
        let _ = writeln!(page, "<h2>{}</h2>", escaped(law));
        let frame = |title, unit, top, peaks| Frame { title, unit, top, peaks, events: &events };
        let of = |value: &dyn Fn(&Second) -> f64| {
            ledger.seconds.iter().map(|second| Some(value(second))).collect()
        };
        let line = |name: &str, values| Line { name: name.to_owned(), values };
        plot(
            &mut page,
            &frame(
                "Capacity, budget, and what was let in",
                "work a second",
                nice(capacity * CAPACITIES_SHOWN),
                false,
            ),
            &work(trial, ledger),
        );
        let queued = of(&|second| second.queued / second.capacity.max(1.0));
        plot(
            &mut page,
            &frame("Queue", "seconds of capacity", nice(slo * SLOS_SHOWN / 2.0), true),
            &[line("work that waits", queued)],
        );
        plot(
            &mut page,
            &frame("Time to first token", "seconds", nice(slo * SLOS_SHOWN), true),
            &[
                line("SLO", vec![Some(slo); ledger.seconds.len()]),
                line("latest of each second", of(&|second| second.ttft)),
            ],
        );
    }
    page.push_str("</body></html>\n");
    page
}

/// What each law's run came to.
fn scores(page: &mut String, trial: &Trial, terms: &Terms, runs: &[(String, Ledger)]) {
    page.push_str("<div class=\"wide\"><table><tr><th>law</th>");
    for (name, _) in Metric::ALL {
        let _ = write!(page, "<th>{name}</th>");
    }
    page.push_str("</tr>\n");
    let reports: Vec<_> = runs.iter().map(|(law, ledger)| (law, report(trial, terms, ledger))).collect();
    let oracle = reports.iter().find(|(law, _)| *law == super::contest::ORACLE).map(|(_, report)| report);
    for (law, report) in &reports {
        let _ = write!(page, "<tr><td>{}</td>", escaped(law));
        for (_, metric) in Metric::ALL {
            let shown = report.metric(metric, oracle).map_or("-".to_owned(), |value| format!("{value:.3}"));
            let _ = write!(page, "<td>{}</td>", shown.strip_suffix(".000").unwrap_or(&shown));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

/// When something happens, and what.
fn events(trial: &Trial) -> Vec<(f64, &'static str)> {
    let name = |what: &Happening| match what {
        Happening::Die { .. } => "replicas die",
        Happening::Revive { .. } => "replicas return",
        Happening::Slow { .. } => "speed changes",
        Happening::Show { .. } => "metrics change",
        Happening::Flood { .. } => "demand changes",
        Happening::Output { .. } => "answers change",
        Happening::Controller { .. } => "controller",
    };
    let mut events: Vec<(f64, &'static str)> = Vec::new();
    for (at, what) in &trial.happenings {
        // Names of what follows at once would lie on each other.
        let near = events.last().is_some_and(|(before, _)| at - before < trial.seconds / 12.0);
        events.push((*at, if near { "" } else { name(what) }));
    }
    events
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

fn plot(page: &mut String, frame: &Frame<'_>, lines: &[Line]) {
    let seconds = lines.iter().map(|line| line.values.len()).max().unwrap_or(0);
    let _ = writeln!(page, "<h3>{}</h3><div>", frame.title);
    for (at, line) in lines.iter().enumerate() {
        let (colour, name) = (at % COLOURS, escaped(&line.name));
        let _ =
            write!(page, "<span class=\"key\"><i style=\"background:var(--c{colour})\"></i>{name}</span>");
    }
    let (wide, high) = (LEFT + WIDTH + 24.0, ABOVE + HEIGHT + BELOW);
    let _ = writeln!(
        page,
        "</div><svg width=\"{wide}\" height=\"{high}\" viewBox=\"0 0 {wide} {high}\" role=\"img\" aria-label=\"{}\">",
        frame.title
    );
    axes(page, frame, seconds as f64);
    for (at, line) in lines.iter().enumerate() {
        let path = path(&shortened(&line.values, frame.peaks), frame.top);
        let colour = at % COLOURS;
        let _ = writeln!(
            page,
            "<path d=\"{path}\" fill=\"none\" style=\"stroke:var(--c{colour})\" stroke-width=\"1.4\"/>"
        );
    }
    page.push_str("</svg>\n");
}

/// Grid, numbers, names of both axes, and what happens when.
fn axes(page: &mut String, frame: &Frame<'_>, seconds: f64) {
    let foot = ABOVE + HEIGHT;
    for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (y, x) = (ABOVE + HEIGHT * (1.0 - part), LEFT + WIDTH * part);
        let _ = writeln!(
            page,
            "<path d=\"M{LEFT} {y}h{WIDTH}\" class=\"grid\"/><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{:.0}</text>",
            LEFT - 6.0,
            y + 4.0,
            shown(frame.top * part),
            foot + 14.0,
            seconds * part,
        );
    }
    let (middle, unit) = (ABOVE + HEIGHT / 2.0, frame.unit);
    let _ = writeln!(
        page,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">time, seconds</text>\
         <text transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">{unit}</text>",
        LEFT + WIDTH / 2.0,
        foot + 31.0,
    );
    for (at, name) in frame.events {
        let x = LEFT + WIDTH * at / seconds.max(1.0);
        let _ = writeln!(
            page,
            "<path d=\"M{x:.1} {ABOVE}v{HEIGHT}\" class=\"event\"/><text x=\"{x:.1}\" y=\"{}\">{name}</text>",
            ABOVE - 5.0
        );
    }
}

fn path(values: &[Option<f64>], top: f64) -> String {
    let mut path = String::new();
    let mut down = false;
    for (at, value) in values.iter().enumerate() {
        let Some(value) = value else {
            down = false;
            continue;
        };
        let x = LEFT + WIDTH * at as f64 / values.len().max(1) as f64;
        let y = ABOVE + HEIGHT * (1.0 - (value / top).clamp(0.0, 1.0));
        let _ = write!(path, "{}{x:.1} {y:.1}", if down { 'L' } else { 'M' });
        down = true;
    }
    path
}

/// As many stretches as a line has points: the mean of each, or its largest.
fn shortened(values: &[Option<f64>], peaks: bool) -> Vec<Option<f64>> {
    let stretch = values.len().div_ceil(POINTS).max(1);
    let one = |part: &[Option<f64>]| {
        let known: Vec<f64> = part.iter().flatten().copied().filter(|value| value.is_finite()).collect();
        let all = if peaks {
            known.iter().copied().reduce(f64::max)
        } else {
            Some(known.iter().sum::<f64>() / known.len() as f64)
        };
        all.filter(|_| !known.is_empty())
    };
    values.chunks(stretch).map(one).collect()
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
        let die = Happening::Die { replicas: vec![1] };
        let trial = Trial {
            name: "a<b".to_owned(),
            seconds: 120.0,
            happenings: vec![(80.0, die)],
            ..Trial::default()
        };
        let demand = Demand::draw(&trial, None, 1);
        let run = |name: &str| {
            let mut law = law(name, &demand.terms, 1).unwrap();
            (name.to_owned(), record(&trial, &demand, 1, law.as_mut()))
        };
        let page = page(&trial, &demand.terms, 1, &[run("tide"), run("oracle")]);
        assert_eq!(page.matches("<svg").count(), 6, "three plots each");
        assert_eq!(page.matches("replicas die").count(), 6);
        for said in ["a&lt;b", "capacity", "budget", "admitted: ent", "SLO", "work that waits"] {
            assert!(page.contains(said), "{said}");
        }
        for axis in ["time, seconds", "work a second", "seconds of capacity"] {
            assert!(page.contains(axis), "{axis}");
        }
        for refers in ["http", "<script", "src=", "href", "url(", "@import", "NaN", "inf"] {
            assert!(!page.contains(refers), "{refers}");
        }
    }

    #[test]
    fn a_peak_of_one_second_is_seen_though_a_point_is_many_seconds() {
        let mut values = vec![Some(1.0); 10 * POINTS];
        values[4321] = Some(9.0);
        values[5000] = None;
        assert_eq!(shortened(&values, true)[432], Some(9.0));
        assert_eq!(shortened(&values, false)[432], Some(1.8));
        assert_eq!(shortened(&[None, None], true), [None, None]);
        assert_eq!(shortened(&[None, None], false), [None, None]);
    }

    #[test]
    fn a_line_breaks_where_nothing_is_known_and_stays_in_its_frame() {
        let path = path(&[Some(1.0), None, Some(1e9), Some(-1.0)], 1.0);
        assert_eq!(path.matches('M').count(), 2);
        assert_eq!(path.matches('L').count(), 1);
        assert!(
            path.contains(&format!(" {ABOVE:.1}")) && path.contains(&format!(" {:.1}", ABOVE + HEIGHT)),
            "{path}"
        );
    }
}
