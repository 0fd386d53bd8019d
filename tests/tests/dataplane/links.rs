//! The set of interfaces, as it is watched.

use std::time::Duration;

use gateway_user::{kernel::Link, links};
use lazaret_tests::{
    netns::{Namespace, Tun, veth},
    require,
};

#[test]
fn interfaces_that_come_rename_and_go_are_told_with_what_they_are() {
    require!(Root, Tun);
    let (ns, other) = (Namespace::new("links").unwrap(), Namespace::new("other").unwrap());
    let runtime = ns.runtime().unwrap();
    let (mut told, watching) = ns.run(links::watch).unwrap();
    let watching = runtime.spawn(watching);
    let names = |all: &[Link]| all.iter().map(|l| (l.name.to_string(), l.ethernet)).collect::<Vec<_>>();
    assert_eq!(names(&told.borrow()), [("lo".to_owned(), false)]);
    let mut until = |what: &str, done: &dyn Fn(&[Link]) -> bool| {
        let waited =
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), told.wait_for(|all| done(all))).await });
        assert!(waited.is_ok_and(|w| w.is_ok()), "{what}");
    };
    let has =
        |name: &'static str, ethernet| move |all: &[Link]| all.iter().any(|l| l.name.as_str() == name && l.ethernet == ethernet);
    let tun = Tun::new(&ns, "tun7").unwrap();
    until("a tun comes", &has("tun7", false));
    veth((&ns, "eth7"), (&other, "peer")).unwrap();
    until("an Ethernet comes", &has("eth7", true));
    ns.ip("link set eth7 down").unwrap();
    ns.ip("link set eth7 name wan0").unwrap();
    until("it is renamed", &has("wan0", true));
    drop(tun);
    until("the tun goes", &|all| !has("tun7", false)(all));
    // More messages than a socket holds while nobody reads it.
    let script: String = (0..400)
        .map(|i| format!("link add n{i} type veth peer name m{i}\n"))
        .collect();
    let file = std::env::temp_dir().join(format!("lazaret-links-{}", std::process::id()));
    std::fs::write(&file, script).unwrap();
    let added = ns.exec(&format!("ip -batch {}", file.display()));
    std::fs::remove_file(&file).unwrap();
    added.unwrap();
    until("all of them are there", &|all| all.len() == 2 + 800);
    assert!(!watching.is_finished(), "a lost message is no end");
}
