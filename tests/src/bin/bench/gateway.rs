//! The gateway under test: the shipping tables and programs, with live sessions, in a namespace of its own.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::{ProgramFd, loaded_programs};
use gateway_ebpf::abi::VERSION;
use gateway_user::{
    config::{Config, InterfaceRole},
    dataplane::{Bound, Live, Mover},
    kernel::{Assignment, HookPoint, Kernel as _, Link},
    model::{BootTime, InterfaceName, PoolId, SessionId},
};
use lazaret_tests::{netns::Namespace, scratch::Scratch};

use crate::programs::DESTINATIONS;

/// log2 of a million.
pub(crate) const MILLION: u32 = 20;
/// Sixteen full /16s whose sessions are quarantined.
pub(crate) const QUARANTINED: u32 = 0x0a40_0000;
/// Sixteen full /16s whose sessions are released, with a lease.
pub(crate) const RELEASED: u32 = 0x0a50_0000;
/// A /8 without sessions: at rest.
pub(crate) const RESTING: u32 = 0x0b00_0000;
/// First port that the policies name.
pub(crate) const PORT: u32 = 8000;
/// log2 of how many.
pub(crate) const PORT_BITS: u32 = 4;
/// A port that no policy names.
pub(crate) const OTHER_PORT: u32 = 9000;
/// Quarantine pools: each has a /17 of either million.
pub(crate) const POOLS: u32 = 32;
/// Number of the full-service pool in [`config`].
const STAFF: PoolId = PoolId(POOLS as u8 + 1);

/// The quarantine pool of an address in either million, from 0.
pub(crate) const fn pool(address: u32) -> u32 {
    (address >> 15) & (POOLS - 1)
}

/// The id of a quarantine pool of this number, from 0.
pub(crate) const fn quarantine(number: u32) -> PoolId {
    PoolId(number as u8 + 1)
}

/// The number-th address of the benchmark's IPv6 devices, as the prologue draws it: the identifier is spread over all bits.
pub(crate) fn address6(number: u32) -> Ipv6Addr {
    let id = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [a, b, c, d, e, f, g, h] = id.to_le_bytes();
    let pair = |x, y| u16::from_be_bytes([x, y]);
    Ipv6Addr::new(0xfd40, 0, 0, 0, pair(a, b), pair(c, d), pair(e, f), pair(g, h))
}

/// The configuration: 32 quarantine pools with a policy each, and a full-service pool that may reach everything.
fn config(directory: &Path, pins: &Path, interfaces: &str) -> Result<Config> {
    let mut text = format!(
        r#"
[paths]
state = "{}"
pins = "{}"
[tables]
addresses = 4194304
buckets6 = 2097152
{interfaces}
"#,
        directory.display(),
        pins.display(),
    );
    for i in 0..POOLS {
        let more = if i == 0 { ", \"11.0.0.0/8\", \"fd40::/32\"" } else { "" };
        write!(
            text,
            r#"
[[pool]]
name = "quarantine{i}"
kind = "quarantine"
prefixes = ["{}/17", "{}/17"{more}]
policy = "dm{i}"
gateway_uri = "quarantine.example.org"
"#,
            Ipv4Addr::from(QUARANTINED + (i << 15)),
            Ipv4Addr::from(RELEASED + (i << 15)),
        )?;
        // A rule for each destination and half of the ports, so that the tables are as large as those of a site with many services.
        write!(text, "[[policy]]\nname = \"dm{i}\"\n")?;
        let half = 1 << (PORT_BITS - 1);
        let rule = |to: String, first: u32| {
            let last = first + half - 1;
            format!("[[policy.rule]]\nto = [\"{to}\"]\nprotocol = \"udp\"\nports = [\"{first}-{last}\"]\n")
        };
        for first in [PORT, PORT + half] {
            text.extend((0..DESTINATIONS).map(|d| rule(format!("10.200.{d}.0/24"), first)));
            text += &rule("2001:db8:200::/59".to_owned(), first);
        }
    }
    text += r#"
[[pool]]
name = "staff"
kind = "full-service"
prefixes = ["10.128.0.0/16"]
policy = "all"
fallback = "quarantine0"
gateway_uri = "vpn.example.org"
[[policy]]
name = "all"
allow = "all"
"#;
    Config::parse(Path::new("bench.toml"), &text).map_err(|e| anyhow!("{e}"))
}

/// The shipping data plane, live in a namespace. Pins and programs are gone with it.
pub(crate) struct Gateway {
    pub(crate) live: Live,
    /// Where the sessions are.
    interface: InterfaceName,
    namespace: Namespace,
    maps: PathBuf,
    number: u64,
    _scratch: Scratch,
}

/// Which sessions to open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// None: everything is at rest.
    None,
    /// A million quarantined.
    Quarantined,
    /// A million quarantined, a million released, and a million quarantined with IPv6.
    All,
}

impl Gateway {
    /// Loads and attaches in `namespace`, to which `links` belong, and opens the sessions by the calls that the controller makes.
    pub(crate) fn new(namespace: &Namespace, interfaces: &str, links: &[Link], sessions: Sessions) -> Result<Self> {
        let mut scratch = Scratch::new("bench")?;
        let bpffs = scratch.bpffs("bpf")?;
        let config = config(&scratch.path().join("state"), &bpffs.join("lazaret"), interfaces)?;
        let live = namespace.run(|| -> Result<Live> {
            let mut live = Live::open(&config)?;
            live.set_links();
            Ok(live)
        })?;
        let device = links.iter().find(|l| config.role(&l.name) == Some(InterfaceRole::Device));
        let interface = device.or(links.first()).context("no interface is given")?.name.clone();
        let mut gateway = Self {
            live,
            interface,
            namespace: namespace.clone(),
            maps: bpffs.join(format!("lazaret/v{VERSION}/maps")),
            number: 0,
            _scratch: scratch,
        };
        gateway.open(sessions)?;
        Ok(gateway)
    }

    fn open(&mut self, sessions: Sessions) -> Result<()> {
        if sessions == Sessions::None {
            return Ok(());
        }
        for i in 0..1_u32 << MILLION {
            self.assign(v4(QUARANTINED + i), quarantine(pool(i)), None)?;
        }
        if sessions == Sessions::Quarantined {
            return Ok(());
        }
        let end = lease_end();
        self.live.set_earliest_lease_end(Some(end));
        for i in 0..1_u32 << MILLION {
            self.assign(v4(RELEASED + i), STAFF, Some((end, quarantine(pool(i)))))?;
            self.assign(address6(i).into(), quarantine(0), None)?;
        }
        Ok(())
    }

    /// Binds an address to a pool, as the controller does, with the record of its session.
    pub(crate) fn assign(&mut self, address: IpAddr, pool: PoolId, lease: Option<(BootTime, PoolId)>) -> Result<()> {
        self.number += 1;
        let to = Assignment {
            pool,
            session: SessionId(self.number),
            interface: self.interface.clone(),
            lease,
        };
        Ok(self.live.assign(address, to)?)
    }

    /// A mover of class bytes, and the classes of the quarantine pools.
    pub(crate) fn mover(&mut self) -> Result<(Mover<'_>, Vec<Bound>)> {
        let interface = self.interface.clone();
        let mut mover = self.live.mover();
        let classes: Result<Vec<Bound>, _> = (0..POOLS).map(|p| mover.class(quarantine(p), &interface)).collect();
        Ok((mover, classes?))
    }

    /// The pool that judges an address, read by system call.
    pub(crate) fn judged_by(&self, address: u32) -> Result<Option<PoolId>> {
        Ok(self.live.read(v4(address))?.pool)
    }

    /// Where the maps are pinned.
    pub(crate) fn maps(&self) -> &Path {
        &self.maps
    }

    /// The program of ours that is attached now.
    pub(crate) fn attached(&mut self, interface: &str, hook: HookPoint) -> Result<ProgramFd> {
        let live = &mut self.live;
        let states = self.namespace.run(|| live.interfaces())?;
        let state = states.iter().find(|s| s.name == interface).context("no such interface")?;
        let hook = state.hooks.iter().find(|h| h.hook == hook).context("no such hook")?;
        let Some(id) = hook.program_id else {
            bail!("nothing is attached to {interface}: {}", hook.problem);
        };
        let found = loaded_programs().flatten().find(|p| p.id() == id);
        Ok(found.with_context(|| format!("no program {id} is loaded"))?.fd()?)
    }

    /// Packets by reason number, over all pools.
    pub(crate) fn counts(&self, reason: u8) -> Result<u64> {
        let counters = self.live.counters()?;
        Ok(counters.iter().map(|(_, c)| c[usize::from(reason)].packets).sum())
    }
}

pub(crate) fn v4(address: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(address))
}

/// An hour from now: no lease ends during a run, and each packet is checked against it.
fn lease_end() -> BootTime {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    BootTime((now + Duration::from_secs(3600)).as_nanos() as u64)
}

/// A link of the gateway with an Ethernet header, or without.
pub(crate) fn link(namespace: &Namespace, name: &str, ethernet: bool) -> Result<Link> {
    Ok(Link {
        ifindex: namespace.ifindex(name)?,
        name: name.parse()?,
        ethernet,
    })
}
