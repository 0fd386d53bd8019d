//! The benchmark's own programs: loaded, told what to draw, and read.

use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, ProgramArray, lpm_trie::Key},
    programs::{Program, ProgramFd, SchedClassifier, TcAttachType, Xdp, xdp::XdpMode},
};

use gateway_ebpf::abi::map;

use crate::gateway::{PORT, PORT_BITS};

/// What is drawn, and the interface to send from.
#[derive(Clone, Copy)]
pub(crate) struct Draw {
    /// State of the generator at the start.
    pub(crate) seed: u32,
    /// First source, host order.
    pub(crate) source: u32,
    /// The bits that are drawn, below `1 << (32 - shift)`.
    pub(crate) mask: u32,
    /// The upper bits of the generator are the random ones: how far they come down.
    pub(crate) shift: u32,
    /// First destination port.
    pub(crate) port: u32,
    /// log2 of how many ports.
    pub(crate) port_bits: u32,
    /// Interface to send from.
    pub(crate) ifindex: u32,
}

impl Draw {
    /// `1 << bits` sources from `source` on; as many ports as the policies name.
    pub(crate) const fn sources(source: u32, bits: u32, port: u32) -> Self {
        Self {
            seed: 12345,
            source,
            mask: ((1_u64 << bits) - 1) as u32,
            shift: if bits == 0 { 31 } else { 32 - bits },
            port,
            port_bits: PORT_BITS,
            ifindex: 0,
        }
    }
}

/// First destination: /24s that the policy names.
pub(crate) const DESTINATION: u32 = 0x0ac8_0007;
/// How many /24s.
pub(crate) const DESTINATIONS: u32 = 32;

/// The programs, loaded.
pub(crate) struct Bench(aya::Ebpf);

impl Bench {
    /// Loads them. `reference`: with room for this many addresses in the references. `maps`: where the maps of the gateway are pinned that
    /// the reference for IPv6 shares.
    pub(crate) fn load(reference: u32, maps: Option<&Path>) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for name in ["K_CLASS", "H_CLASS"] {
            loader.map_max_entries(name, reference.max(1));
        }
        let shared: Vec<_> = maps
            .into_iter()
            .flat_map(|maps| [map::CONTROL, map::HOMES6, map::POLICY].map(|name| (name, maps.join(name))))
            .collect();
        for (name, path) in &shared {
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader.load(&std::fs::read(object()?)?)?;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(p) => p.load(),
                Program::SchedClassifier(p) => p.load(),
                _ => bail!("{name} is of another type"),
            }
            .with_context(|| name.to_owned())?;
        }
        Ok(Self(ebpf))
    }

    /// A program's descriptor.
    pub(crate) fn fd(&self, name: &str) -> Result<ProgramFd> {
        let fd = match self.0.program(name).context("no such program")? {
            Program::Xdp(p) => p.fd()?.try_clone()?,
            Program::SchedClassifier(p) => p.fd()?.try_clone()?,
            _ => bail!("{name} is of another type"),
        };
        Ok(fd)
    }

    /// What is drawn from now on: the same packets for the same `draw`.
    pub(crate) fn draw(&mut self, draw: &Draw) -> Result<()> {
        let mut map: Array<&mut MapData, [u32; 9]> = self.0.map_mut(".bss").context(".bss")?.try_into()?;
        let value = [
            draw.seed,
            draw.source,
            draw.shift,
            draw.mask,
            DESTINATION,
            DESTINATIONS - 1,
            draw.port,
            (1 << draw.port_bits) - 1,
            draw.ifindex,
        ];
        Ok(map.set(0, value, 0)?)
    }

    /// The program that the prologues call; `linear`: it takes frames in one piece only.
    pub(crate) fn under_test(&mut self, program: &ProgramFd, linear: bool) -> Result<()> {
        let name = if linear { "JUMP_LINEAR" } else { "JUMP" };
        let mut map: ProgramArray<&mut MapData> = self.0.map_mut(name).context(name)?.try_into()?;
        Ok(map.set(0, program, 0)?)
    }

    /// Attaches the sink to an interface of the calling thread's namespace; it counts and drops what arrives.
    pub(crate) fn sink(&mut self, interface: &str) -> Result<()> {
        self.tc("bench_sink", interface)
    }

    /// Attaches a TC program at ingress, in the calling thread's namespace.
    pub(crate) fn tc(&mut self, name: &str, interface: &str) -> Result<()> {
        let program: &mut SchedClassifier = self.0.program_mut(name).context("no such program")?.try_into()?;
        program.attach(interface, TcAttachType::Ingress)?;
        Ok(())
    }

    /// Attaches an XDP program natively while `run` runs. So the kernel's dispatcher knows it, and a test run needs not wait to tell it.
    pub(crate) fn held<T>(&mut self, name: &str, interface: &str, run: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let attach = |bench: &mut Self| -> Result<_> {
            let program: &mut Xdp = bench.0.program_mut(name).context("no such program")?.try_into()?;
            Ok(program.attach(interface, XdpMode::Driver)?)
        };
        let link = attach(self)?;
        let result = run(self);
        let program: &mut Xdp = self.0.program_mut(name).context("no such program")?.try_into()?;
        program.detach(link)?;
        result
    }

    /// Attaches an XDP program natively, in the calling thread's namespace.
    pub(crate) fn xdp(&mut self, name: &str, interface: &str) -> Result<()> {
        let program: &mut Xdp = self.0.program_mut(name).context("no such program")?.try_into()?;
        program.attach(interface, XdpMode::Driver)?;
        Ok(())
    }

    /// Frames sent, arrived; passed and dropped by a reference.
    pub(crate) fn counts(&self) -> Result<[u64; 4]> {
        let map: PerCpuArray<&MapData, u64> = self.0.map("COUNT").context("COUNT")?.try_into()?;
        let mut all = [0; 4];
        for (slot, count) in (0..).zip(&mut all) {
            *count = map.get(&slot, 0)?.iter().sum();
        }
        Ok(all)
    }

    /// Fills the reference for IPv6.
    pub(crate) fn fill_hash6(&mut self, classes: impl Iterator<Item = (Ipv6Addr, u64)>) -> Result<()> {
        let mut map: HashMap<&mut MapData, [u8; 16], u64> = self.0.map_mut("H_CLASS").context("H_CLASS")?.try_into()?;
        for (address, class) in classes {
            map.insert(address.octets(), class, 0)?;
        }
        Ok(())
    }

    /// Fills the hash + LPM + hash reference: a class for each address, and for each class all destinations and ports.
    pub(crate) fn fill_reference(&mut self, classes: impl Iterator<Item = (u32, u32)>) -> Result<()> {
        let mut class: HashMap<&mut MapData, u32, u32> = self.0.map_mut("K_CLASS").context("K_CLASS")?.try_into()?;
        let mut used = std::collections::BTreeSet::new();
        for (address, number) in classes {
            class.insert(address, number, 0)?;
            used.insert(number);
        }
        let mut group: LpmTrie<&mut MapData, [u8; 4], u32> = self.0.map_mut("K_GROUP").context("K_GROUP")?.try_into()?;
        for i in 0..DESTINATIONS {
            group.insert(&Key::new(24, (DESTINATION + (i << 8)).to_be_bytes()), i + 1, 0)?;
        }
        let mut rule: HashMap<&mut MapData, u64, u32> = self.0.map_mut("K_RULE").context("K_RULE")?.try_into()?;
        for number in used {
            for (group, port) in (1..=DESTINATIONS).flat_map(|g| (PORT..PORT + (1 << PORT_BITS)).map(move |p| (g, p))) {
                let key = u64::from(number) << 48 | u64::from(group) << 24 | 17 << 16 | u64::from(port);
                rule.insert(key, 1, 0)?;
            }
        }
        Ok(())
    }
}

/// Path of the benchmark's BPF object, as `cargo xtask bench` made it.
fn object() -> Result<PathBuf> {
    std::env::var_os("LAZARET_BENCH_OBJECT")
        .map(Into::into)
        .context("run it by `cargo xtask bench`")
}
