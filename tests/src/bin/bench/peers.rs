//! nftables rulesets that mean what the gateway's configuration does, for a million addresses, as text; and how they are loaded.

use std::{fmt::Write as _, io::Write as _, net::Ipv4Addr, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use lazaret_tests::netns::Namespace;

use crate::{
    gateway::{MILLION, POOLS, PORT, PORT_BITS, QUARANTINED, RELEASED, pool},
    programs::DESTINATIONS,
};

/// The same policy: a class for each address, since each moves on its own; a chain and a set of destinations for each class.
pub(crate) fn same_policy() -> String {
    let mut s = String::from("table ip peer {\n");
    let mut allowed = String::new();
    for (i, port) in (0..DESTINATIONS).flat_map(|i| (PORT..PORT + (1 << PORT_BITS)).map(move |p| (i, p))) {
        let _ = write!(allowed, "10.200.{i}.0/24 . udp . {port}, ");
    }
    for p in 0..POOLS {
        let _ = writeln!(
            s,
            " set allowed{p} {{ type ipv4_addr . inet_proto . inet_service; flags interval; elements = {{ {allowed} }} }}"
        );
        let _ = writeln!(
            s,
            " chain quarantine{p} {{ ip daddr . meta l4proto . th dport @allowed{p} accept\n drop\n }}"
        );
    }
    s += &vmap();
    s += " chain forward { type filter hook forward priority 0; policy drop; ip saddr vmap @classes\n }\n}\n";
    s
}

/// The map alone, with chains to go to. Without the sets of destinations: the library reads all interval sets of a table before it changes an
/// element, and `nft -f` would load them too, neither of which is the price of a class.
pub(crate) fn only_classes() -> String {
    let mut s = String::from("table ip peer {\n");
    for p in 0..POOLS {
        let _ = writeln!(s, " chain quarantine{p} {{ accept\n }}");
    }
    s + &vmap() + "}\n"
}

/// The map of a million addresses to their classes.
fn vmap() -> String {
    let mut s = String::from(" map classes { type ipv4_addr : verdict; size 2097152; elements = {\n");
    for a in QUARANTINED..QUARANTINED + (1 << MILLION) {
        let _ = writeln!(s, "{} : goto quarantine{},", Ipv4Addr::from(a), pool(a));
    }
    s + " } }\n"
}

/// A set of the released million; what is not in it is dropped, in a chain of this hook.
pub(crate) fn released_only(family: &str, hook: &str) -> String {
    let mut s = format!("table {family} peer {{\n set released {{ type ipv4_addr; size 2097152; elements = {{\n");
    for a in RELEASED..RELEASED + (1 << MILLION) {
        let _ = writeln!(s, "{},", Ipv4Addr::from(a));
    }
    let _ = write!(
        s,
        " }} }}\n chain check {{ type filter hook {hook}; policy drop; ip saddr @released accept\n }}\n}}\n"
    );
    s
}

/// The released million for `ipset restore`.
pub(crate) fn ipset() -> String {
    let mut s = String::from("create released hash:ip hashsize 524288 maxelem 2097152\n");
    for a in RELEASED..RELEASED + (1 << MILLION) {
        let _ = writeln!(s, "add released {}", Ipv4Addr::from(a));
    }
    s
}

/// Loads a ruleset.
pub(crate) fn load(namespace: &Namespace, rules: &str) -> Result<()> {
    feed(namespace, &["nft", "-f", "-"], rules)
}

/// Runs a program with `input` in a namespace.
pub(crate) fn feed(namespace: &Namespace, program: &[&str], input: &str) -> Result<()> {
    let mut child = namespace
        .command(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .spawn()
        .context(program[0].to_owned())?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    ensure!(child.wait()?.success(), "{} refused its input", program[0]);
    Ok(())
}
