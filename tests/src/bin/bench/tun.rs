//! What forwarding costs behind a VPN server on the host: packets are written to a tun, as that server does, go through the stack and out to
//! the sink. Plain Linux, Linux with an nftables ruleset of the same meaning, and Linux behind our TC programs with the floor installed.

use std::time::Duration;

use anyhow::{Result, ensure};
use lazaret_tests::netns::{Namespace, Tun, veth};

use crate::{
    gateway::{Gateway, MILLION, PORT, PORT_BITS, QUARANTINED, Sessions, link},
    peers,
    programs::{Bench, DESTINATION, DESTINATIONS},
    quiet::{Quiet, Sample},
    report::{Goal, Report},
    run,
};

/// How long a piece of a run is to take.
const PIECE: Duration = Duration::from_millis(4);
const INTERFACES: &str = "[[interface]]\nname = \"tun0\"\nrole = \"device\"\n[[interface]]\nname = \"g1\"\nrole = \"core\"\n";

/// A gateway with a tun, and a sink.
struct Rig {
    name: &'static str,
    tun: Tun,
    bench: Bench,
    gateway: Namespace,
    _sink: Namespace,
    _live: Option<Gateway>,
}

impl Rig {
    fn new(name: &'static str, prepare: impl FnOnce(&Namespace) -> Result<Option<Gateway>>) -> Result<Self> {
        let (gateway, sink) = (Namespace::new("gw")?, Namespace::new("sink")?);
        let tun = Tun::new(&gateway, "tun0")?;
        veth((&gateway, "g1"), (&sink, "k0"))?;
        for (namespace, interface, mac) in [(&gateway, "g1", 3), (&sink, "k0", 4)] {
            namespace.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "1")?;
            namespace.ip(&format!("link set {interface} address 02:00:00:00:00:0{mac}"))?;
        }
        gateway.sysctl("net.ipv6.conf.tun0.disable_ipv6", "1")?;
        gateway.address("tun0", "10.8.0.1/24")?;
        gateway.address("g1", "10.9.0.1/24")?;
        sink.address("k0", "10.9.0.2/24")?;
        gateway.forward()?;
        for interface in ["all", "tun0", "g1"] {
            gateway.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
        }
        gateway.ip("route add 10.200.0.0/16 via 10.9.0.2")?;
        gateway.ip("route add 10.64.0.0/11 dev tun0")?;
        gateway.ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:04 dev g1 nud permanent")?;
        let live = prepare(&gateway)?;
        let mut bench = Bench::load(1, None)?;
        sink.run(|| bench.sink("k0"))?;
        Ok(Self {
            name,
            tun,
            bench,
            gateway,
            _sink: sink,
            _live: live,
        })
    }

    /// Writes at most `packets` packets and gives the CPU time that each took, softirqs included, the writing too.
    fn run(&self, quiet: &mut Quiet, packets: u32) -> Result<f64> {
        let [_, before, ..] = self.bench.counts()?;
        let mut x = 12345_u32;
        let mut packet = run::frame()[14..].to_vec();
        let Sample { ns, ran, .. } = quiet.sample(packets, PIECE, |packets| {
            let softirq = run::softirq_time(run::CPU);
            let start = run::cpu_time()?;
            for _ in 0..packets {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                draw(&mut packet, x);
                self.tun.send(&packet)?;
            }
            let time = run::cpu_time()?.saturating_sub(start);
            std::thread::sleep(Duration::from_millis(2));
            Ok((0, time + run::softirq_time(run::CPU).saturating_sub(softirq)))
        })?;
        let [_, after, ..] = self.bench.counts()?;
        let arrived = after - before;
        let name = self.name;
        ensure!(arrived == ran, "{name}: {arrived} of {ran} packets arrived");
        Ok(ns)
    }
}

/// The same packets as the generator of live frames draws.
fn draw(packet: &mut [u8], x: u32) {
    let y = x.wrapping_mul(0x9e37_79b1) >> 16;
    let source = QUARANTINED + (x >> (32 - MILLION));
    let destination = DESTINATION + ((y & (DESTINATIONS - 1)) << 8);
    let port = PORT + ((y >> 8) & ((1 << PORT_BITS) - 1));
    packet[12..16].copy_from_slice(&source.to_be_bytes());
    packet[16..20].copy_from_slice(&destination.to_be_bytes());
    packet[22..24].copy_from_slice(&(port as u16).to_be_bytes());
    // 4500 + 002e + 0000 + 0000 + 4011: the words of the header that do not change.
    let mut sum = 0x853f + (source >> 16) + (source & 0xffff) + (destination >> 16) + (destination & 0xffff);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let plain = Rig::new("tun.linux", |_| Ok(None))?;
    let mut empty = Rig::new("tun.empty", |_| Ok(None))?;
    let namespace = empty.gateway.clone();
    namespace.run(|| empty.bench.tc("bench_tc_empty", "tun0"))?;
    let nft = Rig::new("tun.nft_same_policy.1M", |n| {
        peers::load(n, &peers::same_policy())?;
        Ok(None)
    })?;
    let ours = Rig::new("tun.class.1M", |n| {
        let links = [link(n, "tun0", false)?, link(n, "g1", true)?];
        Gateway::new(n, INTERFACES, &links, Sessions::Quarantined).map(Some)
    })?;
    let mut quiet = Quiet::new()?;
    for round in 0..=rounds {
        for rig in [&plain, &empty, &nft, &ours] {
            let ns = rig.run(&mut quiet, packets)?;
            if round > 0 {
                report.sample(rig.name, ns);
            }
        }
    }
    report.note(quiet.told());
    report.ratio("tun.nft_same_policy.1M", "tun.class.1M", Some(Goal::AtLeast(1.2)));
    report.ratio("tun.class.1M", "tun.linux", None);
    Ok(())
}
