//! The policy language as its users see it: every file in `policies/` is good, and every bad one
//! prints exactly what is written beside it.
//!
//! `TIDEGATE_REGENERATE=1 cargo test --test policies` writes the expected texts anew; read the
//! difference before committing it.
#![cfg(feature = "daemon")]
#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tidegate::bounds::POLICY_FILE_BYTES_MAX;
use tidegate::bounds::POLICY_FILES_MAX;
use tidegate::policy::compare;
use tidegate::policy::diagnostic::{Placed, render};
use tidegate::policy::file::{self, Kind, Node};
use tidegate::policy::load::{Loaded, load, load_bytes};
use tidegate::policy::report::Report;
use tidegate::policy::{OutputCost, Policy, SourcePolicy};
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{CachedInput, Credit, Pinned, Span, Streams};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn one(text: &str) -> Result<Loaded, String> {
    load_bytes(vec![("policy.yaml".to_owned(), text.as_bytes().to_vec())])
        .map_err(|found| render(&found, false))
}

fn tidegate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).args(args).output().expect("tidegate runs")
}

/// Policies that are taken, each with what somebody should look at.
fn doubtful_policies() -> Vec<(PathBuf, String)> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(root("tests/policies")).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        if name.ends_with(".warn.yaml") {
            let loaded = load_bytes(vec![(name.clone(), fs::read(&path).expect("the policy"))]);
            let loaded = loaded.unwrap_or_else(|found| panic!("{name}: {}", render(&found, false)));
            assert!(!loaded.warnings.is_empty(), "{name}: nobody is warned");
            cases.push((path.with_extension("stderr"), render(&loaded.warnings, false)));
        }
    }
    cases
}

/// Name, and what a check of it prints.
fn bad_policies() -> Vec<(PathBuf, String)> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(root("tests/policies")).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let printed = if name.ends_with(".bad") {
            load(&path).map_err(|found| render(&found, false).replace(path.to_str().expect("UTF-8"), &name))
        } else if name.ends_with(".bad.yaml") {
            let bytes = fs::read(&path).expect("the policy");
            load_bytes(vec![(name.clone(), bytes)]).map_err(|found| render(&found, false))
        } else {
            continue;
        };
        let printed = printed.map_or_else(|printed| printed, |_| panic!("{name} was taken"));
        cases.push((
            path.with_extension(if name.ends_with(".yaml") { "stderr" } else { "bad.stderr" }),
            printed,
        ));
    }
    cases.sort();
    cases
}

#[test]
fn c01_c02_c03_c04_c08_c09_c15_every_bad_policy_prints_exactly_what_stands_beside_it() {
    let mut cases = bad_policies();
    cases.extend(doubtful_policies());
    assert!(cases.len() >= 110, "only {} cases", cases.len());
    let regenerate = std::env::var_os("TIDEGATE_REGENERATE").is_some();
    let mut wrong = Vec::new();
    for (path, printed) in &cases {
        if regenerate {
            fs::write(path, printed).expect("written");
        } else if fs::read_to_string(path).ok().as_deref() != Some(printed.as_str()) {
            wrong.push(format!("{}:\n{printed}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn a_diagnostic_never_shows_a_password() {
    let shown: String = bad_policies().into_iter().map(|(_, printed)| printed).collect();
    assert!(shown.contains("credentials in a URL") && !shown.contains("hunter2"));
}

#[test]
fn the_directory_that_is_shipped_is_good() {
    let loaded = load(&root("policies")).unwrap_or_else(|found| panic!("{}", render(&found, false)));
    assert!(loaded.warnings.is_empty(), "{}", render(&loaded.warnings, false));
    let files = fs::read_dir(root("policies")).expect("policies").count();
    assert_eq!(loaded.products.len(), files, "a file of policies/ was not read");
    for (name, bytes) in &loaded.files {
        let alone = load_bytes(vec![(name.clone(), bytes.clone())]);
        assert!(alone.is_ok(), "{name} is not complete by itself");
    }
}

#[test]
fn the_reference_means_what_its_comments_say() {
    let policy = load(&root("policies")).expect("good").policy;
    assert_eq!(policy.interval, Duration::from_secs(2));
    let llama = &policy.pools["llama"];
    assert_eq!((llama.output_cost, llama.slo), (OutputCost::Stated(4.0), Duration::from_secs(1)));
    assert!(matches!(&llama.source, SourcePolicy::Direct { targets, .. } if targets.fixed.len() == 2));
    let mistral = &policy.pools["mistral"];
    assert_eq!(mistral.output_cost, OutputCost::Learned);
    assert_eq!(mistral.signals.ready, ["up{job=\"mistral\"}"]);
    assert_eq!(mistral.signals.running, ["vllm:num_requests_running{job=\"mistral\"}"]);
    assert!(mistral.signals.latency[0].starts_with("histogram_quantile("));
    let images = &policy.pools["diffusion"];
    assert_eq!(images.signals.running, ["render_slots_busy"]);
    let enterprise = &policy.models["llama-3-70b"].tiers["enterprise"];
    assert_eq!((enterprise.guarantee, enterprise.ceiling), (600_000, Limit::Unlimited));
    assert!(enterprise.key_limits.is_empty());
    assert_eq!(enterprise.tier_limits[&Dimension::RequestsPerMinute], Limit::Finite(6_000));
    let starter = &policy.models["llama-3-70b"].tiers["starter"];
    assert_eq!(starter.safe, starter.guarantee);
    let free = &policy.models["Mistral Small 3.2"].tiers["free"];
    assert_eq!((free.ceiling, free.priority), (Limit::Finite(500_000), 3));
    assert_eq!(free.key_limits[&Dimension::Concurrency], Limit::Finite(2));
}

#[test]
fn the_digest_is_of_names_and_bytes() {
    let files = load(&root("policies")).expect("good").files;
    let digest = |files: &[(String, Vec<u8>)]| load_bytes(files.to_vec()).expect("good").policy.digest;
    let same = digest(&files);
    assert_eq!(same.len(), 64);
    assert_eq!(same, load(&root("policies")).expect("good").policy.digest);
    let mut other = files.clone();
    other.reverse();
    assert_eq!(same, digest(&other), "the order of reading matters");
    other[0].0.insert(0, 'x');
    assert_ne!(same, digest(&other));
    other = files;
    other[0].1.push(b'\n');
    assert_ne!(same, digest(&other));
}

const GOOD: &str = "\
product: chat
interval: 2s
pools:
  llama:
    preset: vllm
    targets: [http://10.0.0.1:8000/metrics, http://10.0.0.2:8000/metrics]
    slo: 1s
    output_token_cost: 4
models:
  llama-3-70b:
    pool: llama
tiers:
  enterprise:
    priority: 1
    weight: 4
    guarantee: 600k tpm
    safe: 600k tpm
    ceiling: 9M tpm
    key_limits: [600 rpm, 400k tpm, 40 concurrent]
  free:
    priority: 2
    weight: 1
    guarantee: 100k tpm
    safe: 100k tpm
    ceiling: 2M tpm
    key_limits: [60 rpm, 5 concurrent]
";

/// Is any limit of `new` wider than in `old`? Pairs of model and tier that are gone are not.
fn widened(old: &Policy, new: &Policy) -> Option<String> {
    type Limits = BTreeMap<Dimension, Limit>;
    let wider = |before: &Limits, after: &Limits| {
        before.iter().any(|(dimension, limit)| after.get(dimension).is_none_or(|after| after > limit))
    };
    for (name, product) in &new.products {
        let Some(before) = old.products.get(name) else { continue };
        let cheaper =
            |(tier, amount): (_, &u64)| before.recharge.get(tier).is_some_and(|before| amount < before);
        let changed = [
            before.span != product.span && product.span == Span::Model,
            before.cached_input != product.cached_input && product.cached_input == CachedInput::Free,
            before.pinned != product.pinned && product.pinned != Pinned::Nothing,
            before.streams == Streams::EndPastBudget && product.streams == Streams::Finish,
            product.recharge.iter().any(cheaper),
        ];
        if changed.contains(&true) {
            return Some(format!("{name}: {before:?} became {product:?}"));
        }
    }
    for (name, before) in &old.providers {
        if new.providers.get(name).is_none_or(|after| wider(before, after)) && !before.is_empty() {
            return Some(format!("provider {name}"));
        }
    }
    for (model, policy) in &new.models {
        if old.models.get(model).is_some_and(|before| wider(&before.entry.limits, &policy.entry.limits)) {
            return Some(format!("{model}: limits"));
        }
        for (tier, grant) in &policy.tiers {
            let place = format!("{model} / {tier}");
            let Some(before) = old.models.get(model).and_then(|model| model.tiers.get(tier)) else {
                return Some(format!("{place} is new"));
            };
            let widens = grant.guarantee > before.guarantee
                || grant.safe > before.safe
                || grant.ceiling > before.ceiling
                || wider(&before.key_limits, &grant.key_limits)
                || wider(&before.tier_limits, &grant.tier_limits)
                || wider(&before.account_limits, &grant.account_limits)
                || before.credit == Credit::Required && grant.credit == Credit::Ignored;
            let spends = before.budgets.iter().any(|(budget, limits)| {
                let after = grant.budgets.get(budget);
                after.is_none_or(|after| after.key > limits.key || after.account > limits.account)
            });
            if widens || spends {
                return Some(format!("{place}: {before:?} became {grant:?}"));
            }
        }
    }
    None
}

/// The lines of [`GOOD`] that hold one field (or entry), with everything below it.
fn blocks() -> Vec<(usize, usize)> {
    let lines: Vec<&str> = GOOD.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let end = |from: usize| {
        let below = lines[from + 1..].iter().take_while(|line| depth(line) > depth(lines[from]));
        from + 1 + below.count()
    };
    (0..lines.len()).map(|from| (from, end(from))).collect()
}

#[test]
fn c04_dropping_any_field_is_an_error_or_widens_nothing() {
    let good = one(GOOD).expect("good").policy;
    let mut refused = 0;
    for (from, to) in blocks() {
        let lines = GOOD.lines().enumerate().filter(|(at, _)| !(from..to).contains(at));
        let cut: String = lines.map(|(_, line)| format!("{line}\n")).collect();
        match one(&cut) {
            Ok(loaded) => assert_eq!(widened(&good, &loaded.policy), None, "without lines {from}..{to}"),
            Err(_) => refused += 1,
        }
    }
    // What is optional: interval, preset's output_token_cost, safe twice; what is a whole entry: a tier.
    assert_eq!(blocks().len() - refused, 6, "a required field became optional, or the other way round");
}

/// A mapping's entry anywhere in a policy: the way to it, by name.
type Way = Vec<String>;

fn ways(node: &Node, way: &Way, found: &mut Vec<Way>) {
    match &node.kind {
        Kind::Map(entries) => {
            for (name, node) in entries {
                let way: Way = way.iter().cloned().chain([name.value.clone()]).collect();
                found.push(way.clone());
                ways(node, &way, found);
            }
        }
        Kind::List(items) => items.iter().for_each(|item| ways(item, way, found)),
        _ => {}
    }
}

/// The policy as JSON, which is YAML too, with the entry at the end of `way` left out (`None`), or
/// changed into another name and value.
fn emit(node: &Node, way: &[String], change: &dyn Fn(&str, String) -> Option<String>) -> String {
    let quoted = |text: &str| serde_json::to_string(text).expect("JSON");
    match &node.kind {
        Kind::Null => "null".to_owned(),
        Kind::Text(text) => quoted(text),
        Kind::List(items) => {
            let items: Vec<String> = items.iter().map(|item| emit(item, &[], change)).collect();
            format!("[{}]", items.join(", "))
        }
        Kind::Map(entries) => {
            let entry = |(name, node): &(Placed<String>, Node)| match way {
                [last] if *last == name.value => change(&name.value, emit(node, &[], change)),
                [first, rest @ ..] if *first == name.value => {
                    Some(format!("{}: {}", quoted(&name.value), emit(node, rest, change)))
                }
                _ => Some(format!("{}: {}", quoted(&name.value), emit(node, &[], change))),
            };
            format!("{{{}}}", entries.iter().filter_map(entry).collect::<Vec<String>>().join(",\n"))
        }
    }
}

/// Every policy that is shown to people, and the one of these tests.
fn examples() -> Vec<(String, String)> {
    let mut examples = vec![("GOOD".to_owned(), GOOD.to_owned())];
    for entry in fs::read_dir(root("policies")).expect("policies") {
        let path = entry.expect("an entry").path();
        examples.push((path.display().to_string(), fs::read_to_string(path).expect("read")));
    }
    let readme = fs::read_to_string(root("README.md")).expect("the README");
    for block in readme.split("<!-- policy -->\n```yaml\n").skip(1) {
        let text = block.split("```").next().expect("a block");
        examples.push(("README.md".to_owned(), text.to_owned()));
    }
    examples
}

#[test]
fn c04_no_field_of_any_example_may_be_null_unknown_or_dropped_to_widen_a_limit_in_silence() {
    let (mut refused, mut narrower, mut told) = (0, 0, 0);
    for (name, text) in examples() {
        let good = one(&text).unwrap_or_else(|printed| panic!("{name}: {printed}")).policy;
        let tree = file::read("a.yaml", text.as_bytes(), &mut Report::default()).expect("YAML");
        let unchanged = emit(&tree, &[], &|_, _| None);
        assert_eq!(one(&unchanged).expect("the same").policy.models, good.models, "{name}");
        let mut all = Vec::new();
        ways(&tree, &Way::new(), &mut all);
        assert!(all.len() > 20, "{name}: {} fields", all.len());
        for way in &all {
            let place = format!("{name}: {}", way.join("."));
            let quoted = |text: &str| serde_json::to_string(text).expect("JSON");
            for nothing in ["null", "~", "", "\"\"", "{}", "[]"] {
                let text = emit(&tree, way, &|name, _| Some(format!("{}: {nothing}", quoted(name))));
                match one(&text) {
                    Err(_) => refused += 1,
                    // An empty mapping of optional fields, an empty user name: no limit is meant.
                    Ok(taken) => {
                        assert!(!["null", "~", ""].contains(&nothing), "{place} taken as `{nothing}`");
                        // Emptied, an override is one that was dropped: that is told.
                        let wider = widened(&good, &taken.policy).is_some();
                        let overrides = way.first().is_some_and(|first| first == "models") && way.len() > 2;
                        assert!(!wider || overrides, "{place} taken as `{nothing}`");
                        assert_eq!(wider, !compare::widened(&good, &taken.policy).is_empty(), "{place}");
                        *(if wider { &mut told } else { &mut narrower }) += 1;
                    }
                }
            }
            // A name of one's own may be another; a field's may not.
            let names = ["pools", "models", "tiers"];
            let own = way.len() > 1 && names.contains(&way[way.len() - 2].as_str());
            if !own {
                let text = emit(&tree, way, &|name, value| {
                    Some(format!("{}: {value}", quoted(&format!("{name}x"))))
                });
                assert!(one(&text).is_err(), "{place} taken under another name");
                refused += 1;
            }
            let Ok(dropped) = one(&emit(&tree, way, &|_, _| None)) else {
                refused += 1;
                continue;
            };
            let lines = compare::widened(&good, &dropped.policy);
            match widened(&good, &dropped.policy) {
                None => {
                    narrower += 1;
                    assert!(lines.is_empty(), "{place}: {lines:?}");
                }
                // What may be left out and limits: the edit's widening is told when it is taken.
                Some(wider) => {
                    told += 1;
                    assert!(!lines.is_empty(), "{place} silently: {wider}");
                    let fields = ["safe", "tier_limits", "unit", "account_limits", "credit", "span"];
                    let last = way.last().expect("a field").as_str();
                    let overrides = way.first().is_some_and(|first| first == "models") && way.len() > 2;
                    assert!(overrides || fields.contains(&last), "{place}: {wider}");
                }
            }
        }
    }
    eprintln!("{refused} refused, {narrower} not wider, {told} wider and told");
    assert!(refused > 500 && narrower > 20 && told > 0);
}

#[test]
fn c04_a_field_without_a_value_is_an_error() {
    for (from, to) in blocks() {
        for nothing in ["", " ~", " null", " {}", " []", " ''"] {
            let mut lines: Vec<String> = GOOD.lines().map(str::to_owned).collect();
            let name = lines[from].split(':').next().expect("a name").to_owned();
            lines.splice(from..to, [format!("{name}:{nothing}")]);
            let nulled = lines.join("\n");
            assert!(one(&nulled).is_err(), "taken:\n{nulled}");
        }
    }
}

/// The two optional fields of a tier whose absence is not narrower, as the reference states:
/// `safe` is then what was guaranteed anyway, and without `tier_limits` the tier has none.
#[test]
fn what_the_optional_fields_of_a_tier_default_to() {
    let text = GOOD.replacen("    ceiling: 2M tpm", "    tier_limits: [90 rpm]\n    ceiling: 2M tpm", 1);
    let text = text.replacen("safe: 100k tpm", "safe: 0 tpm", 1);
    let stated = one(&text).expect("good").policy;
    let absent = one(&GOOD.replacen("    safe: 100k tpm\n", "", 1)).expect("good").policy;
    let free = |policy: &Policy| policy.models["llama-3-70b"].tiers["free"].clone();
    assert_eq!((free(&stated).safe, free(&absent).safe), (0, free(&absent).guarantee));
    assert_eq!(free(&stated).tier_limits[&Dimension::RequestsPerMinute], Limit::Finite(90));
    assert!(free(&absent).tier_limits.is_empty());
    assert!(widened(&stated, &absent).is_some(), "the comparison sees nothing");
}

#[test]
fn models_of_two_units_share_tiers_when_they_state_their_own_amounts() {
    let pool = "  paint: {unit: images, targets: [http://10.0.0.3/metrics], slo: 9s, signals: {running: a, work_done: b}}\nmodels:\n  \
                SDXL: {pool: paint, tiers: {enterprise: {guarantee: 5 ipm, safe: 1 ipm, ceiling: unlimited, key_limits: unlimited}, \
                free: {guarantee: 0 ipm, safe: 0 ipm, ceiling: 10 ipm}}}\n";
    let policy =
        one(&GOOD.replacen("models:\n", pool, 1)).unwrap_or_else(|printed| panic!("{printed}")).policy;
    let free = &policy.models["SDXL"].tiers["free"];
    assert_eq!((free.ceiling, free.weight), (Limit::Finite(10), 1.0));
    assert_eq!(free.key_limits[&Dimension::RequestsPerMinute], Limit::Finite(60));
    assert_eq!(policy.models["SDXL"].tiers["enterprise"].safe, 1);
}

#[test]
fn a_policy_becomes_a_table_that_fits_or_is_refused() {
    let models: String = (0..9_000).map(|at| format!("  model-{at}: {{pool: llama}}\n")).collect();
    let printed = one(&GOOD.replacen("models:\n", &format!("models:\n{models}"), 1)).expect_err("too large");
    assert!(printed.contains("the limit table would be too large"), "{printed}");
    assert!(printed.ends_with("\n1 error\n"), "{printed}");
}

/// Replaces one value after another by each of these.
#[test]
fn c15_no_other_value_means_unlimited() {
    for line in GOOD.lines().filter(|line| line.contains(" tpm")) {
        let (name, _) = line.split_once(':').expect("a field");
        for value in [
            "-1",
            "0",
            "no",
            "off",
            ".inf",
            "null",
            "9223372036854775808",
            "9223372036854775808 tpm",
            "true",
            "Unlimited",
        ] {
            let text = GOOD.replacen(line, &format!("{name}: {value}"), 1);
            assert!(one(&text).is_err(), "taken:\n{text}");
        }
    }
}

/// A file cut at any byte is an error, or lacks a whole entry at its end, or one that was cut
/// inside a value: `9M tpm` cut to `9M tp` is no value, `400k tpm, 40 concurrent]` no list. What
/// stays valid is an edit like any other, which only ever removes.
#[test]
fn c06_a_truncated_policy_never_widens_a_limit() {
    for (_, text) in examples() {
        let good = one(&text).expect("good").policy;
        let mut valid = 0;
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            // The reference is long; cuts inside its comments say nothing new.
            if text.len() > 2 * GOOD.len()
                && text[..end].lines().last().is_some_and(|line| line.contains('#'))
            {
                continue;
            }
            if let Ok(loaded) = one(&text[..end]) {
                valid += 1;
                assert_eq!(widened(&good, &loaded.policy), None, "cut at byte {end}");
            }
        }
        assert!(valid > 0, "no prefix is valid, so the test shows nothing");
    }
}

#[test]
fn c06_no_cut_or_flipped_byte_panics() {
    let bytes = GOOD.as_bytes();
    for at in 0..bytes.len() {
        for value in [0, b'\n', b':', b'"', b'{', b'[', b'&', b'-', 0xff] {
            let mut flipped = bytes.to_vec();
            flipped[at] = value;
            if let Err(found) = load_bytes(vec![("policy.yaml".to_owned(), flipped)]) {
                assert!(!render(&found, false).is_empty());
            }
        }
    }
}

#[test]
fn c05_a_hostile_file_is_refused_in_bounded_time() {
    let deep = "[".repeat(POLICY_FILE_BYTES_MAX);
    let keys: String = (0..150_000).map(|at| format!("{at:x}:\n")).collect();
    let long = format!("product: {}\n", "x".repeat(POLICY_FILE_BYTES_MAX - 20));
    let unknown: String = (0..30_000).map(|at| format!("unknown_field_{at}: 1\n")).collect();
    let large = "# x\n".repeat(POLICY_FILE_BYTES_MAX / 4 + 1);
    for text in [deep, keys, long, unknown, large] {
        #[expect(clippy::disallowed_methods, reason = "the time it takes is what is tested")]
        let start = Instant::now();
        assert!(one(&text).is_err());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}

#[test]
fn what_cannot_be_read_is_a_diagnostic_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = load(&dir.path().join("missing")).expect_err("missing");
    assert!(missing[0].message.starts_with("cannot be read"), "{}", missing[0]);
    fs::write(dir.path().join("a.yaml"), GOOD).expect("written");
    fs::create_dir(dir.path().join("b.yaml")).expect("made");
    std::os::unix::fs::symlink("gone", dir.path().join("c.yaml")).expect("linked");
    fs::write(dir.path().join("d.yaml"), vec![b'#'; POLICY_FILE_BYTES_MAX + 1]).expect("written");
    let found = load(dir.path()).expect_err("three of four cannot be read");
    let files: Vec<&str> = found.iter().map(|found| found.file.as_str()).collect();
    assert_eq!(files, ["b.yaml", "c.yaml", "d.yaml"]);
    let many = tempfile::tempdir().expect("a directory");
    for at in 0..=POLICY_FILES_MAX {
        fs::write(many.path().join(format!("{at}.yml")), "x").expect("written");
    }
    assert_eq!(load(many.path()).expect_err("too many").len(), 1);
}

#[test]
fn check_prints_a_line_a_product_and_exits_as_promised() {
    let good = tidegate(&["check", root("policies").to_str().expect("UTF-8")]);
    assert_eq!(good.status.code(), Some(0));
    assert_eq!(
        String::from_utf8_lossy(&good.stdout),
        "chat (default.yaml): 3 pools, 3 models, 3 tiers, 0 warnings\n\
         images (images.yaml): 1 pool, 1 model, 2 tiers, 0 warnings\n\
         kimchi (kimchi.yaml): 1 pool, 3 models, 3 tiers, 0 warnings\n\
         kimi (kimi.yaml): 1 pool, 2 models, 6 tiers, 0 warnings\n\
         media (media.yaml): 2 pools, 19 models, 1 tier, 0 warnings\n\
         predictions (predictions.yaml): 1 pool, 2 models, 2 tiers, 0 warnings\n"
    );
    assert!(good.stderr.is_empty());
    let case = root("tests/policies/same-product.bad");
    let bad = tidegate(&["check", case.to_str().expect("UTF-8")]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(bad.stdout.is_empty());
    let expected = fs::read_to_string(root("tests/policies/same-product.bad.stderr")).expect("expected");
    assert_eq!(String::from_utf8_lossy(&bad.stderr), expected);
    assert_eq!(tidegate(&["check"]).status.code(), Some(2));
}

#[test]
fn a_warning_does_not_fail() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("a.yaml"), GOOD.replace("9M tpm", "1M tpm")).expect("written");
    let output = tidegate(&["check", dir.path().to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("warning: tier `enterprise` has a lower ceiling")
    );
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("1 warning\n"));
}
