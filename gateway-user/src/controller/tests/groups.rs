//! Group commit: what waits together is committed together, and a batch that fails leaves memory, kernel and store in agreement.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{Either, join_all, select};

use super::kit::*;
use crate::{
    controller::{Acknowledge, Enforcement, Refusal, SessionReport, SignalContext},
    kernel::fake::Call,
    model::{DeviceState, PoolId, Scope},
};

/// Keeps the controller at the kernel until the guard's time is over, so that what is asked meanwhile waits together.
fn hold(g: &Gateway, time: Duration) -> std::thread::JoinHandle<()> {
    let (kernel, (holds, held)) = (g.kernel.clone(), std::sync::mpsc::channel());
    let thread = std::thread::spawn(move || {
        let _state = kernel.state();
        holds.send(()).unwrap();
        std::thread::sleep(time);
    });
    held.recv().unwrap();
    thread
}

async fn fleet(g: &Gateway, devices: usize) -> Vec<String> {
    let names: Vec<String> = (0..devices).map(|n| format!("phone-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        g.register(name, "office").await;
        g.open(name, &[&format!("10.66.0.{}", n + 2)]).await.unwrap();
    }
    names
}

/// Milliseconds: longer than anything takes here.
const LONG: u64 = 3_600_000;

fn commits(calls: &[Call]) -> usize {
    calls.iter().filter(|c| matches!(c, Call::Note("committed"))).count()
}

#[tokio::test]
async fn what_waits_together_is_committed_and_read_back_together() {
    let g = Gateway::new().await;
    let names = fleet(&g, 40).await;
    g.kernel.take_calls();
    let before = g.kernel.state().looks;
    let holding = hold(&g, Duration::from_millis(200));
    let looks = {
        let first = g.applied(&names[0]);
        let rest = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            join_all(names[1..].iter().map(|n| g.applied(n))).await
        };
        let (first, rest) = tokio::join!(first, rest);
        let all: Vec<_> = std::iter::once(first).chain(rest).map(|o| o.unwrap()).collect();
        assert!(all.iter().all(|o| o.enforcement == Enforcement::Enforced));
        assert!(
            all.iter().skip(1).all(|o| o.revision == all[1].revision),
            "one commit for all of them"
        );
        g.kernel.state().looks - before
    };
    holding.join().unwrap();
    let commits = commits(&g.kernel.take_calls());
    assert!(commits <= 3, "{commits} commits of 40 signals");
    assert!(
        looks <= 40 + 2 * 3,
        "{looks}: one for each session that opened, and one for each batch, or two where its commit took longer than a look holds"
    );
}

#[tokio::test]
async fn a_registration_rests_on_what_is_durable() {
    let g = Gateway::new().await;
    let certified = |c: &str| {
        let mut phone = registration("phone", "office");
        phone.certificates = vec![c.repeat(32).parse().unwrap()];
        vec![phone]
    };
    g.tell().register(g.seen(0), certified("aa")).await.unwrap();
    let holding = hold(&g, Duration::from_millis(200));
    // The commit of the release and of the session fails; the next one does not.
    let (disk, next) = (g.disk.clone(), g.disk.clone());
    g.disk.meanwhile(move || {
        disk.fill();
        disk.clone().meanwhile(move || next.free());
    });
    let first = g.controller().status();
    let all = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let report = SessionReport {
            certificate: certified("aa")[0].certificates.first().copied(),
            ..report("phone", &["10.66.0.5"])
        };
        let opened = g.tell().open_session(g.seen(0), "vpn-1".parse().unwrap(), report);
        tokio::join!(g.applied("phone"), opened, g.tell().register(g.seen(0), certified("bb")))
    };
    let (_, (released, opened, _)) = tokio::join!(first, all);
    holding.join().unwrap();
    assert!(released.is_err() && opened.is_err(), "{released:?} {opened:?}");
    let device = g.controller().device(id("phone")).await.unwrap().device;
    assert_eq!((device.state, device.policy_revision), (DeviceState::Registered, None));
}

#[tokio::test]
async fn a_restriction_of_what_the_batch_releases_rests_on_what_is_durable() {
    let mut g = Gateway::new().await;
    fleet(&g, 1).await;
    let holding = hold(&g, Duration::from_millis(200));
    g.disk.fill();
    // Both wait together, the release before the restriction by its place in the source's list: neither may come of the other.
    let first = g.controller().status();
    let both = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let retired = g.tell().retire(g.seen(0), id("phone-0"));
        tokio::join!(g.applied("phone-0"), retired)
    };
    let (_, (released, retired)) = tokio::join!(first, both);
    holding.join().unwrap();
    assert!(released.is_err(), "{released:?}");
    assert_eq!(retired.unwrap().enforcement, Enforcement::EnforcedNotDurable);
    let device = g.controller().device(id("phone-0")).await.unwrap().device;
    assert_eq!((device.state, device.policy_revision), (DeviceState::Retired, None));
    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
    g.restart().await;
    let device = g.controller().device(id("phone-0")).await.unwrap().device;
    assert_eq!((device.state, device.policy_revision), (DeviceState::Retired, None));
}

#[tokio::test]
async fn an_answer_at_the_level_of_committed_does_not_ask_the_kernel() {
    let g = Gateway::new().await;
    fleet(&g, 1).await;
    let context = SignalContext {
        acknowledge: Acknowledge::Committed,
        ..g.seen(0)
    };
    let outcome = g
        .tell()
        .policy_applied(context, id("phone-0"), "rev-1".parse().unwrap(), None)
        .await
        .unwrap();
    assert_eq!((outcome.enforcement, outcome.addresses), (Enforcement::Committed, Vec::new()));
    assert_eq!(g.judged("10.66.0.2"), OFFICE);
}

#[tokio::test]
async fn an_answer_waits_for_enforcement_until_its_deadline_and_then_says_where_not() {
    let g = Gateway::new().await;
    fleet(&g, 1).await;
    let context = |ms| SignalContext {
        deadline: Duration::from_millis(ms),
        ..g.seen(0)
    };
    let apply = |context| {
        g.tell()
            .policy_applied(context, id("phone-0"), "rev-1".parse().unwrap(), None)
    };
    // The first attempt fails; within the deadline it is tried again.
    g.kernel.state().failing = 1;
    assert_eq!(apply(context(LONG)).await.unwrap().enforcement, Enforcement::Enforced);
    // What cannot be in force is not called so, and others are answered meanwhile.
    g.kernel.state().stuck = true;
    g.kernel.state().detached.insert((3, crate::kernel::HookPoint::TcEgress));
    let mut waiting = std::pin::pin!(apply(context(LONG)));
    let other = g.controller().status();
    assert!(matches!(select(&mut waiting, std::pin::pin!(other)).await, Either::Right(_)));
    let begin = Instant::now();
    let outcome = apply(context(500)).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(500), "{:?}", begin.elapsed());
    assert_eq!(outcome.enforcement, Enforcement::Committed);
    let missing: Vec<_> = outcome.addresses[0]
        .read_backs
        .iter()
        .filter(|r| r.reading.is_none())
        .collect();
    assert_eq!((missing.len(), missing[0].ifindex), (1, 3), "{outcome:?}");
}

#[tokio::test]
async fn a_restriction_gets_in_between_the_slices_of_a_long_list() {
    let mut config = config();
    config.tables.addresses = 1 << 16;
    config.pools[0].prefixes = vec!["10.66.0.0/24".parse().unwrap(), "10.99.0.0/16".parse().unwrap()];
    config.devices.unknown = crate::config::UnknownDevice::Quarantine;
    let g = Gateway::with(config).await;
    fleet(&g, 1).await;
    g.applied("phone-0").await.unwrap();
    g.clock.advance_ms(1);
    let reports = (0..20_000_u32)
        .map(|n| report(&format!("guest-{n}"), &[&format!("10.99.{}.{}", n >> 8, n & 255)]))
        .collect();
    let controller = g.controller().clone();
    let context = g.seen(0);
    let long = tokio::spawn(async move {
        controller
            .synchronise_sessions(context, "vpn-2".parse().unwrap(), reports)
            .await
    });
    g.until("begun", async |g| g.kernel.state().assigned.len() > 600).await;
    assert_eq!(enforcement(g.revoked("phone-0").await), Enforcement::Enforced);
    let opened = g.kernel.state().assigned.len();
    assert!(
        opened < 15_000,
        "{opened} sessions opened before the restriction got its turn"
    );
    let outcome = long.await.unwrap().unwrap().first().unwrap();
    assert_eq!((outcome.opened, outcome.ended, outcome.refused.len()), (20_000, 0, 0));
}

/// A small generator; which numbers it gives does not matter, only that a seed gives the same.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

/// What one client knows of its device by the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Known {
    released: bool,
    session: bool,
}

/// One device's client: asks for one thing after the other, and holds every answer to what the device is then.
async fn client(g: &Gateway, n: u64, seed: u64, steps: u32) -> Known {
    let (mut random, mut known) = (Random(seed * 1000 + n + 1), Known::default());
    let (name, address) = (format!("phone-{n}"), format!("10.66.0.{}", n + 2));
    let mut session = None;
    for _ in 0..steps {
        g.clock.advance_ms(1);
        match random.below(5) {
            0 | 1 => match g.applied(&name).await {
                Ok(outcome) => {
                    assert_ne!(outcome.enforcement, Enforcement::EnforcedNotDurable);
                    known.released = true;
                }
                // One that was seen before another client's clock moved on is refused by its date.
                Err(Refusal::StoreUnavailable(_) | Refusal::StaleSignal) => {}
                Err(e) => panic!("{e:?}"),
            },
            2 => match g.revoked(&name).await {
                Ok(_) | Err(Refusal::Kernel(_)) => known.released = false,
                Err(e) => panic!("{e:?}"),
            },
            3 => match g.open(&name, &[&address]).await {
                Ok(outcome) => session = Some(outcome.session.session.id),
                // The session of before has ended all the same.
                Err(Refusal::StoreUnavailable(_) | Refusal::Kernel(_)) => session = None,
                Err(e) => panic!("{e:?}"),
            },
            _ => {
                if let Some(id) = session {
                    g.tell().close_session(g.seen(0), id).await.unwrap();
                }
                session = None;
            }
        }
        known.session = session.is_some();
        let view = g.controller().device(id(&name)).await.unwrap();
        assert_eq!(view.device.state == DeviceState::Released, known.released, "{name}: {view:?}");
        assert_eq!(view.sessions.len(), usize::from(known.session), "{name}: {view:?}");
    }
    known
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_fails_memory_kernel_and_store_agree() {
    const DEVICES: u64 = 12;
    for seed in 1..=6_u64 {
        let mut g = Gateway::new().await;
        for n in 0..DEVICES {
            g.register(&format!("phone-{n}"), "office").await;
        }
        let over = Arc::new(AtomicBool::new(false));
        let (disk, kernel, ended) = (g.disk.clone(), g.kernel.clone(), Arc::clone(&over));
        let chaos = std::thread::spawn(move || {
            let mut random = Random(seed);
            while !ended.load(Ordering::SeqCst) {
                match random.below(4) {
                    0 => disk.fill(),
                    1 => kernel.state().failing = u32::try_from(random.below(3)).unwrap(),
                    _ => disk.free(),
                }
                std::thread::sleep(Duration::from_micros(300 + random.below(3000)));
            }
            disk.free();
            kernel.state().failing = 0;
        });
        let known = join_all((0..DEVICES).map(|n| client(&g, n, seed, 40))).await;
        over.store(true, Ordering::SeqCst);
        chaos.join().unwrap();
        g.until("durable", async |g| {
            let status = g.controller().status().await.unwrap();
            status.not_durable == 0 && !status.warnings.iter().any(|w| w.contains("the kernel refused"))
        })
        .await;
        let check = |g: &Gateway, when: &str| {
            let sessions = known.iter().filter(|k| k.session).count();
            assert_eq!(g.kernel.state().assigned.len(), sessions, "seed {seed}, {when}");
            for (n, known) in known.iter().enumerate() {
                let wanted: PoolId = if known.released && known.session { OFFICE } else { QUARANTINE };
                assert_eq!(
                    g.judged(&format!("10.66.0.{}", n + 2)),
                    wanted,
                    "seed {seed}, {when}, {n}: {known:?}"
                );
            }
        };
        check(&g, "after the faults");
        let (devices, sessions) = (
            g.controller().devices(None, 100, None, Scope::default()).await.unwrap(),
            g.controller().sessions(None, 100).await.unwrap(),
        );
        g.restart().await;
        check(&g, "after a restart");
        assert_eq!(
            g.controller().devices(None, 100, None, Scope::default()).await.unwrap(),
            devices,
            "seed {seed}"
        );
        assert_eq!(g.controller().sessions(None, 100).await.unwrap(), sessions, "seed {seed}");
    }
}
