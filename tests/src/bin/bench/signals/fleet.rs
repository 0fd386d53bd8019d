//! A gateway, as a process of its own, with a million devices: its database is written directly, its kernel tables are its own work.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gateway_user::{
    clock::{Clock as _, SystemClock},
    model::{Device, DeviceState, Enrolment, Lease, Now, Rare, Revision, Session, SessionId, StateReason, Trust, WallTime},
    store::{ChangeSet, SqliteStore, Store as _},
};
use lazaret_tests::{
    gateway::Gateway,
    netns::Tun,
    site::{self, Site},
};

use crate::gateway::QUARANTINED;

/// A million.
pub(crate) const DEVICES: u32 = 1 << 20;
/// Devices of one commit while the database is made.
const CHUNK: u32 = 1 << 16;
/// When all of them were registered, in milliseconds: 2026-01-01.
pub(crate) const REGISTERED: WallTime = WallTime(1_767_225_600_000);

/// What is in the database.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Empty,
    /// A million devices.
    Registered,
    /// A million devices, each with a live session of one IPv4 address; another boot has written them.
    Connected,
    /// The same with an IPv6 address each, written by this boot.
    Both,
}

/// The gateway, running.
pub(crate) struct Fleet {
    pub(crate) gateway: Gateway,
    /// From its first start until it answered: as after a boot, since the database was written by "another" boot.
    pub(crate) first_start: Duration,
    _tun: Tun,
}

impl Fleet {
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        let site = Site::new()?;
        let mut gateway = Gateway::new(&site, "tun0")?;
        // The whole million is the quarantine pool's; the gateway has no address in it.
        let reserved = format!("reserved = [\"{}\", \"{}\"]", site::TUNNEL, site::TUNNEL6);
        let quarantine = match kind {
            Kind::Both => "prefixes = [\"10.64.0.0/12\", \"fd00:66::/64\"]",
            Kind::Empty | Kind::Registered | Kind::Connected => "prefixes = [\"10.64.0.0/12\"]",
        };
        gateway.configure("prefixes = [\"10.66.0.0/24\", \"fd00:66::/64\"]", quarantine)?;
        gateway.configure(&reserved, "reserved = []")?;
        gateway.configure(
            "prefixes = [\"10.67.0.0/24\", \"fd00:67::/64\"]",
            "prefixes = [\"10.80.0.0/16\"]",
        )?;
        gateway.configure("addresses = 4096", "addresses = 2097152")?;
        gateway.configure("level = \"info\"", "level = \"warn\"")?;
        if kind != Kind::Empty {
            fill(&gateway.folder().join("state"), kind)?;
        }
        let tun = Tun::new(&site.gw, "tun0")?;
        let start = Instant::now();
        gateway.start()?;
        let first_start = start.elapsed();
        gateway.attached("tun0")?;
        gateway.attached("core0")?;
        Ok(Self {
            gateway,
            first_start,
            _tun: tun,
        })
    }

    /// Waits until it has nothing to do any more: after its start it takes over what was measured by another boot's clock, device by device.
    pub(crate) fn settled(&self) -> Result<()> {
        let client = self.gateway.local()?;
        let mut last = None;
        for _ in 0..600 {
            let revision = client.status()?.store_revision;
            if last.replace(revision) == Some(revision) {
                return Ok(());
            }
            thread::sleep(Duration::from_secs(1));
        }
        bail!("it still commits after ten minutes")
    }

    /// Private pages of the process that are resident, bytes: the kernel's maps that are mapped into it are not.
    pub(crate) fn private_bytes(&mut self) -> Result<u64> {
        let id = self.gateway.daemon()?.id();
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("RssAnon:"))
            .context("no RssAnon")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// A database with the same content, for commits beside the gateway.
    pub(crate) fn copy_of_store(&mut self, folder: &Path) -> Result<(SqliteStore, Revision)> {
        self.gateway.stop()?;
        let (from, to) = (self.gateway.folder().join("state"), folder.join("state"));
        // Opened once, so that directory and files have the modes that are wanted.
        drop(SqliteStore::open(&to)?);
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        self.gateway.start()?;
        let mut store = SqliteStore::open(&to)?;
        let revision = store.load()?.revision;
        Ok((store, revision))
    }

    /// Ends the process in order and starts it again; from the start until it answers. Not adopted: what it has pinned is gone, as after a boot.
    pub(crate) fn restart(&mut self, adopted: bool) -> Result<Duration> {
        self.gateway.stop()?;
        if !adopted {
            fs::remove_dir_all(self.gateway.folder().join("bpf/lazaret")).context("the pins")?;
        }
        let start = Instant::now();
        self.gateway.start()?;
        Ok(start.elapsed())
    }

    /// Looks at some of them in the kernel.
    pub(crate) fn all_are_enforced(&self) -> Result<()> {
        let client = self.gateway.local()?;
        for n in [0, 1, 4711, DEVICES / 2, DEVICES - 1] {
            let address = address(n).to_string();
            let read = client.address(&address)?;
            ensure!(
                read.session_id == u64::from(n) + 1 && !read.current_pool.is_empty(),
                "{address} is not enforced: {read:?}"
            );
        }
        Ok(())
    }
}

/// The name of a device.
pub(crate) fn name(n: u32) -> String {
    format!("device-{n:07}")
}

/// A device that was registered.
pub(crate) fn device(n: u32) -> Result<Device> {
    Ok(Device {
        owner: format!("user{n:07}@example.org").into(),
        gateway_uri: "enrol.vpn.example.test".into(),
        ..Device::new(name(n).parse()?, "staff".parse()?, REGISTERED)
    })
}

/// The same when it has connected.
fn connected(n: u32, at: Now) -> Result<Device> {
    let device = device(n)?;
    let deadline = Lease {
        given: at,
        length_ms: 48 * 3_600_000,
    };
    Ok(Device {
        state: DeviceState::Quarantined,
        state_reason: StateReason::Connected,
        enrolment: Rare::new(Enrolment {
            arrived_at: Some(at.wall),
            deadline: Some(deadline),
            ..Enrolment::default()
        }),
        ..device
    })
}

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(QUARANTINED + n).into()
}

fn address6(n: u32) -> IpAddr {
    Ipv6Addr::from(0xfd00_0066 << 96 | u128::from(n)).into()
}

fn session(n: u32, kind: Kind) -> Result<Session> {
    Ok(Session {
        id: SessionId(u64::from(n) + 1),
        device: Some(name(n).parse()?),
        addresses: [address(n)]
            .into_iter()
            .chain((kind == Kind::Both).then(|| address6(n)))
            .collect(),
        interface: "tun0".parse()?,
        source: "vpn-1".parse()?,
        trust: Trust::Name,
        opened_at: REGISTERED,
    })
}

fn fill(directory: &Path, kind: Kind) -> Result<()> {
    let mut store = SqliteStore::open(directory)?;
    let mut revision = store.load()?.revision;
    let now = SystemClock::new()?.now();
    let another_boot = Now {
        boot_id: now.boot_id ^ 1,
        ..now
    };
    for start in (0..DEVICES).step_by(CHUNK as usize) {
        let mut changes = ChangeSet::default();
        for n in start..start + CHUNK {
            let device = match kind {
                Kind::Connected => connected(n, another_boot)?,
                Kind::Both => connected(n, now)?,
                Kind::Registered | Kind::Empty => device(n)?,
            };
            changes.devices.insert(device.id.clone(), device);
            if matches!(kind, Kind::Connected | Kind::Both) {
                let session = session(n, kind)?;
                changes.opened.insert(session.id, session);
            }
        }
        revision = store.commit(&changes, revision, REGISTERED)?.revision;
    }
    Ok(())
}
