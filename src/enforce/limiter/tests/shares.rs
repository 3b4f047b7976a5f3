//! A key's fair share: it binds while its tier is used up, and then whoever asks for too much.

use super::*;

const TPM: Dimension = Dimension::TokensPerMinute;

/// A tier of 100 work a second, of which a key is due 20.
fn shared(version: u64, share: Limit) -> LimitTable {
    table(version, &[(TPM, Entry { key_share: share, ..only(6_000, M) })])
}

const FAIR: Limit = Limit::Finite(1_200);

/// What two keys get of 10 work a request, each asking every so many seconds, from second 30 on.
fn contest(limiter: &Limiter, every: [f64; 2], seconds: f64) -> [(u64, u64); 2] {
    let mut got = [(0, 0); 2];
    let mut next = [0.0, 0.005];
    loop {
        let who = usize::from(next[1] < next[0]);
        let now = next[who];
        if now > seconds {
            return got;
        }
        next[who] += every[who];
        let counted = u64::from(now >= 30.0);
        got[who].1 += counted;
        if let Verdict::Admitted(ticket) = limiter.admit(at(now), &request("a", who as u8)) {
            got[who].0 += counted;
            limiter.settle(at(now), ticket, USED);
        }
    }
}

fn row(limiter: &Limiter) -> crate::wire::UsageRow {
    limiter.report(at(100.0), START, 1).rows[0].clone()
}

#[test]
fn a_key_that_floods_takes_nothing_from_one_that_does_not() {
    // 1,000 work a second against 10, of 100.
    let limiter = limiter(shared(1, FAIR));
    let [noisy, calm] = contest(&limiter, [0.01, 1.0], 90.0);
    assert_eq!(calm.0, calm.1, "the calm key");
    // Nobody else wants the rest, so that it gets more than its share: what is there is used.
    assert!((420..=560).contains(&noisy.0), "{noisy:?} of 600 there are");
    let row = row(&limiter);
    assert!(row.refused_share.work > 9 * row.refused_tier.work, "{row:?}");

    let without = super::limiter(shared(1, M));
    let [_, calm] = contest(&without, [0.01, 1.0], 90.0);
    assert!(calm.0 < calm.1 / 2, "{calm:?}: the test tests nothing");
}

#[test]
fn what_is_free_is_no_matter_of_fairness() {
    let limiter = limiter(shared(1, FAIR));
    // 60 work a second of 100: three times its share, and in nobody's way.
    let [alone, _] = contest(&limiter, [10.0 / 60.0, 1e9], 90.0);
    assert_eq!(alone.0, alone.1);
}

#[test]
fn a_share_names_itself_and_the_wait_until_it_has_room() {
    let fair = Limit::Finite(1_800);
    let limiter = limiter(shared(1, fair));
    let refusal = loop {
        match limiter.admit(at(0.0), &request("a", 1)) {
            Verdict::Admitted(ticket) => limiter.settle(at(0.0), ticket, USED),
            Verdict::Refused(refusal) => break refusal,
        }
    };
    // The tier's 400 are gone before the share's 450 are.
    assert!(matches!(refusal.reason, RefusalReason::Limit { scope: Scope::Tier, .. }), "{refusal:?}");
    for second in 1..60 {
        while let Verdict::Admitted(ticket) = limiter.admit(at(f64::from(second)), &request("a", 1)) {
            limiter.settle(at(f64::from(second)), ticket, USED);
        }
    }
    let refusal = refused(limiter.admit(at(59.0), &request("a", 1)));
    let RefusalReason::Limit { scope, dimension, limit } = refusal.reason else { panic!("{refusal:?}") };
    assert_eq!((scope, dimension, limit), (Scope::Key, TPM, fair));
    assert!(refusal.retry_after > Duration::ZERO);
    // It came back with a share that is whole.
    limiter.settle(at(59.0), admitted(limiter.admit(at(59.0), &request("b", 1))), USED);
}

/// The lane that counts a share is one that no limit of the key needs; when a limit comes to need
/// it, the share moves, and what one counted is never read as the other's.
#[test]
fn a_limit_that_needs_the_lane_of_a_share_finds_it_empty() {
    let limiter = limiter(shared(1, FAIR));
    contest(&limiter, [0.01, 1.0], 60.0);
    let images = entry(M, Limit::Finite(5));
    let mut next = shared(2, FAIR);
    next.rows[0].limits.insert(Dimension::ImagesPerMinute, images);
    limiter.offer(next, at(60.0)).unwrap();
    // Of five images some are there although the share is used up: after the pause the tier has
    // room that nobody is due. Read as images, the share would have left none for hours.
    let images = drain(&limiter, at(70.0), &request("a", 0));
    assert!((3..=5).contains(&images), "{images}");
    limiter.offer(shared(3, FAIR), at(70.0)).unwrap();
    assert!(drain(&limiter, at(130.0), &request("a", 0)) > 5);
}
