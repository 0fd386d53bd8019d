//! Who makes many wait does not make everyone wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};

use super::kit::*;
use crate::{
    controller::{Enforcement, Line, Refusal, SignalContext},
    model::{DeviceState, Identity, Place, Role},
};

/// Longer than anyone waits whose turn comes.
const LONG: Duration = Duration::from_secs(20);

/// So many restrictions of one device wait at any time, until it is told to end.
fn flood(g: &Gateway, device: &str, waiting: usize) -> (Arc<AtomicBool>, Vec<JoinHandle<u32>>) {
    let over = Arc::new(AtomicBool::new(false));
    let one = |_| {
        let (controller, context, device) = (g.controller().clone(), g.seen(0), id(device));
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            let mut done = 0;
            while !over.load(Ordering::SeqCst) {
                let told = controller
                    .policy_revoked(context.clone(), device.clone(), String::new())
                    .await;
                told.unwrap();
                done += 1;
            }
            done
        })
    };
    let tasks = (0..waiting).map(one).collect();
    (over, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_restrictions_leaves_everyone_else_his_turn() {
    let g = Gateway::new().await;
    for device in ["flooded", "phone", "tablet"] {
        g.register(device, "office").await;
    }
    let (over, flood) = flood(&g, "flooded", 2048);
    let others = async {
        for n in 0..5 {
            let opened = g.open("phone", &["10.66.0.5"]).await.unwrap();
            assert_eq!(g.controller().status().await.unwrap().not_durable, 0);
            g.clock.advance_ms(1);
            g.applied("phone").await.unwrap();
            g.revoked("phone").await.unwrap();
            let list = [("phone", "10.66.0.5"), ("tablet", "10.66.0.6")].map(|(d, a)| report(d, &[a]));
            let told = g
                .tell()
                .synchronise_sessions(g.seen(0), "vpn-1".parse().unwrap(), list.to_vec())
                .await
                .unwrap();
            assert_eq!((told.kept, told.opened), (1, 1), "{n}");
            let told = g
                .tell()
                .synchronise_sessions(g.seen(0), "vpn-1".parse().unwrap(), Vec::new())
                .await
                .unwrap();
            assert_eq!(told.ended, 2, "{n}: {:?}", opened.session.session.id);
            g.controller().check_drift().await.unwrap();
        }
    };
    let served = timeout(LONG, others).await;
    over.store(true, Ordering::SeqCst);
    let mut restricted = 0;
    for task in flood {
        restricted += task.await.unwrap();
    }
    println!("{restricted} restrictions meanwhile");
    served.expect("everyone else waits for the end of the flood");
    assert!(restricted > 2048, "restrictions go on");
}

#[tokio::test]
async fn what_streams_tell_waits_in_their_lines_and_takes_no_place_from_single_calls() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    let (one, two) = (Arc::new(Line::default()), Arc::new(Line::default()));
    let go = g.hold().await;
    let tell = |line: &Arc<Line>, device: &str| {
        let (controller, context, device) = (g.controller().in_line(Arc::clone(line)), g.seen(0), id(device));
        tokio::spawn(async move {
            let told = controller
                .policy_applied(context, device, "rev-1".parse().unwrap(), None)
                .await;
            told.map(|a| a.first().unwrap()).map_err(|e| e.refusal)
        })
    };
    let crowd: Vec<_> = (0..5000).map(|_| tell(&one, "nobody")).collect();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let other = tell(&two, "phone");
    tokio::task::yield_now().await;
    let mut asked = Box::pin(g.controller().drift());
    assert!((&mut asked).now_or_never().is_none(), "it waits, and is not refused");
    let mut released = Box::pin(g.applied("phone"));
    assert!((&mut released).now_or_never().is_none(), "so does a command");
    go.send(()).unwrap();
    let (asked, released, other) = tokio::join!(asked, released, other);
    assert!(asked.is_ok() && released.is_ok());
    assert_eq!(other.unwrap().unwrap().device.device.state, DeviceState::Released);
    let before = crowd.iter().filter(|t| t.is_finished()).count();
    assert!(
        before <= 2500,
        "another client waits for a few of the crowd, not for {before}"
    );
    for task in crowd {
        assert_eq!(task.await.unwrap().unwrap_err(), Refusal::UnknownDevice(id("nobody")));
    }
}

#[tokio::test]
async fn a_restriction_that_is_decided_has_no_place_any_more_though_its_answer_waits() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    let kernel = g.kernel.clone();
    let ((held, holds), (free, freed)) = (mpsc::channel(), mpsc::channel::<()>());
    let holding = std::thread::spawn(move || {
        let _network = kernel.network();
        held.send(()).unwrap();
        freed.recv().unwrap();
    });
    holds.recv().unwrap();
    let places = Arc::new(Semaphore::new(1));
    let context = SignalContext {
        deadline: LONG,
        place: Place::held(Arc::clone(&places).try_acquire_owned().unwrap()),
        ..g.seen(0)
    };
    let controller = g.controller().clone();
    let revoked = tokio::spawn(async move { controller.policy_revoked(context, id("phone"), String::new()).await });
    let next = timeout(LONG / 2, places.acquire()).await;
    drop(next.expect("the next one waits for this one's answer").unwrap());
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert!(!revoked.is_finished(), "its answer waits until it is known to be in force");
    free.send(()).unwrap();
    holding.join().unwrap();
    let answer = revoked.await.unwrap().unwrap().first().unwrap();
    assert_eq!(answer.enforcement, Enforcement::Enforced);
}

#[tokio::test]
async fn one_clients_lists_leave_room_for_anothers() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    let go = g.hold().await;
    let list = |client: &str, number: u8| {
        let context = SignalContext {
            by: Identity::unlimited(Role::Vpn, client),
            request: format!("r{number}").parse().unwrap(),
            digest: Some([number; 32]),
            ..g.seen(0)
        };
        let controller = g.controller().clone();
        Box::pin(async move {
            controller
                .synchronise_sessions(context, "vpn-1".parse().unwrap(), vec![])
                .await
        })
    };
    let mut all: Vec<_> = (0..20).map(|n| list("many", n)).collect();
    all.push(list("other", 20));
    for one in &mut all {
        assert!(one.now_or_never().is_none(), "it waits");
    }
    go.send(()).unwrap();
    let mut taken = Vec::new();
    for one in all {
        taken.push(one.await.map_err(|e| e.refusal).map(drop));
    }
    let busy = vec![Err(Refusal::Busy); 16];
    assert_eq!(
        (&taken[..4], &taken[4..20], &taken[20]),
        (&[const { Ok(()) }; 4][..], &busy[..], &Ok(()))
    );
}
