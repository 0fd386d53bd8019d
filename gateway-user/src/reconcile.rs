//! From what should be to what the kernel has: [`plan`] compares and says what to do, in an order that never loosens early; [`apply`] is
//! the one place that changes kernel state. Pure but for [`apply`] and [`observe`], which only speak to [`Kernel`].

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    config::{Config, Pool, PoolKind},
    kernel::{AddressReading, Assignment, Kernel, KernelError, Link},
    model::{BootTime, Device, DeviceState, InterfaceName, PoolId, Session, SessionId},
    transition::{Context, release_end, released_for},
};

/// What the kernel should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// By address of a live session.
    pub addresses: BTreeMap<IpAddr, Assignment>,
    /// The end of the lease that ends first.
    pub earliest: Option<BootTime>,
}

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// By assigned address.
    pub addresses: BTreeMap<IpAddr, Held>,
    /// As last set.
    pub earliest: Option<BootTime>,
}

/// What the kernel has for one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Whose policy.
    pub pool: Option<PoolId>,
    /// Whose address.
    pub session: Option<SessionId>,
    /// On which interface.
    pub interface: Option<InterfaceName>,
    /// Until when, and whose policy afterwards.
    pub lease: Option<(BootTime, PoolId)>,
}

/// A change of kernel state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`Kernel::clear`].
    Clear(IpAddr),
    /// [`Kernel::assign`].
    Assign(IpAddr, Assignment),
    /// [`Kernel::set_earliest_lease_end`].
    EarliestLeaseEnd(Option<BootTime>),
    /// [`Kernel::follow`].
    Links(Vec<Link>),
}

/// What an address of a live session is to be judged by. `None`: the configuration has it in no pool.
#[must_use]
pub fn assignment(address: IpAddr, session: &Session, device: Option<&Device>, context: &Context<'_>) -> Option<Assignment> {
    let config = context.config;
    let home = config.home(address)?;
    let resting = resting(device, home, config);
    let released = device.and_then(|d| Some((d, released_for(d, session.trust, context)?)));
    Some(match released {
        Some((device, pool)) => Assignment {
            pool: pool.id,
            session: session.id,
            interface: session.interface.clone(),
            lease: release_end(device, &context.now).map(|end| (end, resting)),
        },
        None => Assignment {
            pool: resting,
            session: session.id,
            interface: session.interface.clone(),
            lease: None,
        },
    })
}

/// The same, with a release left out: how an address starts, before the session is durable.
#[must_use]
pub fn unreleased(address: IpAddr, session: &Session, device: Option<&Device>, config: &Config) -> Option<Assignment> {
    let pool = resting(device, config.home(address)?, config);
    Some(Assignment {
        pool,
        session: session.id,
        interface: session.interface.clone(),
        lease: None,
    })
}

/// What should be for these sessions. An address in no pool is left out.
#[must_use]
pub fn desired<'a>(
    sessions: impl Iterator<Item = (&'a Session, Option<&'a Device>)>,
    earliest: Option<BootTime>,
    context: &Context<'_>,
) -> Desired {
    let of = |(session, device): (&'a Session, Option<&'a Device>)| {
        let one = move |a| Some((a, assignment(a, session, device, context)?));
        session.addresses.iter().filter_map(one)
    };
    Desired {
        addresses: sessions.flat_map(of).collect(),
        earliest,
    }
}

/// What the kernel has now, address by address. `earliest` is what was last set: the programs' word cannot be read back.
///
/// # Errors
/// See [`KernelError`].
pub fn observe(kernel: &dyn Kernel, earliest: Option<BootTime>) -> Result<Observed, KernelError> {
    let held = |(address, r): (IpAddr, AddressReading)| {
        let held = Held {
            pool: r.pool,
            session: r.session,
            interface: r.interface,
            lease: r.lease_end.zip(r.fallback),
        };
        (address, held)
    };
    let addresses = kernel.assigned()?.into_iter().map(held).collect();
    Ok(Observed { addresses, earliest })
}

/// What to do: first what restricts, then what loosens. The word that makes the programs look at leases moves forward before the first
/// leased address appears, and back only when those whose leases are over have been restricted.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed, config: &Config) -> Vec<Op> {
    let mut ops = Vec::new();
    let sooner = sooner(desired.earliest, observed.earliest);
    if sooner != observed.earliest {
        ops.push(Op::EarliestLeaseEnd(sooner));
    }
    ops.extend(
        observed
            .addresses
            .keys()
            .filter(|a| !desired.addresses.contains_key(a))
            .map(|a| Op::Clear(*a)),
    );
    let differs = |(address, wanted): &(&IpAddr, &Assignment)| {
        observed.addresses.get(*address)
            != Some(&Held {
                pool: Some(wanted.pool),
                session: Some(wanted.session),
                interface: Some(wanted.interface.clone()),
                lease: wanted.lease,
            })
    };
    let (loosening, restricting): (Vec<_>, Vec<_>) = desired
        .addresses
        .iter()
        .filter(differs)
        .partition(|(_, wanted)| loosens(wanted.pool, config));
    ops.extend(
        restricting
            .into_iter()
            .chain(loosening)
            .map(|(address, wanted)| Op::Assign(*address, wanted.clone())),
    );
    if desired.earliest != sooner {
        ops.push(Op::EarliestLeaseEnd(desired.earliest));
    }
    ops
}

/// The earlier of two ends; `None` is never.
#[must_use]
pub fn sooner(a: Option<BootTime>, b: Option<BootTime>) -> Option<BootTime> {
    a.into_iter().chain(b).min()
}

/// Whether judging by this pool is a release.
#[must_use]
pub fn loosens(pool: PoolId, config: &Config) -> bool {
    config.pool_by_id(pool).is_none_or(|p| p.kind == PoolKind::FullService)
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// What the kernel refused.
    pub failed: Vec<(Op, KernelError)>,
    /// The word for the first end of a lease, if it was set.
    pub earliest: Option<Option<BootTime>>,
}

/// Does it, all of it: one failure does not keep the rest from being done. Only after a failure the word for the first end of a lease is
/// not moved back: the programs go on looking at what could not be restricted.
pub fn apply(ops: Vec<Op>, kernel: &mut dyn Kernel) -> Applied {
    let mut applied = Applied::default();
    let mut assigning = Vec::new();
    for op in ops {
        if !matches!(op, Op::Assign(..)) {
            assign(&mut assigning, kernel, &mut applied);
        }
        let result = match &op {
            Op::Assign(address, to) => {
                assigning.push((*address, to.clone()));
                Ok(())
            }
            Op::Clear(address) => kernel.clear(*address),
            Op::EarliestLeaseEnd(end) => {
                if applied.failed.is_empty() {
                    kernel.set_earliest_lease_end(*end);
                    applied.earliest = Some(*end);
                }
                Ok(())
            }
            Op::Links(links) => {
                kernel.follow(links);
                Ok(())
            }
        };
        if let Err(error) = result {
            applied.failed.push((op, error));
        }
    }
    assign(&mut assigning, kernel, &mut applied);
    applied
}

/// Assigns what has come together.
fn assign(all: &mut Vec<(IpAddr, Assignment)>, kernel: &mut dyn Kernel, applied: &mut Applied) {
    let failed = match all.as_slice() {
        [] => return,
        [(address, to)] => kernel
            .assign(*address, to.clone())
            .err()
            .map(|e| (0, e))
            .into_iter()
            .collect(),
        many => kernel.assign_all(many),
    };
    let of = |(place, error): (usize, KernelError)| {
        let (address, to) = all.get(place)?.clone();
        Some((Op::Assign(address, to), error))
    };
    applied.failed.extend(failed.into_iter().filter_map(of));
    all.clear();
}

/// The pool that judges an address of this device while it is not released.
fn resting(device: Option<&Device>, home: &Pool, config: &Config) -> PoolId {
    let shut = device.is_some_and(|d| matches!(d.state, DeviceState::Blocked | DeviceState::Retired));
    let blocked = config.pools.iter().find(|p| shut && p.kind == PoolKind::Blocked);
    blocked.map_or_else(|| config.resting(home), |p| p.id)
}

#[cfg(test)]
mod tests;
