//! Clients that change things without pause, each on devices of its own, and remember what they were answered.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    api::{Answer, Client},
    differential::random::Random,
    gateway::Gateway,
};
use tonic::{Code, Status};

/// A client: what only an MDM may, and all else.
pub(super) struct Hands {
    pub(super) operator: Client,
    pub(super) mdm: Client,
}

impl Hands {
    /// The n-th: operators by the Unix socket and by mTLS take turns.
    pub(super) fn new(gateway: &Gateway, n: usize) -> Self {
        let operator = if n.is_multiple_of(2) {
            gateway.local()
        } else {
            gateway.operator()
        };
        Self {
            operator: operator.unwrap(),
            mdm: gateway.mdm().unwrap(),
        }
    }
}

/// What a client may do to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Register(u32),
    Open,
    Close(u64),
    Release(By),
    /// Changes nothing that is looked at.
    Renew,
    Revoke,
}

/// What a release rests on, and how it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Signal,
    Stream,
    Keys,
    Exception,
}

/// A device as the answers say that it is.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) addresses: [IpAddr; 2],
    /// The number in its owner's name; 0: not registered.
    pub(super) owner: u32,
    pub(super) released: bool,
    pub(super) session: Option<u64>,
    /// Asked, and not answered.
    pub(super) doubt: Option<Op>,
    /// What was answered to the last release or restriction was not that it is in force.
    pub(super) unsure: bool,
}

impl Device {
    pub(super) fn new(number: u8) -> Self {
        Self {
            id: format!("phone-{number}"),
            addresses: [
                format!("10.66.0.{}", 10 + number),
                format!("fd00:66::{:x}", 0x10 + u16::from(number)),
            ]
            .map(|a| a.parse().unwrap()),
            owner: 0,
            released: false,
            session: None,
            doubt: None,
            unsure: false,
        }
    }

    /// Whether it reaches everything now.
    pub(super) fn reaches(&self) -> bool {
        self.released && self.session.is_some()
    }

    /// Whether, with what was asked last done or not done, it may reach everything.
    pub(super) fn may_reach(&self, reaches: bool) -> bool {
        let mut after = self.clone();
        match self.doubt {
            Some(Op::Open) => after.session = Some(0),
            Some(Op::Close(_)) => after.session = None,
            Some(Op::Release(_)) => after.released = true,
            Some(Op::Revoke) => after.released = false,
            Some(Op::Register(_) | Op::Renew) | None => {}
        }
        self.reaches() == reaches || after.reaches() == reaches
    }

    fn next(&self, random: &mut Random) -> Op {
        if self.owner == 0 {
            return Op::Register(1);
        }
        match (random.below(12), self.session) {
            (0, _) => Op::Register(self.owner + 1),
            (1..=3, Some(id)) => Op::Close(id),
            (1..=4, None) => Op::Open,
            (4, _) if !self.released => Op::Release(By::Keys),
            (5 | 6, _) if !self.released => Op::Release(By::Signal),
            (7 | 8, _) if !self.released => Op::Release(By::Stream),
            (9, _) if !self.released => Op::Release(By::Exception),
            (4 | 5, _) => Op::Renew,
            (_, None) => Op::Open,
            _ => Op::Revoke,
        }
    }
}

/// How many changes were answered, and how many refused.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) answered: AtomicU64,
    pub(super) refused: AtomicU64,
}

/// Changes devices until told to stop, or the daemon no longer answers.
pub(super) fn work(client: &Hands, devices: &mut [Device], random: &mut Random, stop: &AtomicBool, done: &Done) {
    while !stop.load(Ordering::Relaxed) {
        let device = &mut devices[random.below(devices.len())];
        let op = device.next(random);
        device.doubt = Some(op);
        match ask(client, device, op) {
            Ok(()) => {
                device.doubt = None;
                done.answered.fetch_add(1, Ordering::Relaxed);
            }
            // No answer, or one that does not say what has become of it.
            Err(status) if !refusal(&status) => return,
            Err(_) => {
                device.doubt = None;
                done.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Asks, and takes the answer for true.
fn ask(client: &Hands, device: &mut Device, op: Op) -> Answer<()> {
    let Hands { operator, mdm } = client;
    match op {
        Op::Register(owner) => {
            mdm.register_as(&device.id, "staff", &format!("owner {owner}"))?;
            device.owner = owner;
        }
        Op::Open => {
            let addresses = device.addresses.map(|a| a.to_string());
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let opened = operator.open("lab", &device.id, &addresses, "tun0")?;
            device.unsure = unsure(opened.enforcement());
            device.session = Some(opened.session.ok_or_else(|| Status::internal("no session"))?.session_id);
        }
        Op::Close(id) => {
            let closed = operator.close(id)?;
            device.unsure = unsure(closed.enforcement());
            device.session = None;
        }
        Op::Release(by) => {
            let enforcement = match by {
                By::Signal => mdm.applied(&device.id)?.enforcement(),
                By::Stream => mdm.applied_by_stream(&device.id)?,
                By::Keys => {
                    let key = mdm.offer(&device.id)?;
                    let key = mdm.acknowledge(&device.id, key)?;
                    mdm.applied_with(&device.id, key)?.enforcement()
                }
                By::Exception => operator.excepted(&device.id)?.enforcement(),
            };
            device.unsure = unsure(enforcement);
            device.released = true;
        }
        Op::Renew => drop(mdm.renewed(&device.id)?),
        Op::Revoke => {
            let revoked = operator.revoked(&device.id)?;
            device.unsure = unsure(revoked.enforcement());
            device.released = false;
        }
    }
    Ok(())
}

fn unsure(enforcement: Enforcement) -> bool {
    !matches!(enforcement, Enforcement::Enforced | Enforcement::NoSession)
}

/// The gateway said no, and has changed nothing.
fn refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition | Code::InvalidArgument | Code::AlreadyExists | Code::NotFound | Code::ResourceExhausted
    )
}
