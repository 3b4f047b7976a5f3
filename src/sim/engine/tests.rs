//! The plant against its own formula, and against the reference capacity.

use super::*;

fn ask(id: u64, prompt: u32, output: u32) -> Ask {
    Ask { id, tier: 0, key: 0, prompt, images: 0, output }
}

/// Runs until nothing is left to do; every event with its time.
fn drain(engine: &mut Engine) -> Vec<(f64, Event)> {
    let (mut all, mut events) = (Vec::new(), Vec::new());
    while let Some(wake) = engine.next_wake() {
        engine.step(wake);
        engine.events(&mut events);
        for event in events.drain(..) {
            all.push((wake.seconds_since(Instant::ZERO), event));
            if let Event::Done(place) | Event::Abandoned(place) = event {
                engine.forget(place);
            }
        }
    }
    all
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn a_request_alone_takes_what_the_step_formula_says() {
    let mut engine = Engine::new(Shape::default(), 1);
    assert_eq!(engine.submit(Instant::ZERO, 0, ask(1, 3000, 3)), Sent::Kept);
    let events = drain(&mut engine);
    // 2048 and 952 prompt tokens, then two decodes with 3001 and 3002 tokens held.
    let first = (18e6 + 70e3 * 2048.0 + 18e6 + 70e3 * 952.0 + 35.0 * 2048.0) / 1e9;
    let rest = (2.0 * 18e6 + 2.0 * 60e3 + 35.0 * (3001.0 + 3002.0)) / 1e9;
    assert!(matches!(events[0], (at, Event::First(_)) if close(at, first)), "{events:?}, {first}");
    assert!(matches!(events[1], (at, Event::Done(_)) if close(at, first + rest)), "{events:?}");
    let gauges = engine.gauges().next().unwrap();
    assert_eq!((gauges.prompt_tokens, gauges.output_tokens, gauges.kv), (3000, 3, 0.0));
}

#[test]
fn saturated_with_the_conversation_mix_it_delivers_the_reference_capacity() {
    // 1155 prompt and 211 output tokens on average: 14 265 work and 8.5 requests a second.
    let mut engine = Engine::new(Shape::default(), 1);
    let mut events = Vec::new();
    let (mut id, mut done) = (0, 0);
    let end = Instant::ZERO + Duration::from_secs(400);
    let mut now = Instant::ZERO;
    while now < end {
        while engine.gauges().next().unwrap().waiting < 20 {
            id += 1;
            let (prompt, output) = ([400, 1020, 2045][id as usize % 3], [60, 129, 444][id as usize / 3 % 3]);
            engine.submit(now, 0, ask(id, prompt, output));
        }
        now = engine.next_wake().unwrap();
        engine.step(now);
        engine.events(&mut events);
        for event in events.drain(..) {
            if let Event::Done(place) = event {
                done += u32::from(now.seconds_since(Instant::ZERO) >= 100.0);
                engine.forget(place);
            }
        }
    }
    let rate = f64::from(done) / 300.0;
    assert!((8.2..8.9).contains(&rate), "{rate} requests a second");
    let gauges = engine.gauges().next().unwrap();
    assert_eq!(gauges.running, 256);
    assert_eq!(gauges.preempted, 0);
}

#[test]
fn full_memory_preempts_the_last_that_came_and_computes_it_again() {
    let shape = Shape { kv: 2_000, ..Shape::default() };
    let mut engine = Engine::new(shape, 1);
    engine.submit(Instant::ZERO, 0, ask(1, 800, 300));
    engine.submit(Instant::ZERO, 0, ask(2, 800, 300));
    let events = drain(&mut engine);
    let done: Vec<Place> = events
        .iter()
        .filter_map(|(_, event)| if let Event::Done(at) = event { Some(*at) } else { None })
        .collect();
    assert_eq!(done, [0, 1], "{events:?}");
    let gauges = engine.gauges().next().unwrap();
    assert!(gauges.preempted >= 1);
    assert!(gauges.prompt_tokens > 1600, "it was computed again");
    assert_eq!(gauges.kv, 0.0);
    let firsts = events.iter().filter(|(_, event)| matches!(event, Event::First(_))).count();
    assert_eq!(firsts, 2, "a first token comes once");
}

#[test]
fn who_waits_too_long_goes_away_and_who_is_lost_is_told() {
    let shape = Shape { slots: 1, ..Shape::default() };
    let mut engine = Engine::new(shape, 2);
    for id in 0..4 {
        engine.submit(Instant::ZERO, 0, ask(id, 100, 4_000));
    }
    let mut lost = Vec::new();
    engine.die(1, |sequence, work| lost.push((sequence.ask.id, work)));
    assert_eq!(lost, [(3, 0.0), (1, 100.0)], "the step in progress counts as done");
    let events = drain(&mut engine);
    let abandoned = events.iter().filter(|(at, event)| *at > 30.0 && matches!(event, Event::Abandoned(_)));
    assert_eq!(abandoned.count(), 1);
    assert_eq!(engine.queued_work(), 0.0);
    engine.die(0, |_, _| {});
    assert_eq!(engine.submit(Instant::ZERO, 0, ask(9, 1, 1)), Sent::Lost);
    engine.revive(1);
    engine.slow(1, 0.5);
    assert_eq!((engine.alive(), engine.speed()), (1, 0.5));
}

#[test]
fn servers_do_one_job_each_and_the_rest_waits() {
    let shape = Shape { jobs: true, slots: 2, output_cost: 0.0, ..Shape::default() };
    let mut engine = Engine::new(shape, 1);
    for id in 0..3 {
        engine.submit(Instant::ZERO, 0, ask(id, 1, 8_000));
    }
    assert_eq!(engine.queued_work(), 1.0);
    let events = drain(&mut engine);
    let begun: Vec<f64> =
        events.iter().filter(|(_, event)| matches!(event, Event::First(_))).map(|(at, _)| *at).collect();
    assert_eq!(begun, [8.0, 8.0, 8.0], "two were told at once, with the next that happened");
    assert_eq!(events.last().map(|(at, _)| *at), Some(16.0));
    assert_eq!(engine.gauges().next().unwrap().prompt_tokens, 3);
}

#[test]
fn a_provider_refuses_beyond_its_quota_and_may_count_that() {
    let at = |millis: u64| Instant::ZERO + Duration::from_millis(millis);
    for (counts_refused, later) in [(false, Sent::Kept), (true, Sent::Refused)] {
        let quota = Quota { per_second: 1.0, depth: 2.0, counts_refused, headers: true };
        let shape = Shape { jobs: true, slots: usize::MAX, quota: Some(quota), ..Shape::default() };
        let mut engine = Engine::new(shape, 1);
        let sent: Vec<Sent> = (0..4).map(|id| engine.submit(at(0), 0, ask(id, 1, 100))).collect();
        assert_eq!(sent, [Sent::Kept, Sent::Kept, Sent::Refused, Sent::Refused]);
        assert_eq!(engine.quota(), Some((60.0, 0.0)));
        assert_eq!(engine.submit(at(1_500), 0, ask(9, 1, 100)), later);
        assert_eq!(engine.submit(at(6_000), 0, ask(9, 1, 100)), Sent::Kept);
    }
}
