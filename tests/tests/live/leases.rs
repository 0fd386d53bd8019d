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

/// How much earlier than the lease's end the first packet may be denied: the end is told in milliseconds of the wall clock.
const EARLY: Duration = Duration::from_millis(3);
/// How much later the last may pass: the programs read the clock as of the last tick, of which a kernel has at least 100 a second. Where the
/// CPU that counts the ticks is not run, they are as late as that: see [`Turn::lag`].
const LATE: Duration = Duration::from_millis(10);

/// One packet of each kind, sent between two moments.
struct Turn {
    begin: SystemTime,
    end: SystemTime,
    /// How old the clock of the last tick was, at least once meanwhile.
    lag: Duration,
}

impl Turn {
    fn send(lab: &Lab, packets: &[Vec<u8>]) -> Self {
        let (begin, before) = (SystemTime::now(), lag());
        packets.iter().for_each(|p| lab.tun.send(p).unwrap());
        Self {
            begin,
            lag: before.max(lag()),
            end: SystemTime::now(),
        }
    }
}

fn lag() -> Duration {
    let read = |id| Duration::from(nix::time::clock_gettime(id).unwrap());
    let tick = read(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    read(nix::time::ClockId::CLOCK_MONOTONIC).saturating_sub(tick)
}

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
        // Each answer reads two clocks, one after the other.
        assert!(apart < Duration::from_secs(1), "{ends:?}");
        ends[0]
    }

    /// Of each family those packets came through to the mail server that were sent before the lease ended, one in each of `turns`.
    fn ended_at(&self, end: SystemTime, turns: &[Turn]) {
        let seen = self.mail.seen();
        for v6 in [false, true] {
            let times: Vec<SystemTime> = seen.iter().filter(|p| p.from.is_ipv6() == v6).map(|p| p.at).collect();
            let (passed, denied) = (&turns[times.len() - 1], &turns[times.len()]);
            assert!(*times.iter().max().unwrap() >= passed.begin, "{}: the first ones", self.name);
            let (early, late) = (
                end.duration_since(denied.end).unwrap_or_default(),
                passed.begin.duration_since(end).unwrap_or_default(),
            );
            let lag = passed.lag;
            eprintln!(
                "{} v6 {v6}: the first denied {early:?} before the end, the last passed {late:?} after it; lag {lag:?}",
                self.name
            );
            assert!(
                early < EARLY && late < LATE + lag,
                "{}: v6 {v6}: {early:?} early, {late:?} late; lag {lag:?}",
                self.name
            );
        }
    }
}

#[test]
fn leases_end_in_the_kernel_with_the_daemon_dead() {
    require!(Root, Bpf, Tun);
    let mut lab = Lab::new(|g| g.configure("lease = \"12h\"", "lease = \"6s\"")).unwrap();
    let devices = [
        Device::new(&lab, "first", ["10.66.0.5", "fd00:66::5"]),
        Device::new(&lab, "second", ["10.66.0.6", "fd00:67::6"]),
    ];
    let release = |d: &Device| {
        assert_eq!(lab.gateway.applied(d.name).unwrap().enforcement(), Enforcement::Enforced);
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
    let mut turns = Vec::new();
    while SystemTime::now() < until {
        turns.push(Turn::send(&lab, &packets));
        thread::sleep(Duration::from_micros(500));
    }
    let sent = turns.len();
    assert!(sent > 1000, "{sent}");
    devices[0].ended_at(first, &turns);
    devices[1].ended_at(second, &turns);
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
