//! A second, naive implementation of the verdict, written from `docs/verdict.md` alone: it judges by linear scans of the configuration's
//! text, reads packets with somebody else's parser, and shares no code with `gateway-ebpf` or `gateway-user`. It is slow and plain on
//! purpose. What it and the shipping decision disagree about is a mistake in one of them, or in the page.

pub mod configuration;
mod fragments;
mod judge;
mod read;
mod special;

use std::net::IpAddr;

pub use self::{
    configuration::Configuration,
    judge::Judgment,
    read::{Packet, read},
};

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Role "device"; otherwise "core".
    pub device: bool,
    /// Out of the host; otherwise into it.
    pub egress: bool,
    /// Whether frames begin with an Ethernet header.
    pub ethernet: bool,
    /// The interface's index.
    pub interface: u32,
}

/// A live session's hold on one address.
#[derive(Clone, Debug)]
pub struct Session {
    /// Whose packets.
    pub address: IpAddr,
    /// And those of its whole IPv6 /64, but for addresses that sessions have by themselves.
    pub delegated: bool,
    /// Number of the pool that judges it.
    pub pool: u8,
    /// Index of the interface that it is on; 0: any.
    pub interface: u32,
    /// `None`: until told otherwise.
    pub lease: Option<Lease>,
}

/// How long a session's pool holds.
#[derive(Clone, Debug)]
pub struct Lease {
    /// On the reference's clock, nanoseconds.
    pub end: u64,
    /// Number of the pool afterwards; `None`: the record of it is lost.
    pub fallback: Option<u8>,
}

/// An interface that exists.
#[derive(Clone, Debug)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name, by which the configuration finds it.
    pub name: String,
}

/// The gateway, as far as a verdict depends on it.
#[derive(Clone, Debug)]
pub struct Reference {
    /// What the operator wrote.
    pub configuration: Configuration,
    /// Who is connected.
    pub sessions: Vec<Session>,
    /// What exists.
    pub links: Vec<Link>,
    /// Nanoseconds.
    pub now: u64,
    fragments: fragments::Memory,
}

impl Reference {
    /// A gateway without sessions.
    ///
    /// # Panics
    /// If the text is not a configuration: the reference reads only what the shipping parser takes.
    #[must_use]
    pub fn new(configuration: &str, links: Vec<Link>) -> Self {
        Self {
            configuration: Configuration::parse(configuration),
            sessions: Vec::new(),
            links,
            now: 0,
            fragments: fragments::Memory::default(),
        }
    }

    /// How many datagrams in fragments are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.fragments.live(self.now)
    }

    /// Forgets the datagram that was remembered last: for comparison with a memory that has an end.
    pub fn forget_last(&mut self) {
        self.fragments.forget_last();
    }

    /// Forgets every datagram.
    pub fn forget(&mut self) {
        self.fragments = fragments::Memory::default();
    }
}
