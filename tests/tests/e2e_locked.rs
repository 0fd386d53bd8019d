//! End to end, with the kernel's lock of the network configuration in another's hands: whatever attaches, closes the floor, sets routes or
//! asks what is attached waits for it. What restricts does not.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{fs, thread, time::Duration};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{api::Client, lab::Lab, packets, process::until, require, rtnl, site};

/// So that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_restriction_waits_for_nobody_who_holds_the_network_configuration() {
    require!(Root, Bpf, Tun, Userfaultfd);
    const DEVICES: usize = 20;
    let mut lab = Lab::new(|_| Ok(())).unwrap();
    let daemon = lab.gateway.daemon().unwrap().id();
    let address = |i: usize| format!("10.66.0.{}", 5 + i);
    for i in 0..DEVICES {
        let name = format!("phone-{i}");
        lab.local.register(&name, "staff").unwrap();
        lab.local.open("lab", &name, &[&address(i)], "tun0").unwrap();
        assert_eq!(lab.gateway.applied(&name).unwrap().enforcement(), Enforcement::Enforced);
    }
    let denied = packets::udp((site::DEVICE, 4001), (site::MAIL, 53), b"?");
    let mail = lab.arrivals(site::DEVICE, site::MAIL).unwrap();
    lab.tun.send(&denied).unwrap();
    assert_eq!(mail.seen().len(), 1, "released");
    let clients: Vec<Client> = (0..DEVICES).map(|_| Client::local(&lab.gateway.socket()).unwrap()).collect();

    let held = rtnl::hold().unwrap();
    // Time for a round of upkeep to begin, and to wait.
    thread::sleep(Duration::from_millis(300));
    let mut answers = Vec::new();
    for (i, client) in clients.into_iter().enumerate() {
        answers.push(thread::spawn(move || client.revoked(&format!("phone-{i}"))));
        let restricted = || Ok(lab.local.address(&address(i))?.current_pool == "quarantine");
        until(LIMIT, &format!("device {i} is restricted while the lock is held"), restricted).unwrap();
    }
    lab.tun.send(&denied).unwrap();
    thread::sleep(Duration::from_millis(50));
    let arrived = mail.seen().len();
    let waited = answers.iter().filter(|a| !a.is_finished()).count();
    let left = asking(daemon);
    drop(held);

    assert_eq!(arrived, 1, "nothing passes");
    assert_eq!(waited, DEVICES, "what nobody could read back was not called enforced");
    assert!(left <= 1, "{left} threads wait for the kernel that nobody waits for any more");
    for answer in answers {
        assert_eq!(answer.join().unwrap().unwrap().enforcement(), Enforcement::Enforced);
    }
    assert_eq!(lab.local.status().unwrap().floor, "closed");
}

/// Threads of a process that each ask netlink once.
fn asking(process: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let names = tasks.filter_map(|t| fs::read_to_string(t.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "netlink").count()
}
