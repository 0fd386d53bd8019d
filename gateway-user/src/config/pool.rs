//! What the configuration says of pools, their route tables, and the policies that judge them. Which addresses are whose is not known here.

use std::{sync::Arc, time::Duration};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::{InterfaceName, PoolId, PoolName, Trust};

/// `[[pool]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its number.
    pub id: PoolId,
    /// Its name.
    pub name: PoolName,
    /// Its kind.
    pub kind: PoolKind,
    /// Its prefixes; no two pools' overlap. Only a full-service or blocked pool may have none: devices are moved to it where they are.
    pub prefixes: Vec<IpNetwork>,
    /// Addresses inside the prefixes that are the gateway's own, e.g. the tun's: in no pool.
    pub reserved: Vec<std::net::IpAddr>,
    /// Name of its policy.
    pub policy: PoolName,
    /// Name of a policy that is scored beside it, and enforces nothing.
    pub shadow_policy: Option<PoolName>,
    /// Whether what its policy denies is answered. Default: dropped.
    pub deny: Deny,
    /// Of a full-service pool: the quarantine pool that judges its addresses without a released device, and its devices when restricted.
    pub fallback: Option<PoolId>,
    /// The VPN gateway name of its devices.
    pub gateway_uri: Arc<str>,
    /// Of a full-service pool: how long a release holds; `None`: until revoked.
    pub lease: Option<Duration>,
    /// Of a full-service pool: how well a session's device must be known for a release to hold for it (`min_trust`). Default: by name.
    pub min_trust: Trust,
    /// Its route table, if it has one.
    pub table: Option<RouteTable>,
}

/// `pool.deny`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deny {
    /// Without a word.
    #[default]
    Drop,
    /// A TCP reset, or ICMP "administratively prohibited", to the device.
    Reject,
}

/// `pool.kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolKind {
    /// For devices whose policy is not applied.
    Quarantine,
    /// For devices whose policy is applied.
    FullService,
    /// For devices that may reach nothing.
    Blocked,
}

/// `pool.table` and `[[pool.route]]`: where packets from the pool's devices go, instead of the host's own routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    /// Number of the kernel's table.
    pub number: u32,
    /// Its routes.
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub to: IpNetwork,
    /// Next hop; `None`: on the link.
    pub via: Option<std::net::IpAddr>,
    /// Through which interface; required without `via`.
    pub interface: Option<InterfaceName>,
}

/// `[[policy]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: PoolName,
    /// What it allows.
    pub allow: Allow,
}

/// What a policy allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Everything, both ways.
    All,
    /// Nothing, with the reason `blocked`.
    Nothing,
    /// What these rules name, and the answers to it.
    Rules(Vec<Rule>),
}

/// `[[policy.rule]]`: who may connect to whom. Answers pass by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number, 1 to 4,095; a counter's name. From the file: its place over the whole configuration. In a configuration that is in
    /// force ([`crate::dataplane::Live::config`]): the number that it keeps as long as nothing of it changes. Where several rules match, the lowest counts.
    pub id: u16,
    /// Who asks whom.
    pub direction: RuleDirection,
    /// The other end's prefixes.
    pub peers: Vec<IpNetwork>,
    /// Protocol.
    pub protocol: Protocol,
    /// Ports of the end that is asked, for TCP and UDP; empty: all.
    pub ports: Vec<std::ops::RangeInclusive<u16>>,
}

/// `rule.to` or `rule.from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleDirection {
    /// `to`: devices connect to peers.
    FromDevice,
    /// `from`: peers connect to devices.
    ToDevice,
}

/// `rule.protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Every protocol and port.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests: ICMP to IPv4 destinations, ICMPv6 to IPv6 ones.
    Icmp,
    /// An IP protocol number other than these.
    Number(u8),
}
