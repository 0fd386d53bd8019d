//! Leases with the daemon dead: they end in the kernel, to the millisecond, each at its own time, and are counted under their own reason.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, SystemTime},
};

use gateway_ebpf::reason::Reason;
use lazaret_proto::v1::{DeviceState, Enforcement};
use lazaret_tests::{
    api::Client,
    flows::{self, Token},
    lab::Lab,
    packets::{self, Watcher},
    pins, require, site,
};

/// How much earlier than the lease's end the last packet may be: packets are sent every half millisecond; the rest is for a machine that is
/// busy with other tests.
const EARLY: Duration = Duration::from_millis(40);
/// And later: the programs read the clock as of the last tick, of which a kernel has at least 100 a second.
const LATE: Duration = Duration::from_millis(10);

/// A device by its addresses, with what marks its packets, and who sees them in the core.
struct Device {
    name: &'static str,
    addresses: [&'static str; 2],
    token: Token,
    mail: Watcher,
    dm: Watcher,
}

impl Device {
    fn new(lab: &Lab, name: &'static str, addresses: [&'static str; 2]) -> Self {
        lab.local.register(name, "staff").unwrap();
        lab.local.open("lab", name, &addresses, "tun0").unwrap();
        let token = flows::token();
        let watch = |to: [IpAddr; 2]| Watcher::of(&lab.site.core, token, move |p| !p.outgoing && to.contains(&p.to)).unwrap();
        Self {
            name,
            addresses,
            token,
            mail: watch([site::MAIL, site::MAIL6]),
            dm: watch([site::RESOLVER, site::DM6]),
        }
    }

    /// What only full service allows, and what quarantine allows too.
    fn packets(&self) -> Vec<Vec<u8>> {
        let from = self.addresses.map(|a| (a.parse().unwrap(), 4000));
        vec![
            packets::udp(from[0], (site::MAIL, 5001), &self.token),
            packets::udp(from[1], (site::MAIL6, 5001), &self.token),
            packets::udp(from[0], (site::RESOLVER, 53), &self.token),
        ]
    }

    /// When its lease ends; the same for both addresses.
    fn end(&self, local: &Client) -> SystemTime {
        let ends = self.addresses.map(|a| local.address(a).unwrap().lease_ends_at.unwrap());
        let ends = ends.map(|t| SystemTime::try_from(t).unwrap());
        let apart = ends[0].max(ends[1]).duration_since(ends[0].min(ends[1])).unwrap();
        assert!(apart < Duration::from_millis(2), "{ends:?}");
        ends[0]
    }

    /// The last packet of each family that came through to the mail server was sent when the lease ended.
    fn ended_at(&self, end: SystemTime) {
        let seen = self.mail.seen();
        for v6 in [false, true] {
            let last = seen.iter().filter(|p| p.from.is_ipv6() == v6).map(|p| p.at).max().unwrap();
            let (early, late) = (
                end.duration_since(last).unwrap_or_default(),
                last.duration_since(end).unwrap_or_default(),
            );
            eprintln!(
                "{} v6 {v6}: the last packet {early:?} before the end, {late:?} after it",
                self.name
            );
            assert!(
                early < EARLY && late < LATE,
                "{}: v6 {v6}: last {early:?} early, {late:?} late",
                self.name
            );
        }
    }
}

#[test]
fn leases_end_in_the_kernel_with_the_daemon_dead() {
    require!(Root, Bpf, Tun);
    let mut lab = Lab::new(|g| g.configure("lease = \"12h\"", "lease = \"3s\"")).unwrap();
    let devices = [
        Device::new(&lab, "first", ["10.66.0.5", "fd00:66::5"]),
        Device::new(&lab, "second", ["10.66.0.6", "fd00:67::6"]),
    ];
    let release = |d: &Device| {
        assert_eq!(lab.local.applied(d.name).unwrap().enforcement(), Enforcement::Enforced);
        d.end(&lab.local)
    };
    // The first is released, and a second later the other.
    let first = release(&devices[0]);
    thread::sleep(Duration::from_secs(1));
    let second = release(&devices[1]);
    assert!(second.duration_since(first).unwrap() > Duration::from_millis(900));
    lab.gateway.kill().unwrap();
    let killed = SystemTime::now();
    assert!(killed < first, "with the daemon dead when the first ends");

    let packets: Vec<_> = devices.iter().flat_map(Device::packets).collect();
    let until = second + Duration::from_millis(500);
    let mut sent = 0;
    while SystemTime::now() < until {
        packets.iter().for_each(|p| lab.tun.send(p).unwrap());
        sent += 1;
        thread::sleep(Duration::from_micros(500));
    }
    assert!(sent > 1000, "{sent}");
    devices[0].ended_at(first);
    devices[1].ended_at(second);
    for device in &devices {
        assert_eq!(device.dm.seen().len(), sent, "quarantine's policy goes on: none lost");
    }
    let denied = sent * 4 - devices.iter().map(|d| d.mail.seen().len()).sum::<usize>();
    assert_eq!(
        pins::counted(&lab.gateway, 1, Reason::LeaseEnded).unwrap(),
        denied as u64,
        "each counted once, under its own reason and quarantine's pool"
    );

    // The daemon finds them ended, and nothing comes back.
    let before: Vec<_> = devices.iter().map(|d| d.mail.seen().len()).collect();
    lab.restart().unwrap();
    for _ in 0..100 {
        packets.iter().for_each(|p| lab.tun.send(p).unwrap());
    }
    for (device, before) in devices.iter().zip(before) {
        assert_eq!(device.mail.seen().len(), before);
        let now = lab.local.device(device.name).unwrap();
        assert_eq!(
            (now.state(), now.gateway_uri.as_str()),
            (DeviceState::Quarantined, "enrol.vpn.example.test")
        );
    }
    assert_eq!(
        lab.local.counted("lease_ended").unwrap(),
        denied as u64,
        "then it is quarantine's own denial"
    );
}
