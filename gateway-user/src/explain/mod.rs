//! What would become of a packet, and why: the question as a frame ([`frame`]), the place where it is judged ([`place`]), the rules as the
//! configuration has them ([`rules`]), and what would make the verdict another ([`advice`]). Pure. It does not judge: the kernel does, by
//! a [`Prober`], which the data plane has and tests fake.

pub mod advice;
pub mod frame;
pub mod place;
pub mod rules;

use std::net::IpAddr;

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
    /// The routes cannot be asked for.
    #[error("asking for the route: {0}")]
    Route(String),
    /// It ran and left no trace.
    #[error("the twin left no trace")]
    NoTrace,
}

/// A packet that has been let in, on its way through the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Of the same family as `destination`.
    pub source: IpAddr,
    /// See `source`.
    pub destination: IpAddr,
    /// Where it came in.
    pub ifindex: u32,
    /// Its firewall mark, which may select a pool's route table.
    pub mark: u32,
}

/// What the host's routes would do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Sends it out.
    Forward {
        /// By which interface.
        ifindex: u32,
        /// To which next hop; `None`: it is on the link.
        via: Option<IpAddr>,
    },
    /// Delivers it to the host itself.
    Local,
    /// Drops it; why.
    Refused(String),
}

/// Runs frames through twins of the attached programs, on the live tables. Nothing is counted, reported or remembered.
pub trait Prober: Send + Sync + std::fmt::Debug {
    /// Runs one. It may take as long as the verifier needs for a program, the first time; it waits for no network.
    ///
    /// # Errors
    /// See [`ProbeError`].
    fn run(&self, probe: &Probe) -> Result<Probed, ProbeError>;

    /// What the host's routes would do with a packet that was let in.
    ///
    /// # Errors
    /// See [`ProbeError`].
    fn route(&self, asked: &Lookup) -> Result<Way, ProbeError>;
}

/// Where nothing can be asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProber;

impl Prober for NoProber {
    fn run(&self, _: &Probe) -> Result<Probed, ProbeError> {
        Err(ProbeError::None)
    }

    fn route(&self, _: &Lookup) -> Result<Way, ProbeError> {
        Err(ProbeError::None)
    }
}
