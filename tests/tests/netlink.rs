//! Interfaces, rules and routes on the real kernel: what is not ours stays, each namespace has its own, and no change is missed.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::IpAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use gateway_user::{
    config::{Config, Route, RouteTable},
    kernel::Link,
    links, routes,
};
use lazaret_tests::{netns::Namespace, process::until, require, site::Site};

const LIMIT: Duration = Duration::from_secs(60);
/// Above what a byte holds, so that only the attribute can say it.
const TABLE: u32 = 1066;

#[test]
fn rules_and_routes_of_others_survive_and_ours_are_what_the_configuration_says() {
    require!(Root);
    let host = Namespace::new("routes").unwrap();
    for line in [
        "link add up0 type veth peer name up1",
        "link set up0 up",
        "link set up1 up",
        "address add 192.0.2.1/24 dev up0",
        "address add 2001:db8::1/64 dev up0 nodad",
        // Foreign, and as near to ours as can be: the same preference, mark, table, destination.
        "rule add pref 7601 fwmark 0x1 table 1066",
        "-6 rule add pref 7601 fwmark 0x1 table 1066",
        "rule add pref 7602 from 198.51.100.0/24 table 1066 protocol static",
        "-6 rule add pref 7602 from 2001:db8:1::/48 table 1066 protocol static",
        "route add 203.0.113.0/24 via 192.0.2.9 table 1066 metric 7 proto static",
        "-6 route add 2001:db8:2::/48 via 2001:db8::9 table 1066 metric 7 proto static",
        "route add unreachable 203.0.113.0/24 metric 1024 proto bird",
        "-6 route add unreachable 2001:db8:2::/48 metric 1024 proto bird",
    ] {
        host.ip(line).unwrap();
    }
    let before = listing(&host);

    let mut config = config();
    config.pools[0].table = Some(table(&[
        ("0.0.0.0/0", Some("192.0.2.254"), None),
        ("10.9.0.0/16", None, Some("up0")),
        ("::/0", Some("2001:db8::fe"), Some("up0")),
        ("fd09::/32", None, Some("up0")),
        ("10.10.0.0/16", None, Some("later0")),
    ]));
    let problems = apply(&host, &config);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("waits for interface later0"), "{problems:?}");

    let ours = listing(&host);
    assert!(before.is_subset(&ours), "what was there is there: {before:#?} {ours:#?}");
    let added: Vec<&String> = ours.difference(&before).collect();
    assert_eq!(added.len(), 2 + 4 + 2, "{added:#?}");
    for line in &added {
        assert!(line.contains("proto 76"), "{line}");
    }
    for words in [
        "-4 rule 7601: from all fwmark 0x",
        "-6 rule 7601: from all fwmark 0x",
        "/0xffff0000 lookup 1066 proto 76",
        "-4 route default via 192.0.2.254 dev up0 table 1066 proto 76 metric 1024",
        "-4 route 10.9.0.0/16 dev up0 table 1066 proto 76 scope link metric 1024",
        "-4 route unreachable default table 1066 proto 76 metric 4294967295",
        "-6 route default via 2001:db8::fe dev up0 table 1066 proto 76 metric 1024",
        "-6 route fd09::/32 dev up0 table 1066 proto 76 metric 1024",
        "-6 route unreachable default dev lo table 1066 proto 76 metric 4294967295",
    ] {
        assert!(added.iter().any(|l| l.contains(words)), "{words}: {added:#?}");
    }

    // Again: nothing to do. Then the interface that was waited for.
    assert_eq!(apply(&host, &config).len(), 1);
    assert_eq!(listing(&host), ours);
    host.ip("link add later0 type veth peer name later1").unwrap();
    host.ip("link set later0 up").unwrap();
    host.ip("link set later1 up").unwrap();
    assert_eq!(apply(&host, &config), [""; 0]);
    assert!(
        listing(&host)
            .iter()
            .any(|l| l.contains("10.10.0.0/16 dev later0 table 1066 proto 76"))
    );
    host.ip("link delete later0").unwrap();

    // What a hand has taken away comes back; another next hop takes the place of the first.
    host.ip("route delete unreachable default table 1066 metric 4294967295")
        .unwrap();
    host.ip("-6 rule delete pref 7601 proto 76").unwrap();
    assert_eq!(apply(&host, &config).len(), 1);
    assert_eq!(listing(&host), ours);
    let routes = &mut config.pools[0].table.as_mut().unwrap().routes;
    routes[0].via = Some("192.0.2.253".parse().unwrap());
    routes.pop();
    assert_eq!(apply(&host, &config), [""; 0]);
    let changed = listing(&host);
    assert_eq!(changed.difference(&ours).count(), 1, "{changed:#?}");
    assert!(changed.iter().any(|l| l.contains("default via 192.0.2.253")), "{changed:#?}");

    host.run(routes::remove).unwrap();
    assert_eq!(listing(&host), before);
    host.run(routes::remove).unwrap();
    assert_eq!(listing(&host), before);
}

#[test]
fn a_refused_change_is_told_and_the_others_are_made() {
    require!(Root);
    let host = Namespace::new("refused").unwrap();
    let mut config = config();
    // No address here, so no way to the next hop.
    config.pools[0].table = Some(table(&[
        ("10.9.0.0/16", Some("192.0.2.9"), None),
        ("10.8.0.0/16", None, Some("lo")),
    ]));
    let problems = apply(&host, &config);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("adding") && problems[0].contains("10.9.0.0"),
        "{problems:?}"
    );
    let now = listing(&host);
    assert!(
        now.iter().any(|l| l.contains("10.8.0.0/16 dev lo table 1066 proto 76")),
        "{now:#?}"
    );
    assert_eq!(now.iter().filter(|l| l.contains("rule") && l.contains("proto 76")).count(), 2);
}

#[test]
fn each_namespace_has_its_own_links_also_inside_a_runtime() {
    require!(Root);
    let (a, b) = (Namespace::new("links-a").unwrap(), Namespace::new("links-b").unwrap());
    a.ip("link add in-a type bridge").unwrap();
    b.ip("link add in-b type bridge").unwrap();
    let inside = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { names_now() })
    };
    assert_eq!((a.run(inside), b.run(inside)), (set(&["lo", "in-a"]), set(&["lo", "in-b"])));
    assert_eq!(a.run(names_now), set(&["lo", "in-a"]));
    let links = a.run(|| links::now().unwrap());
    let link = |name: &str| links.iter().find(|l| l.link.name.as_str() == name).unwrap();
    assert!(link("in-a").link.ethernet && !link("lo").link.ethernet && link("in-a").xdp.is_none());
    assert_eq!(link("in-a").link.ifindex, a.ifindex("in-a").unwrap());
}

/// Undecodable messages would be lost one by one; so every kind that this kernel makes is made.
#[test]
fn interfaces_of_every_kind_are_listed() {
    require!(Root);
    let host = Namespace::new("kinds").unwrap();
    host.ip("link add base0 type veth peer name base1").unwrap();
    let mut made = 0;
    for kind in [
        "bareudp dstport 6635 ethertype ip",
        "bond",
        "bridge",
        "dummy",
        "geneve id 7 remote 192.0.2.9",
        "gre remote 192.0.2.9",
        "gretap remote 192.0.2.9 local 192.0.2.1",
        "erspan seq key 30 local 192.0.2.1 remote 192.0.2.9 erspan_ver 1 erspan 123",
        "ifb",
        "ip6gre remote 2001:db8::9",
        "ip6tnl remote 2001:db8::9",
        "ipip remote 192.0.2.9",
        "netkit",
        "nlmon",
        "sit remote 192.0.2.9",
        "team",
        "vcan",
        "veth",
        "vrf table 99",
        "vti remote 192.0.2.9 local 192.0.2.1",
        "vxlan id 7 dstport 4789 remote 192.0.2.9",
        "wireguard",
        "xfrm if_id 7",
    ] {
        made += usize::from(host.ip(&format!("link add k{made} type {kind}")).is_ok());
    }
    for kind in ["vlan id 7", "macvlan", "macvtap", "ipvlan", "macsec"] {
        made += usize::from(host.ip(&format!("link add link base0 name k{made} type {kind}")).is_ok());
    }
    host.ip("tuntap add tun0 mode tun").unwrap();
    let listed: serde_json::Value = serde_json::from_str(&host.ip("-j link list").unwrap()).unwrap();
    let listed: BTreeSet<String> = (listed
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["ifname"].as_str().unwrap().to_owned()))
    .collect();
    assert!(made > 3 && listed.len() > made);
    let all = host.run(|| links::now().unwrap());
    assert_eq!(all.iter().map(|l| l.link.name.to_string()).collect::<BTreeSet<_>>(), listed);
    println!("{made} kinds, {} interfaces", listed.len());
}

#[test]
fn links_are_watched_from_any_thread_and_through_a_flood() {
    require!(Root);
    let (host, other) = (Namespace::new("watched").unwrap(), Namespace::new("unwatched").unwrap());
    // Called without a runtime; awaited by one whose threads are not inside.
    let (seen, watching) = host.run(|| links::watch().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let task = runtime.spawn(watching);
    let names = || names(seen.borrow().iter());
    assert_eq!(names(), set(&["lo"]));

    // The kernel tells of more, and faster, than the socket holds (212,992 bytes).
    let mut batch = String::from("link add noise type bridge\n");
    for _ in 0..600 {
        batch += "link set noise up\nlink set noise down\n";
    }
    batch += "link add late type bridge\nlink delete noise\n";
    self::batch(&host, &batch);
    until(LIMIT, "the overrun is made good", || Ok(names() == set(&["lo", "late"]))).unwrap();

    other.ip("link add elsewhere type bridge").unwrap();
    host.ip("link add one type bridge").unwrap();
    until(LIMIT, "the new one is told", || Ok(names() == set(&["lo", "late", "one"]))).unwrap();
    host.ip("link set one name two").unwrap();
    until(LIMIT, "the new name is told", || Ok(names() == set(&["lo", "late", "two"]))).unwrap();
    host.ip("link delete two").unwrap();
    until(LIMIT, "the end is told", || Ok(names() == set(&["lo", "late"]))).unwrap();
    assert!(!task.is_finished());

    // With the one who waits for its end, the watch ends.
    task.abort();
    let mut seen = seen;
    let ended = runtime.block_on(async { tokio::time::timeout(LIMIT, async { while seen.changed().await.is_ok() {} }).await });
    assert!(ended.is_ok(), "the thread ends");
}

#[test]
fn listing_the_links_is_quick() {
    require!(Root);
    let least = [5_usize, 201].map(|count| {
        let host = Namespace::new("cost").unwrap();
        let lines: String = (0..count / 2)
            .map(|i| format!("link add a{i} type veth peer name b{i}\n"))
            .collect();
        batch(&host, &lines);
        let mut times: Vec<Duration> = host.run(|| {
            let one = || {
                let begun = Instant::now();
                let links = links::now().unwrap();
                let time = begun.elapsed();
                assert_eq!(names(links.iter().map(|l| &l.link)).len(), count);
                time
            };
            (0..200).map(|_| one()).collect()
        });
        times.sort();
        println!(
            "links::now() with {count} interfaces: least {:?}, median {:?}",
            times[0], times[100]
        );
        times[0]
    });
    assert!(
        least[1] < 100 * least[0],
        "it costs no more than by the number of interfaces: {least:?}"
    );
}

fn apply(host: &Namespace, config: &Config) -> Vec<String> {
    host.run(|| routes::apply(config, &links::now().unwrap()).unwrap())
}

fn config() -> Config {
    let folder = Path::new("/nowhere");
    Config::parse(&folder.join("lazaret.toml"), &Site::config("dev0", folder, folder)).unwrap()
}

fn table(routes: &[(&str, Option<&str>, Option<&str>)]) -> RouteTable {
    let route = |(to, via, interface): &(&str, Option<&str>, Option<&str>)| Route {
        to: to.parse().unwrap(),
        via: via.map(|v| v.parse::<IpAddr>().unwrap()),
        interface: interface.map(|i| i.parse().unwrap()),
    };
    RouteTable {
        number: TABLE,
        routes: routes.iter().map(route).collect(),
    }
}

/// All rules and routes, with the family and what they are in front.
fn listing(host: &Namespace) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for family in ["-4", "-6"] {
        for (what, line) in [("rule", "rule list"), ("route", "route list table all")] {
            let said = host.ip(&format!("{family} {line}")).unwrap();
            all.extend(said.lines().map(|l| {
                let words: Vec<&str> = l.split_whitespace().collect();
                format!("{family} {what} {}", words.join(" "))
            }));
        }
    }
    all
}

fn batch(host: &Namespace, lines: &str) {
    let mut ip = host
        .command("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

fn names_now() -> BTreeSet<String> {
    names(links::now().unwrap().iter().map(|l| &l.link))
}

/// Without the devices that a module for tunnels puts into every namespace once it is loaded, which another test of these may do at any time.
fn names<'a>(links: impl Iterator<Item = &'a Link>) -> BTreeSet<String> {
    const FALLBACK: [&str; 9] = [
        "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
    ];
    let all = links.map(|l| l.name.to_string());
    all.filter(|name| !FALLBACK.contains(&name.as_str())).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}
