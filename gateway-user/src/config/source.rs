//! `[[source]]`: what a VPN server has to do, and what belongs to it alone. Read, checked and built here; who holds what now is not known.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use ipnetwork::IpNetwork;

use super::{
    Config, InterfacePattern, InterfaceRole,
    raw::{RawInterface, RawPool},
    read::{At, Notes, Section, Wrong},
    values,
};
use crate::model::{InterfaceName, SourceName, prefix};

/// `[[source]]`: a VPN server. What one lists is its own: no other source has sessions there, and it has none elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: SourceName,
    /// Longest time between two lists of all its sessions; after it they end. `None`: however long.
    pub heartbeat: Option<Duration>,
    /// The interfaces on which its sessions may be; `None`: any that no other source lists or has.
    pub interfaces: Option<Vec<InterfacePattern>>,
    /// Where their addresses may lie; `None`: wherever no other source's must.
    pub prefixes: Option<Vec<IpNetwork>>,
}

/// Why a source has no session on an interface or with an address: another source's it is, or `None`: not one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotIts(pub Option<SourceName>);

impl Config {
    /// A source, if the file has it.
    #[must_use]
    pub fn source(&self, name: &SourceName) -> Option<&Source> {
        self.sources.iter().find(|s| s.name == *name)
    }

    /// Whether a source's sessions may be on an interface. `Ok(false)`: nobody lists it, nor does the source list others.
    ///
    /// # Errors
    /// See [`NotIts`].
    pub fn may_be_on(&self, source: &SourceName, interface: &InterfaceName) -> Result<bool, NotIts> {
        let lists = |s: &Source| s.interfaces.as_ref().map(|all| all.iter().any(|i| i.matches(interface)));
        self.listed(source, lists)
    }

    /// The same for an address, or a /64 by the address that stands for it.
    ///
    /// # Errors
    /// See [`NotIts`].
    pub fn may_have(&self, source: &SourceName, hold: IpAddr) -> Result<bool, NotIts> {
        let whole = prefix::network(hold);
        let within = |n: &IpNetwork| n.contains(hold) && (whole.is_none() || n.prefix() <= 64);
        let touches = |n: &IpNetwork| n.contains(hold) || whole.is_some_and(|w| same_64(n, w.into()));
        let lists = |s: &Source| {
            let all = s.prefixes.as_ref()?;
            // Another's it is as soon as any address of it is.
            Some(if s.name == *source {
                all.iter().any(within)
            } else {
                all.iter().any(touches)
            })
        };
        self.listed(source, lists)
    }

    /// `lists`: whether a source lists it; `None`: it lists nothing of this kind.
    fn listed(&self, source: &SourceName, lists: impl Fn(&Source) -> Option<bool>) -> Result<bool, NotIts> {
        match self.source(source).and_then(&lists) {
            Some(true) => Ok(true),
            own => match self.sources.iter().find(|s| s.name != *source && lists(s) == Some(true)) {
                Some(other) => Err(NotIts(Some(other.name.clone()))),
                None if own.is_some() => Err(NotIts(None)),
                None => Ok(false),
            },
        }
    }
}

/// Whether an IPv6 prefix longer than a /64 lies in the one that begins there.
fn same_64(prefix: &IpNetwork, network: IpAddr) -> bool {
    IpNetwork::new(network, 64).is_ok_and(|whole| whole.contains(prefix.network()))
}

/// As the file has it.
pub(super) struct RawSource {
    name: Option<At<SourceName>>,
    heartbeat: Option<At<Duration>>,
    interfaces: Option<At<Vec<At<InterfacePattern>>>>,
    prefixes: Option<At<Vec<At<IpNetwork>>>>,
}

impl RawSource {
    pub(super) fn read(s: &Section<'_, '_>, heartbeat: impl Fn(&str) -> Result<Duration, Wrong>) -> Self {
        s.require(
            "name",
            "write the source's name as its certificate or --source has it, name = \"vpn-1\"",
        );
        if !["heartbeat", "interfaces", "prefixes"].iter().any(|key| s.has(key)) {
            s.missing(
                "heartbeat",
                "write heartbeat = \"5m\": how long its sessions stay without a list of them; or interfaces or prefixes that are its own",
            );
        }
        let raw = Self {
            name: s.parsed("name", values::name),
            heartbeat: s.parsed("heartbeat", heartbeat),
            interfaces: s.list("interfaces", values::interface_pattern),
            prefixes: s.list("prefixes", values::prefix),
        };
        let lists = [
            ("interfaces", raw.interfaces.as_ref().map(|l| l.at)),
            ("prefixes", raw.prefixes.as_ref().map(|l| l.at)),
        ];
        for (key, at) in lists {
            if let Some(at) = at.filter(|_| s.is_empty_list(key)) {
                let remedy = format!("leave {key} out for all that no other source lists; an empty list is not taken for it");
                s.wrong(&At { value: (), at }, key, Wrong::new("the list is empty", remedy));
            }
        }
        raw
    }

    fn interfaces(&self) -> impl Iterator<Item = &At<InterfacePattern>> {
        self.interfaces.iter().flat_map(|l| &l.value)
    }

    fn prefixes(&self) -> impl Iterator<Item = &At<IpNetwork>> {
        self.prefixes.iter().flat_map(|l| &l.value)
    }

    /// `None`: a value that must be there is not.
    pub(super) fn build(self) -> Option<Source> {
        let values = |l: At<Vec<At<IpNetwork>>>| l.value.into_iter().map(|n| n.value).collect();
        let patterns = |l: At<Vec<At<InterfacePattern>>>| l.value.into_iter().map(|i| i.value).collect();
        Some(Source {
            name: self.name?.value,
            heartbeat: self.heartbeat.map(|h| h.value),
            interfaces: self.interfaces.map(patterns),
            prefixes: self.prefixes.map(values),
        })
    }
}

/// Names that stand twice; what two sources list, or one twice; what leads to no device.
pub(super) fn check(notes: &Notes<'_>, sources: &[RawSource], interfaces: &[RawInterface], pools: &[RawPool]) {
    let mut names: HashMap<&SourceName, usize> = HashMap::new();
    for name in sources.iter().filter_map(|s| s.name.as_ref()) {
        if let Some(first) = names.insert(&name.value, name.at) {
            let problem = format!("{:?} stands twice, first in line {}", name.value.as_str(), notes.line(first));
            notes.note(
                name.at,
                "source.name",
                Wrong::new(problem, "write all of a source in one section, and leave the other out"),
            );
        }
    }
    let shown = |i: &InterfacePattern| format!("\"{i}\"");
    disjoint(notes, "source.interfaces", sources, RawSource::interfaces, meet, shown);
    disjoint(
        notes,
        "source.prefixes",
        sources,
        RawSource::prefixes,
        values::overlaps,
        ToString::to_string,
    );
    for interface in sources.iter().flat_map(RawSource::interfaces) {
        let leads = |i: &RawInterface| {
            i.role.as_ref().is_none_or(|r| r.value == InterfaceRole::Device)
                && i.name.as_ref().is_none_or(|n| meet(&n.value, &interface.value))
        };
        if !interfaces.iter().any(leads) {
            let problem = format!("no [[interface]] of role device is \"{}\"", interface.value);
            let remedy = "name the interface on which its clients' packets arrive, and give it the role device";
            notes.note(interface.at, "source.interfaces", Wrong::new(problem, remedy));
        }
    }
    for prefix in sources.iter().flat_map(RawSource::prefixes) {
        let mut of_pools = pools.iter().flat_map(|p| &p.prefixes);
        if !of_pools.any(|p| values::overlaps(&p.value, &prefix.value)) {
            let problem = format!("{} is in no pool", prefix.value);
            notes.note(
                prefix.at,
                "source.prefixes",
                Wrong::new(problem, "name prefixes of pools' addresses, which the source gives out"),
            );
        }
    }
}

fn disjoint<'a, T: 'a, L: Iterator<Item = &'a At<T>>>(
    notes: &Notes<'_>,
    key: &str,
    sources: &'a [RawSource],
    list: impl Fn(&'a RawSource) -> L,
    overlap: impl Fn(&T, &T) -> bool,
    shown: impl Fn(&T) -> String,
) {
    let mut seen: Vec<(&'a RawSource, &'a At<T>)> = Vec::new();
    for source in sources {
        for one in list(source) {
            if let Some((other, earlier)) = seen.iter().find(|(_, e)| overlap(&e.value, &one.value)) {
                let whose = other.name.as_ref().map_or("a source without name".to_owned(), |n| {
                    format!("source {:?}", n.value.as_str())
                });
                let problem = format!(
                    "{} overlaps {} of {whose} in line {}",
                    shown(&one.value),
                    shown(&earlier.value),
                    notes.line(earlier.at)
                );
                let remedy = "what a source lists is its own alone: leave one out, or give both servers one name";
                notes.note(one.at, key, Wrong::new(problem, remedy));
            }
            seen.push((source, one));
        }
    }
}

/// Whether two patterns can mean one interface.
fn meet(a: &InterfacePattern, b: &InterfacePattern) -> bool {
    let begins = |long: &InterfaceName, short: &InterfaceName| long.as_str().starts_with(short.as_str());
    match (a, b) {
        (InterfacePattern::Name(name), other) | (other, InterfacePattern::Name(name)) => other.matches(name),
        (InterfacePattern::Prefix(a), InterfacePattern::Prefix(b)) => begins(a, b) || begins(b, a),
    }
}
