//! What the reference needs of a configuration, taken from its text by a few lines of its own.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use toml::Value;

/// Of `[[pool]]`, `[[policy]]` and `[[interface]]`.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// A pool's number is its place, from 1.
    pub pools: Vec<Pool>,
    /// By name.
    pub policies: Vec<Policy>,
    /// In order.
    pub interfaces: Vec<Interface>,
}

/// `[[pool]]`.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Place, from 1.
    pub number: u8,
    /// Name.
    pub name: String,
    /// Prefixes.
    pub prefixes: Vec<IpNetwork>,
    /// Addresses in them that are in no pool.
    pub reserved: Vec<IpAddr>,
    /// Name of the policy.
    pub policy: String,
    /// Name of the pool that judges its addresses at rest.
    pub fallback: Option<String>,
    /// `deny = "reject"`.
    pub reject: bool,
}

/// `[[policy]]`.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Name.
    pub name: String,
    /// "all", "nothing", or rules.
    pub allow: Option<String>,
    /// `[[policy.rule]]`.
    pub rules: Vec<Rule>,
}

/// `[[policy.rule]]`.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Place among all rules of the configuration, from 1.
    pub number: u16,
    /// `from = ...`: peers may reach devices. Otherwise `to = ...`: devices may reach peers.
    pub to_device: bool,
    /// The peers.
    pub peers: Vec<IpNetwork>,
    /// "tcp", "udp", "icmp", "any" or a number.
    pub protocol: String,
    /// First and last; empty: all.
    pub ports: Vec<(u16, u16)>,
}

/// `[[interface]]`.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Name, or its beginning and `*`.
    pub name: String,
    /// Names of the pools whose addresses may be at rest here; `None`: all.
    pub pools: Option<Vec<String>>,
    /// VLANs, outer and inner id; inner 0: a single tag.
    pub vlans: Vec<Vec<u16>>,
}

impl Configuration {
    /// Takes it from the text.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let root: toml::Table = text.parse().unwrap_or_else(|e| panic!("{e}\n{text}"));
        let mut numbers = 1..;
        Self {
            pools: (1..).zip(list(&root, "pool")).map(|(n, p)| pool(n, table(p))).collect(),
            policies: list(&root, "policy").iter().map(|p| policy(table(p), &mut numbers)).collect(),
            interfaces: list(&root, "interface").iter().map(|i| interface(table(i))).collect(),
        }
    }

    /// The pool of this name.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn pool(&self, name: &str) -> &Pool {
        self.pools
            .iter()
            .find(|p| p.name == name)
            .unwrap_or_else(|| panic!("no pool {name}"))
    }

    /// What is said of an interface; the first entry that matches counts.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| match i.name.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => i.name == name,
        })
    }
}

fn pool(number: u8, t: &toml::Table) -> Pool {
    Pool {
        number,
        name: text(t, "name").unwrap_or_default(),
        prefixes: texts(t, "prefixes").iter().map(|p| network(p)).collect(),
        reserved: texts(t, "reserved").iter().map(|a| network(a).ip()).collect(),
        policy: text(t, "policy").unwrap_or_default(),
        fallback: text(t, "fallback"),
        reject: text(t, "deny").as_deref() == Some("reject"),
    }
}

fn policy(t: &toml::Table, numbers: &mut impl Iterator<Item = u16>) -> Policy {
    let allow = text(t, "allow");
    let rules = list(t, "rule").iter().map(|r| rule(table(r), numbers.next().unwrap_or(0)));
    Policy {
        name: text(t, "name").unwrap_or_default(),
        rules: rules.collect(),
        allow,
    }
}

fn rule(t: &toml::Table, number: u16) -> Rule {
    let to_device = t.contains_key("from");
    let peers = texts(t, if to_device { "from" } else { "to" });
    let ports = texts(t, "ports");
    let port = |text: &str| text.trim().parse::<u16>().unwrap_or_else(|e| panic!("port {text}: {e}"));
    Rule {
        number,
        to_device,
        peers: peers.iter().map(|p| network(p)).collect(),
        protocol: text(t, "protocol").unwrap_or_default(),
        ports: ports
            .iter()
            .map(|p| {
                p.split_once('-')
                    .map_or_else(|| (port(p), port(p)), |(first, last)| (port(first), port(last)))
            })
            .collect(),
    }
}

fn interface(t: &toml::Table) -> Interface {
    let vlan = |text: &String| {
        text.split('.')
            .map(|id| id.parse().unwrap_or_else(|e| panic!("vlan {text}: {e}")))
            .collect()
    };
    Interface {
        name: text(t, "name").unwrap_or_default(),
        pools: t.contains_key("pools").then(|| texts(t, "pools")),
        vlans: texts(t, "vlans").iter().map(vlan).collect(),
    }
}

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn list<'a>(t: &'a toml::Table, key: &str) -> &'a [Value] {
    t.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn table(v: &Value) -> &toml::Table {
    v.as_table().unwrap_or_else(|| panic!("{v} is no table"))
}

fn text(t: &toml::Table, key: &str) -> Option<String> {
    t.get(key).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
}

fn texts(t: &toml::Table, key: &str) -> Vec<String> {
    let each = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    list(t, key).iter().map(each).collect()
}
