//! Lookups, facts, and one version of the file after another.

use super::*;
use crate::unit::{Dimension, Limit};
use crate::wire::Budget;

// sha256("secret")
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

fn ring() -> Accounts {
    Accounts::parse(&format!(r#"{{"key_sha256":"{SECRET}","account":"acme","tier":"free"}}"#)).unwrap()
}

fn digest(key: &str) -> String {
    sha256(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn headers_of(key: &str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("x-api-key", key.parse().unwrap());
    map
}

fn key_line(key: &str, rest: &str) -> String {
    format!("{{\"key_sha256\":\"{}\",{rest}}}", digest(key))
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, value.parse().unwrap());
    }
    map
}

#[test]
fn i04_one_credential_identifies_and_anything_else_does_not() {
    let ring = ring();
    for good in [
        [("authorization", "Bearer secret")],
        [("authorization", "bearer  secret")],
        [("x-api-key", "secret")],
    ] {
        assert_eq!(ring.identify(&headers(&good)).unwrap().tier(None).unwrap().as_str(), "free", "{good:?}");
    }
    for bad in [
        &[][..],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Basic secret")],
        &[("authorization", "secret")],
        &[("authorization", "Bearer secret"), ("authorization", "Bearer secret")],
        &[("authorization", "Bearer secret"), ("x-api-key", "secret")],
        &[("x-api-key", "secret"), ("x-api-key", "secret")],
    ] {
        assert_eq!(ring.identify(&headers(bad)), None, "{bad:?}");
    }
}

#[test]
fn i09_keys_of_one_account_share_their_counters() {
    let other = digest("other");
    let text = format!(
        "{{\"key_sha256\":\"{SECRET}\",\"account\":\"acme\",\"tier\":\"free\"}}\n\n{{\"key_sha256\":\"{other}\",\"account\":\"acme\",\"tier\":\"paid\"}}\n"
    );
    let ring = Accounts::parse(&text).unwrap();
    let holders = ["secret", "other"].map(|key| ring.identify(&headers_of(key)));
    let [Some(one), Some(other)] = holders else { panic!("both are known") };
    assert_eq!(one.account, other.account);
    assert_ne!(one.key, other.key);
}

#[test]
fn a_bad_line_is_named_and_not_quoted() {
    for line in [
        "{\"key_sha256\":\"sk-canary\",\"tier\":\"free\"}",
        "{\"key\":\"sk-canary\"}",
        "sk-canary",
        &format!("{{\"key_sha256\":\"{SECRET}\",\"tier\":\"\"}}"),
    ] {
        let error = Accounts::parse(&format!("\n{line}")).unwrap_err().to_string();
        assert!(error.starts_with("line 2: "), "{error}");
        assert!(!error.contains("canary"), "{error}");
    }
}

#[test]
fn a_line_of_the_wrong_kind_is_named_and_not_quoted() {
    for (line, said) in [
        ("{\"account\":\"acme\",\"recharged_micros\":-1}", "column"),
        ("{\"account\":\"acme\",\"recharged_micros\":1.5}", "column"),
        ("{\"account\":\"\"}", "empty"),
        ("{\"tier\":\"free\"}", "expected"),
        ("{\"account\":\"acme\",\"limits\":{\"canary-rpm\":1}}", "none of rpm"),
        ("{\"account\":\"acme\",\"models\":{\"m\":{\"tpd\":1}}}", "none of rpm"),
        ("{\"account\":\"acme\",\"limits\":{\"rpm\":-1}}", "column"),
        (&key_line("k", "\"recharged_micros\":5,\"tier\":\"free\""), "belong to an account"),
        (&key_line("k", "\"limits\":{}"), "neither"),
        (&format!("{{\"account\":\"{}\"}}", "x".repeat(20_000)), "longer than"),
    ] {
        let error =
            Accounts::parse(&format!("{}\n{line}\n", key_line("good", "\"tier\":\"t\""))).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("line 2: ") && error.contains(said), "{line:.60}: {error}");
        assert!(!error.contains("canary"), "{error}");
    }
}

/// Six tiers by what was recharged, as some vendors have them.
fn product() -> Product {
    let from = [("Tier0", 1_000_000), ("Tier1", 10_000_000)];
    Product { recharge: from.map(|(tier, from)| (tier.into(), from)).into(), ..Product::default() }
}

#[test]
fn s1_6_vouchers_are_credit_and_never_raise_the_tier() {
    let file = |recharged: u64| {
        format!(
            "{}\n{{\"account\":\"acme\",\"recharged_micros\":{recharged},\"vouchers_micros\":5000000}}\n",
            key_line("k", "\"account\":\"acme\"")
        )
    };
    let holder = |recharged| Accounts::parse(&file(recharged)).unwrap().identify(&headers_of("k")).unwrap();
    let product = product();
    let five = holder(5_000_000);
    assert_eq!(five.tier(Some(&product)).unwrap().as_str(), "Tier0");
    assert_eq!(five.facts.as_ref().unwrap().credit(), 10_000_000);
    assert_eq!(holder(10_000_000).tier(Some(&product)).unwrap().as_str(), "Tier1");
    assert_eq!(holder(0).tier(Some(&product)), Err(NoTier::BelowMinimum));
    assert_eq!(holder(999_999).tier(Some(&product)), Err(NoTier::BelowMinimum));
    // Nothing is known of the account, or of what a recharge is worth.
    let bare = Accounts::parse(&key_line("k", "\"account\":\"acme\"")).unwrap();
    let bare = bare.identify(&headers_of("k")).unwrap();
    assert_eq!(bare.tier(Some(&product)), Err(NoTier::BelowMinimum));
    assert_eq!(bare.tier(None), Err(NoTier::Unknown));
}

#[test]
fn s3_8_overrides_replace_a_limit_for_a_model_or_for_all() {
    let text = format!(
        "{}\n{}\n",
        key_line("k", "\"account\":\"acme\",\"tier\":\"t\",\"limits\":{\"rpm\":7,\"tpd\":\"unlimited\"}"),
        "{\"account\":\"acme\",\"limits\":{\"spend_per_month\":99},\"models\":{\"wan i2v\":{\"rpm\":40}}}"
    );
    let holder = Accounts::parse(&text).unwrap().identify(&headers_of("k")).unwrap();
    let rpm = Dimension::RequestsPerMinute;
    let own = holder.overrides.as_ref().unwrap();
    assert_eq!(own.limits("wan i2v").get(&rpm), Some(&Limit::Finite(7)));
    assert_eq!(own.limits("wan i2v").get(&Dimension::TokensPerMinute), None);
    assert_eq!(own.budget(Budget::TokensPerDay), Some(Limit::Unlimited));
    let account = holder.facts.as_ref().unwrap().overrides.as_ref().unwrap();
    let of = |model| account.limits(model).get(&rpm).copied();
    assert_eq!((of("wan i2v"), of("m")), (Some(Limit::Finite(40)), None));
    assert_eq!(account.budget(Budget::SpendPerMonth), Some(Limit::Finite(99)));
}

/// Whatever happens to the file, what follows from it is what a fresh reader would see.
#[test]
fn versions_of_a_file_one_after_another_are_as_if_each_were_the_first() {
    let line = |at: u64, tier: u64| match at % 3 {
        0 => format!("{{\"account\":\"a{at}\",\"tier\":\"t{tier}\"}}"),
        1 => key_line(&format!("k{at}"), &format!("\"tier\":\"t{tier}\"")),
        // Not written as keys usually are: found by parsing it.
        _ => format!("{{\"tier\":\"t{tier}\", \"key_sha256\":\"{}\"}}", digest(&format!("k{at}"))),
    };
    let mut accounts = Accounts::default();
    let mut random = 7_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for round in 0..60 {
        let mut lines = Vec::new();
        for at in 0..300 {
            if next(10) > 0 {
                lines.push(line(at, u64::from(next(50) == 0)));
            }
        }
        if round % 4 == 3 {
            // One twice, and another one gone: the number of lines stays.
            let (from, to) = (next(lines.len() as u64) as usize, next(lines.len() as u64) as usize);
            lines[to] = lines[from].clone();
        }
        let text = lines.join("\n");
        let (updated, fresh) = (accounts.updated(&text), Accounts::parse(&text));
        assert_eq!(
            updated.as_ref().err().map(|e| e.reason.as_str()),
            fresh.as_ref().err().map(|e| e.reason.as_str())
        );
        let (Ok(updated), Ok(fresh)) = (updated, fresh) else { continue };
        assert_eq!(updated.len(), fresh.len());
        for at in 0..300 {
            let headers = headers_of(&format!("k{at}"));
            assert_eq!(updated.identify(&headers), fresh.identify(&headers), "round {round}, key {at}");
        }
        accounts = updated;
    }
    assert!(accounts.len() > 100);
}

#[test]
fn what_did_not_change_is_shared_with_the_former_version() {
    let lines: Vec<String> = (0..5_000).map(|at| key_line(&format!("k{at}"), "\"tier\":\"free\"")).collect();
    let before = Accounts::parse(&lines.join("\n")).unwrap();
    let mut changed = lines.clone();
    changed[77] = key_line("k77", "\"tier\":\"paid\"");
    // A half-written line loses nothing.
    let half = format!("{}\n{}", changed.join("\n"), "{\"key_sha256\":\"2bb8");
    assert!(before.updated(&half).unwrap_err().to_string().starts_with("line 5001: "));
    let after = before.updated(&changed.join("\n")).unwrap();
    let kept = before.shards.iter().zip(&after.shards).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
    assert_eq!(kept, SHARDS - 1);
    let tier =
        |accounts: &Accounts| accounts.identify(&headers_of("k77")).unwrap().tier(None).unwrap().clone();
    assert_eq!((tier(&before).as_str(), tier(&after).as_str()), ("free", "paid"));
}
