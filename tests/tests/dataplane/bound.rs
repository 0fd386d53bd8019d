//! Addresses of sessions are bound to their interfaces, by classes of which there are so many.

use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData};
use gateway_ebpf::{
    abi::{self, map},
    reason::Reason,
};
use gateway_user::{
    kernel::{Assignment, Kernel, KernelError},
    model::{BootTime, PoolId, SessionId, prefix},
};
use lazaret_tests::{
    require,
    site::{DEVICE, DEVICE6, MAIL, MAIL6, RESOLVER},
};

use crate::gateway::{Gateway, QUARANTINE, STAFF, unique_port};

fn on(interface: &str, pool: PoolId) -> Assignment {
    Assignment {
        pool,
        session: SessionId(7),
        interface: interface.parse().unwrap(),
        lease: None,
    }
}

#[test]
fn a_session_on_another_interface_passes_nothing_and_one_made_again_is_followed() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, mut tun) = Gateway::tun(|c| c);
    g.open();
    for (device, mail) in [(DEVICE, MAIL), (DEVICE6, MAIL6)] {
        for pool in [QUARANTINE, STAFF] {
            g.live(|l| l.assign(device, on("vpn9", pool))).unwrap();
            let reading = g.live(|l| l.read(device)).unwrap();
            assert_eq!((reading.pool, reading.interface), (Some(pool), Some("vpn9".parse().unwrap())));
            let before = g.counted(pool.0, Reason::WrongInterface);
            assert!(!g.reaches(&tun, device, mail, 53) && !g.host_sends(&tun, device));
            assert!(g.counted(pool.0, Reason::WrongInterface) > before);
        }
        g.live(|l| l.assign(device, on("vpn0", STAFF))).unwrap();
        assert!(g.reaches(&tun, device, mail, 25));
    }
    // Another index.
    drop(tun);
    tun = g.make_tun();
    g.set_links();
    assert!(g.reaches(&tun, DEVICE, MAIL, 25) && g.reaches(&tun, DEVICE6, MAIL6, 25));
    // Also behind a restart, before and behind which it has another one.
    g.live = None;
    drop(tun);
    tun = g.make_tun();
    g.open();
    assert!(g.live(|l| l.adopted()));
    assert!(
        !g.reaches(&tun, DEVICE, MAIL, 25),
        "nobody knows any more whose the old index was"
    );
    assert_eq!(
        g.live(|l| l.read(DEVICE)).unwrap().interface,
        None,
        "so the controller sets it anew"
    );
    g.assign(DEVICE, STAFF);
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
}

#[test]
fn at_rest_an_interface_has_the_pools_that_it_names() {
    require!(Root, Bpf, Tun, Program("nft"));
    let pools = |list: &str| {
        let list = list.to_owned();
        move |c: String| c.replace("role = \"device\"\n", &format!("role = \"device\"\npools = [{list}]\n"))
    };
    let (mut g, tun) = Gateway::tun(pools("\"staff\""));
    g.open();
    assert!(!g.reaches(&tun, DEVICE, RESOLVER, 53), "of pool quarantine");
    assert_eq!(g.counted(1, Reason::WrongInterface), 1);
    assert!(
        g.reaches(&tun, [10, 67, 0, 5].into(), RESOLVER, 53),
        "of pool staff, at its fallback"
    );
    g.assign(DEVICE, QUARANTINE);
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53), "a session says where it is");
    g.live(|l| l.clear(DEVICE)).unwrap();
    // The file changes, the maps stay.
    g.live = None;
    g.config = crate::gateway::configuration("vpn0", &g.scratch, pools("\"quarantine\""));
    g.open();
    assert!(g.live(|l| l.adopted()));
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53));
    assert!(!g.reaches(&tun, [10, 67, 0, 5].into(), RESOLVER, 53));
    g.live = None;
    g.config = crate::gateway::configuration("vpn0", &g.scratch, |c| c);
    g.open();
    assert!(g.reaches(&tun, [10, 67, 0, 5].into(), RESOLVER, 53) && g.reaches(&tun, DEVICE, RESOLVER, 53));
}

#[test]
fn without_a_free_class_nothing_loosens_and_restrictions_go() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    let address = |n: u8| std::net::IpAddr::from([10, 66, 0, n]);
    for n in 2..=193_u8 {
        g.live(|l| l.assign(address(n), on(&format!("vpn{n}"), STAFF))).unwrap();
    }
    let refused = |r: Result<(), KernelError>| matches!(r, Err(KernelError::ClassesFull));
    assert!(refused(g.live(|l| l.assign(address(200), on("vpn0", QUARANTINE)))));
    assert!(refused(g.live(|l| l.assign(address(200), on("vpn0", STAFF)))));
    assert_eq!(g.assigned().len(), 192, "nothing was changed");
    // A restriction is not refused, whatever it costs.
    g.live(|l| l.assign(address(5), on("vpn5", QUARANTINE))).unwrap();
    let reading = g.live(|l| l.read(address(5))).unwrap();
    assert_eq!((reading.pool, reading.interface), (Some(QUARANTINE), None));
    assert!(!g.reaches(&tun, address(5), MAIL, 25));
    // That class is idle now, and another's turn has come.
    g.live(|l| l.assign(address(200), on("vpn0", STAFF))).unwrap();
    assert!(g.reaches(&tun, address(200), MAIL, 25));
    assert!(refused(g.live(|l| l.assign(address(201), on("vpn0", QUARANTINE)))));
    g.live(|l| l.clear(address(9))).unwrap();
    g.live(|l| l.assign(address(201), on("vpn0", QUARANTINE))).unwrap();
    assert!(g.reaches(&tun, address(201), RESOLVER, 53) && !g.reaches(&tun, address(201), MAIL, 25));
    // A restart counts who uses what.
    g.live = None;
    g.open();
    assert!(g.live(|l| l.adopted()));
    assert!(g.reaches(&tun, address(200), MAIL, 25));
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Entry(abi::Interface);

// SAFETY: integers only, without padding: 8 bytes and 16 times 4.
unsafe impl aya::Pod for Entry {}

#[test]
fn an_interface_without_room_for_its_entry_is_a_problem_that_is_told() {
    require!(Root, Bpf, Tun, Program("nft"));
    let pools = "role = \"device\"\npools = [\"quarantine\", \"staff\"]";
    let (mut g, tun) = Gateway::tun(|c| c.replacen("role = \"device\"", pools, 1));
    g.open();
    assert_eq!(g.problems(), [""; 0]);
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53));
    // Left by an earlier daemon, of interfaces that are gone by now.
    g.live = None;
    let pin = g
        .config
        .paths
        .pins
        .join(format!("v{}/maps/{}", abi::VERSION, map::INTERFACES));
    let mut entries = HashMap::<_, u32, Entry>::try_from(Map::HashMap(MapData::from_pin(pin).unwrap())).unwrap();
    entries.remove(&g.site.gw.ifindex("vpn0").unwrap()).unwrap();
    let full = (1_000_000..).map(|index| entries.insert(index, Entry(abi::Interface::default()), 0));
    assert!(full.take(2 * abi::MAX_INTERFACES).any(|inserted| inserted.is_err()));
    g.open();
    assert!(
        g.problems().iter().any(|p| p.contains("the table of interfaces is full")),
        "{:?}",
        g.problems()
    );
    assert!(!g.reaches(&tun, DEVICE, RESOLVER, 53), "it has no pools");
    // They have been removed, so that there is room now.
    g.set_links();
    assert_eq!(g.problems(), [""; 0]);
    assert!(g.reaches(&tun, DEVICE, RESOLVER, 53));
}

#[test]
fn a_session_has_a_whole_64() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c.replace("fd00:66::/64", "fd00:66::/48"));
    g.site.gw.ip("route replace fd00:66::/48 dev vpn0").unwrap();
    g.site.core.route("fd00:66::/48", "fd00:9::1".parse().unwrap()).unwrap();
    g.open();
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    let (network, inside) = (
        prefix::whole("fd00:66:0:7::".parse().unwrap()),
        ["fd00:66:0:7::", "fd00:66:0:7:8000::9"],
    );
    let (outside, own) = (ip("fd00:66:0:8::9"), ip("fd00:66:0:7::13"));
    g.live(|l| l.assign(network, on("vpn0", STAFF))).unwrap();
    let passes =
        |g: &mut Gateway| inside.map(|a| g.reaches(&tun, ip(a), MAIL6, 25) && g.core_sends(&tun, MAIL6, unique_port(), ip(a)));
    assert_eq!((passes(&mut g), g.reaches(&tun, outside, MAIL6, 25)), ([true; 2], false));
    for address in [network, ip(inside[1])] {
        assert!(g.pools(address).iter().all(|(_, _, pool)| *pool == Some(STAFF)), "{address}");
        let reading = g.live(|l| l.read(address)).unwrap();
        assert_eq!(
            (reading.pool, reading.session),
            (Some(STAFF), Some(SessionId(7))),
            "{address}"
        );
    }
    // An address with a session of its own is that one's.
    g.live(|l| l.assign(own, on("vpn0", QUARANTINE))).unwrap();
    assert!(!g.reaches(&tun, own, MAIL6, 25));
    // A restart adopts it.
    g.live = None;
    g.open();
    assert_eq!((g.live(|l| l.adopted()), g.assigned().contains(&network)), (true, true));
    assert_eq!((passes(&mut g), g.reaches(&tun, own, MAIL6, 25)), ([true; 2], false));
    // Its lease ends for all of it, by the one record.
    let lease = Assignment {
        lease: Some((BootTime(1), QUARANTINE)),
        ..on("vpn0", STAFF)
    };
    g.live(|l| l.assign(network, lease)).unwrap();
    g.live(|l| l.set_earliest_lease_end(Some(BootTime(1))));
    assert_eq!(passes(&mut g), [false; 2]);
    g.live(|l| l.set_earliest_lease_end(None));
    assert_eq!(passes(&mut g), [true; 2], "the word says that none has ended");
    g.live(|l| l.clear(network)).unwrap();
    assert_eq!(passes(&mut g), [false; 2]);
}
