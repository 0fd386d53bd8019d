//! What dropping costs: a million quarantined devices send where they may not; nothing leaves the gateway.

use anyhow::Result;
use lazaret_tests::netns::Namespace;

use crate::{
    gateway::{Gateway, MILLION, OTHER_PORT, QUARANTINED, RELEASED, Sessions, link},
    line::{self, CORE, DEVICE, Expect, Line, Rig},
    peers,
    programs::Draw,
    quiet::Quiet,
    report::{Goal, Report},
    xdpfilter::XdpFilter,
};

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let draw = Draw::sources(QUARANTINED, MILLION, OTHER_PORT);
    let rig = |name, line, gateway| Rig::new(name, line, draw, Expect::Dropped, gateway);
    let with = |name, prepare: &dyn Fn(&Namespace) -> Result<()>| {
        let line = Line::new()?;
        prepare(&line.gateway)?;
        rig(name, line, None)
    };
    let mut empty = rig("drop.empty", Line::new()?, None)?;
    let namespace = empty.line.gateway.clone();
    namespace.run(|| empty.bench.xdp("bench_drop", DEVICE))?;

    let line = Line::new()?;
    let links = [link(&line.gateway, DEVICE, true)?, link(&line.gateway, CORE, true)?];
    let gateway = Gateway::new(&line.gateway, &line::interfaces(), &links, Sessions::Quarantined)?;
    let mut ours = rig("drop.class.1M", line, Some(gateway))?;

    let mut raw = with("drop.nft_raw.1M", &|n| {
        peers::load(n, &peers::released_only("ip", "prerouting priority raw"))
    })?;
    let mut ingress = with("drop.nft_ingress.1M", &|n| {
        peers::load(n, &peers::released_only("netdev", "ingress device g0 priority 0"))
    })?;
    let mut ipset = with("drop.ipset_raw.1M", &|n| {
        peers::feed(n, &["ipset", "restore"], &peers::ipset())?;
        n.exec("iptables-legacy -t raw -A PREROUTING -m set ! --match-set released src -j DROP")?;
        Ok(())
    })?;
    let line = Line::new()?;
    let mut filter = XdpFilter::load(RELEASED..RELEASED + (1 << MILLION))?;
    line.gateway.run(|| filter.attach(DEVICE))?;
    let mut filtered = rig("drop.xdpfilter.1M", line, None)?;

    let mut quiet = Quiet::new()?;
    for round in 0..=rounds {
        for rig in [&mut empty, &mut ours, &mut raw, &mut ingress, &mut ipset, &mut filtered] {
            let ns = rig.run(&mut quiet, packets)?;
            if round > 0 {
                report.sample(rig.name, ns);
            }
        }
    }
    report.note(quiet.told());
    report.ratio("drop.nft_raw.1M", "drop.class.1M", Some(Goal::AtLeast(5.0)));
    report.ratio("drop.class.1M", "drop.empty", Some(Goal::AtMost(1.5)));
    report.ratio("drop.nft_ingress.1M", "drop.class.1M", None);
    report.ratio("drop.ipset_raw.1M", "drop.class.1M", None);
    report.ratio("drop.xdpfilter.1M", "drop.class.1M", None);
    Ok(())
}
