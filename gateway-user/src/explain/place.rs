//! Where a packet is judged: the interface that was named, or the only one that comes into question. Pure.

use std::fmt;

use crate::{
    config::{Config, InterfaceRole},
    controller::{EndView, PlaceView, Surroundings},
    kernel::{HookPoint, HookState, Link},
    model::InterfaceName,
};

/// Where, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The interface.
    pub link: Link,
    /// Its role.
    pub role: InterfaceRole,
    /// On its way out, not in.
    pub egress: bool,
    /// The hook that judges: the first with a program of ours attached; if there is none, the one that should have one.
    pub hook: HookState,
    /// Why this interface.
    pub chosen: String,
}

/// Why no place was found; for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaced {
    /// There is none of this name.
    #[error("there is no interface {0}")]
    Unknown(InterfaceName),
    /// Nothing is judged there.
    #[error("interface {0} has no role in the configuration: nothing is judged there but what reaches a device interface")]
    NoRole(InterfaceName),
    /// Nothing is judged on the way out through a core interface.
    #[error("interface {0} is a core interface: what leaves there was judged where it came in")]
    CoreEgress(InterfaceName),
    /// Several, or none, come into question.
    #[error("{0}")]
    Ambiguous(Ambiguous),
}

/// Which ones come into question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ambiguous {
    /// Of which role.
    pub role: InterfaceRole,
    /// Their names.
    pub among: Vec<InterfaceName>,
    /// Why the session does not say which.
    pub why: String,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = role_name(self.role);
        if self.among.is_empty() {
            return write!(f, "{}, and there is no {role} interface now", self.why);
        }
        let names: Vec<&str> = self.among.iter().map(InterfaceName::as_str).collect();
        write!(
            f,
            "{}, and there are several {role} interfaces ({}): name one",
            self.why,
            names.join(", ")
        )
    }
}

/// Finds the place: the interface `named`, or that of the session of the end that is nearer to it, or the only one of the role that the
/// end's address points to.
///
/// # Errors
/// See [`Unplaced`].
pub fn choose(
    config: &Config,
    around: &Surroundings,
    [source, destination]: [&EndView; 2],
    named: Option<&InterfaceName>,
    egress: bool,
) -> Result<Place, Unplaced> {
    let end = if egress { destination } else { source };
    let (found, chosen) = match named {
        Some(name) => (with_role(config, around, name)?, "it was named".to_owned()),
        None => match &end.session {
            Some(s) => {
                let found = with_role(config, around, &s.session.interface)?;
                (found, format!("{} has its session there", end.address))
            }
            None => only(config, around, end, egress)?,
        },
    };
    if egress && found.role == InterfaceRole::Core {
        return Err(Unplaced::CoreEgress(found.link.name.clone()));
    }
    Ok(Place {
        link: found.link.clone(),
        role: found.role,
        egress,
        hook: judge(found, egress),
        chosen,
    })
}

/// The role's name in the configuration.
#[must_use]
pub fn role_name(role: InterfaceRole) -> &'static str {
    match role {
        InterfaceRole::Device => "device",
        InterfaceRole::Core => "core",
    }
}

fn with_role<'a>(config: &Config, around: &'a Surroundings, name: &InterfaceName) -> Result<&'a PlaceView, Unplaced> {
    let found = around.places.iter().find(|p| p.link.name == *name);
    found.ok_or_else(|| {
        if around.others.contains(name) && config.role(name).is_none() {
            Unplaced::NoRole(name.clone())
        } else {
            Unplaced::Unknown(name.clone())
        }
    })
}

/// The only interface of the role that an address without a session points to.
fn only<'a>(config: &Config, around: &'a Surroundings, end: &EndView, egress: bool) -> Result<(&'a PlaceView, String), Unplaced> {
    let home = config.home(end.address);
    let (role, why) = match home {
        Some(pool) => (
            InterfaceRole::Device,
            format!("{} is in pool {} and has no live session", end.address, pool.name),
        ),
        None if egress => (InterfaceRole::Device, format!("{} is in no pool", end.address)),
        None => (InterfaceRole::Core, format!("{} is in no pool", end.address)),
    };
    let among: Vec<&PlaceView> = around.places.iter().filter(|p| p.role == role).collect();
    match among[..] {
        [one] => Ok((one, format!("{why}; it is the only {} interface", role_name(role)))),
        _ => Err(Unplaced::Ambiguous(Ambiguous {
            role,
            among: among.iter().map(|p| p.link.name.clone()).collect(),
            why,
        })),
    }
}

/// The first hook that judges a packet of this direction.
fn judge(place: &PlaceView, egress: bool) -> HookState {
    let of_direction = |h: &&HookState| (h.hook == HookPoint::TcEgress) == egress;
    let hooks = || place.hooks.iter().filter(of_direction);
    let missing = HookState {
        hook: if egress { HookPoint::TcEgress } else { HookPoint::TcIngress },
        mode: "",
        program_id: None,
        problem: "not attached".to_owned(),
    };
    hooks()
        .find(|h| h.program_id.is_some())
        .or_else(|| hooks().next_back())
        .cloned()
        .unwrap_or(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(hook: HookPoint, program_id: Option<u32>) -> HookState {
        HookState {
            hook,
            mode: "",
            program_id,
            problem: String::new(),
        }
    }

    /// The first hook with a program of ours judges; where none has one, none is said to be attached.
    #[test]
    fn the_hook_that_judges() {
        let at = |xdp, ingress, egress| PlaceView {
            link: Link {
                ifindex: 7,
                name: "dev0".parse().unwrap(),
                ethernet: true,
            },
            role: InterfaceRole::Device,
            hooks: vec![
                hook(HookPoint::Xdp, xdp),
                hook(HookPoint::TcIngress, ingress),
                hook(HookPoint::TcEgress, egress),
            ],
        };
        let judging = |place: &PlaceView, egress| {
            let judge = judge(place, egress);
            (judge.hook, judge.program_id)
        };
        let all = at(Some(1), Some(2), Some(3));
        assert_eq!(judging(&all, false), (HookPoint::Xdp, Some(1)));
        assert_eq!(judging(&all, true), (HookPoint::TcEgress, Some(3)));
        assert_eq!(judging(&at(None, Some(2), Some(3)), false), (HookPoint::TcIngress, Some(2)));
        let none = at(None, None, None);
        assert_eq!(judging(&none, false), (HookPoint::TcIngress, None));
        assert_eq!(judging(&none, true), (HookPoint::TcEgress, None));
        let nothing = PlaceView {
            hooks: Vec::new(),
            ..none
        };
        assert_eq!(judging(&nothing, false), (HookPoint::TcIngress, None));
        assert_eq!(judge(&nothing, false).problem, "not attached");
    }
}
