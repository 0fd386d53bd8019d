//! Route tables of pools.

use gateway_user::{dataplane::detach, kernel::Kernel};
use lazaret_tests::{
    netns::{Namespace, veth},
    packets::{Watcher, udp},
    require,
    site::{DEVICE, MAIL},
};

use crate::gateway::{Gateway, STAFF, talks, unique_port};

const TABLE: &str = "table = 166\n[[pool.route]]\nto = \"10.9.0.0/24\"\nvia = \"10.5.0.2\"\ninterface = \"second0\"\n\n[[policy]]\nname = \"enrolment\"";

fn with_table(c: String) -> String {
    // The staff pool is the last before the policies.
    c.replacen("[[policy]]\nname = \"enrolment\"", TABLE, 1)
}

#[test]
fn a_released_device_takes_its_pools_table_and_foreign_rules_survive() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(with_table);
    let foreign = [
        "rule add pref 7602 fwmark 0x5 lookup 99",
        "rule add pref 55 to 203.0.113.0/24 lookup 98",
        "route add 203.0.113.0/24 dev core0 table 166",
    ];
    for line in foreign {
        g.site.gw.ip(line).unwrap();
    }
    g.open();
    g.assign(DEVICE, STAFF);
    // The route's interface does not exist: refused rather than sent along the host's routes.
    assert!(!g.reaches(&tun, DEVICE, MAIL, 25));
    let second = Namespace::new("second").unwrap();
    veth((&g.site.gw, "second0"), (&second, "eth0")).unwrap();
    g.site.gw.address("second0", "10.5.0.1/24").unwrap();
    second.address("eth0", "10.5.0.2/24").unwrap();
    for _ in 0..2 {
        g.set_links();
    }
    let port = unique_port();
    let arrives = Watcher::new(&second, move |p| p.ports == (port, 25)).unwrap();
    tun.send(&udp((DEVICE, port), (MAIL, 25), b"?")).unwrap();
    assert_eq!(arrives.seen().len(), 1, "{}", g.site.gw.ip("route show table 166").unwrap());
    // The host's own packets keep its routes.
    assert!(talks(&g.site.gw, &g.site.core, MAIL));
    let ours = g.site.gw.ip("rule show").unwrap();
    assert_eq!(
        ours.lines()
            .filter(|l| l.contains("proto 76") || l.contains("0x1a820000"))
            .count(),
        1,
        "{ours}"
    );

    // Routes vanish with their interface and come back with it.
    drop(second);
    g.set_links();
    assert!(!g.reaches(&tun, DEVICE, MAIL, 25));

    let config = g.config.clone();
    g.live = None;
    g.site.gw.run(|| detach(&config, false)).unwrap();
    let rules = g.site.gw.ip("rule show").unwrap() + &g.site.gw.ip("-6 rule show").unwrap();
    assert!(
        !rules.contains("0x1a82") && rules.contains("lookup 99") && rules.contains("lookup 98"),
        "{rules}"
    );
    let routes = g.site.gw.ip("route show table all").unwrap() + &g.site.gw.ip("-6 route show table all").unwrap();
    assert!(!routes.contains("proto 76") && routes.contains("203.0.113.0/24"), "{routes}");
}

#[test]
fn a_pool_without_table_leaves_no_rule() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(with_table);
    g.open();
    assert!(g.site.gw.ip("rule show").unwrap().contains("0x1a82"));
    g.live = None;
    g.config = crate::gateway::configuration("vpn0", &g.scratch, |c| c);
    g.open();
    assert!(g.live(|l| l.adopted()), "routes are no part of the tables");
    assert!(!g.site.gw.ip("rule show").unwrap().contains("0x1a82"));
    g.assign(DEVICE, STAFF);
    assert!(g.reaches(&tun, DEVICE, MAIL, 25));
    assert_eq!(g.live(|l| l.losses()).unwrap().lost, 0);
}
