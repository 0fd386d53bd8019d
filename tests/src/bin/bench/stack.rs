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
    let line = Line::new()?;
    peers::load(&line.gateway, &peers::same_policy())?;
    let nft = rig("stack.nft_same_policy.1M", line, None)?;
    let line = Line::new()?;
    let links = [link(&line.gateway, DEVICE, true)?, link(&line.gateway, CORE, true)?];
    let gateway = Gateway::new(&line.gateway, &line::interfaces(), &links, Sessions::Quarantined)?;
    let ours = rig("stack.class.1M", line, Some(gateway))?;

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
