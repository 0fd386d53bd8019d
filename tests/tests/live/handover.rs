//! An address that changes hands, and one that a device has no right to: whose it was, and what its prefix says, counts for nothing.

use std::{
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    api::Client,
    flows::{self, Token},
    lab::Lab,
    packets::{self, Watcher},
    process::until,
    require, site,
};

const LIMIT: Duration = Duration::from_secs(60);
/// One that changes hands; IPv4, IPv6.
const ADDRESS: [&str; 2] = ["10.66.0.9", "fd00:66::9"];
/// Two of the full-service pool's prefixes.
const STAFF: [&str; 2] = ["10.67.0.7", "fd00:67::7"];

/// A gateway with `a` and `b` registered.
fn lab() -> Lab {
    let lab = Lab::new(|_| Ok(())).unwrap();
    for device in ["a", "b"] {
        lab.local.register(device, "staff").unwrap();
    }
    lab
}

/// A datagram for a server of the core, marked.
fn marked(from: &str, to: [IpAddr; 2], token: &Token) -> Vec<u8> {
    let from: IpAddr = from.parse().unwrap();
    packets::udp((from, 4000), (to[usize::from(from.is_ipv6())], 5001), token)
}

const MAIL: [IpAddr; 2] = [site::MAIL, site::MAIL6];

fn release(lab: &Lab, device: &str) {
    assert_eq!(lab.gateway.applied(device).unwrap().enforcement(), Enforcement::Enforced);
}

fn watch(lab: &Lab, token: Token) -> Watcher {
    Watcher::of(&lab.site.core, token, |p| !p.outgoing).unwrap()
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends from both of [`ADDRESS`] without a pause while `change` is made: up to its acknowledgement marked as the old device's, from then
/// on as the new one's.
fn handed_over(lab: &Lab, change: impl FnOnce(&Client)) {
    let (old, new) = (flows::token(), flows::token());
    let (before, after) = (watch(lab, old), watch(lab, new));
    let (turn, stop) = (Mutex::new(old), AtomicBool::new(false));
    let sent = [AtomicU32::new(0), AtomicU32::new(0)];
    let has_sent = |which: usize| {
        let much = || Ok(sent[which].load(Ordering::Relaxed) > 300);
        until(LIMIT, "much is sent", much).unwrap();
    };
    let acknowledged = thread::scope(|s| {
        // Also when this thread panics.
        let _stop = Stop(&stop);
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let token = *turn.lock().unwrap();
                for address in ADDRESS {
                    lab.tun.send(&marked(address, MAIL, &token)).unwrap();
                }
                sent[usize::from(token == new)].fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(200));
            }
        });
        has_sent(0);
        change(&lab.local);
        let acknowledged = SystemTime::now();
        *turn.lock().unwrap() = new;
        has_sent(1);
        acknowledged
    });
    let before = before.seen();
    for v6 in [false, true] {
        let count = before.iter().filter(|p| p.from.is_ipv6() == v6).count();
        assert!(count > 50, "the old device was released: {count} packets");
    }
    assert_eq!(before.iter().filter(|p| p.at > acknowledged).count(), 0, "of the old device");
    assert_eq!(after.seen(), [], "of the new device, from its first packet on");
    for address in ADDRESS {
        let now = lab.local.address(address).unwrap();
        assert_eq!((now.device_id.as_str(), now.current_pool.as_str()), ("b", "quarantine"));
        assert!(now.lease_ends_at.is_none(), "{now:?}");
    }
}

#[test]
fn an_address_that_changes_hands_is_quarantined_from_its_first_packet() {
    require!(Root, Bpf, Tun);
    let lab = lab();
    // Closed and opened.
    let first = lab.local.open("vpn", "a", &ADDRESS, "tun0").unwrap().session.unwrap();
    release(&lab, "a");
    handed_over(&lab, |local| {
        assert!(local.close(first.session_id).unwrap().ended);
        local.open("vpn", "b", &ADDRESS, "tun0").unwrap();
    });
    lab.local.synchronise("vpn", &[]).unwrap();

    // Opened over the old one: the VPN server lost word of its end.
    lab.local.open("vpn", "a", &ADDRESS, "tun0").unwrap();
    handed_over(&lab, |local| {
        local.open("vpn", "b", &ADDRESS, "tun0").unwrap();
    });

    // In a list, after the VPN server has started again.
    lab.local.synchronise("vpn", &[("a", &ADDRESS, "tun0")]).unwrap();
    handed_over(&lab, |local| {
        let done = local.synchronise("vpn", &[("b", &ADDRESS, "tun0")]).unwrap();
        assert_eq!((done.opened, done.ended, done.refused.len()), (1, 1, 0), "{done:?}");
    });

    // And the release is still the old device's, wherever it turns up.
    lab.local.open("vpn", "a", &["10.66.0.77"], "tun0").unwrap();
    let token = flows::token();
    let seen = watch(&lab, token);
    lab.tun.send(&marked("10.66.0.77", MAIL, &token)).unwrap();
    assert_eq!(seen.seen().len(), 1);
}

#[test]
fn a_quarantined_device_on_a_full_service_address_is_quarantined() {
    require!(Root, Bpf, Tun);
    let lab = lab();
    let expect = |from: &[&str], passes: bool, when: &str| {
        for address in from {
            let token = flows::token();
            let seen = watch(&lab, token);
            for _ in 0..20 {
                lab.tun.send(&marked(address, MAIL, &token)).unwrap();
            }
            assert_eq!(seen.seen().len(), if passes { 20 } else { 0 }, "{when}: {address}");
        }
    };
    expect(&STAFF, false, "nobody's");
    let session = lab.local.open("vpn", "a", &STAFF, "tun0").unwrap().session.unwrap();
    assert_eq!(session.current_pool, "quarantine");
    expect(&STAFF, false, "a quarantined device's");
    release(&lab, "a");
    expect(&STAFF, true, "released");
    let neighbours = ["10.67.0.8", "fd00:67::8"];
    expect(&neighbours, false, "beside a released device's");
    assert_eq!(lab.local.revoked("a").unwrap().enforcement(), Enforcement::Enforced);
    expect(&STAFF, false, "restricted");
    release(&lab, "a");
    assert!(lab.local.close(session.session_id).unwrap().ended);
    expect(&STAFF, false, "after the session");
}
