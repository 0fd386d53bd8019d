//! A kernel in memory, for tests of what stands above [`Kernel`]. It keeps the trait's promises, among them that a lease runs out without
//! the daemon, and it can be told to fail, to be full, or to have had a program detached by hand. Each promise that it is taught is held
//! to the real kernel by a test of the data plane.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gateway_ebpf::abi::{Answers, Count, REASONS, RuleCount, ShadowCount};

use super::{
    AddressReading, Assignment, Attached, HookPoint, HookState, InterfaceState, Kernel, KernelError, Link, Losses, Places,
    ProgramReading, ReadBack, Survey, TableDifference,
};
use crate::{
    config::{Config, InterfaceRole, Mode, PoolKind},
    model::{BootTime, InterfaceName, PoolId, prefix},
};

/// A call that changes something, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Kernel::assign`].
    Assign(IpAddr, Assignment),
    /// [`Kernel::clear`].
    Clear(IpAddr),
    /// [`Kernel::set_earliest_lease_end`].
    EarliestLeaseEnd(Option<BootTime>),
    /// [`Places::set_links`].
    Links(usize),
    /// Something else that a test wants to see in order with these.
    Note(&'static str),
}

/// What the fake holds.
#[derive(Debug, Default)]
pub struct State {
    /// Assigned addresses.
    pub assigned: BTreeMap<IpAddr, Assignment>,
    /// As last set.
    pub earliest: Option<BootTime>,
    /// As last set.
    pub links: Vec<Link>,
    /// Hooks that a foreign hand has emptied; [`Places::set_links`] repairs them unless `stuck`.
    pub detached: BTreeSet<(u32, HookPoint)>,
    /// Attaching fails.
    pub stuck: bool,
    /// How interfaces stand cannot be said.
    pub unlisted: bool,
    /// Most assigned addresses.
    pub capacity: usize,
    /// Most combinations of pool, lease and interface at a time; `None`: any number.
    pub classes: Option<usize>,
    /// The next calls of assign and clear fail: so many.
    pub failing: u32,
    /// How often it was asked what is attached, to read back.
    pub looks: u64,
    /// What was called.
    pub calls: Vec<Call>,
    /// As counted by "packets".
    pub counters: BTreeMap<u8, Box<[Count; REASONS]>>,
    /// Likewise, by rule.
    pub rules: BTreeMap<u16, RuleCount>,
    /// Likewise, by pool.
    pub shadow: BTreeMap<u8, ShadowCount>,
    /// Answer of [`Kernel::losses`].
    pub losses: Losses,
    /// Answer of [`Kernel::answers`].
    pub answers: BTreeMap<u8, Answers>,
    /// What [`Places::read_back`] says of the end of every lease; `None`: what was assigned.
    pub lease_end: Option<BootTime>,
    /// What the next [`Kernel::compare_tables`] finds.
    pub foreign: Vec<TableDifference>,
    /// What [`Kernel::mode`] says; `None`: what is configured.
    pub mode: Option<Mode>,
    /// Answer of [`Places::floor`].
    pub floor: String,
}

/// The fake. Clones share one state: a test keeps one and hands the other to the controller.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    config: Arc<Config>,
    state: Arc<Mutex<State>>,
    network: Arc<Mutex<()>>,
}

/// Kernel ids that the fake shows.
pub const MAP_ID: u32 = 7;

impl FakeKernel {
    /// Empty, with room for what the configuration says.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        let capacity = usize::try_from(config.tables.addresses).unwrap_or(usize::MAX);
        let state = State {
            capacity,
            floor: "closed".to_owned(),
            ..State::default()
        };
        Self {
            config,
            state: Arc::new(Mutex::new(state)),
            network: Arc::default(),
        }
    }

    /// What it holds, to look at and to change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock of the network configuration: while it is held, everything of [`Places`] waits.
    pub fn network(&self) -> MutexGuard<'_, ()> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calls since the last time.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    /// What the next packet of an address is judged by, as the programs see it at this time.
    #[must_use]
    pub fn judged_by(&self, address: IpAddr, at: BootTime) -> Option<PoolId> {
        let home = self.config.home(address)?;
        let state = self.state();
        Some(match state.held(address) {
            None => self.config.resting(home),
            Some(Assignment {
                lease: Some((end, fallback)),
                ..
            }) if state.earliest.is_some_and(|e| e <= at) && *end <= at => *fallback,
            Some(a) => a.pool,
        })
    }

    fn hooks(link: &Link, role: InterfaceRole) -> Vec<HookPoint> {
        let xdp = link.ethernet.then_some(HookPoint::Xdp);
        let egress = (role == InterfaceRole::Device).then_some(HookPoint::TcEgress);
        xdp.into_iter().chain([HookPoint::TcIngress]).chain(egress).collect()
    }

    fn class(&self, state: &State, address: IpAddr) -> Option<PoolId> {
        let home = self.config.home(address)?;
        Some(state.held(address).map_or_else(|| self.config.resting(home), |a| a.pool))
    }

    /// It needs another combination than others have, and no more can be told apart; what restricts an address needs none.
    fn lacks_class(&self, state: &State, address: &IpAddr, to: &Assignment) -> bool {
        let Some(most) = state.classes else { return false };
        let class = |a: &Assignment| (a.pool, a.lease.is_some(), a.interface.clone());
        let others = state.assigned.iter().filter(|(a, _)| *a != address);
        let used: HashSet<_> = others.map(|(_, a)| class(a)).collect();
        let full_service = self
            .config
            .pool_by_id(to.pool)
            .is_some_and(|p| p.kind == PoolKind::FullService);
        let restricts = state.assigned.contains_key(address) && !full_service && to.lease.is_none();
        !restricts && !used.contains(&class(to)) && used.len() >= most
    }
}

impl State {
    /// By itself, or with its whole /64.
    fn held(&self, address: IpAddr) -> Option<&Assignment> {
        let own = self.assigned.get(&address);
        own.or_else(|| self.assigned.get(&prefix::around(address)?))
    }

    /// Of an interface; one that does not exist has none that any other has.
    fn index(&self, interface: &InterfaceName) -> u32 {
        let link = self.links.iter().find(|l| l.name == *interface);
        link.map_or(u32::MAX, |l| l.ifindex)
    }

    fn fails(&mut self) -> Result<(), KernelError> {
        self.failing = match self.failing {
            0 => return Ok(()),
            n => n - 1,
        };
        Err(KernelError::System {
            what: "fake".to_owned(),
            error: io::Error::from_raw_os_error(libc::EIO),
        })
    }
}

impl Kernel for FakeKernel {
    fn assign(&mut self, address: IpAddr, to: Assignment) -> Result<(), KernelError> {
        if self.config.home(address).is_none() {
            return Err(KernelError::OutsidePools(address));
        }
        let mut state = self.state();
        state.fails()?;
        if !state.assigned.contains_key(&address) && state.assigned.len() >= state.capacity {
            return Err(KernelError::TableFull);
        }
        if self.lacks_class(&state, &address, &to) {
            return Err(KernelError::ClassesFull);
        }
        state.calls.push(Call::Assign(address, to.clone()));
        state.assigned.insert(address, to);
        Ok(())
    }

    fn assign_all(&mut self, all: &[(IpAddr, Assignment)]) -> Vec<(usize, KernelError)> {
        let one = |(place, (address, to)): (usize, &(IpAddr, Assignment))| {
            let done = Kernel::assign(self, *address, to.clone());
            done.err().map(|e| (place, e))
        };
        all.iter().enumerate().filter_map(one).collect()
    }

    fn clear(&mut self, address: IpAddr) -> Result<(), KernelError> {
        let mut state = self.state();
        state.calls.push(Call::Clear(address));
        state.assigned.remove(&address);
        state.fails()
    }

    fn assigned(&self) -> Result<Vec<(IpAddr, AddressReading)>, KernelError> {
        let addresses: Vec<IpAddr> = self.state().assigned.keys().copied().collect();
        let readings = self.read_all(&addresses)?;
        Ok(addresses.into_iter().zip(readings).collect())
    }

    fn set_earliest_lease_end(&mut self, end: Option<BootTime>) {
        let mut state = self.state();
        state.calls.push(Call::EarliestLeaseEnd(end));
        state.earliest = end;
    }

    fn read_all(&self, addresses: &[IpAddr]) -> Result<Vec<AddressReading>, KernelError> {
        let state = self.state();
        let one = |address: &IpAddr| {
            let held = state.held(*address);
            AddressReading {
                pool: self.class(&state, *address),
                session: held.map(|a| a.session),
                interface: held.map(|a| a.interface.clone()),
                lease_end: held.and_then(|a| a.lease).map(|l| l.0),
                fallback: held.and_then(|a| a.lease).map(|l| l.1),
                map_id: MAP_ID,
            }
        };
        Ok(addresses.iter().map(one).collect())
    }

    fn survey(&self, _part: usize) -> Result<Survey, KernelError> {
        Ok(Survey {
            addresses: self.state().assigned.keys().copied().collect(),
            next: None,
        })
    }

    fn compare_tables(&mut self, _part: usize, found: &mut Vec<TableDifference>) -> Result<Option<usize>, KernelError> {
        found.append(&mut self.state().foreign);
        Ok(None)
    }

    fn recount(&mut self) {
        self.state().calls.push(Call::Note("recounted"));
    }

    fn follow(&mut self, _links: &[Link]) {}

    fn places(&self) -> Arc<dyn Places> {
        Arc::new(self.clone())
    }

    fn counters(&self) -> Result<Vec<(u8, Box<[Count; REASONS]>)>, KernelError> {
        Ok(self.state().counters.iter().map(|(pool, c)| (*pool, c.clone())).collect())
    }

    fn rule_counters(&self) -> Result<Vec<(u16, RuleCount)>, KernelError> {
        Ok(self.state().rules.iter().map(|(n, c)| (*n, *c)).collect())
    }

    fn shadow_counters(&self) -> Result<Vec<(u8, ShadowCount)>, KernelError> {
        Ok(self.state().shadow.iter().map(|(n, c)| (*n, *c)).collect())
    }

    fn losses(&self) -> Result<Losses, KernelError> {
        Ok(self.state().losses)
    }

    fn answers(&self) -> Result<Vec<(u8, Answers)>, KernelError> {
        Ok(self.state().answers.iter().map(|(n, a)| (*n, *a)).collect())
    }

    fn mode(&self) -> Result<Mode, KernelError> {
        Ok(self.state().mode.unwrap_or(self.config.mode))
    }
}

impl Places for FakeKernel {
    fn set_links(&self, links: &[Link]) {
        let _network = self.network();
        let mut state = self.state();
        state.calls.push(Call::Links(links.len()));
        state.links = links.to_vec();
        if !state.stuck {
            state.detached.clear();
        }
    }

    fn interfaces(&self) -> Result<Vec<InterfaceState>, KernelError> {
        let _network = self.network();
        let state = self.state();
        if state.unlisted {
            return Err(KernelError::Late);
        }
        let one = |link: &Link| {
            let role = self.config.role(&link.name)?;
            let hook = |hook: HookPoint| {
                let attached = !state.detached.contains(&(link.ifindex, hook));
                HookState {
                    hook,
                    mode: if attached { "tcx" } else { "" },
                    program_id: attached.then_some(100 + link.ifindex),
                    problem: if attached { String::new() } else { "not attached".to_owned() },
                }
            };
            let hooks = Self::hooks(link, role).into_iter().map(hook).collect();
            Some(InterfaceState {
                name: link.name.to_string(),
                ifindex: Some(link.ifindex),
                role,
                hooks,
            })
        };
        Ok(state.links.iter().filter_map(one).collect())
    }

    fn floor(&self) -> String {
        let _network = self.network();
        self.state().floor.clone()
    }

    fn attached(&self) -> Result<Box<dyn Attached>, KernelError> {
        let _network = self.network();
        let mut state = self.state();
        state.looks += 1;
        let of = |link: &Link| {
            let hooks = self.config.role(&link.name).map(|role| Self::hooks(link, role));
            let at = |hook| (link.clone(), hook, !state.detached.contains(&(link.ifindex, hook)));
            hooks.into_iter().flatten().map(at).collect::<Vec<_>>()
        };
        Ok(Box::new(Found {
            kernel: self.clone(),
            hooks: state.links.iter().flat_map(of).collect(),
        }))
    }
}

/// Hooks, and whether a program was attached.
struct Found {
    kernel: FakeKernel,
    hooks: Vec<(Link, HookPoint, bool)>,
}

impl Attached for Found {
    fn read_back(&self, addresses: &[IpAddr]) -> Result<Vec<Vec<ReadBack>>, KernelError> {
        let state = self.kernel.state();
        let one = |address: &IpAddr| {
            let (pool, held) = (self.kernel.class(&state, *address), state.held(*address));
            let at = |(link, hook, attached): &(Link, HookPoint, bool)| ReadBack {
                interface: link.name.clone(),
                ifindex: link.ifindex,
                hook: *hook,
                reading: attached.then_some(ProgramReading {
                    program_id: 100 + link.ifindex,
                    map_id: MAP_ID,
                    pool,
                    session: held.map(|a| a.session),
                    lease_end: held.and_then(|a| a.lease).map(|l| state.lease_end.unwrap_or(l.0)),
                    bound_to: held.map_or(0, |a| state.index(&a.interface)),
                }),
            };
            self.hooks.iter().map(at).collect()
        };
        Ok(addresses.iter().map(one).collect())
    }
}
