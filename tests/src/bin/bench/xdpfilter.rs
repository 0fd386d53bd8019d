//! Debian's xdp-filter, its own object: packets from listed addresses pass, others are dropped.

use anyhow::{Context as _, Result};
use aya::{
    EbpfLoader,
    maps::{MapData, PerCpuHashMap, PerCpuValues},
    programs::{ProgramFd, Xdp, xdp::XdpMode},
};
use lazaret_tests::scratch::Scratch;

/// Denies by default, looks at IP addresses.
pub(crate) const OBJECT: &str = "/usr/lib/x86_64-linux-gnu/bpf/xdpfilt_dny_ip.o";
/// MAP_FLAG_SRC of its sources: the address counts as a source.
const SOURCE: u64 = 1;

/// It, loaded.
pub(crate) struct XdpFilter {
    ebpf: aya::Ebpf,
    name: String,
    _scratch: Scratch,
}

impl XdpFilter {
    /// Loads it with room for as many addresses as there are.
    pub(crate) fn load(addresses: impl ExactSizeIterator<Item = u32>) -> Result<Self> {
        let mut scratch = Scratch::new("xdp-filter")?;
        let pins = scratch.bpffs("bpf")?;
        let room = u32::try_from(addresses.len())?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .map_max_entries("filter_ipv4", room)
            .load_file(OBJECT)?;
        let name = ebpf.programs().next().context("it has no program")?.0.to_owned();
        let program: &mut Xdp = ebpf.program_mut(&name).context("it has no program")?.try_into()?;
        program.load()?;
        let mut map: PerCpuHashMap<&mut MapData, [u8; 4], u64> =
            ebpf.map_mut("filter_ipv4").context("filter_ipv4")?.try_into()?;
        let cpus = aya::util::nr_cpus().map_err(|(what, e)| anyhow::anyhow!("{what}: {e}"))?;
        for address in addresses {
            map.insert(address.to_be_bytes(), PerCpuValues::try_from(vec![SOURCE; cpus])?, 0)?;
        }
        Ok(Self {
            ebpf,
            name,
            _scratch: scratch,
        })
    }

    /// Its program.
    pub(crate) fn fd(&self) -> Result<ProgramFd> {
        let program: &Xdp = self.ebpf.program(&self.name).context("it has no program")?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    /// Attaches it natively, in the calling thread's namespace.
    pub(crate) fn attach(&mut self, interface: &str) -> Result<()> {
        let program: &mut Xdp = self.ebpf.program_mut(&self.name).context("it has no program")?.try_into()?;
        program.attach(interface, XdpMode::Driver)?;
        Ok(())
    }
}
