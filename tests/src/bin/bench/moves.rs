//! What it costs to move one device to another class, of a million: ours is the store of its class byte by the code that the daemon runs;
//! nftables' is a transaction that replaces an element of a verdict map, by its own library in this process.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::Result;
use lazaret_tests::netns::{Namespace, veth};

use crate::{
    gateway::{Gateway, MILLION, POOLS, QUARANTINED, Sessions, link, pool, quarantine, v4},
    libnftables::Nftables,
    peers,
    report::{Goal, Report},
    run,
    verdict::shuffled,
};

/// Moves of a sample through nftables, and of one with the session's record.
const FEW: u32 = 500;
/// Moves of a sample of ours.
const MANY: u32 = 1 << MILLION;

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let namespace = Namespace::new("bench")?;
    veth((&namespace, "dev0"), (&namespace, "peer0"))?;
    let links = [link(&namespace, "dev0", true)?];
    let interfaces = "[[interface]]\nname = \"dev0\"\nrole = \"device\"\n";
    let mut gateway = Gateway::new(&namespace, interfaces, &links, Sessions::Quarantined)?;
    peers::load(&namespace, &peers::only_classes())?;
    let order: Vec<u32> = shuffled(QUARANTINED).collect();

    for round in 0..=rounds {
        // There and back: each round moves everything one pool on.
        let to = |address: u32| (pool(address) + round as u32 + 1) % POOLS;
        let mut take = |name: &str, ns: f64| {
            if round > 0 {
                report.sample(name, ns);
            }
        };
        let few = || order.iter().skip(round * FEW as usize).take(FEW as usize);

        // A context of this thread's namespace: the thread is this one, which has entered it.
        let nft = namespace.run(|| -> Result<f64> {
            run::pin(run::CPU)?;
            let library = Nftables::open()?;
            let mut text = String::new();
            let start = run::cpu_time()?;
            for address in few() {
                text.clear();
                let name = Ipv4Addr::from(*address);
                write!(
                    text,
                    "delete element ip peer classes {{ {name} }}\nadd element ip peer classes {{ {name} : goto quarantine{} }}\n",
                    to(*address)
                )?;
                library.run(&text)?;
            }
            Ok((run::cpu_time()?.saturating_sub(start)).as_nanos() as f64 / f64::from(FEW))
        })?;
        take("move.libnftables", nft);

        let (mut mover, classes) = gateway.mover()?;
        let start = run::cpu_time()?;
        for address in &order {
            mover.set(Ipv4Addr::from(*address), classes[to(*address) as usize])?;
        }
        drop(mover);
        take(
            "move.ours",
            run::cpu_time()?.saturating_sub(start).as_nanos() as f64 / f64::from(MANY),
        );

        let start = run::cpu_time()?;
        for address in few() {
            gateway.assign(v4(*address), quarantine((to(*address) + 1) % POOLS), None)?;
        }
        take(
            "move.ours_with_record",
            run::cpu_time()?.saturating_sub(start).as_nanos() as f64 / f64::from(FEW),
        );
    }
    report.ratio("move.libnftables", "move.ours", Some(Goal::AtLeast(5000.0)));
    report.ratio("move.libnftables", "move.ours_with_record", None);
    Ok(())
}
