//! A source, a gateway and a sink on one line, in namespaces of their own; a generator of live frames at one end, a counter at the other;
//! one CPU does everything.

use std::{os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};

use lazaret_tests::netns::{Namespace, veth};

use crate::{
    gateway::Gateway,
    programs::{Bench, Draw},
    quiet::{Quiet, Sample},
    run,
};

/// How long a piece of a run is to take: a run of live frames has more to set up.
const LIVE: Duration = Duration::from_millis(8);
/// The source's interface that only holds the generator.
const HOLDER: &str = "hold0";

/// Names of the gateway's interfaces.
pub(crate) const DEVICE: &str = "g0";
pub(crate) const CORE: &str = "g1";

/// The gateway's interfaces, for its configuration.
pub(crate) fn interfaces() -> String {
    let one = |name, role| format!("[[interface]]\nname = \"{name}\"\nrole = \"{role}\"\n");
    one(DEVICE, "device") + &one(CORE, "core")
}

/// The three namespaces.
pub(crate) struct Line {
    pub(crate) source: Namespace,
    pub(crate) gateway: Namespace,
    pub(crate) sink: Namespace,
}

impl Line {
    pub(crate) fn new() -> Result<Self> {
        let (source, gateway, sink) = (Namespace::new("src")?, Namespace::new("gw")?, Namespace::new("sink")?);
        veth((&source, "s0"), (&gateway, DEVICE))?;
        veth((&gateway, CORE), (&sink, "k0"))?;
        veth((&source, HOLDER), (&source, "hold1"))?;
        // It holds, and runs for nobody.
        source.ip(&format!("link set {HOLDER} down"))?;
        for (namespace, interface, mac) in [
            (&source, "s0", 1),
            (&gateway, DEVICE, 2),
            (&gateway, CORE, 3),
            (&sink, "k0", 4),
        ] {
            namespace.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "1")?;
            namespace.ip(&format!("link set {interface} address 02:00:00:00:00:0{mac}"))?;
        }
        source.address("s0", "10.8.0.1/24")?;
        gateway.address(DEVICE, "10.8.0.2/24")?;
        gateway.address(CORE, "10.9.0.1/24")?;
        sink.address("k0", "10.9.0.2/24")?;
        gateway.forward()?;
        for interface in ["all", DEVICE, CORE] {
            gateway.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
        }
        gateway.ip("route add 10.200.0.0/16 via 10.9.0.2")?;
        gateway.ip("route add 10.64.0.0/11 via 10.8.0.1")?;
        gateway.ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:04 dev g1 nud permanent")?;
        gateway.ip("neigh replace 10.8.0.1 lladdr 02:00:00:00:00:01 dev g0 nud permanent")?;
        // A veth end takes redirected frames only with NAPI, which GRO or an XDP program turns on.
        gateway.exec("ethtool -K g0 gro on")?;
        Ok(Self { source, gateway, sink })
    }
}

/// What becomes of the frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// All arrive at the sink.
    Forwarded,
    /// None leaves the gateway.
    Dropped,
}

/// A gateway on its line, with the programs that feed it and count behind it.
pub(crate) struct Rig {
    pub(crate) name: &'static str,
    pub(crate) line: Line,
    pub(crate) bench: Bench,
    expect: Expect,
    gateway: Option<Gateway>,
}

impl Rig {
    /// A rig that sends what `draw` says.
    pub(crate) fn new(name: &'static str, line: Line, draw: Draw, expect: Expect, gateway: Option<Gateway>) -> Result<Self> {
        let mut bench = Bench::load(1, None)?;
        line.sink.run(|| bench.sink("k0"))?;
        bench.draw(&Draw {
            ifindex: line.source.ifindex("s0")?,
            ..draw
        })?;
        Ok(Self {
            name,
            line,
            bench,
            expect,
            gateway,
        })
    }

    /// Sends at most `packets` frames and gives the CPU time that each took, softirqs included.
    pub(crate) fn run(&mut self, quiet: &mut Quiet, packets: u32) -> Result<f64> {
        let ([sent, arrived, ..], before) = (self.bench.counts()?, self.crossed()?);
        let (source, bench) = (&self.line.source, &mut self.bench);
        let Sample { ns, ran, .. } = source.run(|| -> Result<_> {
            run::pin(run::CPU)?;
            bench.held("bench_generate", HOLDER, |bench| {
                let generator = bench.fd("bench_generate")?;
                quiet.sample(packets, LIVE, |frames| {
                    let before = run::softirq_time(run::CPU);
                    let (verdict, time) = run::test_run(generator.as_fd(), &run::frame(), frames, run::Mode::Live)?;
                    // A deferred softirq finishes.
                    std::thread::sleep(Duration::from_millis(2));
                    Ok((verdict, time + run::softirq_time(run::CPU).saturating_sub(before)))
                })
            })
        })?;
        let ([sent_now, arrived_now, ..], after) = (self.bench.counts()?, self.crossed()?);
        let (sent, arrived) = (sent_now - sent, arrived_now - arrived);
        let (received, left) = (after.0 - before.0, after.1 - before.1);
        let name = self.name;
        ensure!(sent == ran, "{name}: the generator sent {sent} of {ran}");
        ensure!(received == sent, "{name}: the gateway received {received} of {sent}");
        match self.expect {
            Expect::Forwarded => ensure!(arrived == sent, "{name}: {arrived} of {sent} frames arrived"),
            Expect::Dropped => ensure!(left == 0 && arrived == 0, "{name}: {left} of {sent} frames left the gateway"),
        }
        Ok(ns)
    }

    /// Has the gateway look after its programs and its floor.
    pub(crate) fn mend(&mut self) -> Result<()> {
        let namespace = &self.line.gateway;
        let gateway = self.gateway.as_mut().context("no gateway of ours")?;
        namespace.run(|| gateway.live.set_links());
        ensure!(
            namespace.run(|| gateway.live.floor()) == "closed",
            "{}: the floor is not closed",
            self.name
        );
        Ok(())
    }

    /// Frames that the gateway has received from the source, and sent to the sink.
    fn crossed(&self) -> Result<(u64, u64)> {
        let read = |interface: &str, what: &str| -> Result<u64> {
            // By netlink: sysfs shows the namespace in which it was mounted.
            let shown = self.line.gateway.ip(&format!("-s -j link show {interface}"))?;
            let shown: serde_json::Value = serde_json::from_str(&shown)?;
            shown[0]["stats64"][what]["packets"].as_u64().context("no statistics")
        };
        Ok((read(DEVICE, "rx")?, read(CORE, "tx")?))
    }
}
