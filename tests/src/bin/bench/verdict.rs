//! What a verdict costs: the prologue draws a packet and tail-calls the attached program. The empty program pays for the prologue too.

use std::os::fd::AsFd as _;

use anyhow::{Result, ensure};
use gateway_ebpf::reason::Reason;
use lazaret_tests::netns::Namespace;

use crate::{
    gateway::{Bench, Gateway, MILLION, OTHER_PORT, PORT, device_link, loaded},
    report::{Goal, Report},
    run,
};

/// XDP's actions (linux/bpf.h).
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// One measurement: how many sources (log2), to which port, and what must come out.
struct Case {
    name: &'static str,
    source_bits: u32,
    port: u32,
    verdict: u32,
    reason: Option<Reason>,
}

const fn case(name: &'static str, source_bits: u32, port: u32, verdict: u32, reason: Reason) -> Case {
    Case {
        name,
        source_bits,
        port,
        verdict,
        reason: Some(reason),
    }
}

/// Addresses at rest: the quarantine pool's policy.
const QUARANTINED: [Case; 4] = [
    case("verdict.class.1", 0, PORT, XDP_PASS, Reason::Rule),
    case("verdict.class.1M", MILLION, PORT, XDP_PASS, Reason::Rule),
    case("verdict.denied.1", 0, OTHER_PORT, XDP_DROP, Reason::NoRule),
    case("verdict.denied.1M", MILLION, OTHER_PORT, XDP_DROP, Reason::NoRule),
];
/// The same addresses, released.
const RELEASED: [Case; 2] = [
    case("verdict.released.1", 0, OTHER_PORT, XDP_PASS, Reason::All),
    case("verdict.released.1M", MILLION, OTHER_PORT, XDP_PASS, Reason::All),
];
const EMPTY: Case = Case {
    name: "verdict.empty",
    source_bits: MILLION,
    port: PORT,
    verdict: XDP_PASS,
    reason: None,
};

/// Measures `rounds` times, interleaved: moving a million addresses between the two states is outside the clock.
pub(crate) fn measure(report: &mut Report, rounds: usize, packets: u32) -> Result<()> {
    let namespace = Namespace::new("bench")?;
    let (interfaces, link) = device_link(&namespace, "dev0")?;
    let mut gateway = Gateway::new(&namespace, interfaces, &[link])?;
    let mut bench = Bench::load()?;
    let ours = loaded("xdp_device")?;
    let empty = bench.fd("bench_empty")?;
    let prologue = bench.fd("bench_prologue")?;

    for round in 0..=rounds {
        // The first round warms up and checks; it is not counted.
        let mut take = |case: &Case, gateway: &Gateway| -> Result<()> {
            bench.under_test(if case.reason.is_some() { &ours } else { &empty })?;
            bench.draw(case.source_bits, case.port, 0)?;
            let before = case.reason.map(|r| gateway.counts(r as u8)).transpose()?;
            let (verdict, time) = run::test_run(prologue.as_fd(), &run::frame(), packets, false)?;
            ensure!(
                verdict == case.verdict,
                "{}: verdict {verdict}, not {}",
                case.name,
                case.verdict
            );
            if let (Some(reason), Some(before)) = (case.reason, before) {
                let counted = gateway.counts(reason as u8)? - before;
                ensure!(
                    counted == u64::from(packets),
                    "{}: {counted} of {packets} packets had reason {}",
                    case.name,
                    reason.name()
                );
            }
            if round > 0 {
                report.sample(case.name, time.as_nanos() as f64 / f64::from(packets));
            }
            Ok(())
        };
        take(&EMPTY, &gateway)?;
        QUARANTINED.iter().try_for_each(|c| take(c, &gateway))?;
        gateway.release_all()?;
        RELEASED.iter().try_for_each(|c| take(c, &gateway))?;
        gateway.quarantine_all()?;
    }

    report.ratio("verdict.released.1M", "verdict.empty", Some(Goal::AtMost(3.0)));
    report.ratio("verdict.class.1M", "verdict.empty", Some(Goal::AtMost(4.5)));
    report.ratio("verdict.denied.1M", "verdict.empty", None);
    report.ratio("verdict.released.1M", "verdict.released.1", Some(Goal::AtMost(1.4)));
    report.ratio("verdict.class.1M", "verdict.class.1", Some(Goal::AtMost(1.5)));
    Ok(())
}
