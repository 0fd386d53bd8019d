//! What the configuration says of an interface: which one, its role, its pools and VLANs. Which interfaces exist is not known here.

use serde::{Deserialize, Serialize};

use crate::model::{InterfaceName, PoolId};

/// `[[interface]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceRule {
    /// Which.
    pub name: InterfacePattern,
    /// What it leads to.
    pub role: InterfaceRole,
    /// Whether XDP is used. Default auto.
    pub xdp: XdpMode,
    /// Of a device interface: the home pools whose addresses may be on it; `None`: all.
    pub pools: Option<Vec<PoolId>>,
    /// The VLANs whose packets are judged; packets of others are dropped. Untagged ones are always judged.
    pub vlans: Vec<Vlan>,
}

impl InterfaceRule {
    /// Bit n: addresses whose home pool is n may be here.
    #[must_use]
    pub fn pools_mask(&self) -> u64 {
        match &self.pools {
            None => u64::MAX,
            Some(pools) => pools
                .iter()
                .fold(0, |mask, p| mask | 1_u64.checked_shl(p.0.into()).unwrap_or(0)),
        }
    }
}

/// A VLAN by its ids, 1 to 4094: one tag (IEEE 802.1Q), or one in another (802.1ad).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vlan {
    /// Of the outermost tag.
    pub outer: u16,
    /// Of the tag within, if there are two.
    pub inner: Option<u16>,
}

impl std::fmt::Display for Vlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.inner {
            None => write!(f, "{}", self.outer),
            Some(inner) => write!(f, "{}.{inner}", self.outer),
        }
    }
}

/// `interface.name`: a name, or a prefix followed by `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfacePattern {
    /// This one.
    Name(InterfaceName),
    /// All whose names start so.
    Prefix(InterfaceName),
}

impl InterfacePattern {
    /// Whether it means this interface.
    #[must_use]
    pub fn matches(&self, name: &InterfaceName) -> bool {
        match self {
            Self::Name(n) => n == name,
            Self::Prefix(p) => name.as_str().starts_with(p.as_str()),
        }
    }
}

impl std::fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(n) => write!(f, "{n}"),
            Self::Prefix(p) => write!(f, "{p}*"),
        }
    }
}

/// `interface.role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceRole {
    /// Leads to devices: everything is judged.
    Device,
    /// Leads to the corporate network: what touches no pool passes untouched.
    Core,
}

/// `interface.xdp`. Interfaces without Ethernet header never use XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native XDP where the driver can, else TC alone; `status` says which.
    #[default]
    Auto,
    /// Native XDP, or an error in `status`; TC judges.
    Native,
    /// Generic XDP.
    Generic,
    /// TC alone.
    Off,
}
