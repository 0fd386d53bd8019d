//! Programs on interfaces: what they let through, and what is read back from them.

use std::{
    mem::offset_of,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use gateway_ebpf::{
    abi::{CpuCounts, NO_METADATA, map},
    reason::Reason,
};
use gateway_user::{
    kernel::{HookPoint, Kernel, KernelError},
    model::{InterfaceName, PoolId},
};
use lazaret_tests::{
    packets::{self, Watcher},
    process::until,
    require,
    site::{DEVICE, DEVICE6, DM, DM6, MAIL, MAIL6, RESOLVER, TUNNEL},
};

use crate::{
    foreign::Memory,
    gateway::{Gateway, QUARANTINE, STAFF, Stop, arrives, talks, unique_port},
};

#[test]
fn on_a_tun_denied_is_dropped_allowed_passes_and_a_release_opens_both_ways() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    assert_eq!(g.problems(), [""; 0]);
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53), "a rule names it");
    for (device, mail) in [(DEVICE, MAIL), (DEVICE6, MAIL6)] {
        assert!(!g.reaches(&tun, device, mail, 25));
        assert!(!g.core_sends(&tun, mail, unique_port(), device));
        assert!(g.pools(device).iter().all(|(.., pool)| *pool == Some(QUARANTINE)));
        g.assign(device, STAFF);
        assert!(g.reaches(&tun, device, mail, 25));
        assert!(g.core_sends(&tun, mail, unique_port(), device));
        let pools = g.pools(device);
        assert!(pools.iter().all(|(.., pool)| *pool == Some(STAFF)), "{pools:?}");
        let hooks: Vec<_> = pools.iter().map(|(i, h, _)| (i.as_str(), *h)).collect();
        for hook in [
            ("vpn0", HookPoint::TcIngress),
            ("vpn0", HookPoint::TcEgress),
            ("core0", HookPoint::Xdp),
            ("core0", HookPoint::TcIngress),
        ] {
            assert!(hooks.contains(&hook), "{hook:?} in {hooks:?}");
        }
        g.live(|l| l.clear(device)).unwrap();
        assert!(!g.reaches(&tun, device, mail, 25));
        assert!(!g.core_sends(&tun, mail, unique_port(), device));
    }
    assert!(g.counted(1, Reason::NoRule) >= 4);
    assert!(g.assigned().is_empty());
}

#[test]
fn between_ethernets_xdp_judges_and_tc_grants() {
    require!(Root, Bpf, Program("nft"));
    let mut g = Gateway::new("dev0", |c| c);
    g.site.by_ethernet().unwrap();
    g.open();
    let states = g.live(|l| l.interfaces()).unwrap();
    let xdp: Vec<_> = states
        .iter()
        .flat_map(|i| &i.hooks)
        .filter(|h| h.hook == HookPoint::Xdp)
        .map(|h| h.mode)
        .collect();
    assert_eq!(xdp, ["native", "native"], "{states:?}");
    for (device, mail) in [(DEVICE, MAIL), (DEVICE6, MAIL6)] {
        assert!(!talks(&g.site.device, &g.site.core, mail));
        g.assign(device, STAFF);
        assert!(talks(&g.site.device, &g.site.core, mail), "released: {:?}", g.pools(device));
        g.assign(device, QUARANTINE);
        assert!(!talks(&g.site.device, &g.site.core, mail));
    }
    // What XDP writes where a driver has no room for metadata; this one has.
    assert_eq!(g.problems(), [""; 0]);
    let ifindex = g.site.gw.ifindex("dev0").unwrap();
    let counters = Memory::of(&g, map::COUNTERS, size_of::<CpuCounts>());
    let word = counters.words(offset_of!(CpuCounts, no_metadata) + 8 * (ifindex as usize % NO_METADATA));
    word.store(u64::from(ifindex) << 32 | 1, Ordering::SeqCst);
    let found = g.live(|l| l.interfaces()).unwrap();
    let hooks = found.iter().flat_map(|i| i.hooks.iter().map(move |h| (i.name.as_str(), h)));
    let problems: Vec<_> = hooks.filter(|(_, h)| !h.problem.is_empty()).collect();
    let [(interface, hook)] = problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!((interface, hook.hook), ("dev0", HookPoint::Xdp));
    assert!(hook.problem.contains("judged at TC: the driver leaves no room"), "{hook:?}");
    // Another interface in the same place.
    word.store(u64::from(ifindex + NO_METADATA as u32) << 32 | 1, Ordering::SeqCst);
    assert_eq!(g.problems(), [""; 0]);
}

#[test]
fn a_tun_made_again_is_closed_until_it_is_judged_and_then_judged() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, mut tun) = Gateway::tun(|c| c);
    g.open();
    let denied = Watcher::new(&g.site.core, |p| p.ports.1 == 4444).unwrap();
    for round in 0..6 {
        drop(tun);
        tun = g.make_tun();
        // Nothing of ours is on the new interface: not even what a rule names passes.
        assert!(!g.reaches(&tun, DEVICE, RESOLVER, 53), "round {round}");
        assert!(!g.host_sends(&tun, DEVICE), "round {round}");
        // Denied packets flood it while programs are attached.
        let flood = packets::udp((DEVICE, 5), (MAIL, 4444), b"?");
        let sent = std::thread::scope(|s| {
            let (tun, stop) = (&tun, Stop::default());
            let stopped = Arc::clone(&stop.0);
            let writer = s.spawn(move || {
                let mut sent = 0_u32;
                while !stopped.load(Ordering::Relaxed) {
                    let _full = tun.send(&flood);
                    sent += 1;
                }
                sent
            });
            std::thread::sleep(Duration::from_millis(20));
            g.set_links();
            std::thread::sleep(Duration::from_millis(20));
            drop(stop);
            writer.join().unwrap()
        });
        assert!(sent > 100, "a flood: {sent}");
        assert!(g.reaches(&tun, DEVICE, RESOLVER, 53), "round {round}: {:?}", g.problems());
    }
    assert_eq!(denied.seen(), []);
}

#[test]
fn a_program_cut_by_hand_is_not_read_back_and_comes_back_with_the_next_links() {
    require!(Root, Bpf, Tun, Program("nft"), Program("bpftool"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    g.assign(DEVICE, STAFF);
    for hook in [HookPoint::TcIngress, HookPoint::TcEgress] {
        cut(&mut g, hook);
        let back = g.read_back(DEVICE);
        let one = back
            .iter()
            .find(|r| r.interface.as_str() == "vpn0" && r.hook == hook)
            .unwrap();
        assert_eq!(one.reading, None, "{hook:?}");
        assert!(
            g.problems().iter().any(|p| p.contains("no program of ours")),
            "{:?}",
            g.problems()
        );
        g.set_links();
        assert!(
            g.pools(DEVICE).iter().all(|(.., pool)| *pool == Some(STAFF)),
            "{hook:?}: {:?}",
            g.pools(DEVICE)
        );
        assert_eq!(g.problems(), [""; 0]);
    }
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
}

#[test]
fn without_the_egress_judge_the_guard_drops_what_the_host_sends() {
    require!(Root, Bpf, Tun, Program("nft"), Program("bpftool"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.site.gw.address("vpn0", &format!("{TUNNEL}/32")).unwrap();
    g.open();
    g.assign(DEVICE, STAFF);
    assert!(g.host_sends(&tun, DEVICE), "the pool allows everything, so the host may send");
    cut(&mut g, HookPoint::TcEgress);
    // The floor still takes the interface for judged: only the guard stands.
    assert!(!g.host_sends(&tun, DEVICE));
    assert_eq!(g.counted(0, Reason::Unjudged), 1);
    g.set_links();
    assert!(g.host_sends(&tun, DEVICE));
}

#[test]
fn a_foreign_program_survives_and_one_before_ours_is_reported() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    // It stands for a foreign one: loaded on maps of its own. One in front of ours, one behind.
    let load = |order| {
        g.site.gw.run(|| {
            let loading = gateway_user::dataplane::object::Loading::new().unwrap();
            let mut object = aya::Ebpf::load(loading.bytes()).unwrap();
            loading.bind(&object).unwrap();
            let program: &mut aya::programs::SchedClassifier = object.program_mut("tc_guard").unwrap().try_into().unwrap();
            program.load().unwrap();
            let options = aya::programs::tc::TcAttachOptions::TcxOrder(order);
            program
                .attach_with_options("vpn0", aya::programs::TcAttachType::Ingress, options)
                .unwrap();
            let id = program.info().unwrap().id();
            (object, id)
        })
    };
    let (foreign, _) = load(aya::programs::LinkOrder::first());
    let (_behind, behind) = load(aya::programs::LinkOrder::last());
    assert!(
        g.problems().iter().any(|p| p.contains("runs before ours")),
        "{:?}",
        g.problems()
    );
    g.set_links();
    assert!(
        g.problems().iter().any(|p| p.contains("runs before ours")),
        "reported, not removed"
    );
    drop(foreign);
    // A process that another test is about to start holds a copy of the link until it runs its program.
    until(Duration::from_secs(5), "the foreign program is gone", || {
        Ok(g.problems().is_empty())
    })
    .unwrap();
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53));
    g.live = None;
    g.site.gw.run(|| gateway_user::dataplane::detach(&g.config, false)).unwrap();
    let query = || aya::programs::SchedClassifier::query_tcx("vpn0", aya::programs::TcAttachType::Ingress);
    let left = g.site.gw.run(query).unwrap().1;
    assert_eq!(left.iter().map(|p| p.id()).collect::<Vec<_>>(), [behind]);
}

#[test]
fn reserved_and_foreign_addresses_cannot_be_assigned() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c);
    g.open();
    for address in [TUNNEL, MAIL, MAIL6, DM, DM6] {
        let to = gateway_user::kernel::Assignment {
            pool: STAFF,
            session: gateway_user::model::SessionId(1),
            interface: "vpn0".parse().unwrap(),
            lease: None,
        };
        assert!(matches!(g.live(|l| l.assign(address, to)), Err(KernelError::OutsidePools(a)) if a == address));
        g.live(|l| l.clear(address)).unwrap();
        assert_eq!(g.live(|l| l.read(address)).unwrap().pool, None);
    }
}

#[test]
fn a_lease_that_ended_falls_back_without_the_daemon() {
    require!(Root, Bpf, Tun, Program("nft"));
    use gateway_user::{
        kernel::Assignment,
        model::{BootTime, SessionId},
    };
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    let boot = || {
        let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    };
    for (device, mail) in [(DEVICE, MAIL), (DEVICE6, MAIL6)] {
        let end = BootTime(boot() + 4_000_000_000);
        let to = Assignment {
            pool: STAFF,
            session: SessionId(9),
            interface: "vpn0".parse().unwrap(),
            lease: Some((end, QUARANTINE)),
        };
        g.live(|l| {
            l.assign(device, to).unwrap();
            l.set_earliest_lease_end(Some(end));
        });
        assert!(g.reaches(&tun, device, mail, 25));
        let reading = g.live(|l| l.read(device)).unwrap();
        assert_eq!(
            (reading.pool, reading.session, reading.lease_end),
            (Some(STAFF), Some(SessionId(9)), Some(end))
        );
        // The attached programs' own word, too.
        let bound_to = g.site.gw.ifindex("vpn0").unwrap();
        let backs = g.read_back(device);
        assert!(backs.len() > 2);
        for back in backs {
            let r = back.reading.unwrap();
            assert_eq!(
                (r.pool, r.session, r.lease_end, r.bound_to),
                (Some(STAFF), Some(SessionId(9)), Some(end), bound_to)
            );
        }
        // The daemon is gone.
        g.live = None;
        std::thread::sleep(Duration::from_nanos(end.0.saturating_sub(boot()) + 50_000_000));
        assert!(!g.reaches(&tun, device, mail, 25), "nobody renewed it");
        g.open();
        assert_eq!(
            g.pools(device).iter().map(|(.., p)| *p).collect::<Vec<_>>(),
            vec![Some(QUARANTINE); g.pools(device).len()]
        );
    }
    let counted = [1, 2].map(|p| g.counted(p, Reason::LeaseEnded));
    assert!(counted.iter().sum::<u64>() >= 2, "{counted:?}");
}

#[test]
fn the_table_of_sessions_is_full_when_it_is_and_changes_still_go() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c.replace("addresses = 4096", "addresses = 3"));
    g.open();
    let address = |n: u8| std::net::IpAddr::from([10, 66, 0, n]);
    let to = |pool: PoolId| gateway_user::kernel::Assignment {
        pool,
        session: gateway_user::model::SessionId(1),
        interface: "vpn0".parse().unwrap(),
        lease: None,
    };
    let mut room = 0;
    while g.live(|l| l.assign(address(10 + room), to(QUARANTINE))).is_ok() {
        room += 1;
    }
    assert_eq!(room, 3);
    assert!(matches!(
        g.live(|l| l.assign(address(13), to(STAFF))),
        Err(KernelError::TableFull)
    ));
    assert_eq!(
        g.live(|l| l.read(address(13))).unwrap().pool,
        Some(QUARANTINE),
        "nothing was changed"
    );
    g.live(|l| l.assign(address(10), to(STAFF))).unwrap();
    g.live(|l| l.clear(address(11))).unwrap();
    g.live(|l| l.assign(address(13), to(STAFF))).unwrap();
}

#[test]
fn denials_come_through_the_ring() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    let ring = g.live(|l| l.denials()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let denials = gateway_user::events::Denials::default();
    assert!(!g.reaches(&tun, DEVICE6, MAIL6, 2525));
    runtime.block_on(async {
        let pump = ring.pump(|record| denials.push(record.into()));
        let pump = tokio::time::timeout(Duration::from_millis(300), pump);
        assert!(pump.await.is_err(), "it goes on");
    });
    let found = denials.last(10, |e| e.record.dport == 2525);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].source, found[0].destination, found[0].record.reason),
        (Some(DEVICE6), Some(MAIL6), Reason::NoRule as u8)
    );
}

#[test]
fn observing_counts_and_drops_nothing() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c.replace("mode = \"enforce\"", "mode = \"observe\""));
    g.open();
    assert_eq!(g.floor(), "open");
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
    assert!(g.host_sends(&tun, DEVICE));
    assert!(g.counted(1, Reason::NoRule) >= 1);
}

/// Cuts the link of the program at a hook of `vpn0`, as an administrator would.
fn cut(g: &mut Gateway, hook: HookPoint) {
    let name: InterfaceName = "vpn0".parse().unwrap();
    let back = g.read_back(DEVICE);
    let program = back
        .iter()
        .find(|r| r.interface == name && r.hook == hook)
        .unwrap()
        .reading
        .unwrap()
        .program_id;
    let links: serde_json::Value = serde_json::from_str(&g.site.gw.exec("bpftool -j link").unwrap()).unwrap();
    let link = links.as_array().unwrap().iter().find(|l| l["prog_id"] == program).unwrap()["id"].clone();
    g.site.gw.exec(&format!("bpftool link detach id {link}")).unwrap();
}

#[test]
fn a_link_cut_under_traffic_lets_nothing_denied_through() {
    require!(Root, Bpf, Tun, Program("nft"), Program("bpftool"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    for hook in [HookPoint::TcIngress, HookPoint::TcEgress] {
        cut(&mut g, hook);
        assert!(!g.reaches(&tun, DEVICE, MAIL, 25));
        assert!(!g.core_sends(&tun, MAIL, unique_port(), DEVICE));
        assert!(!g.host_sends(&tun, DEVICE));
    }
    assert!(!arrives(&tun, |p| p.protocol == 17));
}
