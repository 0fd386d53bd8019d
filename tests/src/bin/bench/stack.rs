//! What forwarding by the stack costs: plain Linux, Linux with an nftables ruleset of the same meaning, and Linux behind our XDP and TC
//! programs with the floor installed.

use anyhow::Result;

use crate::{
    gateway::{Gateway, MILLION, PORT, QUARANTINED, Sessions, link},
    line::{self, CORE, DEVICE, Expect, Line, Rig},
    peers,
    programs::Draw,
    quiet::Quiet,
    report::{Goal, Report},
};

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let draw = Draw::sources(QUARANTINED, MILLION, PORT);
    let rig = |name, line, gateway| Rig::new(name, line, draw, Expect::Forwarded, gateway);
    let mut plain = rig("stack.linux", Line::new()?, None)?;
    let mut hooks = rig("stack.empty_hooks", Line::new()?, None)?;
    let namespace = hooks.line.gateway.clone();
    namespace.run(|| -> Result<()> {
        hooks.bench.xdp("bench_empty", DEVICE)?;
        hooks.bench.tc("bench_tc_empty", DEVICE)
    })?;
    let line = Line::new()?;
    peers::load(&line.gateway, &peers::same_policy())?;
    let mut nft = rig("stack.nft_same_policy.1M", line, None)?;
    let line = Line::new()?;
    let links = [link(&line.gateway, DEVICE, true)?, link(&line.gateway, CORE, true)?];
    let gateway = Gateway::new(&line.gateway, &line::interfaces(), &links, Sessions::Quarantined)?;
    let mut ours = rig("stack.class.1M", line, Some(gateway))?;

    let mut quiet = Quiet::new()?;
    for round in 0..=rounds {
        let mut take = |name: &str, ns: f64| {
            if round > 0 {
                report.sample(name, ns);
            }
        };
        for rig in [&mut plain, &mut hooks, &mut nft, &mut ours] {
            take(rig.name, rig.run(&mut quiet, packets)?);
        }
        // What the floor's parts cost: taken away one after the other, and mended by the gateway.
        ours.line.gateway.exec("nft delete chain inet lazaret postrouting")?;
        take("stack.part.no_postrouting", ours.run(&mut quiet, packets)?);
        ours.line.gateway.exec("nft delete table inet lazaret")?;
        take("stack.part.no_floor", ours.run(&mut quiet, packets)?);
        ours.mend()?;
    }
    report.note(quiet.told());
    report.ratio("stack.nft_same_policy.1M", "stack.class.1M", Some(Goal::AtLeast(2.2)));
    report.ratio("stack.class.1M", "stack.linux", None);
    Ok(())
}
