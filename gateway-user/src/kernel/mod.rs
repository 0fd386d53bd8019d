//! What the controller needs of the kernel, as a trait: [`crate::dataplane`] does it, tests fake it. Nothing here names aya.

#[cfg(any(test, feature = "fake-kernel"))]
pub mod fake;
mod places;

use std::{net::IpAddr, sync::Arc};

use gateway_ebpf::abi::{Answers, Count, REASONS, RuleCount, ShadowCount};

pub use places::{Attached, Places};

use crate::{
    config::{InterfaceRole, Mode},
    model::{BootTime, InterfaceName, PoolId, SessionId},
};

/// What one address of a live session is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Whose policy.
    pub pool: PoolId,
    /// Whose address it is.
    pub session: SessionId,
    /// The session's: on any other the address passes nothing. One that does not exist yet is waited for.
    pub interface: InterfaceName,
    /// Until when, and by which pool's policy afterwards; `None`: until told otherwise.
    pub lease: Option<(BootTime, PoolId)>,
}

/// An address, as read from the kernel by system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressReading {
    /// Whose policy judges it now; `None`: it is in no pool.
    pub pool: Option<PoolId>,
    /// As stored beside it; `None`: no live session.
    pub session: Option<SessionId>,
    /// The interface that it is bound to; `None`: none, or one whose name is not known any more.
    pub interface: Option<InterfaceName>,
    /// As stored beside it.
    pub lease_end: Option<BootTime>,
    /// By whose policy it is judged after that.
    pub fallback: Option<PoolId>,
    /// Kernel id of the map that gave the pool.
    pub map_id: u32,
}

/// Where a program of ours belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookPoint {
    /// XDP ingress.
    Xdp,
    /// TC ingress.
    TcIngress,
    /// TC egress.
    TcEgress,
}

/// One reading of one address through the program attached at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBack {
    /// Interface.
    pub interface: InterfaceName,
    /// Its index.
    pub ifindex: u32,
    /// Where.
    pub hook: HookPoint,
    /// Program attached now, and what its map says; `None`: no program of ours is attached there.
    pub reading: Option<ProgramReading>,
}

/// What the map of an attached program says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramReading {
    /// Kernel id.
    pub program_id: u32,
    /// Kernel id of the map that gave the pool.
    pub map_id: u32,
    /// Whose policy judges the address.
    pub pool: Option<PoolId>,
    /// As stored beside it; `None`: no live session.
    pub session: Option<SessionId>,
    /// As stored beside it.
    pub lease_end: Option<BootTime>,
    /// Index of the only interface on which it may be; 0: any.
    pub bound_to: u32,
}

/// A part of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Addresses that are judged otherwise than without a session.
    pub addresses: Vec<IpAddr>,
    /// The next part; `None`: it was the last.
    pub next: Option<usize>,
}

/// What a table had that the daemon alone writes, beside addresses and sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDifference {
    /// Table, and what of it.
    pub subject: String,
    /// What was there.
    pub found: String,
    /// What the daemon wrote last.
    pub wanted: String,
    /// Whether that is there again.
    pub repaired: bool,
}

/// A network interface that exists now.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// Index; a re-created interface has a new one.
    pub ifindex: u32,
    /// Name.
    pub name: InterfaceName,
    /// Whether frames start with an Ethernet header (ARPHRD_ETHER); otherwise with the IP header.
    pub ethernet: bool,
}

/// How a hook of ours stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// Where.
    pub hook: HookPoint,
    /// "native", "generic", "tcx"; empty if not attached.
    pub mode: &'static str,
    /// Program attached now; `None`: not ours, or none.
    pub program_id: Option<u32>,
    /// What is wrong; empty is good.
    pub problem: String,
}

/// How an interface stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceState {
    /// Name, or the configured name or pattern that no interface has yet.
    pub name: String,
    /// `None`: there is none yet.
    pub ifindex: Option<u32>,
    /// Role.
    pub role: InterfaceRole,
    /// Its hooks.
    pub hooks: Vec<HookState>,
}

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The table of IPv6 addresses or of sessions has no room. Nothing was changed for the address.
    #[error("the kernel's address table is full")]
    TableFull,
    /// Every class is in use: there are too many combinations of pool, lease and interface. Nothing was changed for the address.
    #[error("no class is free: sessions already use 192 combinations of pool, lease and interface")]
    ClassesFull,
    /// The address is in no pool.
    #[error("{0} is in no pool")]
    OutsidePools(IpAddr),
    /// It has not answered yet, and something else must not wait for it.
    #[error("the kernel has not said yet what is attached; another program may hold its lock of the network configuration")]
    Late,
    /// A system call failed.
    #[error("{what}: {error}")]
    System {
        /// Which.
        what: String,
        /// How.
        #[source]
        error: std::io::Error,
    },
}

/// A pool's number (0: none) with its counters by reason.
pub type PoolCounters = (u8, Box<[Count; REASONS]>);

/// Denied packets, by why nobody was told of them. They are counted by pool and reason all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// By the rate limit of events.
    pub suppressed: u64,
    /// The ring was full.
    pub lost: u64,
    /// The same was told a moment before.
    pub repeated: u64,
    /// Not captured, by the rate limit of captures.
    pub captures_suppressed: u64,
    /// Not captured: the ring was full.
    pub captures_lost: u64,
}

/// The kernel, as the one thread that owns it sees it. All calls are system calls or stores to mapped memory; none waits for a network, a
/// process, or a lock of the network configuration.
pub trait Kernel: Send {
    /// Sets what an address of a live session is judged by. From the return on, the next packet is judged by it.
    /// Changing an address that is assigned already cannot fail for lack of room, but for a release that finds no class.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn assign(&mut self, address: IpAddr, to: Assignment) -> Result<(), KernelError>;

    /// The same for many, each address once and in this order, for less than so many single ones cost. All of it is tried; returns what
    /// failed, by place.
    fn assign_all(&mut self, all: &[(IpAddr, Assignment)]) -> Vec<(usize, KernelError)>;

    /// Ends an assignment: the address is judged by its home pool's quarantine policy. An address that is not assigned is fine.
    ///
    /// # Errors
    /// See [`KernelError`]; the class itself is always set back.
    fn clear(&mut self, address: IpAddr) -> Result<(), KernelError>;

    /// Every assigned address with what is held of it, for reconciling after a restart that adopted the maps: out of mapped memory and in few
    /// system calls, for a million of them.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn assigned(&self) -> Result<Vec<(IpAddr, AddressReading)>, KernelError>;

    /// Tells the programs until when no lease can have ended; `None`: there is none.
    fn set_earliest_lease_end(&mut self, end: Option<BootTime>);

    /// Reads an address from our own map, by system call.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn read(&self, address: IpAddr) -> Result<AddressReading, KernelError> {
        let mut all = self.read_all(&[address])?;
        all.pop().ok_or(KernelError::OutsidePools(address))
    }

    /// The same for many, in order, for little more than one costs.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn read_all(&self, addresses: &[IpAddr]) -> Result<Vec<AddressReading>, KernelError>;

    /// Looks at a part of the tables, the first being 0: which of its addresses are judged otherwise than without a session.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn survey(&self, part: usize) -> Result<Survey, KernelError>;

    /// Compares a part, the first being 0, of what the tables say beside addresses and sessions (flags, what classes mean, ends of leases, homes,
    /// policies, interfaces) with what this daemon last wrote there, and writes that again where it differs. What was found, a failure
    /// notwithstanding, is added to `found`. Returns the next part; `None`: it was the last.
    ///
    /// # Errors
    /// See [`KernelError`]: the rest of the part was not compared.
    fn compare_tables(&mut self, part: usize, found: &mut Vec<TableDifference>) -> Result<Option<usize>, KernelError>;

    /// Finds out anew what the tables have in use, after a foreign hand was in them and before anything else is changed.
    fn recount(&mut self);

    /// Binds sessions to the interfaces that exist now. Programs are attached there by [`Places::set_links`]: until both are done, what
    /// comes from a new interface passes nothing.
    fn follow(&mut self, links: &[Link]);

    /// What may have to wait, for other threads.
    fn places(&self) -> Arc<dyn Places>;

    /// Exact counters by pool number (0: none) and reason.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn counters(&self) -> Result<Vec<PoolCounters>, KernelError>;

    /// Exact counters by rule number, ascending; 0: what `all` passed.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn rule_counters(&self) -> Result<Vec<(u16, RuleCount)>, KernelError>;

    /// Where the shadow policies differ from those in force, exactly, by pool number (0: none), ascending. They count on over changes.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn shadow_counters(&self) -> Result<Vec<(u8, ShadowCount)>, KernelError>;

    /// Everything that was denied and not told of, or not handed over.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn losses(&self) -> Result<Losses, KernelError>;

    /// Answers to denied packets, exactly, by pool number, ascending.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn answers(&self) -> Result<Vec<(u8, Answers)>, KernelError>;

    /// Enforcing or observing: what the programs are told now, read by system call.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn mode(&self) -> Result<Mode, KernelError>;
}
