//! What would become of a packet, and why: the question as a frame ([`frame`]), the place where it is judged ([`place`]), the rules as the
//! configuration has them ([`rules`]), and what would make the verdict another ([`advice`]). Pure. It does not judge: the kernel does, by
//! a [`Prober`], which the data plane has and tests fake.

pub mod advice;
pub mod frame;
pub mod place;
pub mod rules;

use gateway_ebpf::abi::Trace;

use crate::config::InterfaceRole;

pub use frame::Question;
pub use place::Place;

/// A frame to be judged, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// From its first header on.
    pub frame: Vec<u8>,
    /// Index of the interface.
    pub ifindex: u32,
    /// Its role.
    pub role: InterfaceRole,
    /// On its way out, not in.
    pub egress: bool,
    /// `frame` begins with an Ethernet header.
    pub ethernet: bool,
    /// XDP judges there: its twin is asked, and where the kernel lends no receive queue for that, TC's, which judges the same.
    pub xdp: bool,
}

/// What the twin found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// By its own account.
    pub trace: Trace,
    /// Which program's twin was run.
    pub program: &'static str,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no data plane.
    #[error("no data plane to ask")]
    None,
    /// The twin cannot be loaded.
    #[error("loading the twin: {0}")]
    Load(String),
    /// The kernel refused to run it.
    #[error("running the twin: {0}")]
    Run(String),
    /// It ran and left no trace.
    #[error("the twin left no trace")]
    NoTrace,
}

/// Runs frames through twins of the attached programs, on the live tables. Nothing is counted, reported or remembered.
pub trait Prober: Send + Sync + std::fmt::Debug {
    /// Runs one. It may take as long as the verifier needs for a program, the first time; it waits for no network.
    ///
    /// # Errors
    /// See [`ProbeError`].
    fn run(&self, probe: &Probe) -> Result<Probed, ProbeError>;
}

/// Where nothing can be asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProber;

impl Prober for NoProber {
    fn run(&self, _: &Probe) -> Result<Probed, ProbeError> {
        Err(ProbeError::None)
    }
}
