//! The schema, and the file as it stands: every value parsed on its own, nothing compared with anything else.

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use gateway_ebpf::abi::MAX_VLANS;
use ipnetwork::IpNetwork;

use super::{
    Deny, InterfacePattern, InterfaceRole, LogFormat, Mode, PoolKind, Protocol, RuleDirection, Vlan, XdpMode,
    read::{At, Section, Wrong},
    values::{self, name},
};
use crate::model::{InterfaceName, PoolName, Trust};

/// Every key that a section may have. `""` is the document; `pool.route` stands for `[[pool.route]]`.
pub(super) const SCHEMA: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "mode",
            "paths",
            "api",
            "socket",
            "metrics",
            "process",
            "log",
            "devices",
            "proof",
            "source",
            "store",
            "tables",
            "interface",
            "pool",
            "policy",
        ],
    ),
    ("paths", &["state", "pins"]),
    (
        "api",
        &[
            "listen",
            "certificate",
            "key",
            "client_ca",
            "retiring_ca",
            "crl",
            "vpn_without_source",
            "renewal_days",
            "warn_days",
            "max_message",
            "max_connections",
            "max_connections_per_client",
            "max_streams",
            "handshake_timeout",
            "idle_timeout",
        ],
    ),
    ("socket", &["path", "vpn_group", "viewer_group"]),
    ("metrics", &["listen", "group"]),
    ("process", &["user"]),
    ("log", &["level", "format"]),
    (
        "devices",
        &[
            "unknown",
            "sessions_per_device",
            "outside_window",
            "quarantine_deadline",
            "after_deadline",
            "max_exception",
            "limited_mdm",
        ],
    ),
    ("proof", &["direct_signal", "max_signal_age", "offer_ttl"]),
    ("source", &["name", "heartbeat", "interfaces", "prefixes"]),
    ("store", &["request_memory", "audit_entries", "audit_log"]),
    ("tables", &["addresses", "buckets6", "denials_bytes", "fragments"]),
    ("interface", &["name", "role", "xdp", "pools", "vlans"]),
    (
        "pool",
        &[
            "name",
            "kind",
            "prefixes",
            "reserved",
            "policy",
            "shadow_policy",
            "deny",
            "fallback",
            "gateway_uri",
            "lease",
            "min_trust",
            "table",
            "route",
        ],
    ),
    ("pool.route", &["to", "via", "interface"]),
    ("policy", &["name", "allow", "rule"]),
    ("policy.rule", &["to", "from", "protocol", "ports"]),
];

/// The keys of a section.
pub(super) fn keys_of(section: &str) -> &'static [&'static str] {
    SCHEMA.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

/// `[api]`.
pub(super) struct RawApi {
    pub(super) listen: Option<At<std::net::SocketAddr>>,
    pub(super) certificate: Option<At<PathBuf>>,
    pub(super) key: Option<At<PathBuf>>,
    pub(super) client_ca: Option<At<Vec<At<PathBuf>>>>,
    pub(super) retiring_ca: Option<At<Vec<At<PathBuf>>>>,
    pub(super) crl: Option<At<Vec<At<PathBuf>>>>,
    pub(super) vpn_without_source: Option<At<bool>>,
    pub(super) renewal_days: Option<At<u32>>,
    pub(super) warn_days: Option<At<u32>>,
    pub(super) max_message: Option<At<u32>>,
    pub(super) max_connections_per_client: Option<At<u32>>,
    pub(super) idle_timeout: Option<At<Duration>>,
    pub(super) max_connections: Option<At<u32>>,
    pub(super) max_streams: Option<At<u32>>,
    pub(super) handshake_timeout: Option<At<Duration>>,
}

impl RawApi {
    pub(super) fn read(s: &Section<'_, '_>) -> Self {
        s.require("listen", "write listen = \"[::]:9443\"");
        s.require(
            "certificate",
            "name the server's certificate chain; `lazaret pki issue` makes one",
        );
        s.require("key", "name the server's key; `lazaret pki issue` makes one");
        const CA: &str = "name the CA of the client certificates; `lazaret pki init` makes one";
        s.require("client_ca", CA);
        if s.is_empty_list("client_ca") {
            s.missing("client_ca", CA);
        }
        Self {
            listen: s.parsed("listen", values::listen),
            certificate: s.parsed("certificate", values::path),
            key: s.parsed("key", values::path),
            client_ca: s.one_or_more("client_ca", values::path),
            retiring_ca: s.one_or_more("retiring_ca", values::path),
            crl: s.one_or_more("crl", values::path),
            vpn_without_source: s.one_of("vpn_without_source", &[("refuse", false), ("allow", true)]),
            renewal_days: s.integer("renewal_days", 0..=3650),
            warn_days: s.integer("warn_days", 0..=3650),
            max_connections_per_client: s.integer("max_connections_per_client", 1..=65_536),
            idle_timeout: s.parsed(
                "idle_timeout",
                values::duration(Duration::from_secs(1)..=Duration::from_secs(24 * 3600)),
            ),
            max_message: s.integer("max_message", 1024..=64 << 20),
            max_connections: s.integer("max_connections", 1..=65_536),
            max_streams: s.integer("max_streams", 1..=65_536),
            handshake_timeout: s.parsed(
                "handshake_timeout",
                values::duration(Duration::from_millis(100)..=Duration::from_secs(60)),
            ),
        }
    }
}

/// `[paths]`, `[socket]`, `[log]`, `[tables]` and `mode`.
#[derive(Default)]
pub(super) struct RawSettings {
    pub(super) mode: Option<At<Mode>>,
    pub(super) state: Option<At<PathBuf>>,
    pub(super) pins: Option<At<PathBuf>>,
    pub(super) socket: Option<At<PathBuf>>,
    pub(super) vpn_group: Option<At<String>>,
    pub(super) viewer_group: Option<At<String>>,
    pub(super) user: Option<At<String>>,
    pub(super) level: Option<At<String>>,
    pub(super) format: Option<At<LogFormat>>,
    pub(super) addresses: Option<At<u32>>,
    pub(super) buckets6: Option<At<u32>>,
    pub(super) denials_bytes: Option<At<u32>>,
    pub(super) fragments: Option<At<u32>>,
}

impl RawSettings {
    pub(super) fn read(document: &Section<'_, '_>) -> Self {
        let mut raw = Self {
            mode: document.one_of("mode", &[("enforce", Mode::Enforce), ("observe", Mode::Observe)]),
            ..Self::default()
        };
        if let Some(s) = document.section("paths") {
            raw.state = s.parsed("state", values::path);
            raw.pins = s.parsed("pins", values::path);
        }
        if let Some(s) = document.section("socket") {
            raw.socket = s.parsed("path", values::socket_path);
            raw.vpn_group = s.parsed("vpn_group", values::group);
            raw.viewer_group = s.parsed("viewer_group", values::group);
            if let (Some(vpn), Some(viewer)) = (&raw.vpn_group, &raw.viewer_group)
                && vpn.value == viewer.value
            {
                let remedy = "name two groups: a member of both would have two roles";
                s.wrong(viewer, "viewer_group", Wrong::new("the same group as vpn_group", remedy));
            }
        }
        if let Some(s) = document.section("process") {
            raw.user = s.parsed("user", values::user);
        }
        if let Some(s) = document.section("log") {
            raw.level = s.parsed("level", values::log_level);
            raw.format = s.one_of("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
        }
        if let Some(s) = document.section("tables") {
            raw.addresses = s.integer("addresses", 1..=1 << 24);
            raw.buckets6 = power_of_two(&s, "buckets6", 1..=1 << 24);
            raw.denials_bytes = power_of_two(&s, "denials_bytes", 4096..=1 << 30);
            raw.fragments = power_of_two(&s, "fragments", 64..=1 << 20);
        }
        raw
    }
}

fn power_of_two(s: &Section<'_, '_>, key: &str, range: RangeInclusive<u32>) -> Option<At<u32>> {
    let value = s.integer(key, range)?;
    if value.value.is_power_of_two() {
        return Some(value);
    }
    let near = value.value.next_power_of_two();
    let problem = format!("{} is not a power of two", value.value);
    s.wrong(&value, key, Wrong::new(problem, format!("write {near} or {}", near / 2)));
    None
}

/// `[[interface]]`.
pub(super) struct RawInterface {
    pub(super) name: Option<At<InterfacePattern>>,
    pub(super) role: Option<At<InterfaceRole>>,
    pub(super) xdp: Option<At<XdpMode>>,
    pub(super) pools: Option<At<Vec<At<PoolName>>>>,
    pub(super) vlans: Vec<At<Vlan>>,
}

impl RawInterface {
    pub(super) fn read(s: &Section<'_, '_>) -> Self {
        s.require("name", "write name = \"tun0\", or a pattern, name = \"tun*\"");
        s.require("role", "write role = \"device\" or \"core\"");
        let pools = s.list("pools", name);
        if let Some(list) = pools.as_ref().filter(|_| s.is_empty_list("pools")) {
            let remedy = "leave pools out for all of them; an empty list is not taken for it";
            s.wrong(list, "pools", Wrong::new("the list is empty", remedy));
        }
        let vlans = s.texts_or_numbers("vlans", values::vlan);
        if let Some(list) = vlans.as_ref().filter(|l| l.value.len() > MAX_VLANS) {
            let problem = format!("there are {} VLANs", list.value.len());
            s.wrong(
                list,
                "vlans",
                Wrong::new(problem, format!("an interface takes {MAX_VLANS} at most")),
            );
        }
        Self {
            pools,
            vlans: vlans.map(|v| v.value).unwrap_or_default(),
            name: s.parsed("name", values::interface_pattern),
            role: s.one_of("role", &[("device", InterfaceRole::Device), ("core", InterfaceRole::Core)]),
            xdp: s.one_of(
                "xdp",
                &[
                    ("auto", XdpMode::Auto),
                    ("native", XdpMode::Native),
                    ("generic", XdpMode::Generic),
                    ("off", XdpMode::Off),
                ],
            ),
        }
    }
}

/// `[[pool]]`.
pub(super) struct RawPool {
    pub(super) at: usize,
    pub(super) name: Option<At<PoolName>>,
    pub(super) kind: Option<At<PoolKind>>,
    pub(super) has_prefixes: bool,
    pub(super) prefixes: Vec<At<IpNetwork>>,
    pub(super) reserved: Vec<At<IpAddr>>,
    pub(super) policy: Option<At<PoolName>>,
    pub(super) shadow_policy: Option<At<PoolName>>,
    pub(super) deny: Option<At<Deny>>,
    pub(super) fallback: Option<At<PoolName>>,
    pub(super) has_fallback: bool,
    pub(super) gateway_uri: Option<At<String>>,
    pub(super) lease: Option<At<Duration>>,
    pub(super) min_trust: Option<At<Trust>>,
    pub(super) table: Option<At<u32>>,
    pub(super) has_table: bool,
    pub(super) routes: Vec<RawRoute>,
}

impl RawPool {
    pub(super) fn read(s: &Section<'_, '_>) -> Self {
        s.require("name", "write name = \"quarantine\"");
        s.require("kind", "write kind = \"quarantine\", \"full-service\" or \"blocked\"");
        s.require(
            "policy",
            "name a [[policy]]; a pool without one is taken neither as open nor as closed",
        );
        s.require(
            "gateway_uri",
            "write the VPN gateway name of its devices, gateway_uri = \"vpn.example.org\"",
        );
        let kinds = [
            ("quarantine", PoolKind::Quarantine),
            ("full-service", PoolKind::FullService),
            ("blocked", PoolKind::Blocked),
        ];
        Self {
            at: s.at,
            name: s.parsed("name", name),
            kind: s.one_of("kind", &kinds),
            has_prefixes: s.has("prefixes") && !s.is_empty_list("prefixes"),
            prefixes: s.list("prefixes", values::pool_prefix).map(|p| p.value).unwrap_or_default(),
            reserved: s.list("reserved", values::address).map(|r| r.value).unwrap_or_default(),
            policy: s.parsed("policy", name),
            shadow_policy: s.parsed("shadow_policy", name),
            deny: s.one_of("deny", &[("drop", Deny::Drop), ("reject", Deny::Reject)]),
            fallback: s.parsed("fallback", name),
            has_fallback: s.has("fallback"),
            gateway_uri: s.parsed("gateway_uri", values::gateway_uri),
            lease: s.parsed(
                "lease",
                values::duration(Duration::from_secs(1)..=Duration::from_secs(3650 * 86_400)),
            ),
            min_trust: s.one_of(
                "min_trust",
                &[
                    ("name", Trust::Name),
                    ("vpn-key", Trust::VpnKey),
                    ("certificate", Trust::Certificate),
                ],
            ),
            table: s.integer("table", 1..=u32::MAX),
            has_table: s.has("table"),
            routes: s.sections("route", "pool.route").iter().map(RawRoute::read).collect(),
        }
    }
}

/// `[[pool.route]]`.
pub(super) struct RawRoute {
    pub(super) at: usize,
    pub(super) to: Option<At<IpNetwork>>,
    pub(super) via: Option<At<IpAddr>>,
    pub(super) interface: Option<At<InterfaceName>>,
}

impl RawRoute {
    fn read(s: &Section<'_, '_>) -> Self {
        s.require("to", "write to = \"0.0.0.0/0\"");
        if !s.has("via") && !s.has("interface") {
            s.missing(
                "via",
                "write via = \"192.0.2.1\", or interface = \"eth1\" for a destination on the link",
            );
        }
        Self {
            at: s.at,
            to: s.parsed("to", values::prefix),
            via: s.parsed("via", values::next_hop),
            interface: s.parsed("interface", name),
        }
    }
}

/// What a whole policy may say in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    All,
    Nothing,
}

/// `[[policy]]`.
pub(super) struct RawPolicy {
    pub(super) at: usize,
    pub(super) name: Option<At<PoolName>>,
    pub(super) allow: Option<At<Word>>,
    pub(super) has_allow: bool,
    pub(super) has_rules: bool,
    pub(super) rules: Vec<RawRule>,
}

impl RawPolicy {
    pub(super) fn read(s: &Section<'_, '_>) -> Self {
        s.require("name", "write name = \"management-only\"");
        Self {
            at: s.at,
            name: s.parsed("name", name),
            allow: s.one_of("allow", &[("all", Word::All), ("nothing", Word::Nothing)]),
            has_allow: s.has("allow"),
            has_rules: s.has("rule"),
            rules: s.sections("rule", "policy.rule").iter().map(RawRule::read).collect(),
        }
    }
}

/// `[[policy.rule]]`.
pub(super) struct RawRule {
    pub(super) at: usize,
    pub(super) direction: RuleDirection,
    pub(super) peers: Vec<IpNetwork>,
    pub(super) protocol: Option<Protocol>,
    pub(super) ports: Vec<RangeInclusive<u16>>,
}

impl RawRule {
    fn read(s: &Section<'_, '_>) -> Self {
        let (to, from) = (s.has("to"), s.has("from"));
        if !to && !from {
            s.missing(
                "to",
                "write the destinations, to = [\"10.0.0.5/32\"], for every address to = [\"0.0.0.0/0\", \"::/0\"]; or from = [...] for \
                 connections to devices",
            );
        }
        let (key, direction) = match (to, from) {
            (false, true) => ("from", RuleDirection::ToDevice),
            _ => ("to", RuleDirection::FromDevice),
        };
        s.require(
            "protocol",
            "write protocol = \"tcp\", \"udp\", \"icmp\", \"any\" or an IP protocol number as a string",
        );
        let peers = s.list(key, values::rule_prefix);
        if let Some(list) = peers.as_ref().filter(|_| s.is_empty_list(key)) {
            let remedy = "name prefixes, or leave the rule out; an empty list is not taken for every address";
            s.wrong(list, key, Wrong::new("the list is empty", remedy));
        }
        if let Some(list) = s.list("from", values::rule_prefix).filter(|_| to) {
            let remedy = "write two rules: one for what devices connect to, one for who connects to them";
            s.wrong(&list, "from", Wrong::new("the rule has to already", remedy));
        }
        let protocol = s.parsed("protocol", values::protocol).map(|p| p.value);
        let ports = s.list("ports", values::ports);
        if let Some(list) = &ports {
            let takes_ports = protocol.is_none_or(|p| matches!(p, Protocol::Tcp | Protocol::Udp));
            if !takes_ports {
                let remedy = "leave ports out, or write protocol = \"tcp\" or \"udp\"";
                s.wrong(list, "ports", Wrong::new("this protocol has no ports", remedy));
            } else if s.is_empty_list("ports") {
                let remedy = "leave ports out for every port; an empty list is not taken for it";
                s.wrong(list, "ports", Wrong::new("the list is empty", remedy));
            }
        }
        Self {
            at: s.at,
            direction,
            peers: peers
                .map(|t| t.value.into_iter().map(|p| p.value).collect())
                .unwrap_or_default(),
            protocol,
            ports: ports
                .map(|p| p.value.into_iter().map(|r| r.value).collect())
                .unwrap_or_default(),
        }
    }
}
