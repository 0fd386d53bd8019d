//! The part of the kernel's work that takes the kernel's lock of the network configuration (RTNL), or a process: attaching programs, the
//! floor, routes, and the question what is attached. Whoever holds that lock makes all of it wait, so the thread that restricts calls
//! none of it: others do, beside it.

use std::net::IpAddr;

use super::{InterfaceState, KernelError, Link, ReadBack};

/// Hooks, floor and routes. Every call may take seconds; calls from several threads take turns where they must.
pub trait Places: Send + Sync {
    /// Attaches to the interfaces that have a role and forgets those that are gone; repairs what was detached by hand; sets floor and
    /// routes right. What failed is in [`Places::interfaces`].
    fn set_links(&self, links: &[Link]);

    /// How every configured interface stands, asked from the kernel now.
    ///
    /// # Errors
    /// It is not known: see [`KernelError`].
    fn interfaces(&self) -> Result<Vec<InterfaceState>, KernelError>;

    /// How the floor stands: "closed", "open", "broken: ...", or "not known: ...", asked from the kernel now.
    fn floor(&self) -> String;

    /// The program that is attached now at each hook of each interface that has a role.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn attached(&self) -> Result<Box<dyn Attached>, KernelError>;

    /// Reads addresses through what is attached now.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn read_back(&self, addresses: &[IpAddr]) -> Result<Vec<Vec<ReadBack>>, KernelError> {
        self.attached()?.read_back(addresses)
    }
}

/// What was attached at one moment. It takes no lock: whoever reads through it waits for nobody.
pub trait Attached: Send {
    /// Reads addresses by system call through these programs; for each address in order. An interface with a role that had no program of
    /// ours gives an entry without reading.
    ///
    /// # Errors
    /// See [`KernelError`].
    fn read_back(&self, addresses: &[IpAddr]) -> Result<Vec<Vec<ReadBack>>, KernelError>;
}
