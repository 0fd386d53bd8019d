//! Who asks, in which role, and what he may act on. Found by `access`; carried with every command.

use std::{str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{DeviceId, InvalidName, SourceName};

/// A role of the API's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Registers devices, reports policy.
    Mdm,
    /// Reports sessions.
    Vpn,
    /// May do what any role may.
    Operator,
    /// Reads.
    Viewer,
}

impl Role {
    /// Its name, as certificates, configuration and command line write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mdm => "mdm",
            Self::Vpn => "vpn",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its role.
    pub role: Role,
    /// For logs: `uid:0`, or the certificate's subject and serial number; control characters escaped.
    pub name: String,
    /// Whose requests, connections and certificates are counted as one's: `uid:0`, or the certificate's subject, which stays when it is
    /// renewed. Two subjects never have the same.
    pub client: Arc<str>,
    /// What it may act on.
    pub scope: Scope,
}

impl Identity {
    /// One that is limited by its role alone; `name` stands for it in requests, too.
    #[must_use]
    pub fn unlimited(role: Role, name: &str) -> Self {
        Self {
            role,
            name: name.to_owned(),
            client: name.into(),
            scope: Scope::default(),
        }
    }

    /// Whose its request ids are: the client's in its role, whatever certificate it shows.
    #[must_use]
    pub fn requester(&self) -> String {
        format!("{}:{}", self.role.name(), self.client)
    }
}

/// Devices that somebody may act on: those that one of these names; `None`: all.
pub type Reach = Option<Arc<[DevicePattern]>>;

/// Whether a device is within reach. The text may be any.
#[must_use]
pub(super) fn reaches(reach: &Reach, name: &str) -> bool {
    reach.as_ref().is_none_or(|d| d.iter().any(|p| p.matches(name)))
}

/// What an identity may act on, beside what its role may do. By default everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Whose sessions it may report and see; `None`: all. Empty: nobody's.
    pub sources: Option<Arc<[SourceName]>>,
    /// Which devices it may register, signal and see; `None`: all.
    pub devices: Reach,
}

impl Scope {
    /// Whether a source is within it. The text may be any.
    #[must_use]
    pub fn has_source(&self, name: &str) -> bool {
        self.sources.as_ref().is_none_or(|s| s.iter().any(|s| s.as_str() == name))
    }
    /// Whether a device is within it. The text may be any.
    #[must_use]
    pub fn has_device(&self, name: &str) -> bool {
        reaches(&self.devices, name)
    }
    /// Where its devices begin, ascending; `None`: at the first of all. From each on they follow one another.
    #[must_use]
    pub fn beginnings(&self) -> Vec<Option<DeviceId>> {
        let Some(patterns) = &self.devices else { return vec![None] };
        let mut all: Vec<Option<DeviceId>> = patterns.iter().map(|p| p.text.parse().ok()).collect();
        all.sort();
        all.dedup();
        all
    }
    /// Whether every VPN server is.
    #[must_use]
    pub const fn has_all_sources(&self) -> bool {
        self.sources.is_none()
    }
    /// Whether every device is.
    #[must_use]
    pub fn has_all_devices(&self) -> bool {
        self.devices.is_none()
    }
}

/// A device's name, or what names begin with: `berlin-*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DevicePattern {
    text: String,
    open: bool,
}

impl DevicePattern {
    /// Whether it names this device.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.open {
            name.starts_with(&self.text)
        } else {
            name == self.text
        }
    }
}

impl std::fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let star = if self.open { "*" } else { "" };
        write!(f, "{}{star}", self.text)
    }
}

impl FromStr for DevicePattern {
    type Err = InvalidName;
    /// A device's name, a beginning of one and `*`, or `*` alone.
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let (text, open) = s.strip_suffix('*').map_or((s, false), |beginning| (beginning, true));
        if !(open && text.is_empty()) {
            text.parse::<DeviceId>()?;
        }
        Ok(Self {
            text: text.to_owned(),
            open,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let p = |s: &str| s.parse::<DevicePattern>().unwrap();
        assert!(p("a-1").matches("a-1") && !p("a-1").matches("a-12"));
        assert!(p("a-*").matches("a-1") && p("a-*").matches("a-") && !p("a-*").matches("b-a-1"));
        assert!(p("*").matches("x") && p("*").to_string() == "*" && p("a-*").to_string() == "a-*");
        for bad in ["", "a**", "*a", "a*b", "a/b*", "-*", "a b*", "ä*"] {
            assert!(bad.parse::<DevicePattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_empty_scope_is_not_the_unlimited_one() {
        let all = Scope::default();
        assert!(all.has_source("x") && all.has_device("x") && all.has_all_devices());
        let none = Scope {
            sources: Some([].into()),
            devices: Some([].into()),
        };
        assert!(!none.has_source("x") && !none.has_source("") && !none.has_device("x") && !none.has_all_devices());
        let one = Scope {
            sources: Some(["vpn-1".parse().unwrap()].into()),
            devices: None,
        };
        assert!(one.has_source("vpn-1") && !one.has_source("vpn-10") && !one.has_source("VPN-1"));
    }
}
