//! Restarts: what is pinned is adopted or replaced without a gap, one daemon at a time, and `detach` takes it all out.

use std::time::Duration;

use gateway_ebpf::reason::Reason;
use gateway_user::{
    dataplane::{Error, Live, detach},
    kernel::Kernel,
};
use lazaret_tests::{
    process::until,
    require,
    site::{DEVICE, DEVICE6, MAIL, MAIL6, RESOLVER},
};

use crate::gateway::{Gateway, QUARANTINE, STAFF, Stop, configuration};

#[test]
fn a_restart_adopts_maps_sessions_and_counters() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    assert!(!g.live(|l| l.adopted()));
    g.assign(DEVICE, STAFF);
    g.assign(DEVICE6, STAFF);
    assert!(!g.reaches(&tun, [10, 66, 0, 6].into(), MAIL, 25));
    let counted = g.counted(1, Reason::NoRule);
    let before = g.read_back(DEVICE);

    // Dead, it keeps enforcing.
    g.live = None;
    assert!(g.reaches(&tun, DEVICE, MAIL, 25) && g.reaches(&tun, DEVICE6, MAIL6, 25));
    assert!(!g.reaches(&tun, [10, 66, 0, 6].into(), MAIL, 25));

    g.try_open().unwrap();
    assert!(g.live(|l| l.adopted()));
    assert_eq!(g.assigned(), [DEVICE, DEVICE6]);
    assert_eq!(g.read_back(DEVICE), before, "the old programs, until set_links");
    g.set_links();
    let after = g.read_back(DEVICE);
    for (old, new) in before.iter().zip(&after) {
        let (old, new) = (old.reading.unwrap(), new.reading.unwrap());
        assert_eq!((old.map_id, old.pool), (new.map_id, new.pool));
        assert_ne!(old.program_id, new.program_id, "this binary's programs");
    }
    // Nothing keeps the old ones, reading back neither. The kernel lets go of a program a moment later.
    let old = |id: &u32| before.iter().any(|b| b.reading.unwrap().program_id == *id);
    let ids = || -> Vec<u32> { aya::programs::loaded_programs().flatten().map(|p| p.id()).collect() };
    until(Duration::from_secs(5), "the old programs are gone", || {
        Ok(!ids().iter().any(old))
    })
    .unwrap();
    assert_eq!(g.counted(1, Reason::NoRule), counted + 1);
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
    assert_eq!((g.problems(), g.floor()), (vec![], "closed".to_owned()));
}

#[test]
fn ten_restarts_under_traffic_lose_nothing_and_let_nothing_through() {
    require!(Root, Bpf, Tun, Program("nft"));
    use lazaret_tests::packets::{Watcher, udp};
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    let seen = Watcher::new(&g.site.core, |p| p.ports.0 == 6000 && !p.outgoing).unwrap();
    let (sent, config) = (AtomicU32::new(0), g.config.clone());
    std::thread::scope(|s| {
        let (tun, sent, stop) = (&tun, &sent, Stop::default());
        let stopped = Arc::clone(&stop.0);
        s.spawn(move || {
            let (good, bad) = (
                udp((DEVICE, 6000), (RESOLVER, 53), b"?"),
                udp((DEVICE, 6000), (MAIL, 25), b"?"),
            );
            while !stopped.load(Ordering::Relaxed) {
                tun.send(&good).unwrap();
                tun.send(&bad).unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        for round in 0..10 {
            g.live = None;
            if round % 3 == 2 {
                // Other address tables: new maps, swapped in.
                g.config.tables.addresses = config.tables.addresses + round;
            }
            g.open();
            assert_eq!(g.live(|l| l.adopted()), round % 3 != 2);
        }
        drop(stop);
    });
    let seen = seen.seen();
    assert_eq!(seen.iter().filter(|p| p.to == MAIL).count(), 0);
    assert_eq!(seen.len(), sent.load(Ordering::Relaxed) as usize, "every allowed packet");
    assert!(seen.len() > 100, "{}", seen.len());
}

#[test]
fn a_policy_changes_in_place_and_other_pools_make_new_maps_with_the_sessions_in_them() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    assert!(!g.reaches(&tun, DEVICE, MAIL, 53));
    g.live = None;
    // A rule more: adopted, next generation.
    g.config = configuration("vpn0", &g.scratch, |c| {
        c.replace("10.9.0.53/32\"]", "10.9.0.53/32\", \"10.9.0.20/32\"]")
    });
    g.open();
    assert!(g.live(|l| l.adopted()));
    assert!(g.reaches(&tun, DEVICE, MAIL, 53));
    let old = g.read_back(DEVICE);

    // Another pool's prefix: new maps; sessions are assigned before any program sees them.
    g.live = None;
    g.config = configuration("vpn0", &g.scratch, |c| {
        c.replace("\"10.67.0.0/24\"", "\"10.67.0.0/24\", \"10.99.0.0/20\"")
    });
    g.try_open().unwrap();
    assert!(!g.live(|l| l.adopted()));
    g.assign(DEVICE, STAFF);
    assert_eq!(g.read_back(DEVICE), old, "the programs attached still read the old maps");
    g.set_links();
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
    assert!(g.pools(DEVICE).iter().all(|(.., p)| *p == Some(STAFF)));
    assert_eq!(
        g.live(|l| l.read([10, 99, 15, 255].into())).unwrap().pool,
        Some(QUARANTINE),
        "rests at the fallback"
    );

    // The new ones are the pinned ones.
    g.live = None;
    g.open();
    assert!(g.live(|l| l.adopted()));
    assert_eq!(g.assigned(), [DEVICE]);
}

#[test]
fn a_rule_keeps_its_number_and_counter_when_others_come_and_go() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    let counted = |g: &mut Gateway, number: u16| {
        let all = g.live(|l| l.rule_counters()).unwrap();
        all.into_iter().find(|(n, _)| *n == number).map(|(_, c)| c.passed.packets)
    };
    for _ in 0..3 {
        assert!(g.reaches(&tun, DEVICE, RESOLVER, 53));
    }
    let before = counted(&mut g, 2).unwrap();
    assert!(before >= 3, "the second rule of the file: {before}");
    // The first rule goes, one comes in its place.
    g.live = None;
    let rule = "[[policy.rule]]\nto = [\"10.9.0.20/32\"]\nprotocol = \"udp\"\nports = [\"25\"]\n\n";
    let first = |c: &str| {
        let from = c.find("[[policy.rule]]").unwrap();
        (from, from + c[from..].find("\n\n").unwrap() + 2)
    };
    g.config = configuration("vpn0", &g.scratch, |c| {
        let (from, to) = first(&c);
        format!("{}{rule}{}", &c[..from], &c[to..])
    });
    g.open();
    assert!(g.live(|l| l.adopted()));
    let numbers = |g: &mut Gateway| {
        let all = g.live(|l| l.rule_counters()).unwrap();
        all.into_iter().map(|(n, _)| n).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&mut g), [0, 2, 3]);
    assert!(counted(&mut g, 2) >= Some(before));
    assert_eq!(counted(&mut g, 3), Some(0));
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53) && g.reaches(&tun, DEVICE, MAIL, 25));
    assert!(counted(&mut g, 2) > Some(before) && counted(&mut g, 3) > Some(0));
    // It goes: what it allowed is cut. The number that was free is given to the old first rule, and begins at 0.
    g.live = None;
    g.config = configuration("vpn0", &g.scratch, |c| c);
    g.open();
    assert_eq!(numbers(&mut g), [0, 1, 2]);
    assert!(!g.reaches(&tun, DEVICE, MAIL, 25));
    assert_eq!(counted(&mut g, 1), Some(0));
    assert!(counted(&mut g, 2) > Some(before));
}

#[test]
fn adopted_tables_that_were_tampered_with_are_set_right() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    g.assign(DEVICE, STAFF);
    g.live = None;
    // The class byte of a released device, for an address without a session.
    let pin = g.config.paths.pins.join(current()).join("maps/CHUNKS4");
    let chunks = aya::maps::MapData::from_pin(&pin).unwrap();
    let mut chunks: aya::maps::Array<_, [u8; 65536]> = aya::maps::Map::Array(chunks).try_into().unwrap();
    let mut first = chunks.get(&1, 0).unwrap();
    first[9] = first[5];
    chunks.set(1, first, 0).unwrap();
    assert!(g.reaches(&tun, [10, 66, 0, 9].into(), MAIL, 25), "it was tampered with");
    g.open();
    assert!(g.live(|l| l.adopted()));
    assert!(!g.reaches(&tun, [10, 66, 0, 9].into(), MAIL, 25));
    assert!(
        g.reaches(&tun, DEVICE, MAIL, 25),
        "a session's stays for the controller to reconcile"
    );
}

#[test]
fn a_second_daemon_on_the_same_pins_is_refused_by_the_holders_pid() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c);
    g.open();
    let config = g.config.clone();
    let second = g.site.gw.run(|| Live::open(&config));
    let Err(Error::Locked { pid, .. }) = second else {
        panic!("it opened")
    };
    assert_eq!(pid, Some(std::process::id()));
    assert!(matches!(g.site.gw.run(|| detach(&config, true)), Err(Error::Locked { .. })));
    assert_eq!(g.floor(), "closed", "the refused ones changed nothing");
}

#[test]
fn detach_removes_all_of_ours_and_keeps_the_floor_unless_told() {
    require!(Root, Bpf, Tun, Program("nft"), Program("bpftool"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    g.assign(DEVICE, STAFF);
    let programs: Vec<u32> = g.read_back(DEVICE).iter().map(|r| r.reading.unwrap().program_id).collect();
    let config = g.config.clone();
    g.live = None;
    g.site.gw.run(|| detach(&config, false)).unwrap();
    assert!(!g.reaches(&tun, DEVICE, MAIL, 25));
    assert!(!g.reaches(&tun, DEVICE, RESOLVER, 53));
    assert!(!g.host_sends(&tun, DEVICE));
    assert_eq!(std::fs::read_dir(&config.paths.pins).unwrap().count(), 0);
    // A process that another test is about to start holds a copy of them until it runs its program.
    until(Duration::from_secs(5), "the programs are gone", || {
        let left: serde_json::Value = serde_json::from_str(&g.site.gw.exec("bpftool -j prog")?)?;
        let ours = |p: &serde_json::Value| p["id"].as_u64().is_some_and(|id| programs.contains(&(id as u32)));
        Ok(!left.as_array().unwrap().iter().any(ours))
    })
    .unwrap();
    // Again, and then open.
    g.site.gw.run(|| detach(&config, true)).unwrap();
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
    assert!(!g.site.gw.exec("nft list tables").unwrap().contains("lazaret"));
}

#[test]
fn links_of_another_version_are_taken_over_and_its_maps_go() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    g.assign(DEVICE, STAFF);
    let old = g.read_back(DEVICE);
    g.live = None;
    let pins = g.config.paths.pins.clone();
    std::fs::rename(pins.join(current()), pins.join("v0")).unwrap();
    g.try_open().unwrap();
    assert!(!g.live(|l| l.adopted()));
    assert_eq!(g.read_back(DEVICE), old, "it judges until it is replaced");
    g.assign(DEVICE, STAFF);
    g.set_links();
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
    assert!(!g.reaches(&tun, [10, 66, 0, 6].into(), MAIL, 25));
    assert!(!pins.join("v0").exists() && pins.join(current()).join("maps/CHUNKS4").exists());
    let hooks = |all: &[gateway_user::kernel::ReadBack]| all.len();
    assert_eq!(hooks(&g.read_back(DEVICE)), hooks(&old), "one program of ours at each hook");
    assert_eq!(g.problems(), [""; 0]);
}

#[test]
fn without_a_bpffs_detach_still_opens_the_floor() {
    require!(Root, Bpf, Program("nft"));
    let mut g = Gateway::new("vpn0", |c| c);
    g.config.paths.pins = g.scratch.path().join("plain/lazaret");
    let config = g.config.clone();
    g.site.gw.run(|| gateway_user::floor::close(&config)).unwrap();
    g.site.gw.run(|| detach(&config, true)).unwrap();
    assert!(!g.site.gw.exec("nft list tables").unwrap().contains("lazaret"));
}

#[test]
fn pins_elsewhere_than_on_a_bpffs_are_refused_by_name_before_anything_is_touched() {
    require!(Root, Bpf, Program("nft"));
    let mut g = Gateway::new("vpn0", |c| c);
    g.config.paths.pins = g.scratch.path().join("plain/lazaret");
    let refused = g.try_open();
    assert!(
        matches!(refused, Err(Error::NoBpffs(ref p)) if *p == g.config.paths.pins),
        "{refused:?}"
    );
    assert!(!g.site.gw.exec("nft list tables").unwrap().contains("lazaret"));
    assert!(!g.config.paths.pins.exists());
}

#[test]
fn without_a_capability_it_is_named() {
    require!(Root, Bpf, Program("nft"));
    let mut g = Gateway::new("vpn0", |c| c);
    g.open();
    g.live = None;
    let config = g.config.clone();
    let refused = g.site.gw.run(|| {
        // Of this thread only. CAP_NET_ADMIN is 12, CAP_SYS_ADMIN 21.
        let mut header = [0x2008_0522_u32, 0];
        let mut data = [[0_u32; 3]; 2];
        // SAFETY: version 3 of capget(2): a header of two words, two times three words of data.
        unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
        data[0][0] &= !(1 << 21);
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) };
        Live::open(&config).err().map(|e| e.to_string())
    });
    assert!(
        refused.as_ref().is_some_and(|e| e.starts_with("CAP_SYS_ADMIN")),
        "{refused:?}"
    );
}

/// The directory of this version's pins.
fn current() -> String {
    format!("v{}", gateway_ebpf::abi::VERSION)
}

extern "C" fn nothing(_: libc::c_int) {}

#[test]
fn signals_while_programs_are_loaded_do_not_keep_the_gateway_from_starting() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c);
    // SAFETY: the handler does nothing, and no other test of this program uses the signal.
    unsafe { libc::signal(libc::SIGUSR2, nothing as *const () as libc::sighandler_t) };
    let config = g.config.clone();
    let opened = g.site.gw.run(|| {
        // SAFETY: no conditions.
        let here = unsafe { libc::pthread_self() };
        let signals = std::thread::spawn(move || {
            // As many as a program is tried again: even if all of them meet the same one, it is loaded.
            for _ in 0..10 {
                std::thread::sleep(std::time::Duration::from_millis(200));
                // SAFETY: the thread lives until this one is joined.
                unsafe { libc::pthread_kill(here, libc::SIGUSR2) };
            }
        });
        let opened = gateway_user::dataplane::Live::open(&config);
        signals.join().unwrap();
        opened
    });
    g.live = Some(opened.unwrap());
    g.set_links();
    assert_eq!(g.problems(), Vec::<String>::new());
}
