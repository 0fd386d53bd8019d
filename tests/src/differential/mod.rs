//! The differential: random gateways and random packets, judged by the shipping decision and by the naive [`crate::reference`], which must
//! agree. What disagrees is shown with its seed and made as short as it can be by leaving packets out.

pub mod host;
mod packets;
pub mod random;
pub mod scenario;

use std::fmt;

use gateway_ebpf::{decide::Verdict, headers::Headers, reason::Reason};

use self::{
    host::Host,
    scenario::{START, Scenario, Step},
};
use crate::reference::{Judgment, Reference, read};

/// Two judges of one packet.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// Which step.
    pub at: usize,
    /// The reference's.
    pub reference: Judgment,
    /// The shipping decision's.
    pub shipping: String,
}

/// A scenario that shows a disagreement at its last step.
#[derive(Debug)]
pub struct Finding {
    /// That made the scenario.
    pub seed: u64,
    scenario: Scenario,
    disagreement: Disagreement,
}

/// What a run has covered.
#[derive(Debug, Default)]
pub struct Covered {
    /// Packets judged.
    pub packets: u64,
    /// Scenarios whose configuration is not one, or too large for the tables.
    pub refused: u64,
    /// Of them, how many the short way has a word about.
    pub quick: u64,
    /// How often each reason was found.
    pub reasons: std::collections::BTreeMap<&'static str, u64>,
    /// The last refusal.
    pub refusal: String,
}

/// Judges the scenarios of these seeds, each with this many packets.
///
/// # Errors
/// The first disagreement, shortened.
pub fn run(seeds: impl IntoIterator<Item = u64>, packets: usize) -> Result<Covered, Box<Finding>> {
    search(seeds, packets).map_err(|found| Box::new(shortened(*found)))
}

/// As [`run`].
///
/// # Errors
/// The first disagreement, as it was met.
pub fn search(seeds: impl IntoIterator<Item = u64>, packets: usize) -> Result<Covered, Box<Finding>> {
    let mut covered = Covered::default();
    for seed in seeds {
        let scenario = scenario::scenario(seed, packets);
        match disagreement(&scenario, &mut covered) {
            Ok(None) => {}
            Ok(Some(disagreement)) => {
                return Err(Box::new(Finding {
                    seed,
                    scenario,
                    disagreement,
                }));
            }
            Err(refused) => {
                covered.refused += 1;
                covered.refusal = refused;
            }
        }
    }
    Ok(covered)
}

/// The first disagreement in a scenario.
///
/// # Errors
/// What the shipping parser or compiler says against the configuration.
pub fn disagreement(scenario: &Scenario, covered: &mut Covered) -> Result<Option<Disagreement>, String> {
    let mut host = Host::new(scenario)?;
    let mut reference = reference(scenario);
    for (at, step) in scenario.steps.iter().enumerate() {
        let (judgment, shipping) = match compare(&mut host, &mut reference, step) {
            Ok(judgment) => (judgment, None),
            Err((judgment, shipping)) => (judgment, Some(shipping)),
        };
        covered.packets += 1;
        covered.quick += u64::from(Host::read_shortly(step).is_some() && host.quickly(step).is_some());
        *covered.reasons.entry(judgment.reason).or_default() += 1;
        if let Some(shipping) = shipping {
            return Ok(Some(Disagreement {
                at,
                reference: judgment,
                shipping,
            }));
        }
    }
    Ok(None)
}

/// One packet by both; where they do not agree, what each says.
///
/// # Errors
/// The reference's judgment and the shipping verdict.
pub fn compare(host: &mut Host, reference: &mut Reference, step: &Step) -> Result<Judgment, (Judgment, String)> {
    host.now += step.wait;
    reference.now += step.wait;
    // The short way touches nothing: what it would say before and after is the same.
    let quick = host.quickly(step);
    let (verdict, headers) = host.judge(step);
    let judgment = agreed(&verdict, &headers, reference, step)?;
    if let Some(read) = Host::read_shortly(step)
        && read != headers
    {
        return Err((judgment, format!("{read:?} read the short way, {headers:?} the long way")));
    }
    match quick {
        Some(quick) if quick != verdict => Err((
            judgment,
            format!("{quick:?} the short way, {verdict:?} the long way, of {headers:?}"),
        )),
        _ => Ok(judgment),
    }
}

/// One packet by the reference, against a verdict.
///
/// # Errors
/// As [`compare`].
pub fn agreed(
    verdict: &Verdict,
    headers: &Headers,
    reference: &mut Reference,
    step: &Step,
) -> Result<Judgment, (Judgment, String)> {
    let judgment = judge(reference, step);
    // The reference's memory has no end. Where the shipping one has no room for a first fragment, it must be full.
    if verdict.reason == Reason::FragmentTableFull
        && judgment.passes()
        && reference.remembered() > gateway_ebpf::abi::BUCKET_FRAGMENTS
    {
        reference.forget_last();
        let reason = verdict.reason.name();
        return Ok(Judgment { reason, ..judgment });
    }
    if agree(verdict, &judgment) {
        Ok(judgment)
    } else {
        Err((judgment, format!("{verdict:?} of {headers:?}")))
    }
}

/// The naive judge of a scenario.
#[must_use]
pub fn reference(scenario: &Scenario) -> Reference {
    let mut reference = Reference::new(&scenario.configuration, scenario.links.clone());
    reference.sessions.clone_from(&scenario.sessions);
    reference.now = START;
    reference
}

/// The naive verdict on a step.
pub fn judge(reference: &mut Reference, step: &Step) -> Judgment {
    reference.judge(step.place, &read(&step.bytes, step.place.ethernet, step.tag))
}

/// Reason, pool, rule, action and answer.
#[must_use]
pub fn agree(verdict: &Verdict, judgment: &Judgment) -> bool {
    verdict.reason.name() == judgment.reason
        && verdict.pool == judgment.pool
        && verdict.rule == judgment.rule
        && verdict.answer == judgment.answer
        && host::action(verdict) == (judgment.passes(), judgment.granted())
}

/// Leaves out what the disagreement does not need: halves first, then single packets.
fn shortened(finding: Finding) -> Finding {
    let Finding {
        seed,
        mut scenario,
        disagreement: mut found,
    } = finding;
    scenario.steps.truncate(found.at + 1);
    let mut size = scenario.steps.len() / 2;
    while size > 0 {
        let mut from = 0;
        // The last step is the one that is judged differently.
        while from + size < scenario.steps.len() {
            let mut shorter = scenario.clone();
            let gone: u64 = shorter.steps.drain(from..from + size).map(|s| s.wait).sum();
            shorter.steps[from].wait += gone;
            match disagreement(&shorter, &mut Covered::default()) {
                Ok(Some(d)) => {
                    shorter.steps.truncate(d.at + 1);
                    (scenario, found) = (shorter, d);
                }
                _ => from += size,
            }
        }
        size /= 2;
    }
    let without = Scenario {
        sessions: Vec::new(),
        ..scenario.clone()
    };
    if let Ok(Some(d)) = disagreement(&without, &mut Covered::default()) {
        (scenario, found) = (without, d);
        scenario.steps.truncate(found.at + 1);
    }
    Finding {
        seed,
        scenario,
        disagreement: found,
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {:#x}: the reference and the shipping decision disagree", self.seed)?;
        writeln!(f, "---- configuration\n{}----", self.scenario.configuration)?;
        for s in &self.scenario.sessions {
            writeln!(f, "{s:?}")?;
        }
        for step in &self.scenario.steps {
            let p = step.place;
            let role = if p.device { "device" } else { "core" };
            let way = if p.egress { "egress" } else { "ingress" };
            let link = if p.ethernet { "ethernet" } else { "ip" };
            writeln!(
                f,
                "{role} {way} {link} on {}, after {} ms, tag {:?}",
                p.interface,
                step.wait / 1_000_000,
                step.tag
            )?;
            let hex: String = step.bytes.iter().map(|b| format!("{b:02x}")).collect();
            writeln!(f, "  {hex}\n  {:?}", read(&step.bytes, p.ethernet, step.tag))?;
        }
        writeln!(
            f,
            "reference: {:?}\nshipping:  {}",
            self.disagreement.reference, self.disagreement.shipping
        )
    }
}
