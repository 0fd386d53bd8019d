//! What forwarding by the stack costs: plain Linux, Linux with an nftables ruleset of the same meaning, and Linux behind our XDP and TC
//! programs with the floor installed.

use anyhow::Result;

use crate::{
    gateway::{Gateway, MILLION, PORT, QUARANTINED, Sessions, link},
    line::{self, CORE, DEVICE, Expect, Line, Rig},
    peers,
    programs::Draw,
    report::{Goal, Report},
};

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let draw = Draw::sources(QUARANTINED, MILLION, PORT);
    let rig = |name, line, gateway| Rig::new(name, line, draw, Expect::Forwarded, gateway);
    let plain = rig("stack.linux", Line::new()?, None)?;
    let mut hooks = rig("stack.empty_hooks", Line::new()?, None)?;
    let namespace = hooks.line.gateway.clone();
    namespace.run(|| -> Result<()> {
        hooks.bench.xdp("bench_empty", DEVICE)?;
        hooks.bench.tc("bench_tc_empty", DEVICE)
    })?;
    let line = Line::new()?;
    peers::load(&line.gateway, &peers::same_policy())?;
    let nft = rig("stack.nft_same_policy.1M", line, None)?;
    let line = Line::new()?;
    let links = [link(&line.gateway, DEVICE, true)?, link(&line.gateway, CORE, true)?];
    let gateway = Gateway::new(&line.gateway, &line::interfaces(), &links, Sessions::Quarantined)?;
    let mut ours = rig("stack.class.1M", line, Some(gateway))?;

    for round in 0..=rounds {
        let mut take = |name: &str, ns: f64| {
            if round > 0 {
                report.sample(name, ns);
            }
        };
        for rig in [&plain, &hooks, &nft, &ours] {
            take(rig.name, rig.run(packets)?);
        }
        // What the floor's parts cost: taken away one after the other, and mended by the gateway.
        ours.line.gateway.exec("nft delete chain inet lazaret postrouting")?;
        take("stack.part.no_postrouting", ours.run(packets)?);
        ours.line.gateway.exec("nft delete table inet lazaret")?;
        take("stack.part.no_floor", ours.run(packets)?);
        ours.mend(&links)?;
    }
    report.ratio("stack.nft_same_policy.1M", "stack.class.1M", Some(Goal::AtLeast(2.2)));
    report.ratio("stack.class.1M", "stack.linux", None);
    Ok(())
}
