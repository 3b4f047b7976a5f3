//! Image and video models: nineteen cells of one table.

use http::StatusCode;
use tidegate::control::{Controller, State};
use tidegate::decide::Reason;
use tidegate::observe::Round;
use tidegate::unit::{Dimension, Instant, Limit};

use crate::rig::*;

/// Name, images or requests a minute.
const IMAGES: [(&str, u64); 10] = [
    ("txt2img_v3", 20),
    ("img2img_v3", 10),
    ("remove_background", 10),
    ("replace_background", 10),
    ("remove_text", 10),
    ("inpainting", 10),
    ("cleanup", 10),
    ("merge_face", 10),
    ("flux-1-schnell", 10),
    ("upscale_v3", 20),
];
const VIDEOS: [(&str, u64); 9] = [
    ("video_merge_face", 10),
    ("txt2video", 2),
    ("img2video", 2),
    ("wan_txt_to_video", 20),
    ("wan i2v", 20),
    ("hunyuan_video_fast", 20),
    ("Kling i2v", 20),
    ("Kling t2v", 20),
    ("Minimax", 20),
];

fn keys() -> String {
    let user = |name: &str| key(name, name, "\"tier\":\"user\"");
    ["a", "b"].map(user).concat() + &key("a2", "a", "\"tier\":\"user\"")
}

/// Each model admits its N, by images (five a request) or by requests, and not one more; that the
/// others are used up changes nothing for it, nor for another user.
#[tokio::test]
async fn s3_1_s3_2_s3_3_s3_4_s3_5_s3_6_nineteen_cells_admit_n_and_refuse_one_more() {
    let rig = Rig::start("media", keys()).await;
    for _ in 0..3 {
        aligned().await;
        let begun = minute();
        for (model, limit) in IMAGES {
            for _ in 0..limit / 5 {
                assert_eq!(rig.images("a", model, 5).await, StatusCode::OK, "{model}");
            }
            assert_eq!(rig.images("a", model, 1).await, StatusCode::TOO_MANY_REQUESTS, "{model}");
            assert_eq!(rig.images("a2", model, 1).await, StatusCode::TOO_MANY_REQUESTS, "{model}: a user's");
        }
        for (model, limit) in VIDEOS {
            for _ in 0..limit {
                assert_eq!(rig.chat("a", model, 2).await, StatusCode::OK, "{model}");
            }
            assert_eq!(rig.chat("a", model, 2).await, StatusCode::TOO_MANY_REQUESTS, "{model}");
            assert_eq!(rig.chat("b", model, 2).await, StatusCode::OK, "{model}: another user");
        }
        if minute() == begun {
            println!("media: {} cells", IMAGES.len() + VIDEOS.len());
            return;
        }
    }
    panic!("no minute was long enough");
}

#[tokio::test]
async fn s3_9_a_request_for_more_images_than_remain_gets_none_and_changes_nothing() {
    let rig = Rig::start("media", keys()).await;
    aligned().await;
    assert_eq!(rig.images("a", "cleanup", 8).await, StatusCode::OK);
    assert_eq!(rig.images("a", "cleanup", 3).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(rig.images("a", "cleanup", 2).await, StatusCode::OK);
    let never = rig.images("b", "cleanup", 11).await;
    assert!(never.is_client_error(), "{never}");
    assert_eq!(rig.images("b", "cleanup", 10).await, StatusCode::OK);
}

/// Three hundred at once, of one user: as many as its limit says get through, and another user's
/// request is served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_7_a_spike_of_one_user_is_cut_to_its_limit_and_nobody_else_feels_it() {
    let rig = Rig::start("media", keys()).await;
    for _ in 0..3 {
        aligned().await;
        let begun = minute();
        let before = rig.asked("main");
        let mut spike = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let rig = std::sync::Arc::clone(&rig);
            spike.spawn(async move { rig.chat("a", "wan i2v", 2).await });
        }
        assert_eq!(rig.chat("b", "wan i2v", 2).await, StatusCode::OK);
        let mut answers = spike.join_all().await;
        answers.sort();
        if minute() == begun {
            assert_eq!(answers.iter().filter(|status| **status == StatusCode::OK).count(), 20);
            assert_eq!(answers[20..], [StatusCode::TOO_MANY_REQUESTS; 280]);
            return assert_eq!(rig.asked("main") - before, 21, "the models' servers see no spike");
        }
    }
    panic!("no minute was long enough");
}

/// One user's, of one model.
#[tokio::test]
async fn s3_8_higher_limits_of_a_user_and_model_stand_in_its_line() {
    let own = r#","models":{"Kling i2v":{"rpm":23},"cleanup":{"ipm":12}}"#;
    let rig = Rig::start("media", keys() + &account_with("a", 0, own)).await;
    for _ in 0..3 {
        aligned().await;
        let (begun, mut admitted) = (minute(), Vec::new());
        for (key, model, more) in [("a", "Kling i2v", 24), ("a", "Kling t2v", 21), ("b", "Kling i2v", 21)] {
            admitted.push(rig.admitted(key, model, more, 1).await);
        }
        let images = [rig.images("a", "cleanup", 12).await, rig.images("b", "cleanup", 11).await];
        if minute() == begun {
            assert_eq!(admitted, [23, 20, 20]);
            return assert_eq!(images, [StatusCode::OK, StatusCode::BAD_REQUEST]);
        }
    }
    panic!("no minute was long enough");
}

/// What clients are told to watch is there to be watched; and what a refusal says.
#[tokio::test]
async fn s3_6_s3_10_a_user_sees_what_remains_and_a_refusal_says_so_in_words() {
    let rig = Rig::start("media", keys()).await;
    for _ in 0..3 {
        aligned().await;
        let begun = minute();
        let before = rig.limit("a", "txt2img_v3", "ipm").await;
        rig.images("a", "txt2img_v3", 17).await;
        let (after, refused) =
            (rig.limit("a2", "txt2img_v3", "ipm").await, rig.draw("a", "txt2img_v3", 4).await);
        if minute() == begun {
            let left = [&before, &after].map(|limit| limit["remaining"].as_u64().unwrap());
            assert_eq!(left, [20, 3], "with all its keys");
            assert_eq!(
                [&after["limit"], &after["scope"], &after["bound"]],
                [&20.into(), &"account".into(), &"static".into()] as [&serde_json::Value; 3]
            );
            assert!((1..=60).contains(&after["reset"].as_u64().unwrap()));
            let said = "The rate limit has been exceeded: 20 images per minute for txt2img_v3.";
            assert_eq!(
                (refused.status, &refused.json()["message"]),
                (StatusCode::TOO_MANY_REQUESTS, &said.into())
            );
            return assert!(refused.header("retry-after") >= 1, "X-4: not promised, and useful");
        }
    }
    panic!("no minute was long enough");
}

/// A pool that nobody measures: constants from the first tick on, which a table may be taken from
/// at once, bound by what is stated, and no higher without a node or after an hour.
#[test]
fn x_3_a_published_table_is_constant_and_bound_by_its_ceiling() {
    let mut stated = policy("media");
    let grant = stated.models.get_mut("txt2video").unwrap().tiers.get_mut("user").unwrap();
    (grant.ceiling, grant.guarantee) = (Limit::Finite(600), 60);
    let mut controller = Controller::new(stated.into(), State::default());
    let first = controller.tick(Instant::ZERO, &Round::default());
    let late = controller.tick(Instant(3_600_000_000_000), &Round::default());
    for tick in [&first, &late] {
        tick.table.validate().unwrap();
        let entry = tick.table.row("txt2video", "user").unwrap().limits[&Dimension::RequestsPerMinute];
        assert_eq!(
            (entry.tier_limit, entry.ceiling, entry.safe),
            (entry.ceiling, Limit::Finite(600), entry.ceiling)
        );
        assert_eq!((entry.account_limit, entry.guarantee), (Limit::Finite(2), Limit::Finite(60)));
        assert!(tick.pools.values().all(|pool| pool.decision.reason == Reason::Fixed));
        assert!(tick.table.pools.values().all(|pool| !pool.degraded && pool.budget == Limit::Unlimited));
    }
    assert!(late.table.same_entries(&first.table) && !late.changed);
}
