//! The configuration: typed, checked as a whole before anything is touched. `read` walks the TOML and notes every mistake with its place,
//! `raw` is the schema, `values` parses single values, `check` compares them, `build` makes a [`Config`]; `life` does all of that for
//! the keys of a device's life, `source` for those of VPN servers. `interface` and `pool` say what there is of these. `deploy/lazaret.toml` is the commented example.

mod build;
mod check;
mod error;
mod interface;
mod life;
mod metrics;
mod pool;
mod raw;
mod read;
mod source;
pub(crate) mod special;
#[cfg(test)]
mod tests;
mod values;
mod warn;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    error::{ConfigError, ConfigErrors},
    interface::{InterfacePattern, InterfaceRole, InterfaceRule, Vlan, XdpMode},
    pool::{Allow, Deny, Policy, Pool, PoolKind, Protocol, Route, RouteTable, Rule, RuleDirection},
    source::{NotIts, Source},
};
use crate::model::{InterfaceName, PoolId, PoolName};

/// A whole, checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Enforcing or observing.
    pub mode: Mode,
    /// Where things lie.
    pub paths: Paths,
    /// The network API; `None`: only the Unix socket.
    pub api: Option<Api>,
    /// The Unix socket.
    pub socket: Socket,
    /// Where figures are exported; `None`: nowhere.
    pub metrics: Option<Metrics>,
    /// As whom the daemon runs once it has opened its files (`process.user`). Default: as whom it was started.
    pub user: Option<String>,
    /// Logging.
    pub log: Log,
    /// What is done with devices.
    pub devices: Devices,
    /// What releases them.
    pub proofs: Proofs,
    /// VPN servers of which something is said.
    pub sources: Vec<Source>,
    /// What the store keeps how long.
    pub keep: Keep,
    /// Table sizes.
    pub tables: Tables,
    /// In the order of the file; the first that matches an interface's name counts.
    pub interfaces: Vec<InterfaceRule>,
    /// In the order of the file; a pool's number is its place, from 1.
    pub pools: Vec<Pool>,
    /// In the order of the file.
    pub policies: Vec<Policy>,
}

impl Config {
    /// Reads and checks a file. Nothing else is touched.
    ///
    /// # Errors
    /// Every mistake that can be found at once, with its place.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        Self::parse(file, &read::text(file)?)
    }
    /// Checks the text of a file; `file` is its name in errors.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigErrors> {
        check::config(file, text)
    }
    /// What is no mistake, but what an operator may not have meant; sentences for people.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        warn::warnings(self)
    }
    /// A pool by name.
    #[must_use]
    pub fn pool(&self, name: &PoolName) -> Option<&Pool> {
        self.pools.iter().find(|p| p.name == *name)
    }
    /// A pool by number.
    #[must_use]
    pub fn pool_by_id(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(usize::from(id.0).checked_sub(1)?)
    }
    /// The policy of a pool; every pool has one.
    #[must_use]
    pub fn policy(&self, pool: &Pool) -> Option<&Policy> {
        self.policies.iter().find(|p| p.name == pool.policy)
    }
    /// The pool whose prefix holds an address and does not reserve it.
    #[must_use]
    pub fn home(&self, address: std::net::IpAddr) -> Option<&Pool> {
        let holds = |p: &&Pool| p.prefixes.iter().any(|n| n.contains(address)) && !p.reserved.contains(&address);
        self.pools.iter().find(holds)
    }
    /// The pool that judges an address of `home` while no released device holds it: itself, or a full-service pool's fallback.
    #[must_use]
    pub fn resting(&self, home: &Pool) -> PoolId {
        home.fallback.unwrap_or(home.id)
    }
    /// The role of an interface, by its name.
    #[must_use]
    pub fn role(&self, name: &InterfaceName) -> Option<InterfaceRole> {
        self.interfaces.iter().find(|r| r.name.matches(name)).map(|r| r.role)
    }
}

/// `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Denied packets are dropped; the floor is closed.
    #[default]
    Enforce,
    /// Everything is judged and counted, nothing is denied; the floor is open.
    Observe,
}

/// `[paths]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Directory of the database, made with mode 0700. Default `/var/lib/lazaret`.
    pub state: PathBuf,
    /// Directory on a bpffs, made if missing. Default `/sys/fs/bpf/lazaret`.
    pub pins: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/lazaret".into(),
            pins: "/sys/fs/bpf/lazaret".into(),
        }
    }
}

/// `[api]`: gRPC over mTLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Address and port.
    pub listen: SocketAddr,
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM; mode 0600 or tighter.
    pub key: PathBuf,
    /// As [`Config::user`]: whose the key may be, beside root's.
    pub user: Option<String>,
    /// Files of CA certificates that client certificates must lead to, PEM.
    pub client_ca: Vec<PathBuf>,
    /// Likewise, of CAs that are to go: who still shows their certificates is counted.
    pub retiring_ca: Vec<PathBuf>,
    /// Revocation lists of these CAs, PEM or DER.
    pub crl: Vec<PathBuf>,
    /// Largest message, bytes. Default 4 MiB.
    pub max_message: usize,
    /// Most connections at a time. Default 256.
    pub max_connections: usize,
    /// Most connections of one client at a time, by its certificate's subject. Default 32.
    pub max_connections_per_client: usize,
    /// Most concurrent streams of a connection. Default 128.
    pub max_streams: u32,
    /// A TLS handshake that takes longer is cut. Default 5 s.
    pub handshake_timeout: Duration,
    /// A certificate of the role vpn that names no source may report any source's sessions. Default: no source's.
    pub vpn_without_source: bool,
    /// A connection without a call for so long is closed. Default 15 min.
    pub idle_timeout: Duration,
    /// Clients whose certificates end within so many days are listed as due (`renewal_days`). Default 30.
    pub renewal_days: u32,
    /// Certificates and lists of the gateway that end within so many days are warned about (`warn_days`). Default 30.
    pub warn_days: u32,
}

impl Api {
    /// Default of `max_message`, bytes.
    pub const MAX_MESSAGE: u32 = 4 << 20;
    /// Default of `max_connections`.
    pub const MAX_CONNECTIONS: u32 = 256;
    /// Default of `max_connections_per_client`.
    pub const MAX_CONNECTIONS_PER_CLIENT: u32 = 32;
    /// Default of `idle_timeout`.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);
    /// Default of `renewal_days` and of `warn_days`.
    pub const DAYS: u32 = 30;
    /// Default of `max_streams`.
    pub const MAX_STREAMS: u32 = 128;
    /// Default of `handshake_timeout`.
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
}

/// `[socket]`: gRPC for local tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Default `/run/lazaret/lazaret.sock`.
    pub path: PathBuf,
    /// Members of this group have the role vpn. Default: nobody.
    pub vpn_group: Option<String>,
    /// Members of this group have the role viewer. Default: nobody.
    pub viewer_group: Option<String>,
}

/// `[metrics]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// A loopback address.
    Port(SocketAddr),
    /// A Unix socket, mode 0660.
    Socket {
        /// At most 107 bytes.
        path: PathBuf,
        /// The file's group. Default: the daemon's.
        group: Option<String>,
    },
}

impl Socket {
    /// Default of `path`; where the command line looks, too.
    pub const PATH: &str = "/run/lazaret/lazaret.sock";
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            path: Self::PATH.into(),
            vpn_group: None,
            viewer_group: None,
        }
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A tracing filter. Default `info`.
    pub level: String,
    /// Text for people or JSON lines.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// `[devices]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// A session of a device that the registry does not know. Default: refuse.
    pub unknown: UnknownDevice,
    /// Most live sessions of a device (`sessions_per_device`). Default 1.
    pub sessions: u32,
    /// A session outside its device's window (`outside_window`). Default: refuse.
    pub outside_window: OutsideWindow,
    /// Longest time in quarantine (`quarantine_deadline`); `None`: "off". Default 48 h.
    pub deadline: Option<Duration>,
    /// What then (`after_deadline`). Default: block.
    pub after_deadline: AfterDeadline,
    /// Longest exception (`max_exception`). Default 30 days.
    pub max_exception: Duration,
    /// Most devices within the limits of an MDM whose certificate has some (`limited_mdm`). Default 100,000.
    pub limited_mdm: u32,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            unknown: UnknownDevice::Refuse,
            sessions: 1,
            outside_window: OutsideWindow::Refuse,
            deadline: Some(Duration::from_secs(48 * 3600)),
            after_deadline: AfterDeadline::Block,
            max_exception: Duration::from_secs(30 * 24 * 3600),
            limited_mdm: 100_000,
        }
    }
}

/// `devices.outside_window`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutsideWindow {
    /// The session is refused: ENROLMENT_NOT_OPEN, ENROLMENT_CLOSED.
    #[default]
    Refuse,
    /// It opens; the device is blocked.
    Block,
}

/// `devices.after_deadline`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterDeadline {
    /// The device is blocked.
    #[default]
    Block,
    /// It stays in quarantine, and is listed.
    Report,
}

/// `[proof]`: what releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proofs {
    /// A direct signal, without key (`direct_signal`). Default: yes.
    pub direct_signal: bool,
    /// Oldest signal that releases (`max_signal_age`). Default 24 h.
    pub max_signal_age: Duration,
    /// How long a temporary key holds (`offer_ttl`). Default 15 min.
    pub offer_ttl: Duration,
}

impl Default for Proofs {
    fn default() -> Self {
        Self {
            direct_signal: true,
            max_signal_age: Duration::from_secs(24 * 3600),
            offer_ttl: Duration::from_secs(15 * 60),
        }
    }
}

/// `[store]`: what is kept how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// How long answers are remembered by request id (`request_memory`). Default 24 h.
    pub requests: Duration,
    /// Most entries of the audit (`audit_entries`). Default 1,000,000.
    pub audit: u64,
    /// File to which audit entries are appended as JSON lines (`audit_log`).
    pub audit_log: Option<PathBuf>,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            requests: Duration::from_secs(24 * 3600),
            audit: 1_000_000,
            audit_log: None,
        }
    }
}

/// `devices.unknown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownDevice {
    /// The session is refused: UNKNOWN_DEVICE.
    #[default]
    Refuse,
    /// It opens, without a name, and stays in quarantine.
    Quarantine,
}

/// `[tables]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Most addresses of live sessions. Default 65,536.
    pub addresses: u32,
    /// Buckets of the IPv6 table, a power of two; each takes 64 bytes and holds up to 3 addresses. Default: from `addresses`.
    pub buckets6: u32,
    /// Bytes of the ring buffer of denials; a power of two. Default 262,144.
    pub denials_bytes: u32,
    /// Most datagrams in fragments that are remembered at a time; a power of two. Default 4,096.
    pub fragments: u32,
}

impl Tables {
    /// Buckets for as many IPv6 addresses: one in each on average, so that both of an address's buckets (of three slots) are full in
    /// fewer than one case in 50,000.
    #[must_use]
    pub const fn buckets6_for(addresses: u32) -> u32 {
        let wanted = addresses.next_power_of_two();
        if wanted < 16 { 16 } else { wanted }
    }
}

impl Default for Tables {
    fn default() -> Self {
        const ADDRESSES: u32 = 65_536;
        Self {
            addresses: ADDRESSES,
            buckets6: Self::buckets6_for(ADDRESSES),
            denials_bytes: 256 << 10,
            fragments: 4096,
        }
    }
}
