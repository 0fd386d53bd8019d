//! Figures as OpenMetrics text. Pure. What each means stands in docs/metrics.md, which a test compares with this.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use gateway_ebpf::{abi::RuleCount, reason::Reason};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric as _, text::encode},
    metrics::{MetricType, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    access::report::Report,
    config::{Config, Mode},
    controller::Figures,
    explain::rules,
    kernel::HookPoint,
    ledger::{Counts, Kind},
    model::PoolId,
};

/// What is exported at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) config: Arc<Config>,
    pub(super) figures: Figures,
    /// `None`: there is no network API.
    pub(super) access: Option<Report>,
    /// With when it was counted; `None`: not yet.
    pub(super) ledger: Option<(Counts, SystemTime)>,
}

/// All of it, with the ending that says that it is all.
pub(super) fn text(sample: Sample) -> String {
    let mut registry = Registry::with_prefix("lazaret");
    registry.register_collector(Box::new(sample));
    let mut text = String::new();
    // Writing to a string does not fail; a cut text lacks its ending, and is refused by whoever reads it.
    if encode(&mut text, &registry).is_err() {
        tracing::error!("metrics cannot be written as text");
    }
    text
}

type Labels = Vec<(&'static str, String)>;

/// Writes families one after another.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauges<V: EncodeGaugeValue>(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        rows: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn gauge(&mut self, what: (&str, &str, Option<Unit>), value: impl EncodeGaugeValue) -> fmt::Result {
        let (name, help, unit) = what;
        self.0
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn counters<V: EncodeCounterValue>(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        rows: impl IntoIterator<Item = (Labels, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in rows {
            family
                .encode_family(&labels)?
                .encode_counter::<[(&str, &str); 0], _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn counter(&mut self, what: (&str, &str), value: u64) -> fmt::Result {
        let (name, help) = what;
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
    }

    fn histogram(&mut self, (name, help, unit): (&str, &str, Option<Unit>), histogram: &Histogram) -> fmt::Result {
        let encoder = self.0.encode_descriptor(name, help, unit.as_ref(), histogram.metric_type())?;
        histogram.encode(encoder)
    }
}

impl Collector for Sample {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.gateway(&mut page)?;
        self.devices(&mut page)?;
        self.packets(&mut page)?;
        self.word(&mut page)?;
        self.access.as_ref().map_or(Ok(()), |access| certificates(access, &mut page))
    }
}

impl Sample {
    fn gateway(&self, page: &mut Page<'_>) -> fmt::Result {
        let status = &self.figures.status;
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        page.gauges(("build_info", "What runs; always 1.", None), [(version, 1_u64)])?;
        let started = status.started_at.0 as f64 / 1000.0;
        page.gauge(
            ("start_time", "Since when the daemon runs, Unix time.", Some(Unit::Seconds)),
            started,
        )?;
        let enforcing = u64::from(status.mode == Mode::Enforce);
        page.gauge(("enforcing", "1: it enforces; 0: it observes.", None), enforcing)?;
        let floor = u64::from(status.floor == "closed");
        page.gauge(
            (
                "floor_closed",
                "1: the floor is closed; 0: it is open, broken, or the kernel does not say.",
                None,
            ),
            floor,
        )?;
        page.gauge(
            (
                "interfaces_known",
                "1: it is known how interfaces stand; 0: the kernel does not say.",
                None,
            ),
            u64::from(status.interfaces.is_ok()),
        )?;
        let hooks = status.interfaces.iter().flatten().flat_map(|i| {
            i.hooks.iter().map(|h| {
                let labels = vec![("interface", i.name.clone()), ("hook", hook(h.hook).to_owned())];
                (labels, u64::from(h.program_id.is_some()))
            })
        });
        page.gauges(
            ("hook_attached", "1: a program of ours is attached; 0: none is.", None),
            hooks,
        )?;
        let access = self.access.as_ref().map_or(0, |a| a.warnings.len());
        let warnings = (status.warnings.len() + access) as u64;
        page.gauge(("warnings", "Warnings in `lazaret status`.", None), warnings)
    }

    fn devices(&self, page: &mut Page<'_>) -> fmt::Result {
        let states = self
            .figures
            .states
            .iter()
            .map(|(s, n)| (vec![("state", s.as_str().to_owned())], *n));
        page.gauges(("devices", "Registered devices by state.", None), states)?;
        page.gauge(("sessions", "Live sessions.", None), self.figures.status.sessions)?;
        let Some((counts, at)) = &self.ledger else { return Ok(()) };
        let kind = |kind: Kind| vec![("kind", kind.as_str().to_owned())];
        page.gauges(
            ("ledger_devices", "Devices in the ledger by kind.", None),
            Kind::ALL.map(|k| (kind(k), counts.of(k).iter().sum::<u64>())),
        )?;
        let now = unix(*at);
        let age = |k: Kind| Some((kind(k), now - counts.oldest(k)?.0 as f64 / 1000.0));
        page.gauges(
            (
                "ledger_oldest",
                "For how long the one that is longest in the ledger has been in it.",
                Some(Unit::Seconds),
            ),
            Kind::ALL.into_iter().filter_map(age),
        )?;
        page.gauge(
            (
                "ledger_counted_timestamp",
                "When the ledger was counted, Unix time.",
                Some(Unit::Seconds),
            ),
            now,
        )
    }

    fn packets(&self, page: &mut Page<'_>) -> fmt::Result {
        let c = &self.figures.counters;
        let by_reason = || {
            c.counters.iter().map(|c| {
                let reason = Reason::from_number(c.reason);
                let verdict = if reason.is_some_and(Reason::passes) { "pass" } else { "deny" };
                let name = reason.map_or_else(|| c.reason.to_string(), |r| r.name().to_owned());
                (
                    vec![("pool", self.pool(c.pool)), ("reason", name), ("verdict", verdict.to_owned())],
                    c.count,
                )
            })
        };
        let packets = by_reason().map(|(labels, n)| (labels, n.packets));
        page.counters(("packets", "Packets judged, by pool and reason.", None), packets)?;
        let bytes = by_reason().map(|(labels, n)| (labels, n.bytes));
        page.counters(("packet", "Bytes judged, by pool and reason.", Some(Unit::Bytes)), bytes)?;
        let rules: Vec<(Labels, RuleCount)> = c.rules.iter().filter_map(|(number, n)| self.rule(*number, *n)).collect();
        let packets = rules.iter().map(|(labels, n)| (labels.clone(), n.passed.packets));
        page.counters(
            ("rule_packets", "Packets passed, by rule; rule 0: what `all` passed.", None),
            packets,
        )?;
        let bytes = rules.iter().map(|(labels, n)| (labels.clone(), n.passed.bytes));
        page.counters(("rule_packet", "Bytes passed, by rule.", Some(Unit::Bytes)), bytes)?;
        let shadow = c.shadow.iter().flat_map(|(pool, n)| {
            [("drop", n.would_drop.packets), ("pass", n.would_pass.packets)]
                .map(|(would, n)| (vec![("pool", self.pool(Some(*pool))), ("would", would.to_owned())], n))
        });
        page.counters(
            (
                "shadow_packets",
                "Packets that the shadow policy would have judged otherwise.",
                None,
            ),
            shadow,
        )?;
        let answers = c.answers.iter().flat_map(|(pool, a)| {
            [("sent", a.sent), ("limited", a.limited)]
                .map(|(result, n)| (vec![("pool", self.pool(Some(*pool))), ("result", result.to_owned())], n))
        });
        page.counters(
            (
                "denial_answers",
                "Answers to denied packets: sent, or kept back by the rate limit.",
                None,
            ),
            answers,
        )?;
        let l = c.losses;
        let why = |why: &str, n: u64| (vec![("why", why.to_owned())], n);
        page.counters(
            (
                "denials_untold",
                "Denied packets that nobody was told of; all are counted.",
                None,
            ),
            [
                why("suppressed", l.suppressed),
                why("lost", l.lost),
                why("repeated", l.repeated),
            ],
        )?;
        page.counters(
            ("captures_missed", "Denied packets that captures did not get.", None),
            [why("suppressed", l.captures_suppressed), why("lost", l.captures_lost)],
        )
    }

    /// What the gateway's word rests on: store, audit, kernel.
    fn word(&self, page: &mut Page<'_>) -> fmt::Result {
        let f = &self.figures;
        page.gauge(
            ("store_revision", "The store's revision, which each commit raises.", None),
            f.status.revision.0,
        )?;
        let problem = u64::from(f.status.store != "ok");
        page.gauge(("store_problem", "1: the last commit failed.", None), problem)?;
        page.gauge(
            ("restrictions_not_durable", "Restrictions in force but not committed.", None),
            f.status.not_durable,
        )?;
        page.gauge(
            (
                "kernel_problem",
                "1: the kernel refused a change, and it is tried again.",
                None,
            ),
            u64::from(f.kernel_problem),
        )?;
        page.gauge(
            (
                "clock_behind",
                "By how much the wall clock is behind the last commit.",
                Some(Unit::Seconds),
            ),
            f.clock_behind_ms as f64 / 1000.0,
        )?;
        page.gauge(
            ("audit_head_number", "Number of the audit's last entry that is durable.", None),
            f.audit_head.number,
        )?;
        let head = f.audit_head.to_string();
        page.gauges(
            (
                "audit_head_info",
                "The same with its hash, for `lazaret audit verify --head`; always 1.",
                None,
            ),
            [(vec![("head", head)], 1_u64)],
        )?;
        page.gauge(
            (
                "audit_log_problem",
                "1: the audit log cannot be written, and entries wait in the database.",
                None,
            ),
            u64::from(f.audit_log_problem),
        )?;
        page.counter(
            (
                "audit_log_lost",
                "Entries that were pruned before the audit log could be written.",
            ),
            f.audit_log_lost,
        )?;
        page.counter(
            ("drift_compared", "Addresses compared between memory and kernel."),
            f.drift.compared,
        )?;
        page.counter(("drift_found", "Differences found."), f.drift.found)?;
        page.counter(("drift_repaired", "Differences put right."), f.drift.repaired)?;
        let m = &f.meters;
        page.histogram(("commit", "Transactions of the store.", Some(Unit::Seconds)), &m.commits)?;
        page.histogram(
            (
                "batch",
                "Batches of commands, from the commit until they are answered or wait.",
                Some(Unit::Seconds),
            ),
            &m.batches,
        )?;
        page.histogram(("batch_commands", "Commands of a batch.", None), &m.commands)
    }

    /// Empty: no pool.
    fn pool(&self, id: Option<PoolId>) -> String {
        let pool = id.map(|id| {
            self.config
                .pool_by_id(id)
                .map_or_else(|| id.0.to_string(), |p| p.name.to_string())
        });
        pool.unwrap_or_default()
    }

    /// Those of the configuration, and those that have counted.
    fn rule(&self, number: u16, count: RuleCount) -> Option<(Labels, RuleCount)> {
        let found = rules::find(&self.config, number);
        if found.is_none() && count == RuleCount::default() {
            return None;
        }
        let policy = found.map(|(p, _)| p.name.to_string()).unwrap_or_default();
        let rule = found.map(|(_, r)| rules::text(r)).unwrap_or_default();
        Some((
            vec![("number", number.to_string()), ("policy", policy), ("rule", rule)],
            count,
        ))
    }
}

fn certificates(access: &Report, page: &mut Page<'_>) -> fmt::Result {
    let now = SystemTime::now();
    let own = std::iter::once(("server", &access.server, String::new()));
    let cas = access.cas.iter().map(|ca| {
        let what = if ca.retiring { "retiring_ca" } else { "ca" };
        (what, &ca.certificate, ca.fingerprint.to_string())
    });
    let all: Vec<(Labels, f64)> = own
        .chain(cas)
        .map(|(what, certificate, sha256)| {
            let labels = vec![
                ("what", what.to_owned()),
                ("subject", certificate.subject.clone()),
                ("sha256", sha256),
            ];
            (labels, unix(certificate.not_after))
        })
        .collect();
    page.gauges(
        (
            "certificate_not_after_timestamp",
            "When a certificate ends, Unix time.",
            Some(Unit::Seconds),
        ),
        all.iter().map(|(labels, end)| (labels.clone(), *end)),
    )?;
    page.gauges(
        (
            "certificate_days_left",
            "Days until a certificate ends; below zero: it has ended.",
            None,
        ),
        all.into_iter().map(|(labels, end)| (labels, (end - unix(now)) / 86_400.0)),
    )?;
    let next = |l: &crate::access::report::ListReport| Some((vec![("issuer", l.issuer.clone())], unix(l.next_update?)));
    page.gauges(
        (
            "revocation_list_next_update_timestamp",
            "When the next revocation list is due, Unix time.",
            Some(Unit::Seconds),
        ),
        access.lists.iter().filter_map(next),
    )?;
    let retiring = access.cas.iter().filter(|ca| ca.retiring).map(|ca| {
        let pending = ca.clients.iter().filter(|c| c.pending).count() as u64;
        let labels = vec![
            ("subject", ca.certificate.subject.clone()),
            ("sha256", ca.fingerprint.to_string()),
        ];
        (labels, pending)
    });
    page.gauges(
        ("retiring_ca_pending", "Clients that still need a CA that is to go.", None),
        retiring,
    )?;
    let due = access.cas.iter().flat_map(|ca| &ca.clients).filter(|c| c.due).count() as u64;
    page.gauge(("clients_due", "Clients whose certificates are to be renewed.", None), due)?;
    page.gauge(
        ("connections", "Open connections to the API, local ones too.", None),
        access.connections as u64,
    )
}

const fn hook(hook: HookPoint) -> &'static str {
    match hook {
        HookPoint::Xdp => "xdp",
        HookPoint::TcIngress => "tc_ingress",
        HookPoint::TcEgress => "tc_egress",
    }
}

/// Seconds since 1970; before it, below zero.
fn unix(at: SystemTime) -> f64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests;
