//! Waves of a publication: whom they take, what counts against the ceiling, and what is said when none comes.

use std::{collections::BTreeSet, time::Duration};

use super::kit::*;
use crate::{
    config::AfterDeadline,
    controller::{Progress, PublicationView, Refusal},
    model::{Device, DeviceId, DeviceState, ExceptionKind, PolicyRevision, SessionId, StateReason},
};

fn rev(text: &str) -> PolicyRevision {
    text.parse().unwrap()
}

async fn publication(g: &Gateway) -> PublicationView {
    g.controller().publication().await.unwrap()
}

async fn publish(g: &Gateway, revision: &str, ceiling: u32, rate: u32) {
    g.tell()
        .publish_policy(g.seen(0), rev(revision), ceiling, rate)
        .await
        .unwrap();
}

async fn prove(g: &Gateway, device: &str, revision: &str) -> bool {
    let told = g.tell().policy_applied(g.seen(0), id(device), rev(revision), None);
    told.await.is_ok()
}

async fn connect(g: &Gateway, device: &str, last: usize) -> Option<SessionId> {
    let opened = g.open(device, &[&format!("10.66.0.{}", last + 2)]).await;
    opened.ok().map(|o| o.session.session.id)
}

async fn state(g: &Gateway, device: &str) -> DeviceState {
    g.controller().device(id(device)).await.unwrap().device.state
}

/// Time passes, a second at a time, as waves come.
async fn pass(g: &Gateway, seconds: u64) {
    for _ in 0..seconds {
        g.clock.advance_ms(1_000);
        publication(g).await;
    }
}

#[tokio::test]
async fn a_wave_takes_who_is_connected_and_its_ceiling_counts_who_is() {
    let g = Gateway::new().await;
    let mut sessions = Vec::new();
    for n in 0..4 {
        let name = format!("phone-{n}");
        g.register(&name, "office").await;
        sessions.push(connect(&g, &name, n).await.unwrap());
        assert!(prove(&g, &name, "rev-1").await);
    }
    for session in &sessions[2..] {
        g.tell().close_session(g.seen(0), *session).await.unwrap();
    }
    // One that was never released is no wave's, whatever is offered to it.
    g.register("new", "office").await;
    connect(&g, "new", 10).await.unwrap();
    g.tell().offer_policy(g.seen(0), id("new"), rev("rev-1")).await.unwrap();
    g.clock.advance_ms(1);
    publish(&g, "rev-2", 1, 600).await;
    pass(&g, 5).await;
    let now = publication(&g).await;
    let expected = Progress {
        waiting: 3,
        ready: 1,
        stale: 1,
        counted: 1,
        ..Progress::default()
    };
    assert_eq!((now.progress, state(&g, "phone-0").await), (expected, DeviceState::Stale));
    assert_eq!(state(&g, "new").await, DeviceState::PolicyPending);

    // That it stands still is said: to who asks at once, in the status after a while.
    let why = now.standstill().unwrap();
    for part in [
        "the ceiling of 1 is full",
        "rev-2",
        "--ceiling 2 --rate 600",
        "devices --state stale",
    ] {
        assert!(why.contains(part), "{part:?}: {why}");
    }
    let dossier = g.controller().dossier(id("phone-1"), 1).await.unwrap();
    assert_eq!((dossier.awaits_wave, dossier.standstill.as_ref()), (true, Some(&why)));
    let warned = async |g: &Gateway| g.controller().status().await.unwrap().warnings.contains(&why);
    assert!(!warned(&g).await);
    g.clock.advance_ms(30 * 60_000);
    assert!(warned(&g).await, "{:?}", g.controller().status().await.unwrap().warnings);

    // Who goes makes room; who comes back counts again, offered or not.
    g.tell().close_session(g.seen(0), sessions[0]).await.unwrap();
    pass(&g, 2).await;
    assert_eq!(state(&g, "phone-1").await, DeviceState::Stale);
    g.tell().offer_policy(g.seen(0), id("phone-0"), rev("rev-2")).await.unwrap();
    connect(&g, "phone-0", 0).await.unwrap();
    connect(&g, "phone-2", 2).await.unwrap();
    pass(&g, 5).await;
    let now = publication(&g).await;
    assert_eq!((now.progress.stale, now.progress.counted, now.progress.ready), (2, 2, 1));
    assert_eq!(
        state(&g, "phone-2").await,
        DeviceState::Released,
        "the ceiling is more than full"
    );
    // As the policy offered to one counts, so does its proof.
    assert!(prove(&g, "phone-0", "rev-2").await);
    pass(&g, 2).await;
    assert_eq!(state(&g, "phone-2").await, DeviceState::Released);
    assert!(prove(&g, "phone-1", "rev-2").await);
    pass(&g, 2).await;
    assert_eq!(state(&g, "phone-2").await, DeviceState::Stale);

    // One that is never connected keeps nobody waiting, and its wave comes when it is; or at once, if that is urgent.
    let why = publication(&g).await.standstill().unwrap();
    assert!(why.starts_with("none of the 1 device(s)"), "{why}");
    g.clock.advance_ms(60 * 60_000);
    assert!(!warned(&g).await);
    publish(&g, "rev-2", 0, 0).await;
    pass(&g, 2).await;
    assert_eq!(state(&g, "phone-3").await, DeviceState::Stale);
    assert_eq!(publication(&g).await.standstill(), None);
}

#[tokio::test]
async fn who_is_past_its_deadline_counts_no_longer_shut_or_not() {
    for after in [AfterDeadline::Block, AfterDeadline::Report] {
        let mut config = config();
        (config.devices.deadline, config.devices.after_deadline) = (Some(Duration::from_mins(10)), after);
        let mut g = Gateway::with(config).await;
        for n in 0..2 {
            let name = format!("phone-{n}");
            g.register(&name, "office").await;
            connect(&g, &name, n).await.unwrap();
            assert!(prove(&g, &name, "rev-1").await);
        }
        g.clock.advance_ms(1);
        publish(&g, "rev-2", 1, 1).await;
        pass(&g, 2).await;
        g.clock.advance_ms(9 * 60_000);
        g.restart().await;
        pass(&g, 2).await;
        assert_eq!(publication(&g).await.progress.counted, 1);
        assert_eq!(state(&g, "phone-1").await, DeviceState::Released);
        g.clock.advance_ms(60_000);
        pass(&g, 3).await;
        let stale = if after == AfterDeadline::Block { 1 } else { 2 };
        let progress = publication(&g).await.progress;
        assert_eq!((progress.stale, progress.counted), (stale, 1), "{after:?}");
        assert_eq!(state(&g, "phone-1").await, DeviceState::Stale, "{after:?}");
    }
}

#[tokio::test]
async fn an_undone_proof_waits_for_its_wave_again() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    connect(&g, "phone", 0).await.unwrap();
    assert!(prove(&g, "phone", "rev-1").await);
    g.clock.advance_ms(1);
    publish(&g, "rev-2", 1, 1).await;
    g.tell().pause_publication(g.seen(0)).await.unwrap();
    g.disk.fill();
    assert!(!prove(&g, "phone", "rev-2").await);
    assert!(g.tell().resume_publication(g.seen(0)).await.is_err());
    g.disk.free();
    g.tell().resume_publication(g.seen(0)).await.unwrap();
    pass(&g, 3).await;
    assert_eq!(state(&g, "phone").await, DeviceState::Stale);
}

#[tokio::test]
async fn each_publication_of_a_batch_is_kept() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.clock.advance_ms(1);
    let go = g.hold().await;
    let published = ["rev-1", "rev-2", "rev-1", "rev-3"].map(|revision| {
        let (controller, context) = (g.controller().clone(), g.seen(0));
        tokio::spawn(async move { controller.publish_policy(context, rev(revision), 1, 1).await.map(drop) })
    });
    // They wait in the order in which they came.
    tokio::time::sleep(Duration::from_millis(50)).await;
    go.send(()).unwrap();
    for one in published {
        one.await.unwrap().unwrap();
    }
    for restarted in [false, true] {
        if restarted {
            g.restart().await;
        }
        for older in ["rev-1", "rev-2"] {
            let told = g.tell().policy_applied(g.seen(0), id("phone"), rev(older), None).await;
            let stale = Refusal::StalePolicyRevision {
                device: id("phone"),
                required: rev("rev-3"),
                found: rev(older),
            };
            assert_eq!(told.map(drop), Err(stale), "{older}, restarted: {restarted}");
        }
    }
}

const DEVICES: usize = 12;

/// What a walk sees of a device.
#[derive(Clone)]
struct Seen {
    device: Device,
    connected: bool,
    overdue: bool,
}

async fn look(g: &Gateway) -> Vec<Seen> {
    let each = |all: &mut Vec<Seen>, device: &Device, context: &crate::transition::Context<'_>| {
        let end = crate::transition::deadline_end(device, context);
        all.push(Seen {
            device: device.clone(),
            connected: context.connected,
            overdue: end.is_some_and(|end| end <= context.now.boot),
        });
    };
    g.controller().fold_devices(Vec::new(), each).await.unwrap()
}

fn is_stale(s: &Seen) -> bool {
    let pending = s.device.state == DeviceState::PolicyPending && s.device.state_reason == StateReason::PolicyStale;
    pending || s.device.state == DeviceState::Stale
}

/// The figures, by looking at each device.
fn counted(all: &[Seen], revision: &PolicyRevision) -> Progress {
    let released = |s: &&Seen| s.device.state == DeviceState::Released;
    let excepted = |s: &&Seen| s.device.exception.is_some();
    let of = |what: &dyn Fn(&&Seen) -> bool| all.iter().filter(what).count() as u64;
    let proved = |s: &&Seen| s.device.policy_revision.as_ref() == Some(revision);
    Progress {
        done: of(&|s| released(s) && !excepted(s) && proved(s)),
        waiting: of(&|s| released(s) && !excepted(s) && !proved(s)),
        ready: of(&|s| released(s) && !excepted(s) && !proved(s) && s.connected),
        stale: of(&|s| is_stale(s)),
        counted: of(&|s| is_stale(s) && s.connected && !s.overdue),
        excepted: of(&|s| released(s) && excepted(s)),
    }
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// Whatever happens to devices: no wave leaves more under the ceiling than it allows, each takes connected devices alone, and while there is room
/// and anyone for it, one comes; and the figures, which are kept as things happen, are those that counting gives.
#[tokio::test]
async fn no_walk_overfills_a_ceiling_or_stands_still_under_it() {
    let mut waves = 0;
    for (seed, after) in [
        (1, AfterDeadline::Block),
        (2, AfterDeadline::Report),
        (3, AfterDeadline::Report),
    ] {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut config = config();
        (config.devices.deadline, config.devices.after_deadline) = (Some(Duration::from_mins(40)), after);
        let mut g = Gateway::with(config).await;
        let name = |n: usize| format!("phone-{n:02}");
        let mut sessions: Vec<Option<SessionId>> = vec![None; DEVICES];
        for n in 0..DEVICES {
            g.register(&name(n), "office").await;
            prove(&g, &name(n), "rev-0").await;
        }
        let (mut last, mut ceiling, mut paused) = (0_u64, 1_u32, false);
        g.clock.advance_ms(1);
        publish(&g, "rev-0", ceiling, 600).await;
        for step in 0..300 {
            let n = usize::try_from(dice.roll(DEVICES as u64)).unwrap();
            let (phone, revision) = (name(n), format!("rev-{last}"));
            g.clock.advance_ms(1);
            match dice.roll(32) {
                0..10 => {
                    if sessions[n].is_none() {
                        sessions[n] = connect(&g, &phone, n).await;
                    } else if let Some(id) = sessions[n].take_if(|_| dice.roll(3) == 0) {
                        g.tell().close_session(g.seen(0), id).await.unwrap();
                    }
                }
                10..19 => {
                    prove(&g, &phone, &revision).await;
                }
                19..22 => drop(g.tell().offer_policy(g.seen(0), id(&phone), rev(&revision)).await),
                22 => drop(g.revoked(&phone).await),
                23 | 24 => {
                    last += 1;
                    ceiling = 1 + dice.roll(3) as u32;
                    paused = false;
                    publish(&g, &format!("rev-{last}"), ceiling, 600).await;
                }
                25 => {
                    ceiling = 1 + dice.roll(4) as u32;
                    publish(&g, &revision, ceiling, 600).await;
                }
                26 => {
                    paused = !paused;
                    let tell = g.tell();
                    let told = if paused {
                        tell.pause_publication(g.seen(0)).await
                    } else {
                        tell.resume_publication(g.seen(0)).await
                    };
                    told.unwrap();
                }
                27 => {
                    let (why, length) = ("walk".to_owned(), Duration::from_mins(1 + dice.roll(30)));
                    let told = g
                        .tell()
                        .grant_exception(g.seen(0), id(&phone), ExceptionKind::Release, why, length);
                    drop(told.await);
                }
                28 => drop(g.tell().end_exception(g.seen(0), id(&phone), String::new()).await),
                29 => g.clock.advance_ms(dice.roll(30 * 60_000)),
                30 => {
                    // Whoever the deadline has shut may begin again.
                    let window = crate::model::Window {
                        not_before: None,
                        not_after: Some(crate::model::WallTime(i64::MAX - step)),
                    };
                    let again = crate::controller::Registration {
                        window,
                        ..registration(&phone, "office")
                    };
                    g.tell().register(g.seen(0), vec![again]).await.unwrap();
                }
                _ => g.restart().await,
            }
            let context = format!("seed {seed}, step {step}");
            for _ in 0..2 {
                let before = look(&g).await;
                g.clock.advance_ms(1_000);
                let after = look(&g).await;
                let view = publication(&g).await;
                assert_eq!(
                    (view.publication.ceiling, view.publication.paused),
                    (ceiling, paused),
                    "{context}"
                );
                let naive = counted(&after, &view.publication.revision);
                assert_eq!(view.progress, naive, "{context}");
                let taken: BTreeSet<DeviceId> = before
                    .iter()
                    .zip(&after)
                    .filter(|(b, a)| b.device.state != DeviceState::Stale && a.device.state == DeviceState::Stale)
                    .inspect(|(b, _)| assert!(b.connected, "{context}: {} is not connected", b.device.id))
                    .map(|(b, _)| b.device.id.clone())
                    .collect();
                if taken.is_empty() {
                    let was = counted(&before, &view.publication.revision);
                    let due = !paused && was.ready > 0 && was.counted < u64::from(ceiling);
                    assert!(!due, "{context}: nobody was taken: {was:?}");
                } else {
                    waves += 1;
                    assert!(!paused && naive.counted <= u64::from(ceiling), "{context}: {naive:?}");
                }
                let full = !paused && naive.ready > 0 && naive.counted >= u64::from(ceiling);
                assert!(view.full_since.is_some() <= full, "{context}: {view:?}");
            }
        }
    }
    assert!(waves > 25, "{waves} waves");
}
