//! The probing twin of the attached programs: the same object, loaded a second time on the same maps with the constant `PROBE` set, and
//! never attached. The verifier removes what would count, report, remember or answer; what it found it leaves in a map of its own. Run
//! by BPF_PROG_TEST_RUN, one packet at a time, by whoever asks: the controller's thread has no part in it.

use std::{
    collections::HashSet,
    fmt, fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::Map as AyaMap,
    programs::{Program as AyaProgram, ProgramError},
};
use gateway_ebpf::abi::{PROBE, Trace, map, program};

use super::{
    bpf::{self, Map, Plain},
    environment::{Error, load_error},
    live::Live,
    maps, object,
};
use crate::{
    config::InterfaceRole,
    explain::{Lookup, Probe, ProbeError, Probed, Prober, Way},
    routes,
};

/// Directory beside the pinned maps, in which the twin finds the live ones while it is loaded.
pub(super) const PINS: &str = "maps-probe";

impl Live {
    /// A twin of the programs on this data plane's maps. It is loaded when it is first asked.
    ///
    /// # Errors
    /// A map's descriptor cannot be duplicated.
    pub fn prober(&self) -> Result<Twin, Error> {
        let open = |name| Ok((name, self.maps().get(name)?.fd.try_clone()?));
        let shared: io::Result<_> = maps::NAMES.into_iter().map(open).collect();
        let shared = shared.map_err(Error::system("duplicating the maps"))?;
        Ok(Twin::new(shared, self.version_pins().join(PINS)))
    }
}

/// The twin.
pub struct Twin {
    shared: Vec<(&'static str, OwnedFd)>,
    pins: PathBuf,
    /// Also what lets one packet in at a time: the trace is that of the last.
    loaded: Mutex<Option<Loaded>>,
}

impl Twin {
    /// A twin on these maps, by name; maps of the object that are not among them it makes for itself. `pins` is a directory on a bpffs,
    /// in which the maps are pinned while it is loaded.
    #[must_use]
    pub fn new(shared: Vec<(&'static str, OwnedFd)>, pins: PathBuf) -> Self {
        Self {
            shared,
            pins,
            loaded: Mutex::new(None),
        }
    }
}

impl fmt::Debug for Twin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Twin").finish_non_exhaustive()
    }
}

impl Prober for Twin {
    fn run(&self, probe: &Probe) -> Result<Probed, ProbeError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match &mut *loaded {
            Some(l) => l,
            none => none.insert(Loaded::new(&self.shared, &self.pins)?),
        };
        let (xdp, tc) = programs(probe);
        if let Some(name) = xdp.filter(|_| probe.xdp)
            && let Some(trace) = loaded.run(name, probe)?
        {
            return Ok(Probed { trace, program: name });
        }
        let trace = loaded.run(tc, probe)?.ok_or(ProbeError::NoTrace)?;
        Ok(Probed { trace, program: tc })
    }

    fn route(&self, asked: &Lookup) -> Result<Way, ProbeError> {
        routes::lookup(asked).map_err(|e| ProbeError::Route(e.to_string()))
    }
}

/// The programs that judge at a place: XDP's, if there is one, and TC's.
fn programs(probe: &Probe) -> (Option<&'static str>, &'static str) {
    use InterfaceRole::{Core, Device};
    let xdp = match (probe.ethernet && !probe.egress, probe.role) {
        (false, _) => None,
        (true, Device) => Some(program::XDP_DEVICE),
        (true, Core) => Some(program::XDP_CORE),
    };
    let tc = match (probe.egress, probe.role, probe.ethernet) {
        (true, _, true) => program::TC_EGRESS_ETH,
        (true, _, false) => program::TC_EGRESS_IP,
        (false, Device, true) => program::TC_DEVICE_ETH,
        (false, Device, false) => program::TC_DEVICE_IP,
        (false, Core, true) => program::TC_CORE_ETH,
        (false, Core, false) => program::TC_CORE_IP,
    };
    (xdp, tc)
}

struct Loaded {
    object: Ebpf,
    /// Programs are loaded when they are first asked for.
    _loading: object::Loading,
    ready: HashSet<&'static str>,
    trace: Map,
}

impl Loaded {
    /// The maps are pinned for as long as the loader needs to find them, in a directory of their own: were one of the live pins gone, it
    /// would make a new map and pin that in its place.
    fn new(shared: &[(&'static str, OwnedFd)], pins: &Path) -> Result<Self, ProbeError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |e: io::Error| ProbeError::Load(format!("{what}: {e}"))
        };
        // What a crash may have left.
        maps::remove(pins).map_err(failed("removing old pins"))?;
        fs::create_dir(pins).map_err(failed("making a directory for pins"))?;
        let pinned = shared
            .iter()
            .try_for_each(|(name, fd)| bpf::pin(fd.as_fd(), &pins.join(name)))
            .map_err(failed("pinning"));
        let loading = object::Loading::new().map_err(failed("preparing the BPF object"))?;
        let object = pinned.and_then(|()| {
            let paths: Vec<_> = shared.iter().map(|(name, _)| (*name, pins.join(name))).collect();
            let mut loader = EbpfLoader::new();
            loader.override_global(PROBE, &1_u8, true);
            for (name, path) in &paths {
                loader.map_pin_path(name, path.as_path());
            }
            loader
                .load(loading.bytes())
                .map_err(|e| ProbeError::Load(load_error(e).to_string()))
        });
        if let Err(e) = maps::remove(pins) {
            tracing::warn!("removing {}: {e}", pins.display());
        }
        let object = object?;
        loading.bind(&object).map_err(failed("pointing the programs at their maps"))?;
        let trace = match object.map(map::TRACE) {
            Some(AyaMap::Array(m)) => m.fd().as_fd().try_clone_to_owned().and_then(Map::new),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "the BPF object has no map TRACE")),
        };
        Ok(Self {
            trace: trace.map_err(failed("TRACE"))?,
            object,
            _loading: loading,
            ready: HashSet::new(),
        })
    }

    /// `None`: the kernel does not run this program for this interface.
    fn run(&mut self, name: &'static str, probe: &Probe) -> Result<Option<Trace>, ProbeError> {
        self.ready(name)?;
        let before = self.trace()?.judged;
        let refused = |e: ProgramError| ProbeError::Run(format!("{name}: {}", load_error(e)));
        let mut options = TestRunOptions {
            data_in: Some(&probe.frame),
            ..TestRunOptions::default()
        };
        match self.object.program(name) {
            Some(AyaProgram::Xdp(p)) => {
                let context = xdp_context(probe);
                options.ctx_in = Some(&context);
                match p.test_run(options) {
                    Ok(_) => {}
                    // An interface whose driver has not registered its receive queues: a veth without a running XDP program.
                    Err(e) if is_invalid(&e) => return Ok(None),
                    Err(e) => return Err(refused(e)),
                }
            }
            Some(AyaProgram::SchedClassifier(p)) => {
                let context = skb_context(probe);
                options.ctx_in = Some(&context);
                p.test_run(options).map_err(refused)?;
            }
            _ => return Err(ProbeError::Load(format!("the BPF object has no program {name}"))),
        }
        let trace = self.trace()?;
        if trace.judged == before {
            return Err(ProbeError::NoTrace);
        }
        Ok(Some(trace))
    }

    /// Has the verifier look at the program, the first time.
    fn ready(&mut self, name: &'static str) -> Result<(), ProbeError> {
        if self.ready.contains(name) {
            return Ok(());
        }
        let loaded = match self.object.program_mut(name) {
            Some(AyaProgram::Xdp(p)) => p.load(),
            Some(AyaProgram::SchedClassifier(p)) => p.load(),
            _ => return Err(ProbeError::Load(format!("the BPF object has no program {name}"))),
        };
        loaded.map_err(|e| ProbeError::Load(format!("{name}: {}", load_error(e))))?;
        self.ready.insert(name);
        Ok(())
    }

    fn trace(&self) -> Result<Trace, ProbeError> {
        let trace = self.trace.element::<Trace>(0);
        trace.map(|t| *t).map_err(|e| ProbeError::Run(format!("reading TRACE: {e}")))
    }
}

// SAFETY: integers and arrays of them, `repr(C)`, without padding, as `gateway_ebpf::abi` asserts.
unsafe impl Plain for Trace {}

/// `struct xdp_md` of linux/bpf.h: the whole frame, received on the first queue of the interface.
fn xdp_context(probe: &Probe) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(probe.frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&probe.ifindex.to_ne_bytes());
    context
}

/// `struct __sk_buff` of linux/bpf.h, all zeros but the interface.
fn skb_context(probe: &Probe) -> [u8; 192] {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&probe.ifindex.to_ne_bytes());
    context
}

fn is_invalid(e: &ProgramError) -> bool {
    matches!(e, ProgramError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::EINVAL))
}
