//! The network of tests and demo: a device, the gateway and the corporate core, each a namespace, and the addresses in it.
//!
//! ```text
//! device eth0 10.8.0.2 ---- 10.8.0.1 dev0  gw  core0 10.9.0.1 ---- eth0 core: DM 10.9.0.10, mail 10.9.0.20, resolver 10.9.0.53
//! ```
//!
//! Quarantine pool 10.66.0.0/24, fd00:66::/64; full-service pool 10.67.0.0/24, fd00:67::/64. Core also has fd00:9::/64 with the same host
//! numbers. How the device gets an address of a pool is the test's choice: by Ethernet, by a tun of its own, or by OpenVPN.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::netns::{Namespace, veth};

/// The DM server.
pub const DM: IpAddr = core4(10);
/// The DM server.
pub const DM6: IpAddr = core6(0x10);
/// The mail server.
pub const MAIL: IpAddr = core4(20);
/// The mail server.
pub const MAIL6: IpAddr = core6(0x20);
/// The resolver.
pub const RESOLVER: IpAddr = core4(53);
/// The gateway on the core side, where the API listens.
pub const GATEWAY: IpAddr = core4(1);
/// The gateway as its pools' devices see it.
pub const TUNNEL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 66, 0, 1));
/// The gateway as its pools' devices see it.
pub const TUNNEL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, 1));
/// An address of the quarantine pool.
pub const DEVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 66, 0, 5));
/// An address of the quarantine pool.
pub const DEVICE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, 5));
/// The name that the resolver serves.
pub const DM_NAME: &str = "dm.example.test";

const fn core4(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, host))
}
const fn core6(host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, host))
}

/// The three namespaces, joined.
#[derive(Clone, Debug)]
pub struct Site {
    /// With `eth0`, to the gateway.
    pub device: Namespace,
    /// With `dev0` and `core0`.
    pub gw: Namespace,
    /// With `eth0` and all servers' addresses.
    pub core: Namespace,
}

impl Site {
    /// Makes it: the outer network between device and gateway (10.8.0.0/24), and the core.
    ///
    /// # Errors
    /// No privilege.
    pub fn new() -> Result<Self> {
        let site = Self {
            device: Namespace::new("device")?,
            gw: Namespace::new("gw")?,
            core: Namespace::new("core")?,
        };
        veth((&site.device, "eth0"), (&site.gw, "dev0"))?;
        veth((&site.gw, "core0"), (&site.core, "eth0"))?;
        site.gw.forward()?;
        for (address, length) in [(GATEWAY, 24), (core6(1), 64)] {
            site.gw.address("core0", &format!("{address}/{length}"))?;
        }
        for (address, length) in [(DM, 24), (MAIL, 24), (RESOLVER, 24), (DM6, 64), (MAIL6, 64)] {
            site.core.address("eth0", &format!("{address}/{length}"))?;
        }
        for pool in ["10.66.0.0/24", "10.67.0.0/24"] {
            site.core.route(pool, GATEWAY)?;
        }
        for pool in ["fd00:66::/64", "fd00:67::/64"] {
            site.core.route(pool, core6(1))?;
        }
        Ok(site)
    }

    /// The outer network, over which a VPN runs.
    ///
    /// # Errors
    /// See [`Namespace::exec`].
    pub fn underlay(&self) -> Result<()> {
        self.gw.address("dev0", "10.8.0.1/24")?;
        self.device.address("eth0", "10.8.0.2/24")
    }

    /// The device by Ethernet: its pool addresses on its link to the gateway, which is its router.
    ///
    /// # Errors
    /// See [`Namespace::exec`].
    pub fn by_ethernet(&self) -> Result<()> {
        self.gw.address("dev0", &format!("{TUNNEL}/24"))?;
        self.gw.address("dev0", &format!("{TUNNEL6}/64"))?;
        self.device.address("eth0", &format!("{DEVICE}/24"))?;
        self.device.address("eth0", &format!("{DEVICE6}/64"))?;
        self.device.route("default", TUNNEL)?;
        self.device.route("default", TUNNEL6)
    }

    /// The gateway's configuration for this site; `interface` is the one that leads to devices, `folder` holds state, pins, socket and
    /// the certificates that [`crate::gateway`] makes.
    #[must_use]
    pub fn config(interface: &str, state: &std::path::Path, folder: &std::path::Path) -> String {
        let (state, folder) = (state.display(), folder.display());
        format!(
            r#"mode = "enforce"

[paths]
state = "{state}"
pins = "{folder}/bpf/lazaret"

[api]
listen = "{GATEWAY}:9443"
certificate = "{folder}/server.pem"
key = "{folder}/server.key"
client_ca = "{folder}/ca.pem"

[socket]
path = "{folder}/lazaret.sock"

[log]
level = "info"

[devices]
unknown = "refuse"

[tables]
addresses = 4096

[[interface]]
name = "{interface}"
role = "device"

[[interface]]
name = "core0"
role = "core"

[[pool]]
name = "quarantine"
kind = "quarantine"
prefixes = ["10.66.0.0/24", "fd00:66::/64"]
reserved = ["{TUNNEL}", "{TUNNEL6}"]
policy = "enrolment"
gateway_uri = "enrol.vpn.example.test"

[[pool]]
name = "staff"
kind = "full-service"
prefixes = ["10.67.0.0/24", "fd00:67::/64"]
policy = "everything"
fallback = "quarantine"
gateway_uri = "vpn.example.test"
lease = "12h"

[[policy]]
name = "enrolment"

[[policy.rule]]
to = ["{DM}/32", "{DM6}/128"]
protocol = "tcp"
ports = ["80"]

[[policy.rule]]
to = ["{RESOLVER}/32"]
protocol = "udp"
ports = ["53"]

[[policy]]
name = "everything"
allow = "all"
"#
        )
    }
}
