//! Our programs on the hooks of interfaces: attached by pinned links, replaced on them in place, and asked for from the kernel. Which
//! interface has which role is the configuration's; what the tables hold is not known here.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use gateway_ebpf::abi::program;

use super::{
    bpf::{self, Attach, AttachType, Attached, ProgramInfo},
    filter::{Filters, Side},
    maps,
    programs::{Held, Programs},
};
use crate::{
    config::{Config, InterfaceRole, Mode, XdpMode},
    kernel::{HookPoint, HookState, Link},
    links::LinkNow,
};

/// Every program of the object.
pub(super) const PROGRAMS: [&str; 9] = [
    program::XDP_DEVICE,
    program::XDP_CORE,
    program::TC_DEVICE_ETH,
    program::TC_CORE_ETH,
    program::TC_DEVICE_IP,
    program::TC_CORE_IP,
    program::TC_EGRESS_ETH,
    program::TC_EGRESS_IP,
    program::TC_GUARD,
];

/// A place for one program of ours on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    Xdp,
    Ingress,
    Egress,
    Guard,
}

impl Slot {
    const ALL: [Self; 4] = [Self::Xdp, Self::Ingress, Self::Egress, Self::Guard];

    /// As in the name of its pin.
    fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Guard => "guard",
        }
    }

    fn attach_type(self) -> AttachType {
        match self {
            Self::Xdp => AttachType::Xdp,
            Self::Ingress => AttachType::TcxIngress,
            Self::Egress | Self::Guard => AttachType::TcxEgress,
        }
    }

    /// The program that belongs there; `None`: no program does.
    pub(super) fn program(self, role: InterfaceRole, ethernet: bool, xdp: XdpMode) -> Option<&'static str> {
        use InterfaceRole::{Core, Device};
        match (self, role, ethernet) {
            (Self::Xdp, ..) if !ethernet || xdp == XdpMode::Off => None,
            (Self::Xdp, Device, _) => Some(program::XDP_DEVICE),
            (Self::Xdp, Core, _) => Some(program::XDP_CORE),
            (Self::Ingress, Device, true) => Some(program::TC_DEVICE_ETH),
            (Self::Ingress, Core, true) => Some(program::TC_CORE_ETH),
            (Self::Ingress, Device, false) => Some(program::TC_DEVICE_IP),
            (Self::Ingress, Core, false) => Some(program::TC_CORE_IP),
            (Self::Egress | Self::Guard, Core, _) => None,
            (Self::Egress, Device, true) => Some(program::TC_EGRESS_ETH),
            (Self::Egress, Device, false) => Some(program::TC_EGRESS_IP),
            (Self::Guard, Device, _) => Some(program::TC_GUARD),
        }
    }
}

/// A loaded program.
pub(super) struct Program {
    pub(super) fd: OwnedFd,
    pub(super) id: u32,
}

/// Our programs, and the directory that their links are pinned in as `INDEX-SLOT`.
pub(super) struct Hooks {
    programs: HashMap<&'static str, Program>,
    pins: PathBuf,
    /// What the last attempt to attach said.
    problems: HashMap<(u32, Slot), String>,
    /// By index, why an interface's entry is missing.
    missing: HashMap<u32, String>,
    /// By index, what came of asking the driver to show VLAN tags to XDP; empty: it does.
    offload: HashMap<u32, String>,
    /// Behind the egress programs.
    filters: Filters,
}

impl Hooks {
    /// Takes over the links of other ABI versions under `root`, so that their programs are replaced in place, without a gap.
    pub(super) fn new(programs: HashMap<&'static str, Program>, root: &Path, pins: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&pins)?;
        for other in versions(root)?.into_iter().map(|v| v.join("links")).filter(|l| *l != pins) {
            for pin in entries(&other)? {
                let to = pins.join(pin.file_name().unwrap_or_default());
                if !to.exists() {
                    fs::rename(&pin, to)?;
                }
            }
        }
        Ok(Self {
            programs,
            pins,
            problems: HashMap::new(),
            missing: HashMap::new(),
            offload: HashMap::new(),
            filters: Filters::new(),
        })
    }

    /// Attaches our programs where they belong, replaces others' of ours in place, and removes links that belong nowhere any more. Before
    /// an egress link is removed, `unjudge` is called with the index; if that fails, the link stays until the next call.
    pub(super) fn attach(&mut self, config: &Config, links: &[LinkNow], unjudge: impl Fn(u32) -> Result<(), String>) {
        let before = std::mem::take(&mut self.problems);
        self.offload.retain(|index, _| links.iter().any(|l| l.link.ifindex == *index));
        let mut told = Ok(());
        for pin in entries(&self.pins).unwrap_or_default() {
            let wanted = parse_pin(&pin).filter(|(index, slot)| {
                links
                    .iter()
                    .any(|l| l.link.ifindex == *index && wanted(config, &l.link, *slot).is_some())
            });
            if wanted.is_none() {
                // Without the judge the floor must not let the host send there. If it cannot be told now, it is not asked again now.
                if let Some((index, Slot::Egress | Slot::Guard)) = parse_pin(&pin) {
                    told = told.and_then(|()| unjudge(index));
                    if let Err(e) = &told {
                        tracing::error!("{} stays: the floor: {e}", pin.display());
                        continue;
                    }
                }
                if let Err(e) = cut(&pin) {
                    tracing::warn!("removing {}: {e}", pin.display());
                }
            }
        }
        for now in links {
            // The egress judge and the guard first: until they are there, the floor keeps the interface closed.
            for slot in [Slot::Egress, Slot::Guard, Slot::Ingress, Slot::Xdp] {
                let Some(name) = wanted(config, &now.link, slot) else {
                    continue;
                };
                if slot == Slot::Xdp {
                    let asked = self.offload.entry(now.link.ifindex);
                    asked.or_insert_with(|| offload_off(&now.link));
                }
                if let Err(e) = self.attach_one(config, now, slot, name) {
                    let place = (now.link.ifindex, slot);
                    if before.get(&place) != Some(&e) {
                        tracing::warn!(interface = %now.link.name, hook = slot.name(), "{e}");
                    }
                    self.problems.insert(place, e);
                }
            }
        }
        // Behind the judge: before it, what is to pass has no mark yet.
        let carrying: BTreeSet<u32> = links.iter().filter_map(|l| l.lower).collect();
        self.filters.set(links, |now, side| {
            let device = config.mode == Mode::Enforce && config.role(&now.link.name) == Some(InterfaceRole::Device);
            device && (side == Side::Egress || now.master.is_some() || carrying.contains(&now.link.ifindex))
        });
    }

    /// Takes note of the interfaces whose entry could not be written.
    pub(super) fn missing(&mut self, missing: HashMap<u32, String>) {
        for (index, new) in missing.iter().filter(|(i, why)| self.missing.get(i) != Some(why)) {
            tracing::error!(ifindex = index, "{new}");
        }
        self.missing = missing;
    }

    fn attach_one(&self, config: &Config, now: &LinkNow, slot: Slot, name: &str) -> Result<(), String> {
        let program = self
            .programs
            .get(name)
            .ok_or_else(|| format!("the BPF object has no program {name}"))?;
        let (ifindex, mode) = (now.link.ifindex, xdp_mode(config, &now.link));
        let pin = self.pins.join(format!("{ifindex}-{}", slot.name()));
        if let Ok(link) = bpf::open_pin(&pin) {
            match Self::adopt(&link, now, slot, mode, program) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // What it would go on judging by, nobody may be writing any more.
                Err(e) => {
                    tracing::warn!(interface = %now.link.name, "{name} cannot be replaced in place, so it is attached anew: {e}")
                }
            }
            // Or cut by hand, of another interface or namespace, or of another mode: it judges nothing here.
            cut(&pin).map_err(|e| format!("removing {}: {e}", pin.display()))?;
        }
        let how = match (slot, mode) {
            (Slot::Xdp, XdpMode::Generic) => Attach::XdpGeneric,
            (Slot::Xdp, _) => Attach::XdpNative,
            (Slot::Guard, _) => Attach::Last,
            (Slot::Ingress | Slot::Egress, _) => Attach::First,
        };
        match bpf::link_create(program.fd.as_fd(), ifindex, slot.attach_type(), how) {
            Ok(link) => {
                bpf::pin(link.as_fd(), &pin).map_err(|e| format!("pinning {}: {e}", pin.display()))?;
                tracing::info!(interface = %now.link.name, ifindex, program = name, id = program.id, "attached");
                Ok(())
            }
            // The driver has no XDP: the TC program judges in full.
            Err(e) if slot == Slot::Xdp && mode == XdpMode::Auto && e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            Err(e) if slot == Slot::Xdp => Err(format!("XDP cannot be attached, TC judges: {e}")),
            Err(e) => Err(format!("attaching {name}: {e}")),
        }
    }

    /// Puts our program on a link of ours, if that is really attached to this interface, by the kernel's account.
    fn adopt(link: &OwnedFd, now: &LinkNow, slot: Slot, mode: XdpMode, program: &Program) -> io::Result<bool> {
        let info = bpf::link_info(link.as_fd())?;
        let here = info.ifindex == now.link.ifindex
            && match slot {
                Slot::Xdp => now
                    .xdp
                    .is_some_and(|x| x.program == info.program && x.native == (mode != XdpMode::Generic)),
                _ => bpf::query(now.link.ifindex, slot.attach_type())?
                    .iter()
                    .any(|a| a.link == info.id),
            };
        if !here || info.program == program.id {
            return Ok(here);
        }
        match bpf::link_update(link.as_fd(), program.fd.as_fd()) {
            Ok(()) => Ok(true),
            // The interface went away meanwhile.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether our programs judge at the egress of an interface, with the guard behind them, and the kernel's own filter behind both: then the
    /// floor may let the host send to it.
    pub(super) fn judges_egress(&self, config: &Config, link: &Link) -> bool {
        self.guarded(config, link) && self.filters.missing(link.ifindex, Side::Egress).is_none()
    }

    fn guarded(&self, config: &Config, link: &Link) -> bool {
        let Ok(attached) = bpf::query(link.ifindex, AttachType::TcxEgress) else {
            return false;
        };
        let place = |slot| {
            let ours = self.programs.get(wanted(config, link, slot)?)?;
            attached.iter().position(|a| a.program == ours.id)
        };
        matches!((place(Slot::Egress), place(Slot::Guard)), (Some(judge), Some(guard)) if judge < guard)
    }

    /// The hooks of an interface as they are now. `no_metadata`: XDP has found no room there to tell its companion anything.
    pub(super) fn states(&self, config: &Config, now: &LinkNow, all: &[LinkNow], no_metadata: bool) -> Vec<HookState> {
        let mut states = Vec::new();
        if let Some(name) = wanted(config, &now.link, Slot::Xdp) {
            let ours = now.xdp.filter(|x| self.is_ours(x.program, name));
            let problem = match (ours, now.xdp) {
                (None, Some(foreign)) => format!("{} is attached instead of ours; TC judges", describe(foreign.program)),
                (Some(_), _) => joined([
                    self.problem(&now.link, Slot::Xdp),
                    self.offload.get(&now.link.ifindex).cloned().unwrap_or_default(),
                    if no_metadata { NO_METADATA.to_owned() } else { String::new() },
                ]),
                _ => self.problem(&now.link, Slot::Xdp),
            };
            states.push(HookState {
                hook: HookPoint::Xdp,
                mode: ours.map_or("", |x| if x.native { "native" } else { "generic" }),
                program_id: ours.map(|x| x.program),
                problem,
            });
        }
        for (slot, hook) in [(Slot::Ingress, HookPoint::TcIngress), (Slot::Egress, HookPoint::TcEgress)] {
            let Some(name) = wanted(config, &now.link, slot) else {
                continue;
            };
            states.push(self.tc_state(config, now, slot, hook, name));
        }
        let over = crate::links::over(now, all);
        if let Some(state) = states.iter_mut().find(|s| s.hook == HookPoint::TcIngress)
            && config.role(&now.link.name) == Some(InterfaceRole::Device)
            && !over.is_empty()
        {
            let filter = self.filters.missing(now.link.ifindex, Side::Ingress);
            let filter = filter.filter(|_| config.mode == Mode::Enforce);
            state.problem = joined([
                std::mem::take(&mut state.problem),
                routed_by(&over),
                filter.map_or(String::new(), |why| {
                    format!("the kernel's own filter at ingress is not in place: {why}")
                }),
            ]);
        }
        states
    }

    fn tc_state(&self, config: &Config, now: &LinkNow, slot: Slot, hook: HookPoint, name: &str) -> HookState {
        let nothing = |problem| HookState {
            hook,
            mode: "",
            program_id: None,
            problem,
        };
        let attached = match bpf::query(now.link.ifindex, slot.attach_type()) {
            Ok(a) => a,
            Err(e) => return nothing(format!("asking the kernel: {e}")),
        };
        let Some(place) = attached.iter().position(|a| self.is_ours(a.program, name)) else {
            let why = self.problem(&now.link, slot);
            return nothing(if why.is_empty() {
                "no program of ours is attached".to_owned()
            } else {
                why
            });
        };
        let mut problems: Vec<String> = attached[..place]
            .iter()
            .map(|a| format!("{} runs before ours and can bypass it", describe(a.program)))
            .collect();
        if slot == Slot::Egress {
            if !self.guarded(config, &now.link) {
                problems.push("the guard is not attached; the floor keeps the host from sending".to_owned());
            }
            if config.mode == Mode::Enforce
                && let Some(why) = self.filters.missing(now.link.ifindex, Side::Egress)
            {
                problems.push(format!(
                    "the kernel's own filter is not in place; the floor keeps the host from sending: {why}"
                ));
            }
        }
        problems.push(self.problem(&now.link, slot));
        if slot == Slot::Ingress {
            problems.extend(self.missing.get(&now.link.ifindex).cloned());
        }
        HookState {
            hook,
            mode: "tcx",
            program_id: Some(attached[place].program),
            problem: joined(problems),
        }
    }

    /// By id: a name is anyone's to choose, and what another run of ours attached has been replaced.
    fn is_ours(&self, id: u32, name: &str) -> bool {
        self.programs.get(name).is_some_and(|p| p.id == id)
    }

    fn problem(&self, link: &Link, slot: Slot) -> String {
        self.problems.get(&(link.ifindex, slot)).cloned().unwrap_or_default()
    }
}

/// What passes is judged twice, in full at TC.
const NO_METADATA: &str = "what passes is judged at TC: the driver leaves no room for metadata";

/// Every program attached at a hook of an interface with a role, by name of the place: what [`super::readback`] reads through. XDP
/// counts where ours is attached; where it is not, TC judges in full.
pub(super) fn attached(
    config: &Config,
    now: &LinkNow,
    programs: &mut Programs,
) -> io::Result<Vec<(HookPoint, Option<Arc<Held>>)>> {
    let mut all = Vec::new();
    if let (Some(name), Some(xdp)) = (wanted(config, &now.link, Slot::Xdp), now.xdp)
        && let Some(ours) = programs.named(xdp.program, kernel_name(name))
    {
        all.push((HookPoint::Xdp, Some(ours)));
    }
    for (slot, hook) in [(Slot::Ingress, HookPoint::TcIngress), (Slot::Egress, HookPoint::TcEgress)] {
        let Some(name) = wanted(config, &now.link, slot) else {
            continue;
        };
        let attached: Vec<Attached> = match bpf::query(now.link.ifindex, slot.attach_type()) {
            Ok(a) => a,
            // Gone since it was listed.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let ours = attached.iter().find_map(|a| programs.named(a.program, kernel_name(name)));
        all.push((hook, ours));
    }
    Ok(all)
}

/// Detaches and unpins what is below `root`, links first, of every ABI version but one.
pub(super) fn remove_versions(root: &Path, except: Option<u32>) -> io::Result<()> {
    let kept = except.map(|v| root.join(format!("v{v}")));
    for version in versions(root)?.into_iter().filter(|v| Some(v) != kept.as_ref()) {
        for pin in entries(&version.join("links"))? {
            cut(&pin)?;
        }
        for directory in ["links", "maps", maps::FRESH, super::probe::PINS] {
            maps::remove(&version.join(directory))?;
        }
        fs::remove_dir(&version)?;
    }
    Ok(())
}

/// Detaches a pinned link and unpins it.
fn cut(pin: &Path) -> io::Result<()> {
    if let Ok(link) = bpf::open_pin(pin)
        && let Err(e) = bpf::link_detach(link.as_fd())
    {
        tracing::debug!("detaching {}: {e}", pin.display());
    }
    fs::remove_file(pin)
}

/// The directories of ABI versions below the pin directory.
fn versions(root: &Path) -> io::Result<Vec<PathBuf>> {
    let is_version = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok())
    };
    Ok(entries(root)?.into_iter().filter(is_version).collect())
}

fn wanted(config: &Config, link: &Link, slot: Slot) -> Option<&'static str> {
    slot.program(config.role(&link.name)?, link.ethernet, xdp_mode(config, link))
}

fn xdp_mode(config: &Config, link: &Link) -> XdpMode {
    config
        .interfaces
        .iter()
        .find(|r| r.name.matches(&link.name))
        .map(|r| r.xdp)
        .unwrap_or_default()
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(all) => all.map(|e| e.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn parse_pin(pin: &Path) -> Option<(u32, Slot)> {
    let (index, slot) = pin.file_name()?.to_str()?.split_once('-')?;
    Some((index.parse().ok()?, Slot::ALL.into_iter().find(|s| s.name() == slot)?))
}

fn program(id: u32) -> Option<ProgramInfo> {
    bpf::program_info(bpf::program_by_id(id).ok()?.as_fd()).ok()
}

fn describe(id: u32) -> String {
    let name = program(id).map(|p| p.name).unwrap_or_default();
    format!("a foreign program ({}, id {id})", name.escape_debug())
}

/// What is said of a device interface that others lie over.
pub(crate) fn routed_by(over: &[&str]) -> String {
    let over = over.join(", ");
    format!(
        "the host routes by {over} over it: what the gateway itself sends to devices there, answers and ICMP errors included, and what is \
         translated (NAT) does not reach them; let the interface with the role have the addresses"
    )
}

/// The kernel keeps 15 characters of a program's name.
fn kernel_name(name: &str) -> &str {
    name.get(..15).unwrap_or(name)
}

/// The problem; empty: there is none.
fn offload_off(link: &Link) -> String {
    let Err(e) = crate::links::receive_vlan_offload_off(&link.name) else {
        return String::new();
    };
    let problem =
        format!("the driver takes VLAN tags off before XDP, so TC checks them (receive VLAN offload cannot be turned off: {e})");
    tracing::warn!(interface = %link.name, "{problem}");
    problem
}

fn joined(problems: impl IntoIterator<Item = String>) -> String {
    let problems: Vec<String> = problems.into_iter().filter(|p| !p.is_empty()).collect();
    problems.join("; ")
}

/// Indexes of the device interfaces at whose egress our programs judge. A name of digits only cannot be told from an index in the
/// floor's listing, so that interface stays closed to the host.
pub(super) fn judged(hooks: &Hooks, config: &Config, links: &[LinkNow]) -> BTreeSet<u32> {
    let device = |l: &&LinkNow| config.role(&l.link.name) == Some(InterfaceRole::Device);
    let digits = |l: &LinkNow| l.link.name.as_str().bytes().all(|b| b.is_ascii_digit());
    let judges = links
        .iter()
        .filter(device)
        .filter(|l| !digits(l) && hooks.judges_egress(config, &l.link));
    judges.map(|l| l.link.ifindex).collect()
}
