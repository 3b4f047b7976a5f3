//! Every scope, window and count beside the rates of keys and tiers.

use super::*;
use crate::enforce::ticket::{JobSlot, Limits, Overrides};
use crate::wire::{CachedInput, ModelEntry, Product, Span, Window};

fn product(table: &mut LimitTable, product: Product) {
    table.products.insert("v".into(), product);
    table.rows.iter_mut().for_each(|row| row.product = Some("v".into()));
}

fn of_account(limit: u64) -> Entry {
    Entry { account_limit: Limit::Finite(limit), ..Entry::default() }
}

#[test]
fn a_minute_admits_its_number_and_the_next_minute_all_of_it_again() {
    let mut table = table(1, &[(RPM, entry(M, Limit::Finite(60)))]);
    product(&mut table, Product { window: Window::Minute, ..Product::default() });
    let limiter = limiter(table);
    // 2024-01-15T09:59:50Z.
    limiter.set_wall(START, 1_705_312_790_000);
    assert_eq!(drain(&limiter, START, &request("a", 1)), 60);
    let refusal = refused(limiter.admit(at(3.0), &request("a", 1)));
    assert_eq!(refusal.retry_after, Duration::from_secs(7));
    let quota = limiter.quotas(at(3.0), &request("a", 1), None)[0].unwrap();
    assert_eq!((quota.remaining, quota.reset), (0, Duration::from_secs(7)));
    // The clock is put back by a minute and more: nothing is given twice.
    limiter.set_wall(at(4.0), 1_705_312_794_000 - 7_200_000);
    refused(limiter.admit(at(4.0), &request("a", 1)));
    assert_eq!(drain(&limiter, at(10.0), &request("a", 1)), 60);
}

#[test]
fn i09_the_keys_of_an_account_share_its_limits() {
    let limiter = limiter(table(1, &[(RPM, of_account(10)), (Dimension::Concurrency, of_account(2))]));
    let of = |key: u8, account: u8| Request { account: Some([account; 32]), ..request("a", key) };
    let open = [1, 2].map(|key| admitted(limiter.admit(START, &of(key, 9))));
    let refusal = refused(limiter.admit(START, &of(3, 9)));
    assert!(matches!(refusal.reason, RefusalReason::Limit { scope: Scope::Account, .. }));
    assert_eq!(refusal.active, 2);
    for ticket in open {
        limiter.settle(START, ticket, USED);
    }
    assert_eq!((3..8).map(|key| drain(&limiter, START, &of(key, 9))).sum::<u64>(), 8);
    assert_eq!(drain(&limiter, START, &of(3, 10)), 10, "another account");
}

#[test]
fn h16_a_limit_below_what_is_active_kills_nothing_and_admits_nothing_until_it_is_below() {
    let at_once =
        |version, limit| table(version, &[(Dimension::Concurrency, entry(M, Limit::Finite(limit)))]);
    let limiter = limiter(at_once(1, 5));
    let mut open: Vec<Ticket> = (0..5).map(|_| admitted(limiter.admit(START, &request("a", 1)))).collect();
    limiter.offer(at_once(2, 2), START).unwrap();
    while open.len() > 2 {
        assert_eq!(refused(limiter.admit(START, &request("a", 1))).active, open.len() as u64);
        limiter.settle(START, open.pop().unwrap(), USED);
    }
    refused(limiter.admit(START, &request("a", 1)));
    limiter.settle(START, open.pop().unwrap(), USED);
    let _ = admitted(limiter.admit(START, &request("a", 1)));
}

#[test]
fn a_job_outlives_its_request_and_a_slot_is_given_back_once() {
    let limiter = limiter(table(1, &[(Dimension::Jobs, entry(M, Limit::Finite(5)))]));
    let create = Request { job: true, ..request("a", 1) };
    let mut running: Vec<JobSlot> = Vec::new();
    for _ in 0..5 {
        let mut ticket = admitted(limiter.admit(START, &create));
        running.extend(ticket.take_job());
        limiter.settle(START, ticket, USED);
    }
    let refusal = refused(limiter.admit(START, &create));
    assert_eq!((refusal.active, refusal.never), (5, false));
    let _ = admitted(limiter.admit(START, &request("a", 1)));
    limiter.release_job(running.pop().unwrap());
    // A creation that failed holds nothing.
    let ticket = admitted(limiter.admit(START, &create));
    limiter.settle(START, ticket, Settlement::UpstreamError);
    // One that a former life of the node knew counts without a test.
    let known = limiter.adopt_job(START, &create).unwrap();
    refused(limiter.admit(START, &create));
    limiter.release_job(known);
    running.drain(..).for_each(|slot| limiter.release_job(slot));
    assert_eq!(limiter.quotas(START, &create, None)[Dimension::Jobs as usize].unwrap().remaining, 5);
}

#[test]
fn limits_of_its_own_replace_a_keys_and_free_it_at_once() {
    let limiter = limiter(table(1, &[(RPM, entry(M, Limit::Finite(3)))]));
    assert_eq!(drain(&limiter, START, &request("a", 1)), 3);
    let own = Limits::from([(RPM, Limit::Finite(60))]);
    let upgraded = Request { overrides: Overrides { key: Some(&own), account: None }, ..request("a", 1) };
    assert_eq!(drain(&limiter, START, &upgraded), 57, "what was used stays used");
    assert_eq!(drain(&limiter, at(2.0), &upgraded), 2);
    refused(limiter.admit(at(2.0), &request("a", 1)));
}

#[test]
fn a_models_limit_binds_all_its_tiers_and_a_products_span_all_its_models() {
    let mut limited = table(1, &[(RPM, entry(M, Limit::Finite(7)))]);
    let entry = ModelEntry { limits: [(RPM, Limit::Finite(10))].into(), ..ModelEntry::default() };
    limited.models.insert("m".into(), entry);
    product(&mut limited, Product { span: Span::Product, ..Product::default() });
    let others: Vec<Row> = limited.rows.iter().map(|row| Row { model: "x".into(), ..row.clone() }).collect();
    limited.rows.extend(others);
    let limiter = limiter(limited);
    assert_eq!(drain(&limiter, START, &request("a", 1)), 7);
    let elsewhere = Request { model: "x", ..request("a", 1) };
    assert_eq!(drain(&limiter, START, &elsewhere), 0, "one span");
    assert_eq!(drain(&limiter, START, &request("b", 2)), 3);
    let refusal = refused(limiter.admit(START, &request("b", 3)));
    assert!(matches!(refusal.reason, RefusalReason::Limit { scope: Scope::Model, .. }));
}

#[test]
fn streams_count_while_they_flow_and_cached_input_as_the_product_says() {
    for (cached_input, free) in [(CachedInput::Counted, 40), (CachedInput::Free, 70)] {
        let mut table = table(1, &[(TPM, entry(M, Limit::Finite(100)))]);
        product(&mut table, Product { cached_input, ..Product::default() });
        let limiter = limiter(table);
        let mut ticket = admitted(limiter.admit(START, &request("a", 1)));
        limiter.progress(START, &mut ticket, 20);
        assert_eq!(ticket.reserved_work(), 30);
        limiter.progress(START, &mut ticket, 91);
        assert_eq!(ticket.reserved_work(), 101);
        refused(limiter.admit(START, &request("a", 1)));
        let end = Settlement::Used { input_tokens: 10, cached_tokens: 30, output_tokens: 20, images: 1 };
        limiter.settle(START, ticket, end);
        let quota = limiter.quotas(START, &request("a", 1), None)[1].unwrap();
        assert_eq!(quota.remaining, free);
    }
}

#[test]
fn more_images_than_the_limit_are_never_admitted_and_a_callers_refusal_charges_nothing() {
    let limiter = limiter(table(1, &[(Dimension::ImagesPerMinute, entry(M, Limit::Finite(20)))]));
    let of = |images| Request { images, ..request("a", 1) };
    assert!(refused(limiter.admit(START, &of(21))).never);
    let no = || Refusal::new(RefusalReason::NoTable, RETRY_SOON);
    limiter.admit_with(START, &of(3), |_| Err::<(), _>(no())).unwrap_err();
    let _ = admitted(limiter.admit(START, &of(20)));
    assert!(!refused(limiter.admit(START, &of(1))).never);
}
