//! The gateway under test: the shipping tables and programs, with a million addresses, on a veth pair's end in a namespace of its own.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    maps::{MapData, PerCpuArray, ProgramArray},
    programs::{ProgramFd, loaded_programs},
};
use gateway_user::{
    config::Config,
    dataplane::Live,
    kernel::{Assignment, Kernel as _, Link},
    model::{PoolId, SessionId},
};
use lazaret_tests::{
    netns::{Namespace, veth},
    scratch::Scratch,
};

/// First of the addresses: sixteen full /16s follow.
pub(crate) const FIRST: u32 = 0x0a40_0000;
/// log2 of how many.
pub(crate) const MILLION: u32 = 20;
/// First destination: /24s that the policy names, on ports 8000-8003.
pub(crate) const DESTINATION: u32 = 0x0ac8_0007;
/// log2 of how many /24s.
pub(crate) const DESTINATIONS: u32 = 4;
/// First port of the policy.
pub(crate) const PORT: u32 = 8000;
/// A port that no policy names.
pub(crate) const OTHER_PORT: u32 = 9000;

/// Number of the pools in [`config`].
const STAFF: PoolId = PoolId(2);

/// The configuration: a quarantine pool of sixteen /16s and a full-service pool.
pub(crate) fn config(directory: &Path, pins: &Path, interfaces: &str) -> Result<Config> {
    let to: Vec<String> = (0..1 << DESTINATIONS).map(|i| format!("\"10.200.{i}.0/24\"")).collect();
    let text = format!(
        r#"
[paths]
state = "{}"
pins = "{}"
[tables]
addresses = 1048576
{interfaces}
[[pool]]
name = "quarantine"
kind = "quarantine"
prefixes = ["10.64.0.0/12"]
policy = "dm"
gateway_uri = "quarantine.example.org"
[[pool]]
name = "staff"
kind = "full-service"
prefixes = ["10.128.0.0/16"]
policy = "all"
fallback = "quarantine"
gateway_uri = "vpn.example.org"
[[policy]]
name = "dm"
[[policy.rule]]
to = [{}]
protocol = "udp"
ports = ["8000-8003"]
[[policy]]
name = "all"
allow = "all"
"#,
        directory.display(),
        pins.display(),
        to.join(", ")
    );
    Config::parse(Path::new("bench.toml"), &text).map_err(|e| anyhow!("{e}"))
}

/// The shipping data plane, live in a namespace. Pins and programs are gone with it.
pub(crate) struct Gateway {
    pub(crate) live: Live,
    _scratch: Scratch,
}

impl Gateway {
    /// Loads and attaches in `namespace`, to which `links` belong.
    pub(crate) fn new(namespace: &Namespace, interfaces: &str, links: &[Link]) -> Result<Self> {
        let mut scratch = Scratch::new("bench")?;
        let bpffs = scratch.bpffs("bpf")?;
        let config = config(&scratch.path().join("state"), &bpffs.join("lazaret"), interfaces)?;
        let live = namespace.run(|| -> Result<Live> {
            let mut live = Live::open(&config)?;
            live.set_links(links);
            Ok(live)
        })?;
        Ok(Self { live, _scratch: scratch })
    }

    /// Releases every address, through the calls that the controller makes.
    pub(crate) fn release_all(&mut self) -> Result<()> {
        for i in 0..1_u32 << MILLION {
            let to = Assignment {
                pool: STAFF,
                session: SessionId(u64::from(i) + 1),
                lease: None,
            };
            self.live.assign(IpAddr::V4(Ipv4Addr::from(FIRST + i)), to)?;
        }
        Ok(())
    }

    /// Quarantines every address again.
    pub(crate) fn quarantine_all(&mut self) -> Result<()> {
        (0..1_u32 << MILLION).try_for_each(|i| Ok(self.live.clear(IpAddr::V4(Ipv4Addr::from(FIRST + i)))?))
    }

    /// Packets by reason number, over all pools.
    pub(crate) fn counts(&self, reason: u8) -> Result<u64> {
        Ok(self
            .live
            .counters()?
            .iter()
            .map(|(_, c)| c[usize::from(reason)].packets)
            .sum())
    }
}

/// A device interface for the programs to be attached to, and its line in the configuration.
pub(crate) fn device_link(namespace: &Namespace, name: &str) -> Result<(&'static str, Link)> {
    veth((namespace, name), (namespace, "peer0"))?;
    let link = Link {
        ifindex: namespace.ifindex(name)?,
        name: name.parse()?,
        ethernet: true,
    };
    Ok(("[[interface]]\nname = \"dev0\"\nrole = \"device\"\n", link))
}

/// A program of the kernel, by the name that it has in the object.
pub(crate) fn loaded(name: &str) -> Result<ProgramFd> {
    // The newest one: an earlier run's may still be on its way out.
    let found = loaded_programs()
        .flatten()
        .filter(|p| p.name_as_str() == Some(name))
        .max_by_key(aya::programs::ProgramInfo::id);
    Ok(found.with_context(|| format!("no program {name} is loaded"))?.fd()?)
}

/// The benchmark's own programs.
pub(crate) struct Bench(aya::Ebpf);

impl Bench {
    /// Loads them.
    pub(crate) fn load() -> Result<Self> {
        let mut ebpf = aya::Ebpf::load(&std::fs::read(xtask_object()?)?)?;
        for name in ["bench_empty", "bench_prologue", "bench_generate"] {
            let program: &mut aya::programs::Xdp = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load()?;
        }
        let sink: &mut aya::programs::SchedClassifier = ebpf.program_mut("bench_sink").context("bench_sink")?.try_into()?;
        sink.load()?;
        Ok(Self(ebpf))
    }

    /// A program's descriptor.
    pub(crate) fn fd(&self, name: &str) -> Result<ProgramFd> {
        let program: &aya::programs::Xdp = self.0.program(name).context("no such program")?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    /// What is drawn from now on.
    pub(crate) fn draw(&mut self, source_bits: u32, port: u32, ifindex: u32) -> Result<()> {
        let mut map: aya::maps::Array<&mut MapData, [u32; 8]> = self.0.map_mut("DRAW").context("DRAW")?.try_into()?;
        Ok(map.set(0, [FIRST, source_bits, DESTINATION, DESTINATIONS, port, ifindex, 12345, 0], 0)?)
    }

    /// The program that the prologue calls.
    pub(crate) fn under_test(&mut self, program: &ProgramFd) -> Result<()> {
        let mut map: ProgramArray<&mut MapData> = self.0.map_mut("JUMP").context("JUMP")?.try_into()?;
        Ok(map.set(0, program, 0)?)
    }

    /// Attaches the sink to an interface of the calling thread's namespace; it counts and drops what arrives.
    pub(crate) fn sink(&mut self, interface: &str) -> Result<()> {
        let sink: &mut aya::programs::SchedClassifier = self.0.program_mut("bench_sink").context("bench_sink")?.try_into()?;
        sink.attach(interface, aya::programs::TcAttachType::Ingress)?;
        Ok(())
    }

    /// Frames sent, frames that arrived.
    pub(crate) fn counts(&self) -> Result<(u64, u64)> {
        let map: PerCpuArray<&MapData, u64> = self.0.map("COUNT").context("COUNT")?.try_into()?;
        let sum = |slot| -> Result<u64> { Ok(map.get(&slot, 0)?.iter().sum()) };
        Ok((sum(0)?, sum(1)?))
    }
}

/// Path of the benchmark's BPF object, as `cargo xtask bench` made it.
fn xtask_object() -> Result<std::path::PathBuf> {
    std::env::var_os("LAZARET_BENCH_OBJECT")
        .map(Into::into)
        .context("run it by `cargo xtask bench`")
}
