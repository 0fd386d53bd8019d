//! What a signal costs, from an MDM's message to "enforced and durable", with a million devices registered and connected; beside it what a user
//! would do otherwise (an `nft` process a signal, libnftables in this process: neither durable nor authenticated), and the floor under all, one
//! durable commit. Then how long a restart takes, and how much memory a device takes. Wall time: a signal waits for the disk.

mod client;
mod fleet;

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gateway_user::{
    model::Revision,
    store::{ChangeSet, SqliteStore, Store as _},
};
use lazaret_tests::{netns::Namespace, scratch::Scratch};

use self::fleet::{DEVICES, Fleet, Kind};
use crate::{
    gateway::{POOLS, QUARANTINED, pool},
    libnftables::Nftables,
    peers,
    report::{Goal, Report, Unit},
    run,
};

/// Signals of a sample on the stream, and of one as concurrent calls. Each releases a quarantined device; no device twice in a run.
const MANY: u32 = 20_000;
/// Signals one at a time, in a round.
const LONE: u32 = 1_000;
/// Commits of a sample.
const COMMITS: u32 = 1_000;
/// Signals of a sample by libnftables.
const LIBRARY: u32 = 200;
/// Signals of a sample by an `nft` process each.
const PROCESSES: u32 = 20;
/// Restarts of each kind: a fraction of the rounds, since each takes seconds.
const RESTARTS: usize = 3;

/// Measures `rounds` times, interleaved.
pub(crate) fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let needed = (rounds as u32 + 1) * (2 * MANY + LONE);
    ensure!(
        needed <= DEVICES,
        "{rounds} rounds take {needed} devices; there are {DEVICES}"
    );
    // The gateway, the MDM and the disk work at the same time.
    run::unpin()?;
    let mut fleet = Fleet::new(Kind::Connected)?;
    let table = Namespace::new("bench")?;
    let scratch = Scratch::new("signals")?;
    report.sample_in("restart.reboot.1M", Unit::Nanoseconds, a_device(fleet.first_start));
    fleet.settled()?;
    let mut lone_store = fleet.copy_of_store(scratch.path())?;
    restarts(report, &mut fleet, &table, &scratch)?;
    fleet.settled()?;
    peers::load(&table, &peers::only_classes())?;

    let mut next = 0..DEVICES;
    let mut take = |n: u32| -> Vec<u32> { next.by_ref().take(n as usize).collect() };
    for round in 0..=rounds {
        let mut row = |name: &str, unit: Unit, value: f64| {
            if round > 0 {
                report.sample_in(name, unit, value);
            }
        };
        let rate = |n: u32, time: Duration| f64::from(n) / time.as_secs_f64();

        let (time, latencies) = client::stream(&fleet, &take(MANY))?;
        row("signals.stream", Unit::PerSecond, rate(MANY, time));
        for (name, ns) in percentiles("signals.stream", latencies) {
            row(&name, Unit::Nanoseconds, ns);
        }
        let (time, latencies) = client::unary(&fleet, &take(MANY))?;
        row("signals.unary", Unit::PerSecond, rate(MANY, time));
        for (name, ns) in percentiles("signals.unary", latencies) {
            row(&name, Unit::Nanoseconds, ns);
        }
        for (name, ns) in percentiles("signals.lone", client::lone(&fleet, &take(LONE))?) {
            row(&name, Unit::Nanoseconds, ns);
        }
        for (name, ns) in percentiles("signals.store_commit", commits(&mut lone_store)?) {
            row(&name, Unit::Nanoseconds, ns);
        }
        row(
            "signals.libnftables",
            Unit::PerSecond,
            rate(LIBRARY, by_library(&table, round as u32)?),
        );
        row(
            "signals.nft_process",
            Unit::PerSecond,
            rate(PROCESSES, by_processes(&table, round as u32)?),
        );
    }
    report.ratio("signals.stream", "signals.nft_process", Some(Goal::AtLeast(300.0)));
    report.ratio("signals.stream", "signals.libnftables", Some(Goal::AtLeast(1.0)));
    report.ratio("signals.unary", "signals.nft_process", None);
    report.ratio("signals.lone.p99", "signals.store_commit.p99", Some(Goal::AtMost(3.0)));
    report.ratio("signals.lone.p50", "signals.store_commit.p50", None);
    Ok(())
}

/// Resident memory a device: the process's private pages with a million registered, or connected, devices, less those with none.
pub(crate) fn memory(report: &mut Report) -> Result<()> {
    run::unpin()?;
    let resident = |kind| -> Result<f64> { Ok(Fleet::new(kind)?.private_bytes()? as f64) };
    let empty = resident(Kind::Empty)?;
    let each = |bytes: f64| (bytes - empty) / f64::from(DEVICES);
    let registered = each(resident(Kind::Registered)?);
    report.sample_in("memory.registered_device", Unit::Bytes, registered);
    report.sample_in("memory.goal", Unit::Bytes, 300.0);
    report.ratio("memory.registered_device", "memory.goal", Some(Goal::AtMost(1.0)));
    let connected = each(resident(Kind::Both)?);
    report.sample_in("memory.connected_device", Unit::Bytes, connected);
    report.sample_in("memory.connected_goal", Unit::Bytes, 600.0);
    report.ratio("memory.connected_device", "memory.connected_goal", Some(Goal::AtMost(1.0)));
    Ok(())
}

/// From the start of the process until its API answers; by then every live session is enforced. Adopted: the kernel's tables are as the process
/// before has left them, and judge all the while. Cold: there are none. (After a boot, leases and deadlines are also measured by another clock:
/// `restart.reboot`.)
fn restarts(report: &mut Report, fleet: &mut Fleet, table: &Namespace, scratch: &Scratch) -> Result<()> {
    let file = scratch.path().join("vmap");
    std::fs::write(&file, peers::only_classes())?;
    for _ in 0..RESTARTS {
        let start = Instant::now();
        table.exec(&format!("nft -f {}", file.display()))?;
        report.sample_in("load.nft_vmap.1M", Unit::Nanoseconds, a_device(start.elapsed()));
        table.exec("nft delete table ip peer")?;
        report.sample_in("restart.adopted.1M", Unit::Nanoseconds, a_device(fleet.restart(true)?));
        report.sample_in("restart.cold.1M", Unit::Nanoseconds, a_device(fleet.restart(false)?));
        fleet.all_are_enforced()?;
    }
    report.ratio("restart.cold.1M", "load.nft_vmap.1M", Some(Goal::AtMost(1.0)));
    report.ratio("restart.adopted.1M", "load.nft_vmap.1M", None);
    Ok(())
}

/// Nanoseconds a device.
fn a_device(time: Duration) -> f64 {
    time.as_nanos() as f64 / f64::from(DEVICES)
}

/// One device each, one after the other, in a database of the same million.
fn commits((store, revision): &mut (SqliteStore, Revision)) -> Result<Vec<Duration>> {
    (0..COMMITS)
        .map(|n| {
            let mut device = fleet::device(n.wrapping_mul(7919) % DEVICES)?;
            device.owner = format!("of revision {}", revision.0).into();
            let changes = ChangeSet {
                devices: [(device.id.clone(), device)].into(),
                ..ChangeSet::default()
            };
            let start = Instant::now();
            *revision = store.commit(&changes, *revision, fleet::REGISTERED)?.revision;
            Ok(start.elapsed())
        })
        .collect()
}

/// Moves devices of the verdict map, a transaction each, in this process.
fn by_library(table: &Namespace, round: u32) -> Result<Duration> {
    table.run(|| -> Result<Duration> {
        let library = Nftables::open()?;
        let start = Instant::now();
        for n in 0..LIBRARY {
            library.run(&moved(n, round))?;
        }
        Ok(start.elapsed())
    })
}

/// The same by a process each.
fn by_processes(table: &Namespace, round: u32) -> Result<Duration> {
    let start = Instant::now();
    for n in 0..PROCESSES {
        peers::load(table, &moved(LIBRARY + n, round)).context("nft")?;
    }
    Ok(start.elapsed())
}

fn moved(n: u32, round: u32) -> String {
    let address = QUARANTINED + n * 4099;
    let (name, to) = (Ipv4Addr::from(address), (pool(address) + round + 1) % POOLS);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "delete element ip peer classes {{ {name} }}\nadd element ip peer classes {{ {name} : goto quarantine{to} }}\n"
    );
    text
}

/// Of latencies, in nanoseconds.
fn percentiles(name: &str, mut latencies: Vec<Duration>) -> Vec<(String, f64)> {
    latencies.sort_unstable();
    let at = |per_mille: usize| {
        let place = (latencies.len() * per_mille).div_ceil(1000).max(1) - 1;
        latencies.get(place).map_or(f64::NAN, |d| d.as_nanos() as f64)
    };
    [("p50", 500), ("p99", 990), ("p99.9", 999)]
        .map(|(suffix, per_mille)| (format!("{name}.{suffix}"), at(per_mille)))
        .into()
}
