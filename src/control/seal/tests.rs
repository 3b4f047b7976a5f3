//! What the published numbers may not do: twitch, and take a share from who may still use it.

use super::*;

fn node(name: &str, offered: f64, silent: bool) -> NodeDemand {
    NodeDemand { node: NodeId::new(name), offered, silent }
}

fn listed(parts: [(&str, u32); 2]) -> BTreeMap<NodeId, u32> {
    parts.into_iter().map(|(name, share)| (NodeId::new(name), share)).collect()
}

#[test]
fn a_limit_that_moves_by_noise_is_not_published_anew() {
    let old = Some(Limit::Finite(100_000));
    for (new, published) in [(99_100, 100_000), (102_900, 100_000), (98_000, 98_000), (104_000, 104_000)] {
        assert_eq!(damped(Limit::Finite(new), old), Limit::Finite(published));
    }
}

#[test]
fn a_silent_node_keeps_the_share_that_its_table_still_grants_it() {
    let old = listed([("a", 495_000), ("b", 495_000)]);
    let shares = shares(&[node("a", 900.0, false), node("b", 0.0, true)], Some(&old));
    assert_eq!(shares, old, "together they may not exceed the limit");
}

#[test]
fn shares_that_are_close_stay() {
    let old = listed([("a", 495_000), ("b", 495_000)]);
    assert_eq!(shares(&[node("a", 505.0, false), node("b", 495.0, false)], Some(&old)), old);
    let moved = shares(&[node("a", 600.0, false), node("b", 400.0, false)], Some(&old));
    assert!(moved[&NodeId::new("a")] > 550_000, "{moved:?}");
}
