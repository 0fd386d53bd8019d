//! InspectService's answers.

use std::net::IpAddr;

use gateway_ebpf::{
    abi::{self, Answers, RuleCount, ShadowCount},
    reason::Reason,
};
use lazaret_proto::v1;

use super::{hook_point, pool_name, timestamp, trust};
use crate::{
    access::answer::escape,
    config::{Config, InterfaceRole, Mode, Pool, PoolKind},
    controller::{AddressView, CounterView, Counters, Status},
    events::Event,
    explain::rules,
    kernel::{InterfaceState, Losses},
    model::{DeviceId, PoolId, WallTime, prefix::Shown},
};

/// How the gateway stands.
pub(in crate::api) fn gateway_status(s: Status) -> v1::GetStatusResponse {
    let mode = match s.mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    let unknown = s.interfaces.as_ref().err().map_or_else(String::new, |e| escape(e));
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        mode: mode.into(),
        floor: escape(&s.floor),
        interfaces: s.interfaces.into_iter().flatten().map(interface).collect(),
        interfaces_unknown: unknown,
        store_revision: s.revision.0,
        store: escape(&s.store),
        devices: s.devices,
        sessions: s.sessions,
        started_at: Some(timestamp(s.started_at)),
        looked_at: Some(timestamp(s.looked_at)),
        warnings: s.warnings.iter().map(|w| escape(w)).collect(),
        not_durable: s.not_durable,
        events_suppressed: s.losses.suppressed,
        events_lost: s.losses.lost,
        events_repeated: s.losses.repeated,
        captures_lost: captures_lost(&s.losses),
        user: String::new(),
        capabilities: Vec::new(),
    }
}

/// A pool with its figures: `passed` and `dropped` in packets.
pub(in crate::api) fn pool(config: &Config, p: &Pool, session_addresses: u64, counters: &[CounterView]) -> v1::Pool {
    let kind = match p.kind {
        PoolKind::Quarantine => "quarantine",
        PoolKind::FullService => "full-service",
        PoolKind::Blocked => "blocked",
    };
    let packets = |pass: bool| {
        let own = counters.iter().filter(|c| c.pool == Some(p.id) && passes(c.reason) == pass);
        own.map(|c| c.count.packets).sum()
    };
    v1::Pool {
        name: p.name.to_string(),
        number: p.id.0.into(),
        kind: kind.into(),
        prefixes: p.prefixes.iter().map(ToString::to_string).collect(),
        policy: p.policy.to_string(),
        fallback: pool_name(config, p.fallback),
        gateway_uri: p.gateway_uri.to_string(),
        route_table: p.table.as_ref().map_or(0, |t| t.number),
        session_addresses,
        passed: packets(true),
        dropped: packets(false),
        lease_seconds: p.lease.map_or(0, |l| l.as_secs()),
        min_trust: trust(p.min_trust).into(),
    }
}

/// An address, as the kernel has it.
pub(in crate::api) fn address(config: &Config, v: AddressView) -> v1::Address {
    v1::Address {
        address: Shown(v.address).to_string(),
        home_pool: config.home(v.address).map(|p| p.name.to_string()).unwrap_or_default(),
        current_pool: pool_name(config, v.reading.pool),
        session_id: v.reading.session.map_or(0, |s| s.0),
        device_id: v.device.map(String::from).unwrap_or_default(),
        lease_ends_at: v.lease_ends_at.map(timestamp),
        map_id: v.reading.map_id,
    }
}

fn counter(config: &Config, c: CounterView) -> v1::Counter {
    v1::Counter {
        pool: pool_name(config, c.pool),
        reason_number: c.reason.into(),
        reason: reason_name(c.reason),
        passes: passes(c.reason),
        packets: c.count.packets,
        bytes: c.count.bytes,
    }
}

/// All counters; `only`: of this pool, and neither by rule nor by shadow policy.
pub(in crate::api) fn counters(config: &Config, c: Counters, only: Option<PoolId>) -> v1::GetCountersResponse {
    let wanted = |pool: Option<PoolId>| only.is_none() || pool == only;
    let rule = |(number, count): (u16, RuleCount)| {
        let found = rules::find(config, number);
        v1::RuleCounter {
            number: number.into(),
            policy: found.map(|(p, _)| p.name.to_string()).unwrap_or_default(),
            text: found.map(|(_, r)| rules::text(r)).unwrap_or_default(),
            packets: count.passed.packets,
            bytes: count.passed.bytes,
            shadow_drop_packets: count.shadow_drops.packets,
            shadow_drop_bytes: count.shadow_drops.bytes,
        }
    };
    let shadowed = |id: PoolId| config.pool_by_id(id).is_some_and(|p| p.shadow_policy.is_some());
    let shadow = |(id, count): (PoolId, ShadowCount)| v1::ShadowCounter {
        pool: pool_name(config, Some(id)),
        would_drop_packets: count.would_drop.packets,
        would_drop_bytes: count.would_drop.bytes,
        would_pass_packets: count.would_pass.packets,
        would_pass_bytes: count.would_pass.bytes,
    };
    let answer = |(id, a): (PoolId, Answers)| v1::AnswerCounter {
        pool: pool_name(config, Some(id)),
        sent: a.sent,
        limited: a.limited,
    };
    let (captures_lost, losses) = (captures_lost(&c.losses), c.losses);
    let pools = c.counters.into_iter().filter(|c| wanted(c.pool));
    // Those of the configuration, and those that have counted.
    let seen = |(n, count): &(u16, RuleCount)| *count != RuleCount::default() || rules::find(config, *n).is_some();
    v1::GetCountersResponse {
        counters: pools.map(|c| counter(config, c)).collect(),
        events_suppressed: losses.suppressed,
        events_lost: losses.lost,
        events_repeated: losses.repeated,
        captures_lost,
        rules: c.rules.into_iter().filter(|r| only.is_none() && seen(r)).map(rule).collect(),
        shadow: c
            .shadow
            .into_iter()
            .filter(|(id, count)| wanted(Some(*id)) && (shadowed(*id) || *count != ShadowCount::default()))
            .map(shadow)
            .collect(),
        answers: c
            .answers
            .into_iter()
            .filter(|(id, _)| wanted(Some(*id)))
            .map(answer)
            .collect(),
    }
}

/// Packets that captures did not get, for whatever reason.
pub(in crate::api) fn captures_lost(l: &Losses) -> u64 {
    l.captures_suppressed.saturating_add(l.captures_lost)
}

/// A denied packet; `interface` and `device` are looked up by the caller.
pub(in crate::api) fn denial(
    config: &Config,
    e: &Event,
    at: WallTime,
    interface: String,
    device: Option<&DeviceId>,
) -> v1::Denial {
    let r = &e.record;
    let reason = Reason::from_number(r.reason);
    let text = |a: Option<IpAddr>| a.map(|a| a.to_string()).unwrap_or_default();
    v1::Denial {
        at: Some(timestamp(at)),
        interface: escape(&interface),
        hook: hook_name(r.hook),
        source: text(e.source),
        destination: text(e.destination),
        protocol: if r.version == 0 { String::new() } else { protocol(r.protocol) },
        source_port: r.sport.into(),
        destination_port: r.dport.into(),
        length: r.len,
        pool: if r.pool == 0 {
            String::new()
        } else {
            pool_name(config, Some(PoolId(r.pool)))
        },
        device_id: device.map(ToString::to_string).unwrap_or_default(),
        reason_number: r.reason.into(),
        reason: reason_name(r.reason),
        sentence: reason.map(Reason::sentence).unwrap_or_default().into(),
        remedy: reason.map(Reason::remedy).unwrap_or_default().into(),
        observed: r.observed != 0,
    }
}

/// Which end of a denied packet is the device: on a device interface by direction, on a core interface the end that is in a pool.
pub(in crate::api) fn device_end(config: &Config, e: &Event) -> Option<IpAddr> {
    match e.record.hook {
        abi::hook::XDP_DEVICE | abi::hook::TC_DEVICE => e.source,
        abi::hook::TC_EGRESS => e.destination,
        _ => e.destination.filter(|a| config.home(*a).is_some()).or(e.source),
    }
}

fn interface(i: InterfaceState) -> v1::InterfaceStatus {
    let role = match i.role {
        InterfaceRole::Device => "device",
        InterfaceRole::Core => "core",
    };
    let hooks = i.hooks.into_iter().map(|h| v1::HookStatus {
        hook: hook_point(h.hook).into(),
        mode: h.mode.into(),
        program_id: h.program_id.unwrap_or_default(),
        problem: escape(&h.problem),
    });
    v1::InterfaceStatus {
        name: i.name,
        ifindex: i.ifindex.unwrap_or_default(),
        role: role.into(),
        hooks: hooks.collect(),
    }
}

fn hook_name(hook: u8) -> String {
    match hook {
        abi::hook::XDP_DEVICE => "xdp device".into(),
        abi::hook::XDP_CORE => "xdp core".into(),
        abi::hook::TC_DEVICE => "tc device".into(),
        abi::hook::TC_CORE => "tc core".into(),
        abi::hook::TC_EGRESS => "tc egress".into(),
        n => format!("number {n}"),
    }
}

fn reason_name(n: u8) -> String {
    Reason::from_number(n).map_or_else(|| format!("number {n}"), |r| r.name().into())
}

fn passes(reason: u8) -> bool {
    Reason::from_number(reason).is_some_and(Reason::passes)
}

/// IANA's keyword, lower case, for those that are seen; else the number.
fn protocol(number: u8) -> String {
    let name = match number {
        0 => "hopopt",
        1 => "icmp",
        2 => "igmp",
        4 => "ipv4",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        41 => "ipv6",
        43 => "ipv6-route",
        44 => "ipv6-frag",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "ipv6-icmp",
        59 => "ipv6-nonxt",
        60 => "ipv6-opts",
        89 => "ospfigp",
        103 => "pim",
        112 => "vrrp",
        115 => "l2tp",
        132 => "sctp",
        136 => "udplite",
        n => return n.to_string(),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_numbers_are_shown_never_hidden() {
        assert_eq!(protocol(6), "tcp");
        assert_eq!(protocol(253), "253");
        assert_eq!(reason_name(255), "number 255");
        assert!(!passes(255));
        assert_eq!(hook_name(0), "number 0");
    }
}
