//! Explain: from a request to a question, from the question to frames, by the prober to verdicts, and these with everything that is known
//! around them to an answer. It decides nothing: the kernel does.

use std::{net::IpAddr, sync::Arc};

use gateway_ebpf::reason::Reason;
use lazaret_proto::v1;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use super::{denials::interface_name, parse::Invalid, render, status};
use crate::{
    access::answer,
    config::Config,
    controller::{Controller, EndView, Surroundings},
    explain::{
        Lookup, Place, Probe, ProbeError, Probed, Prober, Question, Way,
        advice::{self, Case},
        frame::FLAGS,
        place::{self, Unplaced, role_name},
        rules,
    },
    kernel::HookPoint,
    model::{InterfaceName, PoolId},
};

/// Questions that are worked on at a time; one more is refused. The prober takes one packet at a time.
const AT_A_TIME: usize = 8;
/// First of the dynamic ports (RFC 6335): the source port when none is named.
const SOURCE_PORT: u16 = 49_152;

const TO_ITSELF: &str = "to the gateway itself";

/// Who explains.
#[derive(Clone, Debug)]
pub(super) struct Explainer {
    config: Arc<Config>,
    controller: Controller,
    prober: Arc<dyn Prober>,
    places: Arc<Semaphore>,
}

impl Explainer {
    pub(super) fn new(config: Arc<Config>, controller: Controller, prober: Arc<dyn Prober>) -> Self {
        Self {
            config,
            controller,
            prober,
            places: Arc::new(Semaphore::new(AT_A_TIME)),
        }
    }

    /// Explains the packet, and if that is asked its answer.
    pub(super) async fn explain(&self, r: v1::ExplainRequest) -> Result<v1::ExplainResponse, Status> {
        let _place = self.places.try_acquire().map_err(|_| {
            let sentence = "as many questions as the gateway takes at a time are being answered; repeat it";
            answer::status(Code::Unavailable, "BUSY", [("part", "explain".to_owned())], sentence)
        })?;
        let (egress, both) = (r.egress, r.both);
        let (question, named) = question(r).map_err(|e| status::invalid(&e))?;
        let around = self
            .controller
            .surroundings(vec![question.source, question.destination])
            .await;
        let around = around.map_err(|e| status::refused(&e))?;
        let [source, destination] = &around.ends[..] else {
            return Err(answer::status(Code::Internal, "INTERNAL", [], "two addresses have two ends"));
        };
        let ends = [source, destination];
        let at = place::choose(&self.config, &around, ends, named.as_ref(), egress).map_err(|e| unplaced(&e))?;
        if !question.vlans.is_empty() && !at.link.ethernet {
            let problem = format!("packets on {} have no Ethernet header", at.link.name);
            return Err(status::invalid(&Invalid::new("vlans", problem)));
        }
        let mut explanations = vec![self.one("packet", &question, &at, ends).await?];
        if both {
            let answer = Question {
                vlans: Vec::new(),
                ..question.answer()
            };
            self.answer(&mut explanations, &answer, &at, &around, [destination, source])
                .await?;
        }
        Ok(v1::ExplainResponse { explanations })
    }

    /// The answer where it comes in, and on its way out to a device. Where that cannot be told is a warning of the packet.
    async fn answer(
        &self,
        explanations: &mut Vec<v1::Explanation>,
        answer: &Question,
        at: &Place,
        around: &Surroundings,
        ends: [&EndView; 2],
    ) -> Result<(), Status> {
        // What went out through an interface is answered from there.
        let from = at.egress.then_some(&at.link.name);
        // What came in from a device interface goes back there.
        let device = at.role == crate::config::InterfaceRole::Device && !at.egress;
        let to = device.then_some(&at.link.name);
        let leaves_to_device = device || self.config.home(answer.destination).is_some();
        // What the host itself answers comes in nowhere.
        let comes_in = !self.is_local(answer.source, explanations);
        let steps = [
            ("answer", from, false, comes_in),
            ("answer, on its way out", to, true, leaves_to_device),
        ];
        for (step, named, egress, wanted) in steps {
            if !wanted {
                continue;
            }
            match place::choose(&self.config, around, ends, named, egress) {
                Ok(place) => {
                    let explained = self.one(step, answer, &place, ends).await?;
                    explanations.push(explained);
                }
                Err(e) => explanations[0].warnings.push(format!("the {step} is not explained: {e}")),
            }
        }
        Ok(())
    }

    /// Whether an address is the host's own: one in a pool's prefix, or where the host's routes have said it.
    fn is_local(&self, address: IpAddr, explanations: &[v1::Explanation]) -> bool {
        advice::is_reserved(&self.config, address) || explanations.iter().any(|e| e.route == TO_ITSELF)
    }

    async fn one(&self, step: &str, question: &Question, place: &Place, ends: [&EndView; 2]) -> Result<v1::Explanation, Status> {
        let probe = Probe {
            frame: question.frame(place.link.ethernet),
            ifindex: place.link.ifindex,
            role: place.role,
            egress: place.egress,
            ethernet: place.link.ethernet,
            xdp: place.hook.hook == HookPoint::Xdp,
        };
        let prober = Arc::clone(&self.prober);
        let probed = tokio::task::spawn_blocking(move || prober.run(&probe)).await;
        let probed = probed.map_err(|_| failed("the probe ended without an answer"))?;
        let probed = probed.map_err(|e: ProbeError| failed(&e.to_string()))?;
        // Asking for the floor runs a program: only where it is all that is left.
        let floor = match place.hook.program_id {
            Some(_) => None,
            None => Some(self.controller.status().await.map_err(|e| status::refused(&e))?.floor),
        };
        let case = Case {
            config: &self.config,
            question,
            place,
            ends,
            trace: &probed.trace,
        };
        let mut explained = explanation(step, &case, probed, floor.as_deref());
        if explained.passes && !place.egress {
            self.route(&mut explained, question, place, probed.trace.mark).await;
        }
        Ok(explained)
    }

    /// What becomes of a packet that passes: where the host would send it. That it cannot be asked is said, and no failure.
    async fn route(&self, explained: &mut v1::Explanation, question: &Question, place: &Place, mark: u32) {
        let asked = Lookup {
            source: question.source,
            destination: question.destination,
            ifindex: place.link.ifindex,
            mark,
        };
        let prober = Arc::clone(&self.prober);
        match tokio::task::spawn_blocking(move || prober.route(&asked)).await {
            Ok(Ok(Way::Local)) => explained.route = TO_ITSELF.into(),
            Ok(Ok(Way::Forward { ifindex, via })) => {
                let via = via.map(|v| format!(", via {v}")).unwrap_or_default();
                explained.route = format!("out by {}{via}", interface_name(ifindex));
            }
            Ok(Ok(Way::Refused(why))) => explained
                .warnings
                .push(format!("Lazaret lets it pass, but the host's routes drop it: {why}")),
            Ok(Err(e)) => explained.warnings.push(answer::escape(&e.to_string())),
            Err(_) => explained.warnings.push("the routes were not asked for".into()),
        }
    }
}

fn explanation(step: &str, case: &Case<'_>, probed: Probed, floor: Option<&str>) -> v1::Explanation {
    let (config, trace, place) = (case.config, case.trace, case.place);
    let reason = Reason::from_number(trace.reason);
    let rule = (trace.rule != 0).then(|| {
        let found = rules::find(config, trace.rule);
        v1::RuleText {
            number: trace.rule.into(),
            policy: found.map(|(p, _)| p.name.to_string()).unwrap_or_default(),
            text: found.map(|(_, r)| rules::text(r)).unwrap_or_default(),
        }
    });
    let [source, destination] = case.ends.map(|e| end(config, e));
    v1::Explanation {
        step: step.into(),
        packet: case.question.to_string(),
        place: Some(v1::ExplainedPlace {
            interface: place.link.name.to_string(),
            ifindex: place.link.ifindex,
            role: role_name(place.role).into(),
            direction: if place.egress { "egress" } else { "ingress" }.into(),
            link: if place.link.ethernet { "ethernet" } else { "ip" }.into(),
            chosen: place.chosen.clone(),
            program: probed.program.into(),
            hook: render::hook_point(place.hook.hook).into(),
            mode: place.hook.mode.into(),
            program_id: place.hook.program_id.unwrap_or_default(),
            problem: answer::escape(&place.hook.problem),
        }),
        source: Some(source),
        destination: Some(destination),
        policy_generation: trace.generation,
        rule,
        passes: reason.is_some_and(Reason::passes),
        reason_number: trace.reason.into(),
        reason: reason.map_or_else(|| format!("number {}", trace.reason), |r| r.name().into()),
        sentence: reason.map(Reason::sentence).unwrap_or_default().into(),
        remedy: reason.map(Reason::remedy).unwrap_or_default().into(),
        pool: render::pool_name(config, (trace.pool != 0).then_some(PoolId(trace.pool))),
        mark: trace.mark,
        answered: trace.answer != 0,
        observed: trace.observed != 0,
        route: String::new(),
        shadow: match trace.shadow {
            0 => "",
            1 => "pass",
            _ => "drop",
        }
        .into(),
        changes: advice::changes(case),
        warnings: advice::warnings(case, floor).iter().map(|w| answer::escape(w)).collect(),
    }
}

fn end(config: &Config, e: &EndView) -> v1::ExplainedEnd {
    let session = e.session.as_ref().map(|s| &s.session);
    v1::ExplainedEnd {
        address: e.address.to_string(),
        home_pool: config.home(e.address).map(|p| p.name.to_string()).unwrap_or_default(),
        current_pool: render::pool_name(config, e.reading.pool),
        session_id: session.map_or(0, |s| s.id.0),
        session_interface: session.map(|s| s.interface.to_string()).unwrap_or_default(),
        device_id: e.device.as_ref().map(|d| d.id.to_string()).unwrap_or_default(),
        device_state: e.device.as_ref().map(|d| d.state.as_str()).unwrap_or_default().into(),
        lease_ends_at: e.lease_ends_at.map(render::timestamp),
        reserved: advice::is_reserved(config, e.address),
    }
}

fn question(r: v1::ExplainRequest) -> Result<(Question, Option<InterfaceName>), Invalid> {
    let address = |field: &str, text: &str| {
        let wrong = || Invalid::with_reason("INVALID_ADDRESS", field, "must be an IPv4 or IPv6 address");
        text.parse::<IpAddr>().map_err(|_| wrong())
    };
    let (source, destination) = (address("source", &r.source)?, address("destination", &r.destination)?);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Invalid::with_reason(
            "INVALID_ADDRESS",
            "destination",
            "must be of the source's family: no packet has two",
        ));
    }
    let protocol = u8::try_from(r.protocol).map_err(|_| Invalid::new("protocol", "must be 0 to 255"))?;
    let port = |field: &str, n: u32| u16::try_from(n).map_err(|_| Invalid::new(field, "must be 0 to 65535"));
    let mut question = Question {
        source,
        destination,
        protocol,
        source_port: port("source_port", r.source_port)?,
        destination_port: port("destination_port", r.destination_port)?,
        flags: flags(&r.tcp_flags)?,
        reply: false,
        vlans: vlans(&r.vlans)?,
    };
    if !question.has_ports() {
        (question.source_port, question.destination_port) = (0, 0);
    } else if question.source_port == 0 {
        question.source_port = SOURCE_PORT;
    }
    if protocol != gateway_ebpf::headers::protocol::TCP {
        question.flags = 0;
    }
    let named = match r.interface.is_empty() {
        true => None,
        false => Some(r.interface.try_into().map_err(|e| Invalid::new("interface", e))?),
    };
    Ok((question, named))
}

fn flags(text: &str) -> Result<u8, Invalid> {
    let text = if text.is_empty() { "S" } else { text };
    let bit = |c: char| FLAGS.find(c.to_ascii_uppercase()).map(|i| 1_u8 << i);
    text.chars()
        .try_fold(0, |all, c| Some(all | bit(c)?))
        .ok_or_else(|| Invalid::new("tcp_flags", format!("must be letters of {FLAGS}")))
}

fn vlans(ids: &[u32]) -> Result<Vec<u16>, Invalid> {
    if ids.len() > 2 {
        return Err(Invalid::new(
            "vlans",
            "must be at most 2: what has a third tag is dropped unread",
        ));
    }
    let id = |n: &u32| u16::try_from(*n).ok().filter(|n| *n < 4096);
    let ids: Option<Vec<u16>> = ids.iter().map(id).collect();
    ids.ok_or_else(|| Invalid::new("vlans", "must be 0 to 4095"))
}

fn failed(why: &str) -> Status {
    let sentence = format!("the kernel was not asked: {why}");
    answer::status(Code::Internal, "PROBE_FAILED", [("part", "kernel".to_owned())], &sentence)
}

fn unplaced(e: &Unplaced) -> Status {
    let (code, reason) = match e {
        Unplaced::Unknown(_) => (Code::NotFound, "UNKNOWN_INTERFACE"),
        Unplaced::NoRole(_) => (Code::FailedPrecondition, "NO_ROLE_INTERFACE"),
        Unplaced::CoreEgress(_) => (Code::InvalidArgument, "CORE_EGRESS"),
        Unplaced::Ambiguous(_) => (Code::FailedPrecondition, "AMBIGUOUS_INTERFACE"),
    };
    answer::status(code, reason, [("field", "interface".to_owned())], &e.to_string())
}
