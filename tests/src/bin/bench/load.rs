//! What it costs to load the classes of a million addresses from a text file: ours into the maps that the programs read, nftables' into a
//! verdict map by `nft -f`, ipset's by `ipset restore`. CPU time, of child processes too.

use std::{fmt::Write as _, fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lazaret_tests::{
    netns::{Namespace, veth},
    scratch::Scratch,
};
use nix::sys::resource::{UsageWho, getrusage};

use crate::{
    gateway::{Gateway, MILLION, QUARANTINED, RELEASED, Sessions, link, quarantine},
    peers,
    report::{Goal, Report},
    run,
};

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let namespace = Namespace::new("bench")?;
    veth((&namespace, "dev0"), (&namespace, "peer0"))?;
    let links = [link(&namespace, "dev0", true)?];
    let interfaces = "[[interface]]\nname = \"dev0\"\nrole = \"device\"\n";
    let mut gateway = Gateway::new(&namespace, interfaces, &links, Sessions::None)?;

    let scratch = Scratch::new("load")?;
    let mut text = String::new();
    for a in QUARANTINED..QUARANTINED + (1 << MILLION) {
        writeln!(text, "{}", Ipv4Addr::from(a))?;
    }
    let file = |name: &str, text: &str| -> Result<String> {
        let path = scratch.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let ours = file("ours", &text)?;
    let vmap = file("vmap", &peers::only_classes())?;
    let ipset = file("ipset", &peers::ipset())?;
    let each = |time: Duration| time.as_nanos() as f64 / f64::from(1_u32 << MILLION);

    for round in 0..=rounds {
        let mut take = |name: &str, time: Duration| {
            if round > 0 {
                report.sample(name, each(time));
            }
        };
        let before = children()?;
        namespace.exec(&format!("nft -f {vmap}"))?;
        take("load.nft_vmap.1M", children()?.saturating_sub(before));
        namespace.exec("nft delete table ip peer")?;

        let before = children()?;
        namespace.exec(&format!("ipset -file {ipset} restore"))?;
        take("load.ipset.1M", children()?.saturating_sub(before));
        namespace.exec("ipset destroy released")?;

        // Another class each time, so that every byte changes.
        let pool = quarantine(round as u32 % 2);
        let start = run::cpu_time()?;
        let (mut mover, classes) = gateway.mover()?;
        let class = classes[round % 2];
        let loaded = mover.load(&fs::read(&ours).context("the list of addresses")?, class)?;
        drop(mover);
        take("load.ours.1M", run::cpu_time()?.saturating_sub(start));
        ensure!(loaded == 1 << MILLION, "{loaded} addresses were loaded");
        for address in [QUARANTINED, QUARANTINED + 123_456, RELEASED - 1] {
            let read = gateway.judged_by(address)?;
            ensure!(read == Some(pool), "{} is judged by {read:?}", Ipv4Addr::from(address));
        }
    }
    report.ratio("load.nft_vmap.1M", "load.ours.1M", Some(Goal::AtLeast(100.0)));
    report.ratio("load.ipset.1M", "load.ours.1M", None);
    Ok(())
}

/// CPU time of the processes that have ended.
fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |t: nix::sys::time::TimeVal| Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()).unsigned_abs());
    Ok(time(usage.user_time()) + time(usage.system_time()))
}
