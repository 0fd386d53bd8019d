//! What is remembered of commands: their entries in the audit, and the answers to requests.

use futures_util::future::join_all;

use super::kit::*;
use crate::{
    controller::{AcknowledgeOutcome, Answer, OfferOutcome, PolicyKey, Refusal, Refused, SignalContext},
    model::{DeviceState, ExceptionKind, Identity, Role},
    store::{AuditQuery, SqliteStore, Store as _},
};

fn request(g: &Gateway, id: &str, body: u8) -> SignalContext {
    SignalContext {
        request: id.parse().unwrap(),
        digest: Some([body; 32]),
        ..g.seen(0)
    }
}

async fn entries(g: &Gateway) -> Vec<crate::audit::Sealed> {
    let query = AuditQuery::After { number: 0, limit: 1000 };
    g.controller().audit(query).await.unwrap()
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_also_after_a_restart() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let ask = |g: &Gateway, id: &str, body| {
        let controller = g.controller().clone();
        let context = request(g, id, body);
        async move {
            controller
                .policy_applied(context, "phone".parse().unwrap(), "rev-1".parse().unwrap(), None)
                .await
        }
    };
    let first = ask(&g, "one", 1).await.unwrap();
    assert!(matches!(first, Answer::First(_)));
    let asked_at = g.now().wall;
    g.clock.advance_ms(7);
    g.controller().answered(request(&g, "one", 1), b"the answer".to_vec(), false);
    assert_eq!(ask(&g, "one", 1).await, Ok(Answer::Again(b"the answer".to_vec())));
    // Its effect does not come again: what has happened since stays.
    g.clock.advance_ms(1000);
    g.revoked("phone").await.unwrap();
    assert_eq!(ask(&g, "one", 1).await, Ok(Answer::Again(b"the answer".to_vec())));
    assert_eq!(
        g.controller().device(id("phone")).await.unwrap().device.state,
        DeviceState::Quarantined
    );
    let other = ask(&g, "one", 2).await.unwrap_err();
    assert_eq!(other.refusal, Refusal::RequestIdReused("one".parse().unwrap()));
    g.controller().answered(request(&g, "one", 2), b"another's".to_vec(), false);
    g.stop().await;
    // The answer has come to the row of the request, which was not written anew.
    let mut store = SqliteStore::open(&g.state_directory()).unwrap();
    let kept = store
        .request(&g.seen(0).by.requester(), &"one".parse().unwrap())
        .unwrap()
        .unwrap();
    assert_eq!((kept.at, kept.answer.as_deref()), (asked_at, Some(&b"the answer"[..])));
    drop(store);
    g.start().await.unwrap();
    assert_eq!(ask(&g, "one", 1).await, Ok(Answer::Again(b"the answer".to_vec())));
    assert_eq!(
        ask(&g, "one", 2).await.unwrap_err().refusal,
        Refusal::RequestIdReused("one".parse().unwrap())
    );
    // Another client's ids are its own.
    let stranger = SignalContext {
        by: Identity::unlimited(Role::Mdm, "another"),
        ..request(&g, "one", 2)
    };
    g.clock.advance_ms(1);
    let answer = g
        .controller()
        .policy_applied(
            SignalContext {
                observed_at: g.seen(0).observed_at,
                ..stranger
            },
            id("phone"),
            "rev-1".parse().unwrap(),
            None,
        )
        .await;
    assert!(matches!(answer, Ok(Answer::First(_))));
    // Once it is no longer kept, it is a new request.
    g.clock.advance_ms(25 * 3_600_000);
    assert!(matches!(ask(&g, "one", 2).await, Ok(Answer::First(_))));
}

#[tokio::test]
async fn request_ids_belong_to_a_client_in_its_role_and_outlive_its_certificate() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let ask = |g: &Gateway, role, name: &str, client: &str| {
        let controller = g.controller().clone();
        let by = Identity {
            name: name.to_owned(),
            client: client.into(),
            ..Identity::unlimited(role, name)
        };
        let context = SignalContext {
            by,
            ..request(g, "one", 1)
        };
        async move {
            let told = controller.policy_applied(context.clone(), id("phone"), "rev-1".parse().unwrap(), None);
            (context, told.await)
        }
    };
    let again = || Ok(Answer::Again(b"the answer".to_vec()));
    let (context, first) = ask(&g, Role::Mdm, "mdm (serial 01)", "mdm").await;
    assert!(matches!(first, Ok(Answer::First(_))));
    g.controller().answered(context, b"the answer".to_vec(), false);
    // Its certificate is renewed between a request and its repetition; then the gateway starts anew.
    assert_eq!(ask(&g, Role::Mdm, "mdm (serial 02)", "mdm").await.1, again());
    g.restart().await;
    assert_eq!(ask(&g, Role::Mdm, "mdm (serial 03)", "mdm").await.1, again());
    // Neither another client whose certificate has the same name and number, nor the same subject in another role.
    for (role, client) in [(Role::Mdm, "mdm (0123)"), (Role::Operator, "mdm")] {
        assert!(matches!(
            ask(&g, role, "mdm (serial 01)", client).await.1,
            Ok(Answer::First(_))
        ));
    }
    // The audit says exactly who it was.
    let entries = entries(&g).await;
    assert_eq!(entries.last().unwrap().entry.by, "mdm (serial 01)");
}

#[tokio::test]
async fn a_restriction_is_done_whatever_its_request_id_was_used_for() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    let applied = g
        .controller()
        .policy_applied(request(&g, "one", 1), id("phone"), "rev-1".parse().unwrap(), None);
    assert_eq!(
        applied.await.unwrap().first().unwrap().device.device.state,
        DeviceState::Released
    );
    g.clock.advance_ms(1000);
    let revoked = g
        .controller()
        .policy_revoked(request(&g, "one", 2), id("phone"), String::new());
    assert_eq!(
        revoked.await.unwrap().first().unwrap().device.device.state,
        DeviceState::Quarantined
    );
    let except = async |kind, body| {
        let (why, length) = ("lost".to_owned(), std::time::Duration::from_secs(60));
        let told = g
            .controller()
            .grant_exception(request(&g, "one", body), id("phone"), kind, why, length);
        told.await.map(|answer| answer.first().unwrap().device.device.state)
    };
    let end = async |body| {
        let told = g
            .controller()
            .end_exception(request(&g, "one", body), id("phone"), "found".to_owned());
        told.await.map(|answer| answer.first().unwrap().device.device.state)
    };
    let reused = Refusal::RequestIdReused("one".parse().unwrap());
    let refused = |told: Result<DeviceState, crate::controller::Refused>| told.unwrap_err().refusal;
    // Neither what releases nor the end of a block restricts.
    assert_eq!(refused(except(ExceptionKind::Release, 4).await), reused);
    assert_eq!(except(ExceptionKind::Block, 5).await, Ok(DeviceState::Blocked));
    assert_eq!(refused(end(6).await), reused);
    g.tell()
        .end_exception(g.seen(0), id("phone"), "found".to_owned())
        .await
        .unwrap();
    let length = std::time::Duration::from_secs(60);
    g.tell()
        .grant_exception(g.seen(0), id("phone"), ExceptionKind::Release, "lost".to_owned(), length)
        .await
        .unwrap();
    assert_eq!(end(7).await, Ok(DeviceState::Quarantined));
    let retired = g.controller().retire(request(&g, "one", 3), id("phone"));
    assert_eq!(
        retired.await.unwrap().first().unwrap().device.device.state,
        DeviceState::Retired
    );
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_not_done_again() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.controller()
        .policy_applied(request(&g, "one", 1), id("phone"), "rev-1".parse().unwrap(), None)
        .await
        .unwrap();
    g.clock.advance_ms(1000);
    g.revoked("phone").await.unwrap();
    for _ in 0..2 {
        let again = g
            .controller()
            .policy_applied(
                SignalContext {
                    observed_at: Some(g.now().wall),
                    ..request(&g, "one", 1)
                },
                id("phone"),
                "rev-1".parse().unwrap(),
                None,
            )
            .await
            .unwrap();
        let outcome = again.first().expect("no answer is known");
        assert_eq!(
            outcome.device.device.state,
            DeviceState::Quarantined,
            "what is so now is the answer"
        );
        g.restart().await;
    }
}

#[tokio::test]
async fn duplicates_that_come_together_are_done_once() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    let before = entries(&g).await.len();
    let all = (0..8).map(|_| {
        g.controller()
            .policy_applied(request(&g, "one", 1), id("phone"), "rev-1".parse().unwrap(), None)
    });
    for answer in join_all(all).await {
        assert_eq!(answer.unwrap().first().unwrap().device.device.state, DeviceState::Released);
    }
    assert_eq!(entries(&g).await.len(), before + 1);
}

#[tokio::test]
async fn a_refused_request_is_not_remembered() {
    let g = Gateway::new().await;
    g.disk.fill();
    let register = |body| {
        g.controller()
            .register(request(&g, "one", body), vec![registration("phone", "office")])
    };
    assert!(matches!(register(1).await.unwrap_err().refusal, Refusal::StoreUnavailable(_)));
    g.disk.free();
    assert!(matches!(register(2).await, Ok(Answer::First(_))));
}

fn offer(g: &Gateway) -> impl Future<Output = Answer<OfferOutcome>> + use<> {
    let (controller, context) = (g.controller().clone(), request(g, "one", 1));
    async move {
        let told = controller.offer_policy(context, id("phone"), "rev-1".parse().unwrap());
        told.await.unwrap()
    }
}

#[tokio::test]
async fn an_answer_that_holds_a_secret_does_not_outlive_the_process() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let first = offer(&g).await.first().unwrap();
    // Its answer may be under way: the same key, not one in its place.
    assert_eq!(offer(&g).await.first().unwrap().key, first.key);
    g.controller()
        .answered(request(&g, "one", 1), first.key.reveal().into_bytes(), true);
    assert_eq!(offer(&g).await, Answer::Again(first.key.reveal().into_bytes()));
    g.restart().await;
    let second = offer(&g)
        .await
        .first()
        .expect("another key in place of the one that nobody can give again");
    assert_ne!(second.key, first.key);
    assert_eq!(offer(&g).await.first().unwrap().key, second.key, "from then on that one");
    assert!(!is_on_disk(&g, &first.key) && !is_on_disk(&g, &second.key));
    let acknowledge = |key: &PolicyKey| g.tell().acknowledge_policy(g.seen(0), id("phone"), key.clone());
    let unknown = Err(Refusal::PolicyKeyUnknown(id("phone")));
    assert_eq!(acknowledge(&first.key).await, unknown, "superseded");
    assert!(acknowledge(&second.key).await.is_ok());
}

/// Whether a key is in any file, as text or as bits.
fn is_on_disk(g: &Gateway, key: &PolicyKey) -> bool {
    let text = key.reveal();
    let bits: Vec<u8> = (0..32)
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect();
    let has = |file: std::io::Result<std::fs::DirEntry>| {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        bytes.windows(32).any(|w| w == text.as_bytes()) || bytes.windows(16).any(|w| w == bits)
    };
    std::fs::read_dir(g.state_directory()).unwrap().any(has)
}

fn acknowledge(g: &Gateway, temporary: &PolicyKey) -> impl Future<Output = Result<Answer<AcknowledgeOutcome>, Refused>> + use<> {
    let (controller, context, key) = (g.controller().clone(), request(g, "two", 2), temporary.clone());
    async move { controller.acknowledge_policy(context, id("phone"), key).await }
}

#[tokio::test]
async fn a_final_key_is_given_again_also_after_a_restart_and_is_nowhere_kept() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let temporary = offer(&g).await.first().unwrap().key;
    let both = futures_util::future::join(acknowledge(&g, &temporary), acknowledge(&g, &temporary)).await;
    let (first, twin) = (both.0.unwrap().first().unwrap(), both.1.unwrap().first().unwrap());
    assert_eq!((&first.key, &first.policy), (&twin.key, &twin.policy), "together");
    let entries = entries(&g).await;
    assert_eq!(entries.iter().filter(|e| e.entry.action == "AcknowledgePolicy").count(), 1);
    // The process dies before it knows the answer: twice, since the second answer is lost, too.
    for _ in 0..2 {
        g.restart().await;
        let again = acknowledge(&g, &temporary).await.unwrap().first().unwrap();
        assert_eq!((again.key, again.policy), (first.key.clone(), first.policy.clone()));
    }
    assert!(!is_on_disk(&g, &first.key) && !is_on_disk(&g, &temporary));
    // It is the one that releases.
    let applied = async |g: &Gateway| {
        let policy = "rev-1".parse().unwrap();
        let told = g
            .tell()
            .policy_applied(g.seen(0), id("phone"), policy, Some(first.key.clone()));
        told.await.map(|o| o.device.device.state)
    };
    assert_eq!(applied(&g).await, Ok(DeviceState::Released));
    // With a restriction it is gone, and nothing of it comes back.
    g.clock.advance_ms(1);
    g.revoked("phone").await.unwrap();
    g.restart().await;
    let unknown = Refusal::PolicyKeyUnknown(id("phone"));
    assert_eq!(acknowledge(&g, &temporary).await.unwrap_err().refusal, unknown);
    g.clock.advance_ms(1);
    assert_eq!(applied(&g).await, Err(unknown.clone()));
    // Nor does another handshake bring it back, whose key is another.
    let policy = "rev-1".parse().unwrap();
    let another = g.tell().offer_policy(g.seen(0), id("phone"), policy).await.unwrap();
    g.tell()
        .acknowledge_policy(g.seen(0), id("phone"), another.key)
        .await
        .unwrap();
    assert_eq!(acknowledge(&g, &temporary).await.unwrap_err().refusal, unknown);
}

#[tokio::test]
async fn an_answer_with_a_final_key_is_kept_without_it() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let temporary = offer(&g).await.first().unwrap().key;
    let first = acknowledge(&g, &temporary).await.unwrap().first().unwrap();
    g.controller().answered(request(&g, "two", 2), b"the rest".to_vec(), false);
    for _ in 0..2 {
        let Ok(Answer::Salted(rest, salt)) = acknowledge(&g, &temporary).await else {
            panic!("not the first answer");
        };
        assert_eq!(rest, b"the rest");
        assert_eq!(temporary.final_key(&salt, &id("phone"), &first.policy), first.key);
        g.restart().await;
    }
    // Another offer and its keys have another salt.
    let another = g
        .tell()
        .offer_policy(g.seen(0), id("phone"), "rev-1".parse().unwrap())
        .await
        .unwrap();
    let other = g
        .tell()
        .acknowledge_policy(g.seen(0), id("phone"), another.key)
        .await
        .unwrap();
    assert_ne!(other.key, first.key);
}

#[tokio::test]
async fn whatever_changes_or_is_refused_leaves_an_entry_in_one_chain() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let session = g.open("phone", &["10.66.0.5"]).await.unwrap().session.session.id;
    let refused = g.controller().retire(g.seen(0), id("nobody")).await.unwrap_err();
    g.applied("phone").await.unwrap();
    g.clock.advance_ms(1);
    g.applied("phone").await.unwrap();
    g.tell().close_session(g.seen(0), session).await.unwrap();
    let all = entries(&g).await;
    let told: Vec<_> = all
        .iter()
        .map(|e| {
            let e = &e.entry;
            format!("{} {} {}>{} {}", e.number, e.action, e.before, e.after, e.result)
        })
        .collect();
    assert_eq!(
        told,
        [
            "1 RegisterDevices >registered done",
            "2 OpenSession registered>quarantined done",
            "3 OpenSession >open done",
            "4 RetireDevice > UNKNOWN_DEVICE",
            "5 ReportPolicyApplied quarantined>released done",
            "6 ReportPolicyApplied released>released done",
            "7 CloseSession open>ended done",
        ]
    );
    assert_eq!(refused.reference, Some(4));
    assert!(all.iter().all(|e| e.entry.by == "test" && e.entry.request == "r-1"));
    g.restart().await;
    g.clock.advance_ms(1);
    g.revoked("phone").await.unwrap();
    let all = entries(&g).await;
    assert_eq!(all.last().unwrap().entry.number, 8, "the chain goes on");
    let head = g.controller().audit_head().await.unwrap();
    assert_eq!((head.number, head.hash), (8, all[7].hash));
    let mut previous = [0; 32];
    for sealed in &all {
        assert_eq!(sealed.entry.hash_after(&previous), sealed.hash);
        previous = sealed.hash;
    }
}

#[tokio::test]
async fn a_refusal_is_in_the_store_within_a_second_and_an_undone_change_says_so() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let refused = g.controller().retire(g.seen(0), id("nobody")).await.unwrap_err();
    let revision = g.controller().status().await.unwrap().revision;
    g.until("committed by itself", async |g| {
        g.controller().status().await.unwrap().revision > revision
    })
    .await;
    g.disk.fill();
    let undone = g
        .controller()
        .policy_applied(g.seen(0), id("phone"), "rev-1".parse().unwrap(), None)
        .await
        .unwrap_err();
    assert!(matches!(undone.refusal, Refusal::StoreUnavailable(_)));
    g.clock.advance_ms(1);
    g.revoked("phone").await.unwrap();
    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
    g.restart().await;
    let all = entries(&g).await;
    let of = |number: Option<u64>| all.iter().find(|e| Some(e.entry.number) == number).unwrap().entry.clone();
    assert_eq!(of(refused.reference).result, "UNKNOWN_DEVICE");
    let entry = of(undone.reference);
    assert_eq!(
        (entry.result.as_str(), entry.before == entry.after),
        ("STORE_UNAVAILABLE", true)
    );
    assert_eq!(all.last().unwrap().entry.result, "done");
}
