//! What forwarding costs: source, gateway and sink namespaces; a generator of live frames; one core does everything. Plain Linux, Linux with an
//! nftables ruleset of the same meaning, and Linux behind our XDP and TC programs with the floor installed.

use std::{fmt::Write as _, io::Write as _, net::Ipv4Addr, os::fd::AsFd as _, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use gateway_user::kernel::Link;
use lazaret_tests::netns::{Namespace, veth};

use crate::{
    gateway::{Bench, DESTINATIONS, FIRST, Gateway, MILLION, PORT},
    report::{Goal, Report},
    run,
};

/// The interfaces of the gateway, for its configuration.
const INTERFACES: &str = "[[interface]]\nname = \"g0\"\nrole = \"device\"\n[[interface]]\nname = \"g1\"\nrole = \"core\"\n";

/// A source, a gateway and a sink on one line.
struct Line {
    source: Namespace,
    gateway: Namespace,
    sink: Namespace,
}

impl Line {
    fn new() -> Result<Self> {
        let (source, gateway, sink) = (Namespace::new("src")?, Namespace::new("gw")?, Namespace::new("sink")?);
        veth((&source, "s0"), (&gateway, "g0"))?;
        veth((&gateway, "g1"), (&sink, "k0"))?;
        for (namespace, interface, mac) in [(&source, "s0", 1), (&gateway, "g0", 2), (&gateway, "g1", 3), (&sink, "k0", 4)] {
            namespace.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "1")?;
            namespace.ip(&format!("link set {interface} address 02:00:00:00:00:0{mac}"))?;
        }
        source.address("s0", "10.8.0.1/24")?;
        gateway.address("g0", "10.8.0.2/24")?;
        gateway.address("g1", "10.9.0.1/24")?;
        sink.address("k0", "10.9.0.2/24")?;
        gateway.forward()?;
        for interface in ["all", "g0", "g1"] {
            gateway.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
        }
        gateway.ip("route add 10.200.0.0/16 via 10.9.0.2")?;
        gateway.ip("route add 10.64.0.0/12 via 10.8.0.1")?;
        gateway.ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:04 dev g1 nud permanent")?;
        gateway.ip("neigh replace 10.8.0.1 lladdr 02:00:00:00:00:01 dev g0 nud permanent")?;
        // A veth end takes redirected frames only with NAPI, which GRO or an XDP program turns on.
        gateway.exec("ethtool -K g0 gro on")?;
        Ok(Self { source, gateway, sink })
    }
}

/// A gateway on its line, with the programs that feed it and count behind it.
struct Rig {
    name: &'static str,
    line: Line,
    bench: Bench,
    _gateway: Option<Gateway>,
}

impl Rig {
    fn new(name: &'static str, line: Line, gateway: Option<Gateway>) -> Result<Self> {
        let mut bench = Bench::load()?;
        line.sink.run(|| bench.sink("k0"))?;
        bench.draw(MILLION, PORT, line.source.ifindex("s0")?)?;
        Ok(Self {
            name,
            line,
            bench,
            _gateway: gateway,
        })
    }

    /// Sends `packets` frames through and gives the CPU time that each took, softirqs included.
    fn run(&self, packets: u32) -> Result<f64> {
        let generator = self.bench.fd("bench_generate")?;
        let (sent, arrived) = self.bench.counts()?;
        let (softirq, time) = self.line.source.run(|| -> Result<_> {
            run::pin(run::CPU)?;
            let before = run::softirq_time(run::CPU);
            let (_, time) = run::test_run(generator.as_fd(), &run::frame(), packets, true)?;
            // A deferred softirq finishes.
            std::thread::sleep(Duration::from_millis(5));
            Ok((run::softirq_time(run::CPU).saturating_sub(before), time))
        })?;
        let (sent_now, arrived_now) = self.bench.counts()?;
        let (sent, arrived) = (sent_now - sent, arrived_now - arrived);
        ensure!(
            sent == u64::from(packets),
            "{}: the generator sent {sent} of {packets}",
            self.name
        );
        // The stack may drop under a burst; a policy that drops would lose far more.
        ensure!(
            arrived * 100 >= sent * 99,
            "{}: {arrived} of {sent} frames arrived",
            self.name
        );
        Ok((time + softirq).as_nanos() as f64 / arrived as f64)
    }
}

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let plain = Rig::new("stack.linux", Line::new()?, None)?;
    let line = Line::new()?;
    nft(&line.gateway)?;
    let nft = Rig::new("stack.nft_same_policy.1M", line, None)?;
    let line = Line::new()?;
    let link = |name: &str| -> Result<Link> {
        Ok(Link {
            ifindex: line.gateway.ifindex(name)?,
            name: name.parse()?,
            ethernet: true,
        })
    };
    let gateway = Gateway::new(&line.gateway, INTERFACES, &[link("g0")?, link("g1")?])?;
    let ours = Rig::new("stack.class.1M", line, Some(gateway))?;

    for round in 0..=rounds {
        for rig in [&plain, &nft, &ours] {
            let ns = rig.run(packets)?;
            if round > 0 {
                report.sample(rig.name, ns);
            }
        }
    }
    report.ratio("stack.nft_same_policy.1M", "stack.class.1M", Some(Goal::AtLeast(2.2)));
    report.ratio("stack.class.1M", "stack.linux", None);
    Ok(())
}

/// A ruleset that means what the gateway's configuration does: a class for each address, since each moves on its own, and its allowed destinations.
fn nft(namespace: &Namespace) -> Result<()> {
    let mut rules =
        String::from("table ip peer {\n set allowed { type ipv4_addr . inet_proto . inet_service; flags interval; elements = { ");
    for i in 0..1_u32 << DESTINATIONS {
        for port in PORT..PORT + 4 {
            write!(rules, "10.200.{i}.0/24 . udp . {port}, ")?;
        }
    }
    rules.push_str("} }\n chain quarantine { ip daddr . meta l4proto . th dport @allowed accept\n drop\n }\n");
    rules.push_str(" map classes { type ipv4_addr : verdict; size 2097152; elements = {\n");
    for i in 0..1_u32 << MILLION {
        writeln!(rules, "{} : goto quarantine,", Ipv4Addr::from(FIRST + i))?;
    }
    rules.push_str(" } }\n chain forward { type filter hook forward priority 0; policy drop; ip saddr vmap @classes\n }\n}\n");
    let mut nft = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("nft")?;
    nft.stdin.take().context("nft's input")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refused the ruleset");
    Ok(())
}
