//! What this data plane has at the interfaces: programs on hooks, entries beside them, the floor, routes. [`Places`], for real: everything
//! here takes the kernel's lock of the network configuration or a process, and may wait. No address's class and no record of a session
//! is touched here: those are the tables', which another thread writes.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gateway_ebpf::abi::VERSION;

use super::{
    counts::Counts,
    environment::{Error, Lock},
    flags::Flags,
    hooks::{self, Hooks},
    interfaces::Interfaces,
    maps::Maps,
    readback::Reader,
    tables::system,
};
use crate::{
    config::Config,
    floor::{self, Floor},
    kernel::{Attached, InterfaceState, KernelError, Link, Places, TableDifference},
    links::{self, LinkNow},
    model::InterfaceName,
    netlink::Kept,
    routes,
};

/// The floor is looked at this often even if nothing is known to have changed.
const LOOK: Duration = Duration::from_secs(5);

/// What the data plane has at the interfaces. Dropped, it leaves everything in force.
pub(super) struct Upkeep {
    config: Config,
    maps: Arc<Maps>,
    interfaces: Interfaces,
    standing: Mutex<Standing>,
    listing: Mutex<Kept>,
    reader: Mutex<Reader>,
    /// Held for as long as anyone may attach.
    _lock: Lock,
}

/// As it was left.
struct Standing {
    hooks: Hooks,
    /// `None` in observe mode.
    floor: Option<Floor>,
    /// `None`: nobody tells of changes, so the floor is looked at each time.
    changes: Option<floor::Changes>,
    /// The last look at the floor; `None`: it found something wrong, or failed.
    looked: Option<Look>,
    /// What was wrong with the routes when they were last set.
    route_problems: BTreeSet<String>,
    /// New maps are pinned once programs run on them.
    to_pin: Option<PathBuf>,
}

/// What the floor was found right for, and when.
struct Look {
    links: Vec<(u32, InterfaceName)>,
    judged: BTreeSet<u32>,
    at: Instant,
}

/// What an [`Upkeep`] is made of.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) maps: Arc<Maps>,
    pub(super) flags: Arc<Flags>,
    pub(super) hooks: Hooks,
    pub(super) floor: Option<Floor>,
    pub(super) changes: Option<floor::Changes>,
    pub(super) to_pin: Option<PathBuf>,
    pub(super) lock: Lock,
}

impl Upkeep {
    pub(super) fn new(parts: Parts) -> Result<Self, Error> {
        Ok(Self {
            config: parts.config,
            interfaces: Interfaces::new(Arc::clone(&parts.maps), parts.flags),
            maps: parts.maps,
            standing: Mutex::new(Standing {
                hooks: parts.hooks,
                floor: parts.floor,
                changes: parts.changes,
                looked: None,
                route_problems: BTreeSet::new(),
                to_pin: parts.to_pin,
            }),
            listing: Mutex::default(),
            reader: Mutex::default(),
            _lock: parts.lock,
        })
    }

    /// See [`Places::set_links`]; `links` is what the kernel says now.
    pub(super) fn look_after(&self, links: &[LinkNow]) {
        let mut standing = self.standing();
        match self.interfaces.set(&self.config, links) {
            Ok(missing) => standing.hooks.missing(missing),
            Err(e) => tracing::error!("interfaces' pools and VLANs cannot be set, so that they have none: {e}"),
        }
        standing.attach(&self.config, &self.maps, links);
        if let Err(e) = self.interfaces.forget(&self.config, links) {
            tracing::warn!("pools and VLANs of interfaces that are gone: {e}");
        }
        // Attaching to XDP changes what the list says of it; the floor and the routes need names and indexes only.
        if let Err(e) = standing.mend_floor(&self.config, links) {
            tracing::error!("the floor: {e}");
        }
        standing.set_routes(&self.config, links);
    }

    /// What a foreign hand has written into the entries of interfaces: puts it right. Waits for nobody who attaches.
    pub(super) fn compare_interfaces(&self, found: &mut Vec<TableDifference>) -> Result<(), KernelError> {
        let compared = self.interfaces.compare(found);
        compared.map_err(|e| system("comparing INTERFACES", e))
    }

    /// The interfaces that exist now; waited for however long the kernel's lock of the network configuration is held.
    fn list(&self) -> io::Result<Vec<LinkNow>> {
        links::now_by(&mut self.listing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places for Upkeep {
    fn set_links(&self, _links: &[Link]) {
        // The kernel's word now is newer than the caller's, and says what is attached.
        match self.list() {
            Ok(links) => self.look_after(&links),
            Err(e) => tracing::error!("listing interfaces: {e}"),
        }
    }

    fn interfaces(&self) -> Result<Vec<InterfaceState>, KernelError> {
        // Their turn first: what is attached meanwhile is to be seen.
        let standing = self.standing();
        let links = self.list().map_err(|e| system("listing interfaces", e))?;
        let counts = Counts::new(&self.maps).map_err(|e| system("reading counters", e))?;
        let mut all: Vec<InterfaceState> = links
            .iter()
            .filter_map(|l| {
                Some(InterfaceState {
                    name: l.link.name.to_string(),
                    ifindex: Some(l.link.ifindex),
                    role: self.config.role(&l.link.name)?,
                    hooks: standing
                        .hooks
                        .states(&self.config, l, &links, counts.no_metadata(l.link.ifindex) != 0),
                })
            })
            .collect();
        for rule in &self.config.interfaces {
            if !links.iter().any(|l| rule.name.matches(&l.link.name)) {
                all.push(InterfaceState {
                    name: rule.name.to_string(),
                    ifindex: None,
                    role: rule.role,
                    hooks: Vec::new(),
                });
            }
        }
        Ok(all)
    }

    fn floor(&self) -> String {
        let standing = match &self.standing().floor {
            None => floor::exists().map(|e| {
                if e {
                    "broken: it is closed although the mode is observe"
                } else {
                    "open"
                }
                .to_owned()
            }),
            Some(floor) => match self.list() {
                Ok(links) => floor.standing(&links).map(|s| {
                    if s.problem.is_empty() {
                        "closed".to_owned()
                    } else {
                        format!("broken: {}", s.problem)
                    }
                }),
                Err(e) => Ok(format!("not known: listing interfaces: {e}")),
            },
        };
        standing.unwrap_or_else(|e| format!("broken: {e}"))
    }

    /// Takes no turns: whoever attaches is not waited for.
    fn attached(&self) -> Result<Box<dyn Attached>, KernelError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(reader.look(&self.config)?))
    }
}

impl Standing {
    /// Attaches, and tells the floor at which interfaces our programs judge what is sent.
    fn attach(&mut self, config: &Config, maps: &Maps, links: &[LinkNow]) {
        let floor = &self.floor;
        self.hooks.attach(config, links, |index| {
            let gone = floor.as_ref().map(|f| f.judge(&BTreeSet::new(), &BTreeSet::from([index])));
            gone.unwrap_or(Ok(())).map_err(|e| e.to_string())
        });
        if let Some(directory) = self.to_pin.take()
            && let Err(e) = maps.pin(&directory)
        {
            tracing::error!(
                "pinning the maps in {}: {e}; the next start makes new ones",
                directory.display()
            );
            self.to_pin = Some(directory);
        }
        // Their links are ours now, so nothing reads the maps of other versions.
        if let Err(e) = hooks::remove_versions(&config.paths.pins, Some(VERSION)) {
            tracing::warn!("removing the pins of other versions: {e}");
        }
    }

    /// Closes the floor again if it was changed, and sets `judged` right. It is not looked at while neither nftables nor the interfaces
    /// nor what is attached to them changes: asking takes a process.
    fn mend_floor(&mut self, config: &Config, links: &[LinkNow]) -> Result<(), floor::FloorError> {
        let Some(floor) = &self.floor else { return Ok(()) };
        let want = hooks::judged(&self.hooks, config, links);
        let now: Vec<_> = links.iter().map(|l| (l.link.ifindex, l.link.name.clone())).collect();
        let changed = self.changes.as_ref().is_none_or(floor::Changes::any);
        let same = |last: &Look| last.links == now && last.judged == want && last.at.elapsed() < LOOK;
        if !changed && self.looked.as_ref().is_some_and(same) {
            return Ok(());
        }
        self.looked = None;
        let mut standing = floor.standing(links)?;
        if !standing.problem.is_empty() {
            tracing::error!("the floor was not closed: {}; closing it", standing.problem);
            let closed = Floor::close(config)?;
            standing = closed.standing(links)?;
            self.floor = Some(closed);
        }
        let add = want.difference(&standing.judged).copied().collect();
        let remove = standing.judged.difference(&want).copied().collect();
        self.floor.as_ref().map_or(Ok(()), |f| f.judge(&add, &remove))?;
        if standing.problem.is_empty() {
            self.looked = Some(Look {
                links: now,
                judged: want,
                at: Instant::now(),
            });
        }
        Ok(())
    }

    /// Says of the routes what is new.
    fn set_routes(&mut self, config: &Config, links: &[LinkNow]) {
        let problems: BTreeSet<String> = match routes::apply(config, links) {
            Ok(problems) => problems.into_iter().collect(),
            Err(e) => BTreeSet::from([format!("routes: {e}")]),
        };
        for new in problems.difference(&self.route_problems) {
            tracing::warn!("{new}");
        }
        for gone in self.route_problems.difference(&problems) {
            tracing::info!("no longer so: {gone}");
        }
        self.route_problems = problems;
    }
}
